"""Layers of few pixels, which have kernels of their own, against torch with the same effective weight."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from frozen_kernels import format as fmt

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from test_gemm_kernels import RESIDENCIES, Frozen, assert_close, integers, restore  # noqa: E402, F401

from frozen_kernels.backends import cpu  # noqa: E402

# Only these instruction sets have the kernels; with the rest the cases test that nothing else serves them otherwise.
ISAS = [isa for isa in extension.isa_available() if isa != "portable"]
SIZES = [(1, 1), (1, 33), (31, 31), (33, 127), (127, 129), (129, 33), (64, 512), (48, 1024), (1000, 2048), (80, 4100)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", fmt.CODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_exact_on_integers(isa, code, size):
    extension.set_isa(isa)
    rows, cols = size
    f = Frozen((rows, cols), code)
    bias = integers((rows,), 5)
    for pixels in (1, 2, 3, 4, 5) if code in ("sign", "constant") else (1, 3, 4, 15, 17):
        x = integers((pixels, cols), pixels)
        wanted = (x.double() @ f.weight.double().T + bias).float()
        for residency in RESIDENCIES:
            assert torch.equal(cpu.linear(x, bias, None, *f.pack(residency)), wanted), (pixels, residency)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", fmt.CODES)
@pytest.mark.parametrize("size", [(333, 1000), (512, 4096), (45, 5000)], ids=str)
def test_same_bits_for_any_residency_and_threads(isa, code, size):
    extension.set_isa(isa)
    f = Frozen(size, code, scale=0.37)
    for pixels in (1, 15):
        x = torch.randn(pixels, size[1])
        torch.set_num_threads(1)
        wanted = cpu.linear(x, None, None, *f.pack("planes"))
        for threads, residency in itertools.product((1, 2, 7), RESIDENCIES):
            torch.set_num_threads(threads)
            assert torch.equal(cpu.linear(x, None, None, *f.pack(residency)), wanted), (threads, residency)


def pixels_of(isa: str, code: str) -> tuple[int, ...]:
    """Numbers of pixels that the level has a kernel for."""
    if code in ("sign", "constant") and isa == "avx512":
        return (1,)
    return (1, 11) if code in ("uniform", "normal") and isa == "vnni" else (1, 3)


def heavy(x: torch.Tensor, factor: float) -> torch.Tensor:
    x = x.clone()
    x[:, x.shape[1] // 3] *= factor
    return x


@pytest.mark.parametrize("isa, code", list(itertools.product(ISAS, fmt.CODES)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cols", [127, 2048, 4096])
def test_error_is_at_most_twice_torchs_own(isa, code, dtype, cols):
    extension.set_isa(isa)
    f = Frozen((511, cols), code, scale=2.0**-10)
    # float16 does not hold the larger outlier's products
    for factor in (1.0, 1e3) if dtype == torch.float16 else (1.0, 1e3, 1e5):
        for pixels in pixels_of(isa, code):
            x = heavy(torch.randn(pixels, cols), factor).to(dtype)
            bias = torch.randn(511).to(dtype)
            wanted = F.linear(x.double(), f.weight.double(), bias.double())
            got = cpu.linear(x, bias, None, *f.pack())
            theirs = torch.stack([F.linear(row, f.weight.to(dtype), bias) for row in x])
            assert_close(got, theirs, wanted)
            if dtype != torch.float32:
                dropped = f.weight[:, cols // 3] == 0  # these rows do not see the outlier
                assert_close(got[:, dropped], theirs[:, dropped], wanted[:, dropped])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", ["sign", "uniform"])
def test_inputs_of_any_range(isa, code):
    """Values that fixed point cannot hold beside each other, the smallest, the largest, and none at all."""
    extension.set_isa(isa)
    f = Frozen((70, 600), code)
    base = torch.randn(1, 600)
    spread = base * 10.0 ** torch.linspace(-30, 30, 600)
    alone = heavy(base, 1e30)
    for x in (spread, alone, base * 1e-38, base * 1e-42, base * (1e35 / f.weight.abs().max()), torch.zeros(1, 600)):
        exact = x.double() @ f.weight.double().T
        # no sum is further off than float32 sums of its own terms may be
        allowed = (x.double().abs() @ f.weight.double().abs().T) * 2.0**-20 + 1e-44
        got = cpu.linear(x, None, None, *f.pack())
        assert ((got.double() - exact).abs() <= allowed).all()


THRESHOLDS = [(0, 65536), (65536, 65536), (0x1000, 0x4000), (0x2300, 0x9A00), (0x0010, 65536), (1, 65535)]


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_input_fits_in_its_digits(isa):
    """A carry past the top digit would be an error of the size of the input."""
    extension.set_isa(isa)
    f, rest = Frozen((512, 4096)), torch.randn(4096)
    for mantissa in (0x7DFFFF, 0x7E0000, 0x7EFEFF, 0x7EFF00, 0x7EFFFF, 0x7F0000, 0x7FFFFF):
        for sign in (1, -1):
            x = rest.clamp(-1.9, 1.9)
            x[17] = sign * (1 + mantissa * 2.0**-23)
            got = cpu.linear(x[None], None, None, *f.pack())
            assert (got[0] - f.weight.double() @ x.double()).abs().max() < 1e-3, (hex(mantissa), sign)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [-0x7D8080, 0x7D7F7F], ids=hex)
def test_the_largest_digits_meet_the_largest_weights(isa, value):
    """Digits of -128, or of 127, everywhere: no more products are added in 16 bits than these hold."""
    extension.set_isa(isa)
    f = Frozen((256, 4096))
    header, supermask, offsets, keep, draw, *rest = f.pack()
    ones = [header, supermask, offsets, torch.full_like(keep, -1), torch.zeros_like(draw), *rest]
    got = cpu.linear(torch.full((1, 4096), float(value)), None, None, *ones)
    assert (got / (4096.0 * value) - 1).abs().max() < 1e-5  # digits alone are exact


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_far_below_the_largest(isa, dtype):
    """All bits of inputs 2^-5 to 2^-4 of the largest count where there are thousands of them."""
    extension.set_isa(isa)
    f, generator = Frozen((512, 4096), "uniform", scale=2.0**-12), torch.Generator().manual_seed(0)
    x = (torch.rand(4, 4096, generator=generator) + 1) * 2.0**-5 * torch.randn(4, 4096, generator=generator).sign()
    x[:, 5] = 1.0
    x = x.to(dtype)
    theirs, exact = (F.linear(x.to(t), f.weight.to(t)) for t in (dtype, torch.float64))
    assert_close(cpu.linear(x, None, None, *f.pack()), theirs, exact)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tau", THRESHOLDS, ids=str)
def test_seeds_of_any_threshold(isa, tau):
    """As many planes are drawn as the thresholds need, and from none to all bits of a word are of the supermask."""
    extension.set_isa(isa)
    for size in ((5, 70), (33, 2040), (3, 2100)):
        f = Frozen(size, tau=tau)
        x = integers((1, size[1]), 1)
        assert torch.equal(cpu.linear(x, None, None, *f.pack("seed")), F.linear(x, f.weight))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", fmt.CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_infinity_and_nan_come_out_where_torchs_do(isa, code, dtype):
    extension.set_isa(isa)
    f = Frozen((100, 300), code)
    w = f.weight.to(dtype)
    for values in ({7: math.inf}, {299: math.nan}, {0: -math.inf, 1: math.inf}, {150: -math.inf}):
        x = integers((1, 300), 3, dtype=dtype)
        for column, value in values.items():
            x[0, column] = value
        wanted = F.linear(x.double(), w.double())
        for residency in RESIDENCIES:
            got = cpu.linear(x, None, None, *f.pack(residency)).double()
            assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.isinf(), wanted.isinf())
            assert torch.equal(got[wanted.isinf()], wanted[wanted.isinf()])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", ["sign", "normal"])
def test_convolutions_with_few_output_pixels(isa, code):
    extension.set_isa(isa)
    cases = [
        # shape of x, shape of the weight, stride, padding, dilation
        ((1, 70, 1, 1), (50, 70, 1, 1), 1, 0, 1),
        ((1, 24, 3, 3), (40, 24, 3, 3), 1, 0, 1),
        ((1, 24, 2, 2), (40, 24, 3, 3), 1, 1, 1),
        ((1, 24, 1, 1), (40, 24, 3, 3), 1, 1, 1),
        ((3, 24, 5, 4), (40, 24, 3, 2), 4, 1, 2),
        ((1, 24, 1, 3), (40, 24, 1, 1), 1, 0, 1),
    ]
    for size, shape, stride, padding, dilation in cases:
        f = Frozen(shape, code)
        bias = integers((shape[0],), 4)
        for last in (False, True):
            x = integers(size, 1, high=1, channels_last=last)
            wanted = F.conv2d(x.double(), f.weight.double(), bias.double(), stride, padding, dilation).float()
            for residency in RESIDENCIES:
                args = (*f.pack(residency), [stride] * 2, [padding] * 2, [dilation] * 2, 1)
                assert torch.equal(cpu.conv2d(x, bias, None, *args), wanted), (size, residency)


@pytest.mark.parametrize("isa", ISAS)
def test_any_strides_are_read_and_written(isa):
    extension.set_isa(isa)
    f = Frozen((70, 90), "sign")
    wide = integers((2, 90, 3), 1)
    for x in (wide[:1, :, 1], wide[:, :, 0], wide[:1].movedim(1, 2), wide[0, :, 2], integers((1, 1), 2).expand(1, 90)):
        assert torch.equal(cpu.linear(x, None, None, *f.pack()), F.linear(x, f.weight))
