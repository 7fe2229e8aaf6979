"""Sums of few terms: torch takes them for dot products and sums them in many short chains, so one long chain shows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import frozen_kernels as fk

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

OPS = torch.ops.frozen_kernels
RESULTS = 800  # of each case, over all draws: the ratio of two rms errors is then known to a few percent


@pytest.fixture(params=extension.isa_available())
def isa(request):
    before, threads = extension.isa(), torch.get_num_threads()
    extension.set_isa(request.param)
    torch.set_num_threads(1)
    yield request.param
    extension.set_isa(before)
    torch.set_num_threads(threads)


def error_over_torchs(shape, x_shape, ours, theirs, code):
    """Rms error of `ours(x, pack)` against float64 over that of `theirs(x, weight)`."""
    if code == "stored":
        tensor = fk.FrozenTensor.stored(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    else:
        tensor = fk.FrozenTensor.create(shape, seed=1, code=code, residency="planes")
    weight, pack = tensor.weight(), tensor.pack()
    generator = torch.Generator().manual_seed(sum(shape) + sum(x_shape))
    errors, done = [0.0, 0.0], 0
    while done < RESULTS:
        x = torch.randn(x_shape, generator=generator)
        right = theirs(x.double(), weight.double())
        done += right.numel()
        for i, found in enumerate((ours(x, pack), theirs(x, weight))):
            errors[i] += float((found.double() - right).square().sum())
    return (errors[0] / errors[1]) ** 0.5


@pytest.mark.parametrize("code", ["sign", "uniform"])
@pytest.mark.parametrize(
    "rows, cols, batch",
    [
        (1, 33, 4),
        (1, 129, 1),
        (16, 128, 1),
        (1, 100, 64),
        (2, 128, 12),
        (64, 100, 2),
        (64, 128, 4),
        (10, 200, 8),
        (10, 257, 8),
    ],
)
def test_linear(isa, rows, cols, batch, code):
    ratio = error_over_torchs(
        (rows, cols), (batch, cols), lambda x, pack: OPS.linear(x, None, None, *pack), F.linear, code
    )
    assert ratio <= 2, ratio


@pytest.mark.parametrize("rows, batch", [(128, 2), (128, 3), (200, 2), (100, 64), (257, 8)])
def test_input_gradient_of_one_column(isa, rows, batch):
    ratio = error_over_torchs(
        (rows, 1), (batch, rows), lambda x, pack: OPS.linear_grad_input(x, *pack), torch.matmul, "uniform"
    )
    assert ratio <= 2, ratio


@pytest.mark.parametrize(
    "shape, x_shape",
    [((16, 16, 8), (1, 16, 8)), ((8, 16, 3, 3), (1, 16, 3, 3)), ((64, 128, 1, 1), (8, 128, 1, 1))],
    ids=["conv1d", "conv2d", "pointwise"],
)
def test_convolution_to_one_place(isa, shape, x_shape):
    spatial = len(shape) - 2
    op, theirs = getattr(OPS, f"conv{spatial}d"), getattr(F, f"conv{spatial}d")
    geometry = ([1] * spatial, [0] * spatial, [1] * spatial, 1)
    ratio = error_over_torchs(shape, x_shape, lambda x, pack: op(x, None, None, *pack, *geometry), theirs, "uniform")
    assert ratio <= 2, ratio


@pytest.mark.parametrize("rows", [96, 128, 200])
def test_small_transposed_convolution(isa, rows):
    settings = ([1], [1], [0], [1], 1)
    ratio = error_over_torchs(
        (rows, 10, 3),
        (66, rows, 1),
        lambda x, pack: OPS.conv_transpose1d(x, None, None, *pack, *settings),
        lambda x, weight: F.conv_transpose1d(x, weight, None, 1, 1),
        "sign",
    )
    assert ratio <= 1.6, ratio  # 2.3 in chains of 128 rows


def test_every_value_of_a_stored_row_kept(isa):
    settings = ([1, 3, 3], [0] * 3, [0] * 3, [1] * 3, 1)
    ratio = error_over_torchs(
        (64, 128, 1, 1, 1),
        (2, 128, 1, 19, 13),
        lambda x, pack: OPS.conv_transpose3d_grad_input(x, [2, 64, 1, 7, 5], *pack, *settings),
        lambda x, weight: F.conv3d(x, weight, None, (1, 3, 3)),
        "stored",
    )
    assert ratio <= 1.6, ratio  # 2.2 in one chain of 128 values
