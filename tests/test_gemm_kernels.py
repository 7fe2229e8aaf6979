"""Linear layers, convolutions and their gradients on the CPU kernels, against torch with the same effective weight."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from frozen_kernels import format as fmt

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from frozen_kernels.backends import cpu  # noqa: E402

ISAS = extension.isa_available()
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
        keep = (self.partition == 1) | (
            (self.partition == 0) & (torch.rand(rows, cols, generator=generator) < 0.5)
        )
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
        return [self.header, self.supermask, self.offsets, keep, draw, None, self.code, self.shape]

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
    for rows, cols in itertools.product(LINEAR_SIZES, LINEAR_SIZES):
        f = Frozen((rows, cols), code)
        for batch in (0, 1, 2, 5, 33):
            x, grad = integers((batch, cols), batch), integers((batch, rows), batch + 1)
            bias = integers((rows,), 5)
            for residency in RESIDENCIES:
                pack = f.pack(residency)
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

