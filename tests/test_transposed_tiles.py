"""Input gradients and transposed convolutions by a turned weight: on tile registers, or by tables with flipped taps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import distinct_levels, pairwise
from torch.nn import functional as F

from frozen_kernels import format as fmt

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from test_gemm_kernels import RESIDENCIES, THREADS, Frozen, assert_close, integers, restore  # noqa: E402, F401

from frozen_kernels.backends import cpu  # noqa: E402

ISAS = distinct_levels(extension.isa_available())
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [
    # batch, wide channels, rows, size, kernel, padding, dilation, groups
    (1, 3, 64, (9, 11), (3, 3), (1, 1), (1, 1), 1),
    (2, 24, 31, (8, 7), (3, 3), (1, 1), (1, 1), 1),
    (3, 33, 100, (6, 9), (3, 3), (0, 2), (1, 1), 1),
    (2, 64, 64, (7, 7), (3, 3), (1, 1), (2, 2), 1),
    (1, 64, 32, (12, 20), (5, 3), (3, 0), (1, 2), 1),
    (2, 96, 62, (5, 6), (3, 3), (1, 1), (1, 1), 2),
    (2, 66, 192, (5, 5), (2, 3), (1, 1), (1, 1), 3),
    (2, 600, 40, (3, 4), (3, 3), (1, 1), (1, 1), 1),
    (2, 300, 300, (4, 4), (3, 3), (1, 1), (1, 1), 1),  # decoded chunk by chunk
    (2, 40, 64, (6, 5), (1, 1), (0, 0), (1, 1), 1),
    (2, 40, 64, (6, 5), (1, 1), (2, 3), (1, 1), 1),  # taps fewer than the padding: the flipped one is negative
    (2, 24, 31, (4, 5), (2, 3), (3, 3), (1, 1), 1),
    (5, 16, 16, (40, 40), (3, 3), (1, 1), (1, 1), 1),
]


def layouts(x):
    yield x.contiguous()
    yield x.contiguous(memory_format=torch.channels_last)


def arguments(case):
    batch, channels, rows, size, kernel, padding, dilation, groups = case
    return (
        (batch, channels, *size),
        (rows, channels // groups, *kernel),
        ([1, 1], list(padding), list(dilation), groups),
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_input_gradients_are_exact_on_integers(isa, case):
    extension.set_isa(isa)
    x_shape, w_shape, steps = arguments(case)
    weights = {code: Frozen(w_shape, code) for code in fmt.CODES}
    y_shape = F.conv2d(torch.empty(x_shape, device="meta"), torch.empty(w_shape, device="meta"), None, *steps).shape
    for code, dtype, residency, layout in pairwise(fmt.CODES, DTYPES, RESIDENCIES, range(2)):
        f = weights[code]
        grad = integers(y_shape, 3, 3 if code in ("sign", "constant") and dtype == torch.float32 else 1)
        wanted = torch.nn.grad.conv2d_input(x_shape, f.weight, grad, *steps).to(dtype)
        values = list(layouts(grad.to(dtype)))[layout]
        got = cpu.conv2d_grad_input(values, list(x_shape), *f.pack(residency), *steps)
        assert torch.equal(got, wanted), (code, dtype, residency, layout)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transposed_convolutions_with_an_epilogue_are_exact_on_integers(isa, case):
    extension.set_isa(isa)
    x_shape, w_shape, (stride, padding, dilation, groups) = arguments(case)
    f, channels = Frozen(w_shape, "sign"), x_shape[1]
    x = integers((x_shape[0], w_shape[0], 9, 8), 1)
    bias, gain = integers((channels,), 2), integers((channels,), 4)
    # An output padding leaves results that no input reaches but the bias does.
    for extra in {0, max(dilation) - 1}:
        output_padding = [min(extra, d - 1) for d in dilation]
        wanted = F.conv_transpose2d(x, f.weight, None, stride, padding, output_padding, groups, dilation)
        wanted = (wanted * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)).relu()
        for values, residency in itertools.product(layouts(x), RESIDENCIES):
            args = (*f.pack(residency), stride, padding, output_padding, dilation, groups)
            assert torch.equal(cpu.conv_transpose2d(values, bias, None, *args, gain=gain, relu=True), wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", fmt.CODES)
def test_linear_gradients_are_exact_on_integers(isa, code):
    extension.set_isa(isa)
    for rows, cols in ((8, 8), (31, 33), (64, 100), (100, 600), (1100, 40)):
        f = Frozen((rows, cols), code)
        for batch, dtype in itertools.product((2, 17, 70), DTYPES[:2]):
            grad = integers((batch, rows), batch, 1)
            for residency in RESIDENCIES:
                got = cpu.linear_grad_input(grad.to(dtype), *f.pack(residency))
                assert torch.equal(got, (grad @ f.weight).to(dtype))


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_residency_or_layout(isa):
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    for case in CASES[2], CASES[6], CASES[7], CASES[8], CASES[12]:
        x_shape, w_shape, steps = arguments(case)
        weights = {code: Frozen(w_shape, code) for code in fmt.CODES}
        y_shape = F.conv2d(torch.empty(x_shape, device="meta"), torch.empty(w_shape, device="meta"), None, *steps).shape
        both, wanted = list(layouts(torch.randn(y_shape, generator=generator))), {}
        for code, threads, residency, layout in pairwise(fmt.CODES, THREADS, RESIDENCIES, range(2)):
            torch.set_num_threads(threads)
            got = cpu.conv2d_grad_input(both[layout], list(x_shape), *weights[code].pack(residency), *steps)
            assert torch.equal(got, wanted.setdefault(code, got)), (case, code, threads, residency, layout)
        torch.set_num_threads(1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e5])
def test_error_is_at_most_twice_torchs_own(isa, dtype, outlier):
    if dtype == torch.float16 and outlier > 1e3:
        pytest.skip("float16 ends at 65504")
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    f = Frozen((96, 40, 3, 3), "normal", scale=2.0**-10)
    grad = torch.randn(2, 96, 12, 11, generator=generator)
    grad[1, 17, 5, 6] = outlier
    grad, steps = grad.to(dtype), ([1, 1], [1, 1], [1, 1], 1)
    theirs, exact = (
        torch.nn.grad.conv2d_input((2, 40, 12, 11), f.weight.to(t), grad.to(t), *steps) for t in (dtype, torch.float64)
    )
    got = cpu.conv2d_grad_input(grad, [2, 40, 12, 11], *f.pack(), *steps)
    assert_close(got, theirs, exact)


@pytest.mark.parametrize("isa", ISAS)
def test_infinity_and_nan_pass_as_in_torch(isa):
    extension.set_isa(isa)
    f = Frozen((40, 50), "sign")
    grad = integers((6, 40), 1)
    grad[1, 3], grad[2, 7], grad[4, 39] = math.inf, math.nan, -math.inf
    wanted = grad @ f.weight
    got = cpu.linear_grad_input(grad, *f.pack("seed"))
    assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.nan_to_num(), wanted.nan_to_num())


STRIDED = [
    # batch, wide channels, rows, size, kernel, stride, padding, dilation, groups, output padding
    (2, 64, 40, (5, 7), (3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 0)),
    (2, 256, 62, (6, 5), (3, 4), (2, 3), (0, 2), (1, 2), 2, (0, 1)),
    (3, 48, 33, (4, 6), (4, 3), (2, 1), (3, 1), (3, 1), 1, (1, 0)),
    (2, 64, 32, (5, 4), (3, 3), (2, 2), (1, 1), (2, 2), 1, (1, 1)),  # half of the pixels are reached by no tap
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_strided_transposed_convolutions_are_exact_on_integers(isa, case):
    extension.set_isa(isa)
    batch, channels, rows, size, kernel, stride, padding, dilation, groups, extra = case
    f, x = Frozen((rows, channels // groups, *kernel), "sign"), integers((batch, rows, *size), 1)
    bias = integers((channels,), 2)
    steps = [list(stride), list(padding), list(extra)]
    wanted = F.conv_transpose2d(x, f.weight, bias, *steps, groups, dilation)
    for residency, threads, values in zip(RESIDENCIES, THREADS, (*layouts(x), x), strict=True):
        torch.set_num_threads(threads)
        got = cpu.conv_transpose2d(values, bias, None, *f.pack(residency), *steps, list(dilation), groups)
        assert torch.equal(got, wanted), (residency, threads)
