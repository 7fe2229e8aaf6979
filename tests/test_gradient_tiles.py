"""Score gradients over enough pixels for tile registers, where both operands are real numbers cut into parts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import distinct_levels
from torch.nn import functional as F

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from test_gemm_kernels import THREADS, Frozen, assert_close, integers, restore  # noqa: E402, F401

from frozen_kernels.backends import cpu  # noqa: E402

ISAS = distinct_levels(extension.isa_available())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    # batch, wide channels, rows, size, kernel, stride, padding, dilation, groups
    (1, 32, 16, (8, 8), (1, 1), 1, 0, 1, 1),  # the fewest pixels and columns, in bfloat16 the fewest rows
    (1, 32, 96, (8, 8), (1, 1), 1, 0, 1, 1),  # the fewest rows
    (1, 31, 17, (13, 5), (3, 3), 1, 1, 1, 1),
    (3, 33, 100, (9, 7), (3, 3), 1, 1, 1, 1),
    (2, 40, 150, (11, 12), (3, 3), 2, 1, 1, 1),
    (2, 16, 33, (16, 9), (5, 3), (2, 1), (3, 0), (1, 2), 1),
    (2, 96, 62, (9, 8), (3, 3), 1, 1, 1, 2),
    (2, 300, 129, (9, 9), (1, 1), 1, 0, 1, 1),
    (5, 16, 48, (17, 19), (3, 3), 1, 1, 1, 1),
]


def arguments(case):
    batch, channels, rows, size, kernel, stride, padding, dilation, groups = case
    pairs = [[value] * 2 if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    return (batch, channels, *size), (rows, channels // groups, *kernel), (*pairs, groups)


def result_size(x_shape, w_shape, steps):
    return F.conv2d(torch.empty(x_shape, device="meta"), torch.empty(w_shape, device="meta"), None, *steps).shape


def layouts(*tensors):
    yield tensors
    yield tuple(t.contiguous(memory_format=torch.channels_last) for t in tensors)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_on_integers(isa, case):
    extension.set_isa(isa)
    x_shape, w_shape, steps = arguments(case)
    for code, dtype in (("sign", torch.float32), ("uniform", torch.float32), ("sign", torch.bfloat16)):
        f = Frozen(w_shape, code)
        x, grad = integers(x_shape, 1), integers(result_size(x_shape, w_shape, steps), 2)
        wanted = f.grad_scores(torch.nn.grad.conv2d_weight(x, w_shape, grad, *steps))
        for mine in layouts(grad, x):
            got = cpu.conv2d_grad_scores(*(t.to(dtype) for t in mine), f.scores, *f.pack(), *steps)
            assert torch.equal(got, wanted), (code, dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_linear_is_exact_on_integers(isa):
    extension.set_isa(isa)
    for rows, cols, batch in ((96, 32, 64), (131, 33, 65), (130, 100, 127), (300, 600, 129), (97, 40, 300)):
        f = Frozen((rows, cols))
        x, grad = integers((batch, cols), 1), integers((batch, rows), 2)
        assert torch.equal(cpu.linear_grad_scores(grad, x, f.scores, *f.pack()), f.grad_scores(grad.T @ x))


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_residency(isa):
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    for case in CASES[3], CASES[4], CASES[7]:
        x_shape, w_shape, steps = arguments(case)
        f, wanted = Frozen(w_shape), None
        x = torch.randn(x_shape, generator=generator)
        grad = torch.randn(result_size(x_shape, w_shape, steps), generator=generator)
        for threads, residency in itertools.product(THREADS, ("planes", "mask", "seed")):
            torch.set_num_threads(threads)
            got = cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(residency), *steps)
            wanted = got if wanted is None else wanted
            assert torch.equal(got, wanted), (case, threads, residency)
        torch.set_num_threads(1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("last", [False, True])
def test_error_is_at_most_twice_torchs_own(isa, dtype, outlier, last):
    if dtype == torch.float16 and outlier > 1e3:
        pytest.skip("float16 ends at 65504")
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    f, steps = Frozen((96, 40, 3, 3), scale=2.0**-3), ([1, 1], [1, 1], [1, 1], 1)
    x, grad = (torch.randn(4, channels, 12, 11, generator=generator) for channels in (40, 96))
    x[1, 17, 5, 6], grad[2, 3, 1, 1] = outlier, outlier
    grad, x = next(itertools.islice(layouts(grad.to(dtype), x.to(dtype)), int(last), None))
    # torch rounds its gradient of a half precision weight; sums of both sides are compared in float32
    theirs = torch.nn.grad.conv2d_weight(x.float(), f.shape, grad.float(), *steps)
    exact = torch.nn.grad.conv2d_weight(x.double(), f.shape, grad.double(), *steps)
    got = cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(), *steps)
    assert_close(got, f.grad_scores(theirs), exact_scores(f, exact))


def exact_scores(f, grad_weight):
    """The straight-through formula in float64, from the signs that a gradient of ones has."""
    unit = f.grad_scores(torch.ones(f.shape)).double()
    count = grad_weight.numel()
    place = f.grad_scores(torch.arange(1, count + 1, dtype=torch.float32).view(f.shape)).double()
    index = torch.where(unit == 0, 1, place / torch.where(unit == 0, 1, unit)).round().long() - 1
    return grad_weight.flatten()[index] * unit


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("last", [False, True])
def test_infinity_and_nan_pass_as_in_torch(isa, last):
    extension.set_isa(isa)
    f, steps = Frozen((100, 36, 1, 1)), ([1, 1], [0, 0], [1, 1], 1)
    x, grad = integers((3, 36, 9, 9), 1), integers((3, 100, 9, 9), 2)
    x[0, 3, 0, 0], x[2, 30, 8, 8], grad[1, 7, 4, 4], grad[2, 99, 0, 1] = math.inf, -math.inf, math.nan, math.inf
    grad, x = next(itertools.islice(layouts(grad, x), int(last), None))
    wanted = f.grad_scores(torch.nn.grad.conv2d_weight(x, f.shape, grad, *steps))
    got = cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(), *steps)
    assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.nan_to_num(), wanted.nan_to_num())
    assert wanted.isinf().any() and wanted.isnan().any() and wanted.isfinite().any()
