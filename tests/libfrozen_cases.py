"""Layers of every kind and code in one model, and the same calls by torch's layers and by libfrozen."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels import runtime
from frozen_kernels.runtime import library as bindings
from frozen_kernels.runtime import ticket as wrapper

LIBRARY = Path(fk.__file__).parent / bindings.NAME


class Case(NamedTuple):
    """A layer, inputs, and the same call by an open ticket."""

    layer: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    options: dict[str, Any]


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(70, 33), ((1, 70), (5, 70), (2, 21, 70)), {}),
    "few": Case(lambda: nn.Linear(9, 3, bias=False), ((1, 9), (4, 9)), {}),
    "wide": Case(lambda: nn.Linear(256, 128), ((1, 256), (3, 256), (130, 256)), {}),
    "conv1d": Case(
        lambda: nn.Conv1d(6, 8, 5, stride=2, padding=3, dilation=2), ((2, 6, 30),),
        {"stride": 2, "padding": 3, "dilation": 2},
    ),
    "conv2d": Case(lambda: nn.Conv2d(24, 32, 3, padding=1), ((1, 24, 9, 11), (3, 24, 16, 16)), {"padding": 1}),
    "strided": Case(
        lambda: nn.Conv2d(8, 20, (3, 2), stride=(2, 1), padding=(0, 1), groups=4, bias=False), ((2, 8, 13, 10),),
        {"stride": (2, 1), "padding": (0, 1), "groups": 4},
    ),
    "pointwise": Case(lambda: nn.Conv2d(48, 64, 1), ((1, 48, 1, 1), (2, 48, 12, 12)), {}),
    "depthwise": Case(
        lambda: nn.Conv2d(20, 20, 3, padding=1, groups=20), ((2, 20, 9, 9),), {"padding": 1, "groups": 20}
    ),
    "conv3d": Case(lambda: nn.Conv3d(3, 5, 3, padding=1), ((1, 3, 5, 6, 7),), {"padding": 1}),
    "embedding": Case(lambda: nn.Embedding(50, 37, padding_idx=3), (), {"padding_idx": 3}),
}  # fmt: skip
DRAWN = ("sign", "uniform", "normal", "constant")
STORED = ("float32", "float16", "bfloat16", "int8")
KINDS = (*DRAWN, *STORED, "signs", "coats", "signs in coats", "generations")


def model_of(kind: str) -> nn.ModuleDict:
    """All cases with weights of a code, or with what a feature adds to them."""
    model = nn.ModuleDict({name: case.layer() for name, case in CASES.items()})

    def every(module: nn.Module, name: str) -> bool:
        return "." not in name and bool(name)

    if kind in STORED:
        fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.6), every)
        return fk.finalize_(model, kind) or model
    if kind.startswith("signs"):
        with torch.no_grad():
            for name, module in model.named_children():
                rows = module.weight.shape[0] if name in ("linear", "conv2d", "embedding") else 1
                scale = torch.rand(rows, *[1] * (module.weight.dim() - 1))
                module.weight.copy_(torch.randint(-1, 2, module.weight.shape) * scale)
        fk.importers.ternary_(model, filter_fn=every)
    else:
        code = "sign" if kind == "coats" else "normal" if kind == "generations" else kind
        fk.freeze_(model, fk.FreezeConfig(seed=11, code=code, sparsity=0.5, freeze_ratio=0.6), every)
    fk.finalize_(model)
    for name, module in model.named_children():
        if not isinstance(module, fk.nn.FrozenLayer):
            continue
        if "coats" in kind and name in ("linear", "conv2d", "embedding"):
            counts = torch.randint(0, 4, (module.free,), dtype=torch.uint8)
            if kind.startswith("signs"):  # the sign of a weight that is dropped is gone
                counts[~fk.format.unpack_bits(module.packed_supermask(), module.free)] = 0
            module.adopt_counts(counts, coats=3)
        if kind == "generations" and name in ("wide", "strided", "embedding"):
            for _ in range(2):
                module.redraw(torch.rand(module.free) < 0.5)
    return model


def with_gains(model: nn.ModuleDict) -> None:
    """A gain for each output of some layers."""
    for name in ("linear", "strided", "depthwise"):
        model[name].gain = torch.rand(model[name].weight.shape[0]) + 0.5


def same_bits(got: np.ndarray, expected: torch.Tensor) -> bool:
    wanted = expected.detach().contiguous().numpy()
    return got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


def inputs_of(name: str) -> list[torch.Tensor]:
    if name == "embedding":
        return [torch.randint(0, 50, (7, 3))]
    return [torch.randn(shape) for shape in CASES[name].inputs]


def call(ticket: runtime.Ticket, name: str, x: torch.Tensor, **more: Any) -> np.ndarray:
    if name == "embedding":
        return ticket.embedding(name, x.numpy(), **CASES[name].options)
    if ticket.weights[name].shape[2:]:
        return ticket.conv(name, x.numpy(), **CASES[name].options, **more)
    return ticket.linear(name, x.numpy(), **more)


@contextmanager
def library_on(isa: str, folder: Path, monkeypatch: Any) -> Iterator[ctypes.CDLL]:
    """The runtime on a copy of libfrozen that uses these instructions: each copy asks for them once."""
    copy = folder / f"{isa}-{bindings.NAME}"
    if not copy.exists():
        shutil.copy(LIBRARY, copy)
    with monkeypatch.context() as patch:
        patch.setitem(os.environ, "FROZEN_KERNELS_ISA", isa)
        loaded = bindings.load(copy)
        patch.setattr(bindings, "library", lambda: loaded)
        patch.setattr(wrapper, "library", lambda: loaded)
        assert runtime.isa() == isa
        yield loaded
