"""Score gradients against the reference: exact on small integers, within twice torch's error on real numbers."""

from __future__ import annotations

import pytest
import torch
from common import CODES_AND_DTYPES, DEVICE, DTYPES, THRESHOLDS, dense, header, host, pack_of, small_integers
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format, reference
from frozen_kernels.backends import Unsupported, triton
from frozen_kernels.backends.triton import scores as launchers

# op: weight shape, input size, the op's arguments
LAYERS = {
    "conv1d": ((5, 3, 4), (2, 3, 19), ([2], [3], [2], 1)),
    "conv2d": ((18, 5, 3, 3), (2, 5, 7, 9), ([1, 1], [1, 1], [1, 1], 1)),
    "conv2d-strided": ((33, 3, 5, 2), (1, 3, 9, 11), ([2, 3], [2, 0], [1, 2], 1)),
    "conv2d-pointwise": ((7, 33, 1, 1), (3, 33, 5, 3), ([1, 1], [0, 0], [1, 1], 1)),
    "conv2d-pointwise-strided": ((7, 33, 1, 1), (3, 33, 5, 4), ([2, 2], [0, 0], [1, 1], 1)),
    "conv2d-taps-apart": ((6, 64, 2, 2), (2, 64, 3, 4), ([1, 1], [1, 0], [1, 1], 1)),
    "conv2d-groups": ((8, 2, 3, 3), (2, 8, 5, 5), ([2, 2], [1, 1], [1, 1], 4)),
    "conv2d-depthwise": ((14, 1, 3, 3), (2, 7, 6, 5), ([1, 1], [1, 1], [1, 1], 7)),
    "conv2d-one-channel": ((17, 1, 5, 5), (2, 1, 8, 7), ([1, 1], [2, 2], [1, 1], 1)),
    "conv3d": ((4, 3, 2, 3, 2), (2, 3, 4, 5, 6), ([1, 2, 1], [1, 0, 1], [1, 1, 2], 1)),
    "conv3d-depthwise": ((3, 1, 3, 2, 3), (2, 3, 4, 5, 3), ([2, 1, 1], [1, 1, 0], [1, 1, 1], 3)),
    "conv_transpose1d": ((3, 5, 4), (2, 3, 7), ([3], [1], [2], [1], 1)),
    "conv_transpose2d": ((33, 3, 3, 2), (2, 33, 5, 3), ([2, 1], [1, 0], [1, 0], [1, 2], 1)),
    "conv_transpose2d-point": ((3, 4, 1, 1), (2, 3, 4, 5), ([1, 1], [0, 0], [0, 1], [1, 2], 1)),
    "conv_transpose2d-depthwise": ((6, 1, 3, 3), (2, 6, 4, 5), ([2, 2], [1, 1], [1, 1], [1, 1], 6)),
    "conv_transpose3d": ((4, 2, 2, 3, 2), (1, 4, 3, 4, 2), ([2, 1, 2], [0, 1, 0], [0, 0, 1], [1, 1, 1], 2)),
}
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "stepped": lambda t: torch.stack((t, t), -1)[..., 0],
}


def scores_of(pack, dtype=torch.float32):
    """A score for each free weight, zeros of both signs and NaN among them."""
    count = int((reference.partition(host(pack)[0], *format.matrix_shape(pack[7]), 0, 0) == 0).sum())
    made = torch.randn(count, generator=torch.Generator().manual_seed(count))
    made[1::17], made[2::17], made[3::17] = 0.0, -0.0, float("nan")
    return made.to(DEVICE, dtype)


def layer_args(name, layout="contiguous", dtype=torch.float32):
    """Gradient, input, weight shape and arguments of one of LAYERS; sums stay exact in float32."""
    shape, size, options = LAYERS[name]
    x = small_integers(*size, dtype=dtype)
    output_size = fk.ops.conv_transpose_output_size if "transpose" in name else fk.ops.conv_output_size
    arguments = options if "transpose" in name else options[:-1]
    grad = small_integers(*output_size(size, shape, *arguments), dtype=dtype)
    return LAYOUTS[layout](grad), LAYOUTS[layout](x), shape, options


def run(op, grad, x, scores, pack, options=()):
    return getattr(triton, f"{op}_grad_scores")(grad, x, scores, *pack, *options)


def wanted(op, grad, x, scores, pack, options=()):
    grad, x, scores, *rest = host((grad, x, scores, *pack, *options))
    return getattr(reference, f"{op}_grad_scores")(grad, x, scores, *rest).to(DEVICE)


@pytest.mark.parametrize("residency", ["seed", "mask", "planes"])
@pytest.mark.parametrize(("code", "dtype"), CODES_AND_DTYPES, ids=str)
def test_linear_exact_on_small_integers(code, dtype, residency):
    for rows, cols, batch in ((1, 1, 1), (5, 33, 3), (33, 147, 19)):
        pack = pack_of(header(scale=0.5), residency, code, (rows, cols))
        x, grad, scores = (
            small_integers(batch, cols, dtype=dtype),
            small_integers(batch, rows, dtype=dtype),
            scores_of(pack),
        )
        got = run("linear", grad, x, scores, pack)
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted("linear", grad, x, scores, pack)), (rows, cols, batch)


def test_linear_past_one_chunk_and_tile():
    for code, residency in (("sign", "seed"), ("uniform", "seed"), ("normal", "planes")):
        pack = pack_of(header((0x2F00, 0xA100), scale=1.0), residency, code, (70, 1057))
        x, grad, scores = small_integers(3, 1057), small_integers(3, 70), scores_of(pack)
        assert torch.equal(run("linear", grad, x, scores, pack), wanted("linear", grad, x, scores, pack))


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_every_threshold(thresholds):
    pack = pack_of(header(thresholds), "mask", "sign", (18, 70))
    x, grad, scores = small_integers(4, 70), small_integers(4, 18), scores_of(pack)
    assert torch.equal(run("linear", grad, x, scores, pack), wanted("linear", grad, x, scores, pack))


def test_linear_takes_any_strides_and_leading_dimensions():
    pack = pack_of(header(scale=1.0), "seed", "sign", (5, 33))
    scores = scores_of(pack)
    for x, grad in (
        (small_integers(33, 4).T, small_integers(5, 4).T),
        (small_integers(6, 66)[::2, 1::2], small_integers(3, 5)),
        (small_integers(1, 33).expand(3, 33), torch.ones((), device=DEVICE).expand(3, 5)),
        (small_integers(2, 3, 33), small_integers(3, 2, 5).transpose(0, 1)),
        (small_integers(2, 1, 2, 1, 3, 33), small_integers(2, 1, 2, 1, 3, 5)),
        (small_integers(33), small_integers(5)),
        (small_integers(0, 33), small_integers(0, 5)),
    ):
        assert torch.equal(run("linear", grad, x, scores, pack), wanted("linear", grad, x, scores, pack)), x.shape


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_exact_on_small_integers(name, layout):
    op = name.split("-")[0]
    grad, x, shape, options = layer_args(name, layout)
    pack = pack_of(header(scale=0.5), "seed", "sign", shape)
    scores = scores_of(pack)
    assert torch.equal(run(op, grad, x, scores, pack, options), wanted(op, grad, x, scores, pack, options))
    zero_strides = torch.ones((), device=DEVICE).expand(grad.shape)
    got = run(op, zero_strides, x, scores, pack, options)
    assert torch.equal(got, wanted(op, zero_strides, x, scores, pack, options))
    nothing = run(op, grad[:0], x[:0], scores, pack, options)
    assert torch.equal(nothing, torch.zeros_like(scores))


@pytest.mark.parametrize("residency", ["seed", "mask", "planes"])
@pytest.mark.parametrize(("code", "dtype"), CODES_AND_DTYPES, ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv2d-groups", "conv2d-depthwise", "conv_transpose2d"])
def test_convolutions_of_every_code_and_residency(name, code, dtype, residency):
    op = name.split("-")[0]
    grad, x, shape, options = layer_args(name, "channels_last", dtype)
    pack = pack_of(header(scale=0.5), residency, code, shape)
    scores = scores_of(pack, torch.bfloat16)
    got = run(op, grad, x, scores, pack, options)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, wanted(op, grad, x, scores, pack, options))


@pytest.mark.parametrize("name", ["conv2d", "conv3d", "conv2d-depthwise", "conv_transpose2d"])
def test_parts_are_summed_in_order(name, monkeypatch):
    monkeypatch.setattr(launchers, "PART_BLOCKS", 1)
    op = name.split("-")[0]
    for layout in ("contiguous", "channels_last"):
        grad, x, shape, options = layer_args(name, layout)
        pack = pack_of(header(scale=0.5), "mask", "uniform", shape)
        scores = scores_of(pack)
        assert launchers.parts_of(grad.numel() // grad.shape[1], 16, 1)[0] > 1
        got = run(op, grad, x, scores, pack, options)
        assert torch.equal(got, wanted(op, grad, x, scores, pack, options))
        assert torch.equal(got, run(op, grad, x, scores, pack, options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_within_twice_torch(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    shape, options = (18, 20, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    x = torch.randn(5, 20, 13, 11, generator=generator).to(DEVICE, dtype)
    grad = torch.randn(5, 18, 13, 11, generator=generator).to(DEVICE, dtype)
    pack = pack_of(header((0, 0), scale=format.scale_of("normal", 0.1)), "planes", "normal", shape)
    # every score 1: what is compared is the gradient of the weight in stream order
    scores = torch.ones_like(scores_of(pack))
    weight = dense(pack).double().requires_grad_()
    F.conv2d(x.double(), weight, None, *options).backward(grad.double())
    exact = reference.weight_grad_scores(*host((weight.grad, scores.double(), *pack)))
    plain = dense(pack, dtype).requires_grad_()
    F.conv2d(x, plain, None, *options).backward(grad)
    torchs = reference.weight_grad_scores(*host((plain.grad.double(), scores.double(), *pack))) - exact
    for part_blocks in (launchers.PART_BLOCKS, 2):
        monkeypatch.setattr(launchers, "PART_BLOCKS", part_blocks)
        ours = run("conv2d", grad, x, scores, pack, options).cpu().double() - exact
        assert ours.abs().max() <= 2 * torchs.abs().max(), (ours.abs().max(), torchs.abs().max())
        assert ours.square().mean().sqrt() <= 2 * torchs.square().mean().sqrt()


@pytest.mark.parametrize("shape", [(3, 31), (33, 147), (6, 5, 3, 2), (4, 7, 5), (2, 3, 2, 2, 2), (3, 1057)], ids=str)
def test_weight_gradient_of_any_strides(shape):
    for code, residency, dtype in (("sign", "seed", torch.float32), ("uniform", "mask", torch.bfloat16)):
        pack = pack_of(header(scale=0.0371293), residency, code, shape)
        scores = scores_of(pack)
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
        backwards = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(4)).to(DEVICE, dtype)
        for grad in (whole, backwards.permute(*reversed(range(len(shape)))), whole[:1].expand(shape)):
            got = triton.weight_grad_scores(grad, scores, *pack)
            want = reference.weight_grad_scores(*host((grad, scores, *pack))).to(DEVICE)
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_sides_of_two_dtypes():
    pack = pack_of(header(scale=1.0), "seed", "sign", (5, 33))
    x, grad, scores = small_integers(4, 33, dtype=torch.bfloat16), small_integers(4, 5), scores_of(pack)
    assert torch.equal(run("linear", grad, x, scores, pack), wanted("linear", grad, x.float(), scores, pack))


def test_reciprocals_divide_exactly():
    for divisor in (1, 2, 3, 5, 7, 14, 56, 641, 65537, 1 << 20, (1 << 31) - 1025, (1 << 31) - 1):
        magic, shift = launchers.reciprocal(divisor)
        assert magic < 1 << 32
        most = (1 << 31) - 1
        for n in {0, 1, divisor - 1, divisor, most // divisor * divisor - 1, most // divisor * divisor, most}:
            assert n * magic >> shift == n // divisor and n * magic < 1 << 64, (n, divisor)


def test_no_weights():
    for shape in ((0, 3), (3, 0)):
        pack = pack_of(header(), "seed", "sign", shape)
        scores = torch.zeros(0, device=DEVICE)
        assert run("linear", torch.ones(2, shape[0]), torch.ones(2, shape[1]), scores, pack).shape == (0,)
        assert triton.weight_grad_scores(torch.ones(shape), scores, *pack).shape == (0,)


def test_refusals():
    pack = pack_of(header(), "seed", "sign", (3, 31))
    x, grad, scores = torch.zeros(2, 31, device=DEVICE), torch.zeros(2, 3, device=DEVICE), scores_of(pack)
    for refused in (
        lambda: run("linear", grad, x.double(), scores, pack),
        lambda: run("linear", grad.double(), x, scores, pack),
        lambda: run("linear", grad, x, scores.half(), pack),
        lambda: run("linear", grad, x, scores, (*pack[:6], "stored", (3, 31))),
    ):
        with pytest.raises(Unsupported):
            refused()
    with pytest.raises(ValueError, match=r"grad: size \[2, 4\], expected \[2, 3\]"):
        run("linear", torch.zeros(2, 4, device=DEVICE), x, scores, pack)
    with pytest.raises(ValueError, match=r"x: size \[2, 30\], expected \[2, 31\]"):
        run("linear", grad, x[:, 1:], scores, pack)
    with pytest.raises(ValueError, match=r"grad: size \[3, 30\], expected \[3, 31\]"):
        triton.weight_grad_scores(torch.zeros(3, 30, device=DEVICE), scores, *pack)
