"""Linear layers, convolutions and their gradients on the CPU kernels, against torch with the same effective weight."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import distinct_levels, pairwise
from torch.nn import functional as F

from frozen_kernels import format as fmt

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from frozen_kernels.backends import Unsupported, cpu  # noqa: E402

ISAS = distinct_levels(extension.isa_available())
THREADS = (1, 2, 7)
RESIDENCIES = ("seed", "mask", "planes")


@pytest.fixture(autouse=True)
def restore():
    isa, threads = extension.isa(), torch.get_num_threads()
    yield
    extension.set_isa(isa)
    torch.set_num_threads(threads)


class Frozen:
    """A frozen weight in every residency, and its dense value."""

    def __init__(self, shape, code="sign", scale=1.0, tau=(20000, 30000), seed=0x123456789ABCDEF, stream=3):
        self.shape, self.code = list(shape), code
        rows, cols = fmt.matrix_shape(shape)
        self.header = fmt.make_header(seed, stream, tau_prune=tau[0], tau_freeze=tau[1], scale=scale, code=code)
        self.partition = cpu.partition(self.header, rows, cols, 0, 0)
        generator = torch.Generator().manual_seed(rows * 1000 + cols)
        keep = (self.partition == 1) | ((self.partition == 0) & (torch.rand(rows, cols, generator=generator) < 0.5))
        self.supermask = cpu.pack(keep, self.partition)
        self.offsets = cpu.offsets(self.header, rows, cols)
        self.keep = cpu.planes(keep)
        self.draw = None if code == "constant" else cpu.draw_plane(self.header, code, rows, cols)
        self.free = int(self.offsets[-1])
        self.scores = torch.randn(self.free, generator=generator)
        if self.free > 2:
            self.scores[self.free // 2] = 0.0
        self.weight = cpu.weight(None, *self.pack("mask"), torch.float32)

    def pack(self, residency="planes"):
        draw = self.draw if residency == "planes" else None
        keep = None if residency == "seed" else self.keep
        return [self.header, self.supermask, self.offsets, keep, draw, None, None, None, self.code, self.shape]

    def grad_scores(self, grad_weight):
        return cpu.weight_grad_scores(grad_weight, self.scores, *self.pack())


def integers(shape, seed, high=4, dtype=torch.float32, channels_last=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-high, high + 1, shape, generator=generator).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    return x


def error(got, exact):
    """Largest and root mean square difference."""
    d = (got.double() - exact).abs()
    return (d.max().item(), d.square().mean().sqrt().item()) if d.numel() else (0.0, 0.0)


def assert_close(got, torch_result, exact):
    assert got.dtype == torch_result.dtype and got.shape == torch_result.shape
    for ours, theirs in zip(error(got, exact), error(torch_result, exact), strict=True):
        assert ours <= 2 * theirs + 1e-30, f"error {ours}, torch's own {theirs}"


LINEAR_SIZES = [1, 3, 31, 33, 127, 129]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("code", fmt.CODES)
def test_linear_is_exact_on_integers(isa, code):
    extension.set_isa(isa)
    turns = itertools.cycle(RESIDENCIES)
    for rows, cols in itertools.product(LINEAR_SIZES, LINEAR_SIZES):
        f = Frozen((rows, cols), code)
        for batch in (0, 1, 2, 5, 33):
            residency = next(turns)
            x, grad = integers((batch, cols), batch), integers((batch, rows), batch + 1)
            bias, pack = integers((rows,), 5), f.pack(residency)
            assert torch.equal(cpu.linear(x, bias, None, *pack), F.linear(x, f.weight, bias))
            assert torch.equal(cpu.linear_grad_input(grad, *pack), grad @ f.weight)
            got = cpu.linear_grad_scores(grad, x, f.scores, *pack)
            assert torch.equal(got, f.grad_scores(grad.T @ x))


CONVOLUTIONS = [
    # batch, in, out, size, kernel, stride, padding, dilation, groups
    (1, 1, 1, (1, 1), (1, 1), 1, 0, 1, 1),
    (2, 3, 7, (9, 11), (3, 3), 1, 1, 1, 1),
    (2, 3, 16, (20, 17), (7, 7), 2, 3, 1, 1),
    (1, 33, 31, (7, 7), (3, 3), 1, 1, 1, 1),
    (3, 64, 40, (5, 6), (1, 1), 1, 0, 1, 1),
    (2, 129, 33, (6, 5), (1, 1), 2, 0, 1, 1),
    (2, 16, 24, (8, 9), (3, 2), (2, 1), (1, 0), (1, 3), 2),
    (2, 48, 96, (6, 6), (3, 3), 2, 1, 1, 2),
    (1, 37, 37, (9, 8), (3, 3), 1, 1, 1, 37),
    (2, 19, 38, (9, 8), (3, 3), 2, 1, 2, 19),
    (1, 130, 260, (4, 4), (3, 3), 1, 2, 1, 1),
    (2, 4, 5, (3, 3), (5, 5), 1, 4, 1, 1),
    (2, 5, 4, (3, 13), (1, 5), (3, 4), (0, 2), 2, 1),
    (0, 4, 6, (5, 5), (3, 3), 1, 1, 1, 1),
    (2, 6, 300, (4, 3), (2, 2), 2, 0, 1, 3),
    (2, 31, 33, (9, 11), (1, 1), 1, 0, 1, 1),
    (3, 3, 19, (13, 17), (1, 1), 2, 0, 1, 1),
    (1, 300, 96, (12, 11), (1, 1), 1, 0, 1, 2),
    (1, 1, 50, (5, 59), (1, 1), (1, 2), 0, 1, 1),
]


def geometry(case):
    batch, cin, cout, size, kernel, *steps, groups = case
    return batch, cin, cout, size, kernel, [[s] * 2 if isinstance(s, int) else list(s) for s in steps], groups


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d_is_exact_on_integers(isa, case):
    extension.set_isa(isa)
    batch, cin, cout, size, kernel, (stride, padding, dilation), groups = geometry(case)
    for code, last in (("sign", False), ("sign", True), ("normal", False), ("uniform", True)):
        high = 4 if code == "sign" else 1
        f = Frozen((cout, cin // groups, *kernel), code)
        x = integers((batch, cin, *size), 1, high, channels_last=last).requires_grad_()
        bias = integers((cout,), 2)
        w = f.weight.clone().requires_grad_()
        y = F.conv2d(x, w, bias, stride, padding, dilation, groups)
        grad = integers(y.shape, 3, high, channels_last=last)
        y.backward(grad)
        x, grad_x = x.detach(), x.grad
        for residency in RESIDENCIES:
            args = (*f.pack(residency), stride, padding, dilation, groups)
            got = cpu.conv2d(x, bias, None, *args)
            assert torch.equal(got, y)
            assert got.is_contiguous(memory_format=fmt.memory_format_of(x))
            assert torch.equal(cpu.conv2d_grad_input(grad, list(x.shape), *args), grad_x)
            assert torch.equal(cpu.conv2d_grad_scores(grad, x, f.scores, *args), f.grad_scores(w.grad))


def spread(value, dim):
    return [value] * dim if isinstance(value, int) else list(value)


OTHER_DIMENSIONS = [
    # dimensions, in, out, size, kernel, stride, padding, dilation, groups
    (1, 5, 37, (19,), (4,), 2, 3, 1, 1),
    (1, 32, 64, (40,), (3,), 1, 1, 2, 2),
    (1, 130, 3, (33,), (1,), 1, 0, 1, 1),
    (3, 3, 17, (5, 6, 7), (3, 2, 3), (1, 2, 1), (1, 0, 2), (1, 1, 2), 1),
    (3, 34, 32, (3, 4, 5), (3, 3, 3), 2, 1, 1, 1),
    (3, 8, 8, (3, 4, 5), (2, 2, 2), 1, 1, 1, 8),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", OTHER_DIMENSIONS, ids=str)
def test_conv1d_and_conv3d_are_exact_on_integers(isa, case):
    extension.set_isa(isa)
    dim, cin, cout, size, kernel, *steps, groups = case
    stride, padding, dilation = (spread(s, dim) for s in steps)
    name = f"conv{dim}d"
    for last in (False, True) if dim == 3 else (False,):
        f = Frozen((cout, cin // groups, *kernel), "sign")
        x = integers((2, cin, *size), 1, channels_last=last).requires_grad_()
        w = f.weight.clone().requires_grad_()
        y = getattr(F, name)(x, w, None, stride, padding, dilation, groups)
        grad = integers(y.shape, 3, channels_last=last)
        y.backward(grad)
        args = (*f.pack("seed"), stride, padding, dilation, groups)
        assert torch.equal(getattr(cpu, name)(x.detach(), None, None, *args), y)
        assert torch.equal(getattr(cpu, f"{name}_grad_input")(grad, list(x.shape), *args), x.grad)
        assert torch.equal(
            getattr(cpu, f"{name}_grad_scores")(grad, x.detach(), f.scores, *args), f.grad_scores(w.grad)
        )


TRANSPOSED = [
    # in, out, size, kernel, stride, padding, output_padding, dilation, groups
    (1, 1, (1,), (1,), 1, 0, 0, 1, 1),
    (37, 5, (9,), (4,), 2, 1, 1, 1, 1),
    (3, 40, (6, 7), (3, 3), 1, 1, 0, 1, 1),
    (129, 33, (5, 4), (4, 4), 2, 1, 0, 1, 1),
    (16, 24, (5, 6), (3, 2), (3, 2), (1, 0), (2, 1), (1, 3), 2),
    (64, 257, (3, 3), (2, 2), 2, 0, 0, 1, 1),
    (19, 19, (6, 5), (3, 3), 2, 1, 1, 1, 19),
    (4, 6, (3, 4, 2), (3, 3, 2), (2, 1, 2), 1, (1, 0, 0), 1, 2),
    (34, 32, (3, 2, 3), (2, 2, 2), 2, 0, 0, 1, 1),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolutions_are_exact_on_integers(isa, case):
    extension.set_isa(isa)
    cin, cout, size, kernel, *steps, groups = case
    dim = len(size)
    stride, padding, output_padding, dilation = (spread(s, dim) for s in steps)
    name = f"conv_transpose{dim}d"
    for last in (False, True) if dim > 1 else (False,):
        f = Frozen((cin, cout // groups, *kernel), "sign")
        x = integers((2, cin, *size), 1, channels_last=last).requires_grad_()
        w, bias = f.weight.clone().requires_grad_(), integers((cout,), 2)
        y = getattr(F, name)(x, w, bias, stride, padding, output_padding, groups, dilation)
        grad = integers(y.shape, 3, channels_last=last)
        y.backward(grad)
        for residency in RESIDENCIES:
            args = (*f.pack(residency), stride, padding, output_padding, dilation, groups)
            assert torch.equal(getattr(cpu, name)(x.detach(), bias, None, *args), y)
            assert torch.equal(getattr(cpu, f"{name}_grad_input")(grad, list(x.shape), *args), x.grad)
            got = getattr(cpu, f"{name}_grad_scores")(grad, x.detach(), f.scores, *args)
            assert torch.equal(got, f.grad_scores(w.grad))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_torchs_own(isa, dtype):
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    f = Frozen((257, 1153), "normal", scale=2.0**-10)
    x = torch.randn(65, 1153, generator=generator).to(dtype)
    grad = torch.randn(65, 257, generator=generator).to(dtype)
    bias = torch.randn(257, generator=generator).to(dtype)
    w = f.weight.to(dtype)
    exact = f.weight.double()
    assert_close(cpu.linear(x, bias, None, *f.pack()), F.linear(x, w, bias), F.linear(x.double(), exact, bias.double()))
    assert_close(cpu.linear_grad_input(grad, *f.pack()), grad @ w, grad.double() @ exact)
    theirs = f.grad_scores(grad.float().T @ x.float())
    true = grad.double().T @ x.double()
    true = cpu.codes(f.header, f.code, 257, 1153, 0, 0).double() * true * 2.0**-10
    free = fmt.stream_order(f.partition == 0)
    true = fmt.stream_order(true)[free] * f.scores.sign().double()
    assert_close(cpu.linear_grad_scores(grad, x, f.scores, *f.pack()), theirs, true)

    f = Frozen((97, 300), "normal", scale=2.0**-10)  # read in place
    x = torch.randn(260, 300, generator=generator).to(dtype)
    theirs = F.linear(x, f.weight.to(dtype))
    assert_close(cpu.linear(x, None, None, *f.pack()), theirs, F.linear(x.double(), f.weight.double()))

    f = Frozen((70, 45, 3, 3), "uniform", scale=2.0**-10)
    x = torch.randn(2, 45, 14, 13, generator=generator).to(dtype)
    args = (*f.pack(), [2, 1], [1, 1], [1, 1], 1)
    for last in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=last)
        theirs = F.conv2d(x, f.weight.to(dtype), None, (2, 1), 1)
        assert_close(cpu.conv2d(x, None, None, *args), theirs, F.conv2d(x.double(), f.weight.double(), None, (2, 1), 1))
        theirs, exact = (
            torch.nn.grad.conv2d_input(x.shape, f.weight.to(t), theirs.to(t), (2, 1), 1) for t in (dtype, torch.float64)
        )
        grad = F.conv2d(x, f.weight.to(dtype), None, (2, 1), 1)
        assert_close(cpu.conv2d_grad_input(grad, list(x.shape), *args), theirs, exact)


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_residency(isa):
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    shapes = (96, 40, 3, 3), (300, 1500), (48, 1, 3, 3), (45, 140)
    weights = {code: [Frozen(shape, code) for shape in shapes] for code in fmt.CODES}
    x = torch.randn(3, 40, 15, 14, generator=generator)
    rows = torch.randn(70, 1500, generator=generator)
    many = torch.randn(2, 140, 10, 19, generator=generator).contiguous(memory_format=torch.channels_last)
    thin = torch.randn(2, 48, 15, 14, generator=generator)
    geometry, thin_geometry = ([2, 1], [1, 1], [1, 1], 1), ([1, 1], [1, 1], [1, 1], 48)

    def everything(code, residency):
        conv, dense, depthwise, one_tap = weights[code]
        pack = conv.pack(residency)
        y = cpu.conv2d(x, None, None, *pack, *geometry)
        yield y
        yield cpu.conv2d(x.contiguous(memory_format=torch.channels_last), None, None, *pack, *geometry)
        yield cpu.conv2d_grad_input(y, list(x.shape), *pack, *geometry)
        last = y.contiguous(memory_format=torch.channels_last)
        yield cpu.conv2d_grad_input(last, list(x.shape), *pack, *geometry)
        yield cpu.conv2d_grad_scores(y, x, conv.scores, *pack, *geometry)
        pack = dense.pack(residency)
        for batch in (1, 70):
            y = cpu.linear(rows[:batch], None, None, *pack)
            yield y
            yield cpu.linear_grad_input(y, *pack)
            yield cpu.linear_grad_scores(y, rows[:batch], dense.scores, *pack)
        pack = [*one_tap.pack(residency)[:-1], [45, 140, 1, 1]]
        yield cpu.conv2d(many, None, None, *pack, [1, 2], [0, 0], [1, 1], 1)
        y = cpu.conv2d(thin, None, None, *depthwise.pack(residency), *thin_geometry)
        yield y
        yield cpu.conv2d_grad_input(y, list(thin.shape), *depthwise.pack(residency), *thin_geometry)
        yield cpu.conv2d_grad_scores(y, thin, depthwise.scores, *depthwise.pack(residency), *thin_geometry)

    found = {}
    for code, threads, residency in pairwise(fmt.CODES, THREADS, RESIDENCIES):
        torch.set_num_threads(threads)
        got = list(everything(code, residency))
        assert torch.equal(got[0], got[1]) and torch.equal(got[2], got[3])  # nor on the memory layout
        for mine, first in zip(got, found.setdefault(code, got), strict=True):
            assert torch.equal(mine, first), (code, threads, residency)


def test_rows_of_a_batch_do_not_depend_on_the_batch():
    f = Frozen((900, 1100), "sign")
    x = torch.randn(37, 1100, generator=torch.Generator().manual_seed(0))
    whole = cpu.linear(x, None, None, *f.pack())
    # eight rows and more, as fewer may have kernels of their own; large, as small products are cut otherwise
    for i in (0, 5, 29):
        assert torch.equal(cpu.linear(x[i : i + 8], None, None, *f.pack()), whole[i : i + 8])


@pytest.mark.parametrize("isa", ISAS)
def test_any_strides_are_read(isa):
    extension.set_isa(isa)
    f = Frozen((33, 70), "sign")
    base = integers((2, 3, 70, 5), 1)
    for x in (
        base.movedim(2, 3),
        base[:, :, :, ::2].movedim(2, 3),
        integers((1, 70), 2).expand(4, 70),
        integers((9, 1), 2).expand(9, 70),
        integers((1, 1), 2).expand(6, 70),
        integers((2, 2, 2, 2, 2, 70), 2).transpose(0, 3),
        integers((70,), 3),
        integers((3, 100, 80), 2)[:, ::2, 5:75],
    ):
        assert torch.equal(cpu.linear(x, None, None, *f.pack("seed")), F.linear(x, f.weight))
        grad = torch.ones(1).expand(*x.shape[:-1], 33)
        assert torch.equal(cpu.linear_grad_input(grad, *f.pack()), grad @ f.weight)
        wanted = f.grad_scores(grad.reshape(-1, 33).T @ x.reshape(-1, 70))
        assert torch.equal(cpu.linear_grad_scores(grad, x, f.scores, *f.pack()), wanted)

    f = Frozen((20, 18, 3, 3), "sign")
    bias = integers((20, 2), 4)[:, 1]
    wide = integers((2, 36, 9, 20), 5)
    args = (*f.pack(), [1, 1], [1, 1], [1, 1], 1)
    for x in (
        wide[:, ::2, :, 3:15],
        wide[:, :18].transpose(2, 3),
        wide[:, :18, :, ::2],
        wide[:1, :18].expand(3, -1, -1, -1),
    ):
        y = F.conv2d(x, f.weight, bias, 1, 1)
        assert torch.equal(cpu.conv2d(x, bias, None, *args), y)
        grad = torch.ones(1, 1, 1, 1).expand(y.shape)
        wanted = torch.nn.grad.conv2d_input(x.shape, f.weight, grad, 1, 1)
        assert torch.equal(cpu.conv2d_grad_input(grad, list(x.shape), *args), wanted)
        wanted = f.grad_scores(torch.nn.grad.conv2d_weight(x, f.shape, grad, 1, 1))
        assert torch.equal(cpu.conv2d_grad_scores(grad, x, f.scores, *args), wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_infinity_and_nan_pass_as_in_torch(isa):
    extension.set_isa(isa)
    f = Frozen((40, 50), "sign")
    for pixels in (6, 130):
        x = integers((pixels, 50), 1)
        x[1, 3], x[2, 7], x[4, 49] = math.inf, math.nan, -math.inf
        got, wanted = cpu.linear(x, None, None, *f.pack()), F.linear(x, f.weight)
        assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.isinf(), wanted.isinf())
    scores = f.scores.clone()
    scores[1] = math.nan
    grad, x = integers((6, 40), 2), integers((6, 50), 3)
    got = cpu.linear_grad_scores(grad, x, scores, *f.pack())
    assert torch.equal(got, cpu.weight_grad_scores(grad.T @ x, scores, *f.pack())) and got[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_or_nothing_is_free(dtype):
    x, grad = integers((3, 70), 1), integers((3, 45), 2)
    for tau in ((0, 0), (65536, 65536), (0, 65536)):
        f = Frozen((45, 70), "sign", tau=tau)
        scores = f.scores.to(dtype)
        for residency in RESIDENCIES:
            assert torch.equal(cpu.linear(x, None, None, *f.pack(residency)), F.linear(x, f.weight))
            got = cpu.linear_grad_scores(grad, x, scores, *f.pack(residency))
            wanted = cpu.weight_grad_scores(grad.T @ x, scores, *f.pack())
            assert got.dtype == dtype and torch.equal(got, wanted)


def test_errors_name_both_values():
    f = Frozen((8, 6), "sign")
    with pytest.raises(ValueError, match=r"\[5\].*\[6\]"):
        cpu.linear(torch.ones(2, 5), None, None, *f.pack())
    with pytest.raises(ValueError, match=r"\[7\].*\[8\]"):
        cpu.linear(torch.ones(2, 6), torch.ones(7), None, *f.pack())
    with pytest.raises(ValueError, match=r"3.*\b\d+"):
        cpu.linear_grad_scores(torch.ones(2, 8), torch.ones(2, 6), torch.ones(3), *f.pack())
    with pytest.raises(Unsupported, match="float64"):
        cpu.linear(torch.ones(2, 6).double(), None, None, *f.pack())
    f = Frozen((8, 6, 3, 3), "sign")
    with pytest.raises(ValueError, match=r"\[5\].*\[6\]"):
        cpu.conv2d(torch.ones(1, 5, 4, 4), None, None, *f.pack(), [1, 1], [0, 0], [1, 1], 1)


def test_a_dense_weight_is_served_by_torch():
    f = Frozen((33, 10, 3, 3), "sign")
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    x = integers((2, 10, 6, 5), 1)
    pack = [f.header, f.supermask, None, None, None, f.weight, None, None, f.code, f.shape]
    ops = torch.ops.frozen_kernels
    y = ops.conv2d(x, None, None, *pack, *geometry)
    assert torch.equal(y, cpu.conv2d(x, None, None, *f.pack(), *geometry))
    grad = integers(y.shape, 2)
    # offsets may be missing: a dense weight, or a mask without them
    for residency in (pack, [*f.pack("mask")[:2], None, *f.pack("mask")[3:]]):
        got = ops.conv2d_grad_input(grad, list(x.shape), *residency, *geometry)
        assert torch.equal(got, cpu.conv2d_grad_input(grad, list(x.shape), *f.pack(), *geometry))
        got = ops.conv2d_grad_scores(grad, x, f.scores, *residency, *geometry)
        assert torch.equal(got, cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(), *geometry))
