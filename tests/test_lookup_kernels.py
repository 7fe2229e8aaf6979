"""The table kernels for sign and constant codes: layers that surely reach them, against dense torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import each_isa, pairwise
from torch.nn import functional as F

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")
ISAS = [isa for isa in ("avx2", "avx512", "zen4") if isa in extension.isa_available()]
if not ISAS:
    pytest.skip("the processor has no AVX2", allow_module_level=True)

from test_gemm_kernels import RESIDENCIES, Frozen, assert_close, error, geometry, integers  # noqa: E402

from frozen_kernels.backends import cpu  # noqa: E402

THREADS = (1, 2, 7)
CODES = ("sign", "constant")


isa = each_isa(extension, ISAS, autouse=True)


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layout(x, last):
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


# batch, in, out, size, kernel, stride, padding, dilation, groups
CONVOLUTIONS = [
    *((1, channels, 40, (9, 8), (3, 3), 1, 1, 1, 1) for channels in (1, 2, 3, 4, 5, 31, 33, 64)),
    (1, 3, 64, (33, 31), (7, 7), 2, 3, 1, 1),  # a run of one table for each tap
    (2, 64, 129, (15, 14), (3, 3), 2, 1, 1, 1),
    (1, 52, 200, (11, 10), (3, 3), 1, 1, 1, 1),  # two chunks of channels, the second not whole quads
    (1, 10, 33, (11, 10), (3, 3), 1, 2, 2, 1),  # dilated taps are runs of their own
    (2, 20, 100, (9, 12), (3, 2), (2, 1), (1, 0), (1, 3), 2),
    (2, 96, 99, (7, 7), (3, 3), 1, 1, 1, 3),
    (1, 7, 160, (5, 90), (5, 1), (1, 2), (2, 0), 1, 1),
    (3, 150, 130, (3, 6), (1, 1), 1, 0, 1, 1),
    (2, 148, 300, (6, 5), (1, 1), 2, 0, 1, 2),
    (2, 40, 128, (3, 3), (1, 1), 1, 1, 1, 1),  # pixels of the padding alone
    # At least 128 pixels: by tables of pixels on AVX-512 too, the ones above by lookups.
    *((9, channels, 50, (9, 8), (3, 3), 1, 1, 1, 1) for channels in (2, 3, 31, 64)),
    (9, 12, 40, (13, 15), (5, 5), 1, 2, 1, 2),  # lines of taps in three passes
    (5, 6, 35, (16, 21), (1, 9), 1, (0, 4), 1, 1),  # columns of taps in two passes
    (9, 10, 33, (12, 11), (3, 3), 1, 2, 2, 1),  # dilated: a ring with holes
    (9, 48, 130, (7, 17), (1, 1), (2, 1), 0, 1, 1),
    # Windows that no cut of pixel tables holds.
    (1, 48, 64, (25, 25), (3, 3), 1, 6, 6, 1),
    (1, 24, 32, (8, 100), (1, 3), 1, (0, 40), 40, 1),
    (2, 24, 32, (20, 9), (13, 7), 1, (6, 3), 1, 1),
]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d_is_exact_on_integers(case, code):
    batch, cin, cout, size, kernel, (stride, padding, dilation), groups = geometry(case)
    f = Frozen((cout, cin // groups, *kernel), code)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for last, dtype, threads, residency in pairwise((False, True), dtypes, THREADS, RESIDENCIES):
        high = 4 if dtype == torch.float32 else 1
        x = integers((batch, cin, *size), 1, high, dtype=dtype, channels_last=last)
        bias = integers((cout,), 2, dtype=dtype)
        want = F.conv2d(x.float(), f.weight, bias.float(), stride, padding, dilation, groups).to(dtype)
        torch.set_num_threads(threads)
        got = cpu.conv2d(x, bias, None, *f.pack(residency), stride, padding, dilation, groups)
        assert torch.equal(got, want), (last, dtype, threads, residency)


WINDOWS = [(columns, stride) for columns in (1, 2, 3, 4, 5, 7, 21) for stride in (1, 2, 3)]


@pytest.mark.parametrize("lines", (1, 2, 3, 4, 5, 7))
def test_windows_of_every_size_are_exact_on_integers(lines):
    """A pass over tables of pixels has a loop of its own for each number of taps, channels and vectors."""
    windows = [window for window in WINDOWS if lines * window[0] <= 42]
    for number, ((columns, stride), channels) in enumerate(itertools.product(windows, (2, 13, 50))):
        batch, height, width = ((1, 17, 14), (9, 20, 15))[number % 2]
        f = Frozen((33, channels, lines, columns))
        x = integers((batch, channels, height, width), number, channels_last=number % 3 == 0)
        torch.set_num_threads(1 + number % 3)
        got = cpu.conv2d(x, None, None, *f.pack(), [stride, 1], [lines // 2, columns // 2], [1, 1], 1)
        want = F.conv2d(x, f.weight, None, (stride, 1), (lines // 2, columns // 2))
        assert torch.equal(got, want), (columns, stride, channels, batch)


def test_linear_conv1d_and_conv3d_are_exact_on_integers():
    for rows, cols, batch in itertools.product((128, 131, 300), (1, 3, 50, 129, 1000), (5, 33)):
        f, x, bias = Frozen((rows, cols)), integers((batch, cols), batch), integers((rows,), 5)
        for residency in RESIDENCIES:
            assert torch.equal(cpu.linear(x, bias, None, *f.pack(residency)), F.linear(x, f.weight, bias))
    f, x = Frozen((256, 20, 3)), integers((2, 40, 37), 1)
    assert torch.equal(
        cpu.conv1d(x, None, None, *f.pack(), [2], [1], [1], 2), F.conv1d(x, f.weight, None, 2, 1, groups=2)
    )
    f, x = Frozen((64, 24, 128)), integers((1, 24, 70), 1)
    assert torch.equal(cpu.conv1d(x, None, None, *f.pack(), [1], [64], [1], 1), F.conv1d(x, f.weight, padding=64))
    f = Frozen((70, 11, 3, 2, 3))
    for last in (False, True):
        x = integers((2, 11, 5, 6, 7), 1, channels_last=last)
        got = cpu.conv3d(x, None, None, *f.pack("seed"), [1, 2, 1], [1, 0, 2], [1, 1, 2], 1)
        assert torch.equal(got, F.conv3d(x, f.weight, None, (1, 2, 1), (1, 0, 2), (1, 1, 2)))


def test_inputs_of_any_strides_are_read():
    f = Frozen((130, 70))
    base = integers((2, 3, 70, 10), 1)
    for x in (base.movedim(2, 3), base[:, :, :, ::2].movedim(2, 3), integers((9, 1), 2).expand(9, 70)):
        assert torch.equal(cpu.linear(x, None, None, *f.pack()), F.linear(x, f.weight))
    f, wide = Frozen((48, 20, 3, 3)), integers((2, 24, 12, 22), 3)
    for x in (wide[:, 2:22, ::2, 1::2], layout(wide, True)[:, 2:22, :, ::2]):
        got = cpu.conv2d(x, None, None, *f.pack(), [1, 1], [1, 1], [1, 1], 1)
        assert torch.equal(got, F.conv2d(x, f.weight, None, 1, 1))


# shape of the weight, input, stride, groups: on AVX-512 the first and fourth by tables of pixels, the others by lookups
LAYERS = [
    ((96, 40, 3, 3), (3, 40, 15, 14), 1, 1),
    ((256, 32, 3, 3), (2, 64, 15, 14), 2, 2),
    ((64, 3, 7, 7), (2, 3, 30, 29), 2, 1),
    ((200, 170, 1, 1), (2, 170, 9, 8), 1, 1),
    ((96, 40, 3, 3), (1, 40, 9, 8), 1, 1),
]


def convolve(f, x, stride, groups, residency="planes"):
    padding = f.shape[2] // 2
    return cpu.conv2d(x, None, None, *f.pack(residency), [stride] * 2, [padding] * 2, [1, 1], groups)


def torch_convolve(f, x, stride, groups, dtype):
    return F.conv2d(x.to(dtype), f.weight.to(dtype), None, stride, f.shape[2] // 2, 1, groups)


def test_the_kernels_are_reached():
    """Only panels are added in the same order on every level: passes over tables of pixels differ in length."""
    if "avx512" not in ISAS:
        pytest.skip("the processor has no AVX-512")
    dense = ((64, 170, 1, 1), (2, 170, 9, 8), 1, 1)
    for shape, size, stride, groups in [*LAYERS, dense]:
        f, x, found = Frozen(shape), seeded(*size), []
        for level in ("portable", "avx2", "avx512"):
            extension.set_isa(level)
            found.append(convolve(f, x, stride, groups))
        assert torch.equal(found[0], found[1]) == (shape == dense[0]), shape
        assert torch.equal(found[1], found[2]) == (shape == dense[0]), shape


@pytest.mark.parametrize("code", CODES)
def test_bits_do_not_depend_on_threads_residency_or_layout(code):
    for shape, size, stride, groups in LAYERS:
        f, x = Frozen(shape, code), seeded(*size)
        torch.set_num_threads(1)
        # with one tap the layout may choose the kernel
        wants = [convolve(f, layout(x, last and shape[2] == 1), stride, groups) for last in (False, True)]
        for threads, residency, last in pairwise(THREADS, RESIDENCIES, (False, True)):
            torch.set_num_threads(threads)
            got = convolve(f, layout(x, last), stride, groups, residency)
            assert torch.equal(got, wants[last]), (shape, threads, residency, last)


@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_torchs_own(dtype, outlier):
    if dtype == torch.float16 and outlier > 1e3:
        pytest.skip("past the range of float16")
    for shape, size, stride, groups in [*LAYERS, ((512, 512, 3, 3), (1, 512, 7, 7), 1, 1)]:
        f, x = Frozen(shape, scale=2.0**-5), seeded(*size)
        x.view(-1)[x.numel() // 3] *= outlier
        x = layout(x.to(dtype), True)
        theirs, exact = (torch_convolve(f, x, stride, groups, t) for t in (dtype, torch.float64))
        assert_close(convolve(f, x, stride, groups), theirs, exact)
    f, x = Frozen((300, 1500), scale=2.0**-5), seeded(33, 1500)
    x[7, 700] *= outlier
    x = x.to(dtype)
    theirs, exact = (F.linear(x.to(t), f.weight.to(t)) for t in (dtype, torch.float64))
    assert_close(cpu.linear(x, None, None, *f.pack()), theirs, exact)


def test_long_rows_have_short_chains():
    """Sums of 4096 positive terms grow: one chain over all of them had three times torch's error."""
    f, x = Frozen((256, 4096), "constant"), torch.rand(128, 4096, generator=torch.Generator().manual_seed(0))
    theirs, exact = F.linear(x, f.weight), F.linear(x.double(), f.weight.double())
    got = cpu.linear(x, None, None, *f.pack())
    assert error(got, exact)[1] <= 1.25 * error(theirs, exact)[1]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_infinity_and_nan_go_where_torch_lets_them(value):
    for shape, size, stride, groups in LAYERS:
        f, x = Frozen(shape), seeded(*size)
        x[0, -1, 4, 5] = x[-1, 1, 0, 0] = value
        for last in (False, True):
            got, want = convolve(f, layout(x, last), stride, groups), torch_convolve(f, x, stride, groups, x.dtype)
            assert want.isnan().any() and not want.isnan().all()
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.isposinf(), want.isposinf()) and torch.equal(got.isneginf(), want.isneginf())


@pytest.mark.parametrize("value", [float("inf"), 1e6, 0.0])
def test_an_image_or_pixel_leaves_the_bits_of_others_alone(value):
    """Tables of integers have units of their own for each: what one asks for, or that it has none, is no other's."""
    for shape, size, stride, groups in LAYERS:
        f, x = Frozen(shape), seeded(*size)
        x = torch.cat([x, x])
        want = convolve(f, x, stride, groups)
        x[0, -1, 3, 4] = value
        got = convolve(f, x, stride, groups)
        assert torch.equal(got[1:], want[1:]) and not torch.equal(got[0], want[0]), shape
        if shape[2] == 1:
            got[0, :, 3, 4] = want[0, :, 3, 4]
            assert torch.equal(got, want)


@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_a_power_of_two_of_the_inputs_is_one_of_the_results(power):
    """Units of integers follow the inputs, as far as floats hold them; beyond, floats serve."""
    for shape, size, stride, groups in LAYERS:
        f, x = Frozen(shape), seeded(*size)
        got, want = convolve(f, x * 2.0**power, stride, groups) * 2.0**-power, convolve(f, x, stride, groups)
        theirs, exact = (torch_convolve(f, x, stride, groups, t) for t in (torch.float32, torch.float64))
        assert_close(got, theirs, exact)
        assert torch.equal(got, want) or abs(power) == 100


@pytest.mark.parametrize("rows", [64, 72])
def test_a_result_larger_than_caches_is_that_of_its_parts(rows, isa):
    """Tables of integers write it past them, where rows are whole vectors."""
    f, x = Frozen((rows, 48)), seeded(70_000, 48)
    got = cpu.linear(x, None, None, *f.pack(), relu=True)
    theirs, exact = (F.linear(x.to(t), f.weight.to(t)).relu() for t in (torch.float32, torch.float64))
    assert got.nbytes > 16 << 20
    assert_close(got, theirs, exact)
    if isa == "zen4":  # one kernel for both, with units of each pixel
        assert torch.equal(
            got, torch.cat([cpu.linear(part, None, None, *f.pack(), relu=True) for part in x.split(500)])
        )


def test_weights_are_turned_for_dilated_taps_too():
    f, x = Frozen((24, 64, 3, 3)), integers((1, 24, 25, 25), 1)
    got = cpu.conv_transpose2d(x, None, None, *f.pack(), [1, 1], [12, 12], [0, 0], [12, 12], 1)
    assert torch.equal(got, F.conv_transpose2d(x, f.weight, padding=12, dilation=12))
