"""Score gradients of convolutions: exact on small integers, within twice torch's error on real numbers."""

from __future__ import annotations

import pytest
import torch
from common import (
    CODES_AND_DTYPES,
    DEVICE,
    DTYPES,
    RESIDENCIES,
    dense,
    expected,
    header,
    host,
    pack_of,
    scores_of,
    small_integers,
)
from helpers import pairwise
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format
from frozen_kernels.backends import reference, triton
from frozen_kernels.backends.triton import score_gradient as launchers

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


def layer_args(name, layout="contiguous", dtype=torch.float32):
    """Gradient, input, weight shape and arguments of one of LAYERS; sums stay exact in float32."""
    shape, size, options = LAYERS[name]
    x = small_integers(*size, dtype=dtype)
    output_size = fk.ops.conv_transpose_output_size if "transpose" in name else fk.ops.conv_output_size
    arguments = options if "transpose" in name else options[:-1]
    grad = small_integers(*output_size(size, shape, *arguments), dtype=dtype)
    return LAYOUTS[layout](grad), LAYOUTS[layout](x), shape, options


def run(name, grad, x, scores, pack, options):
    return getattr(triton, f"{name.split('-')[0]}_grad_scores")(grad, x, scores, *pack, *options)


def wanted(name, grad, x, scores, pack, options):
    return expected(f"{name.split('-')[0]}_grad_scores", grad, x, scores, *pack, *options)


# channels that lie together have kernels of their own; other strides are arguments of the same ones
PLACED = [(name, layout) for name in LAYERS for layout in ("contiguous", "channels_last")]
PLACED += [(name, "stepped") for name in ("conv1d", "conv2d", "conv2d-depthwise", "conv3d", "conv_transpose2d")]


@pytest.mark.parametrize(("name", "layout"), PLACED)
def test_convolutions_exact_on_small_integers(name, layout):
    grad, x, shape, options = layer_args(name, layout)
    pack = pack_of(header(scale=0.5), "seed", "sign", shape)
    scores = scores_of(pack)
    assert torch.equal(run(name, grad, x, scores, pack, options), wanted(name, grad, x, scores, pack, options))
    if layout != "contiguous":
        return
    zero_strides = torch.ones((), device=DEVICE).expand(grad.shape)
    got = run(name, zero_strides, x, scores, pack, options)
    assert torch.equal(got, wanted(name, zero_strides, x, scores, pack, options))
    nothing = run(name, grad[:0], x[:0], scores, pack, options)
    assert torch.equal(nothing, torch.zeros_like(scores))


KINDS = pairwise(["conv2d", "conv2d-depthwise"], CODES_AND_DTYPES, RESIDENCIES)


@pytest.mark.parametrize(("name", "kind", "residency"), KINDS, ids=str)
def test_convolutions_of_every_code_and_residency(name, kind, residency):
    code, dtype = kind
    grad, x, shape, options = layer_args(name, "channels_last", dtype)
    pack = pack_of(header(scale=0.5), residency, code, shape)
    scores = scores_of(pack, torch.bfloat16)
    got = run(name, grad, x, scores, pack, options)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, wanted(name, grad, x, scores, pack, options))


@pytest.mark.parametrize("name", ["conv2d", "conv3d", "conv2d-depthwise", "conv_transpose2d"])
def test_parts_are_summed_in_order(name, monkeypatch):
    monkeypatch.setattr(launchers, "PART_BLOCKS", 1)
    for layout in ("contiguous", "channels_last"):
        grad, x, shape, options = layer_args(name, layout)
        pack = pack_of(header(scale=0.5), "mask", "uniform", shape)
        scores = scores_of(pack)
        assert launchers.parts_of(grad.numel() // grad.shape[1], 16, 1)[0] > 1
        got = run(name, grad, x, scores, pack, options)
        assert torch.equal(got, wanted(name, grad, x, scores, pack, options))
        assert torch.equal(got, run(name, grad, x, scores, pack, options))


@pytest.mark.parametrize("name", ["conv2d-taps-apart", "conv3d", "conv3d-depthwise"])
def test_offsets_of_64_bits(name, monkeypatch):
    monkeypatch.setattr(launchers, "MAX_EXTENT", 0)
    grad, x, shape, options = layer_args(name)
    pack = pack_of(header(scale=0.5), "seed", "sign", shape)
    scores = scores_of(pack)
    assert torch.equal(run(name, grad, x, scores, pack, options), wanted(name, grad, x, scores, pack, options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_within_twice_torch(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    shape, options = (18, 20, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    x = torch.randn(3, 20, 13, 11, generator=generator).to(DEVICE, dtype)
    grad = torch.randn(3, 18, 13, 11, generator=generator).to(DEVICE, dtype)
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
