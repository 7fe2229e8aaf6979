"""Score gradients on vectors: how pixels, taps and channels are cut, and the error of sums over many pixels."""

from __future__ import annotations

import pytest
import torch

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from test_gemm_kernels import Frozen, error, integers, restore  # noqa: E402, F401
from test_gradient_tiles import arguments, exact_scores, result_size  # noqa: E402

from frozen_kernels.backends import cpu  # noqa: E402

ISAS = extension.isa_available()
CASES = [
    # batch, wide channels, rows, size, kernel, stride, padding, dilation, groups
    (2, 20, 17, (13, 11), (7, 7), 1, 3, 1, 1),  # more taps than have lists at once
    (1, 18, 9, (190, 12), (3, 1), 1, 0, (85, 1), 1),  # taps too far apart to share inputs
    (17, 500, 5, (4, 4), (3, 3), 1, 1, 1, 1),  # blocks of whole images, and channels packed in two parts
    (1, 1000, 15, (3, 3), (3, 3), 1, 1, 1, 1),  # columns of a task begin and end inside a tap
    (3, 7, 40, (9, 10), (5, 3), (2, 1), (3, 1), (1, 2), 1),  # columns of few channels beside each other
    (1, 32, 6, (60, 70), (3, 3), 2, 1, 1, 2),  # several blocks of a line and more
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_cuts_are_exact_on_integers(isa, case, last):
    extension.set_isa(isa)
    x_shape, w_shape, steps = arguments(case)
    f = Frozen(w_shape)
    x = integers(x_shape, 1, channels_last=last)
    grad = integers(result_size(x_shape, w_shape, steps), 2, channels_last=last)
    wanted = f.grad_scores(torch.nn.grad.conv2d_weight(x, w_shape, grad, *steps))
    for threads in (1, 5):
        torch.set_num_threads(threads)
        assert torch.equal(cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(), *steps), wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_padding_meets_no_gradient(isa):
    # A tap outside the image is left out of the sum, as in torch: zero times infinity would be NaN.
    extension.set_isa(isa)
    f, steps = Frozen((5, 16, 3, 3)), ([1, 1], [1, 1], [1, 1], 1)
    x, grad = integers((2, 16, 5, 6), 1), integers((2, 5, 5, 6), 2)
    grad[1, 2, 0, 0] = torch.inf
    got = cpu.conv2d_grad_scores(grad, x.abs() + 1, torch.ones_like(f.scores), *f.pack(), *steps)
    assert got.isinf().any() and not got.isnan().any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch, side, channels, rows", [(32, 4, 64, 64), (12, 32, 16, 16)])
def test_chains_of_pixels_are_short(isa, batch, side, channels, rows):
    """Rms error over that of sums of 16 pixels that are then added in turn, which is what torch does at 4 x 4."""
    extension.set_isa(isa)
    generator = torch.Generator().manual_seed(0)
    f, steps = Frozen((rows, channels, 1, 1)), ([1, 1], [0, 0], [1, 1], 1)
    x, grad = (torch.randn(batch, count, side, side, generator=generator) for count in (channels, rows))
    got = cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(), *steps)
    sums = torch.zeros(rows, channels)
    pieces = (t.permute(0, 2, 3, 1).reshape(-1, 16, t.shape[1]) for t in (grad, x))
    for left, right in zip(*pieces, strict=True):
        sums += left.T @ right
    exact = exact_scores(f, torch.nn.grad.conv2d_weight(x.double(), f.shape, grad.double(), *steps))
    theirs = f.grad_scores(sums.view(f.shape))
    assert error(got, exact)[1] <= 1.25 * error(theirs, exact)[1]


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads(isa):
    extension.set_isa(isa)
    steps = ([1, 1], [1, 1], [1, 1], 1)
    for batch, channels, rows in ((1, 40, 8), (1, 24, 9), (2, 100, 16)):
        f = Frozen((rows, channels, 3, 3))
        x, grad = torch.randn(batch, channels, 16, 16), torch.randn(batch, rows, 16, 16)
        found = []
        for threads in (1, 2, 3, 5, 7, 8):
            torch.set_num_threads(threads)
            found.append(cpu.conv2d_grad_scores(grad, x, f.scores, *f.pack(), *steps))
        assert all(torch.equal(found[0], other) for other in found[1:]), (batch, channels, rows)


@pytest.mark.parametrize("isa", ISAS)
def test_an_image_of_padding_alone_gives_no_gradient(isa):
    extension.set_isa(isa)
    f, steps = Frozen((20, 32, 3, 3)), ([1, 1], [2, 2], [1, 1], 1)
    got = cpu.conv2d_grad_scores(torch.randn(2, 20, 2, 7), torch.randn(2, 32, 0, 5), f.scores, *f.pack(), *steps)
    assert not got.any()
