"""`FlopCounterMode` counts a frozen model as the dense one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import frozen_kernels as fk

MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)), (2, 3, 9)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Flatten(2), nn.Conv1d(6, 2, 3)),
        (2, 4, 6, 5),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose3d(4, 6, (1, 2, 2), 2, groups=2), nn.Conv3d(6, 2, 1)),
        (2, 4, 2, 3, 4),
    ),
}


def counted(model: nn.Module, x: torch.Tensor) -> list[int]:
    """Of a forward, of one with its backward, and of a backward alone."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    found = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    found.append(counter.get_total_flops())
    x = x.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    found.append(counter.get_total_flops())
    y = model(x).sum()
    with FlopCounterMode(display=False) as counter:
        y.backward()
    return [*found, counter.get_total_flops()]


@pytest.mark.parametrize("name", MODELS)
def test_as_many_as_the_dense_model(name):
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    fk.freeze_(model)
    expected = counted(fk.to_dense(model), x.clone())
    assert all(expected)
    assert counted(model, x) == expected
    fk.set_residency(model, "dense")
    assert counted(model, x) == expected


LATER = """
import sys, torch, frozen_kernels as fk
assert "torch.utils.flop_counter" not in sys.modules
finders = [f for f in sys.meta_path if type(f).__module__.startswith("frozen_kernels")]
assert len(finders) == 1
layer = fk.nn.FrozenLinear(5, 3)
from torch.utils.flop_counter import FlopCounterMode
assert not set(finders) & set(sys.meta_path)
with torch.inference_mode(), FlopCounterMode(display=False) as counter:
    layer(torch.ones(2, 5))
assert counter.get_total_flops() == 2 * 2 * 5 * 3, counter.get_total_flops()
"""


def test_a_counter_imported_after_the_layers_counts_them():
    subprocess.run([sys.executable, "-c", LATER], check=True)
