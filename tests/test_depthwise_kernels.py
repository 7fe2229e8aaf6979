"""Depthwise convolutions on the CPU kernels: every vector direction, border, step and dtype, against torch."""

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
CHANNELS = (3, 16, 17, 37, 64, 160)
# size, kernel, stride, padding, dilation
SHAPES = [
    ((9, 21), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((9, 22), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((8, 20), (5, 5), (1, 2), (2, 2), (1, 1)),
    ((11, 19), (5, 5), (2, 1), (2, 1), (1, 1)),
    ((10, 13), (3, 3), (3, 3), (1, 2), (1, 1)),
    ((12, 11), (3, 3), (1, 1), (2, 2), (2, 2)),
    ((12, 13), (3, 3), (2, 2), (2, 0), (2, 2)),
    ((9, 10), (7, 1), (1, 1), (3, 0), (1, 1)),
    ((3, 2), (5, 5), (1, 1), (4, 4), (1, 1)),
    ((6, 7), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((6, 7), (1, 1), (2, 2), (1, 1), (1, 1)),
]


def layouts(x):
    """The same values contiguous, with channels last, and with strides that no layout has."""
    yield x.contiguous()
    yield x.contiguous(memory_format=torch.channels_last)
    yield torch.stack([x, x], dim=-1)[..., 0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_conv2d_is_exact_on_integers(isa, case):
    extension.set_isa(isa)
    size, kernel, *steps = case
    for channels, multiplier in itertools.product(CHANNELS, (1, 2, 3)):
        f = Frozen((channels * multiplier, 1, *kernel), "sign")
        x, bias = integers((2, channels, *size), channels), integers((channels * multiplier,), 2)
        x.requires_grad_()
        y = F.conv2d(x, f.weight, bias, *steps, channels)
        grad = integers(y.shape, 3)
        (grad_x,) = torch.autograd.grad(y, x, grad)
        for residency, values, grads in zip(RESIDENCIES, layouts(x.detach()), layouts(grad), strict=True):
            args = (*f.pack(residency), *map(list, steps), channels)
            assert torch.equal(cpu.conv2d(values, bias, None, *args), y)
            assert torch.equal(cpu.conv2d_grad_input(grads, list(x.shape), *args), grad_x)


@pytest.mark.parametrize("isa", ISAS)
def test_other_dimensions_are_exact_on_integers(isa):
    extension.set_isa(isa)
    for dim, size, kernel, stride in ((1, (1100,), (3,), 2), (1, (40,), (300,), 1), (3, (4, 5, 9), (3, 2, 3), 2)):
        f = Frozen((20, 1, *kernel), "sign")
        x = integers((2, 20, *size), 1, high=1)
        name, geometry = f"conv{dim}d", (stride, max(kernel) // 2)
        y = getattr(F, name)(x, f.weight, None, *geometry, 1, 20)
        args = (*f.pack("seed"), *([value] * dim for value in (*geometry, 1)), 20)
        back = torch.nn.grad.__dict__[f"{name}_input"](x.shape, f.weight, y, *geometry, groups=20)
        for values, grads in (
            (x, y),
            (x.movedim(1, -1).contiguous().movedim(-1, 1), y.movedim(1, -1).contiguous().movedim(-1, 1)),
        ):
            assert torch.equal(getattr(cpu, name)(values, None, None, *args), y)
            assert torch.equal(getattr(cpu, f"{name}_grad_input")(grads, list(x.shape), *args), back)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_transposed_is_exact_on_integers(isa, last):
    extension.set_isa(isa)
    for channels, stride, dilation in itertools.product((16, 37), (1, 2, 3), (1, 2)):
        f = Frozen((channels, 1, 3, 4), "sign")
        x, bias = integers((2, channels, 7, 9), 1, channels_last=last), integers((channels,), 2)
        y = F.conv_transpose2d(x, f.weight, bias, stride, 1, stride - 1, channels, dilation)
        args = (*f.pack("mask"), [stride] * 2, [1, 1], [stride - 1] * 2, [dilation] * 2, channels)
        assert torch.equal(cpu.conv_transpose2d(x, bias, None, *args), y)


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_residency_or_layout(isa):
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    for channels, stride in ((144, 1), (37, 2)):
        weights = {code: Frozen((channels, 1, 3, 3), code) for code in fmt.CODES}
        x = torch.randn(3, channels, 29, 31, generator=generator)
        wanted = {}
        for code, threads, residency, layout in pairwise(fmt.CODES, THREADS, RESIDENCIES, range(3)):
            torch.set_num_threads(threads)
            args = (*weights[code].pack(residency), [stride] * 2, [1, 1], [1, 1], channels)
            y = cpu.conv2d(list(layouts(x))[layout], None, None, *args)
            got = y, cpu.conv2d_grad_input(list(layouts(y))[layout], list(x.shape), *args)
            for pair in zip(got, wanted.setdefault(code, got), strict=True):
                assert torch.equal(*pair), (code, threads, residency, layout)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_torchs_own(isa, dtype):
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    for channels, stride, outlier in ((64, 1, 1.0), (37, 2, 1e3)):
        f = Frozen((channels, 1, 5, 5), "normal", scale=2.0**-10)
        x = torch.randn(2, channels, 21, 22, generator=generator)
        x[0, 1, 5, 5] *= outlier
        bias = torch.randn(channels, generator=generator).to(dtype)
        x, w = x.to(dtype), f.weight.to(dtype)
        exact = F.conv2d(x.double(), f.weight.double(), bias.double(), stride, 2, 1, channels)
        theirs = F.conv2d(x, w, bias, stride, 2, 1, channels)
        for values in layouts(x):
            args = (*f.pack(), [stride] * 2, [2, 2], [1, 1], channels)
            assert_close(cpu.conv2d(values, bias, None, *args), theirs, exact)


@pytest.mark.parametrize("isa", ISAS)
def test_infinity_nan_gain_and_relu_pass_as_in_torch(isa):
    extension.set_isa(isa)
    for channels in (32, 19):
        f = Frozen((channels, 1, 3, 3), "sign")
        x = integers((2, channels, 9, 20), 1)
        x[0, :, 0, 0], x[1, :, 4, 7], x[1, :, 8, 19] = math.inf, math.nan, -math.inf
        gain, bias = integers((channels,), 4).float(), integers((channels,), 5)
        y = F.conv2d(x, f.weight, None, 1, 1, 1, channels)
        wanted = (y * gain[:, None, None] + bias[:, None, None]).relu()
        for values in layouts(x):
            args = (*f.pack(), [1, 1], [1, 1], [1, 1], channels)
            assert torch.equal(cpu.conv2d(values, None, None, *args).nan_to_num(7), y.nan_to_num(7))
            got = cpu.conv2d(values, bias, None, *args, gain=gain, relu=True)
            assert torch.equal(got.nan_to_num(7), wanted.nan_to_num(7))
