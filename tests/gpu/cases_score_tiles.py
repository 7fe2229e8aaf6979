"""Score gradients of linear layers and of the weight op: every code, threshold, stride and refusal."""

from __future__ import annotations

import pytest
import torch
from common import (
    CODES_AND_DTYPES,
    DEVICE,
    RESIDENCIES,
    THRESHOLDS,
    expected,
    header,
    pack_of,
    scores_of,
    small_integers,
)
from helpers import pairwise

import frozen_kernels as fk
from frozen_kernels.backends import Unsupported, reference, triton
from frozen_kernels.backends.triton import score_gradient as launchers


def run(grad, x, scores, pack):
    return triton.linear_grad_scores(grad, x, scores, *pack)


def wanted(grad, x, scores, pack):
    return expected("linear_grad_scores", grad, x, scores, *pack)


SIZES = [(1, 1, 1), (5, 33, 3), (33, 147, 19)]


@pytest.mark.parametrize(("kind", "residency", "size"), pairwise(CODES_AND_DTYPES, RESIDENCIES, SIZES), ids=str)
def test_linear_exact_on_small_integers(kind, residency, size):
    (code, dtype), (rows, cols, batch) = kind, size
    pack = pack_of(header(scale=0.5), residency, code, (rows, cols))
    x, grad, scores = (
        small_integers(batch, cols, dtype=dtype),
        small_integers(batch, rows, dtype=dtype),
        scores_of(pack),
    )
    got = run(grad, x, scores, pack)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted(grad, x, scores, pack))


def test_linear_past_one_chunk_and_tile():
    for code, residency, dtype, shape in (
        ("sign", "seed", torch.float32, (70, 1057)),
        ("uniform", "seed", torch.bfloat16, (33, 1057)),
        ("sign", "mask", torch.bfloat16, (130, 147)),
        ("normal", "planes", torch.float16, (65, 70)),
    ):
        pack = pack_of(header((0x2F00, 0xA100), scale=1.0), residency, code, shape)
        x, grad = small_integers(3, shape[1], dtype=dtype), small_integers(3, shape[0], dtype=dtype)
        scores = scores_of(pack)
        assert torch.equal(run(grad, x, scores, pack), wanted(grad, x, scores, pack))


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_every_threshold(thresholds):
    pack = pack_of(header(thresholds), "mask", "sign", (18, 70))
    x, grad, scores = small_integers(4, 70), small_integers(4, 18), scores_of(pack)
    assert torch.equal(run(grad, x, scores, pack), wanted(grad, x, scores, pack))


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
        assert torch.equal(run(grad, x, scores, pack), wanted(grad, x, scores, pack)), x.shape


@pytest.mark.parametrize("shape", [(3, 31), (33, 147), (6, 5, 3, 2), (4, 7, 5), (2, 3, 2, 2, 2), (3, 1057)], ids=str)
def test_weight_gradient_of_any_strides(shape):
    for code, residency, dtype in (("sign", "seed", torch.float32), ("uniform", "mask", torch.bfloat16)):
        pack = pack_of(header(scale=0.0371293), residency, code, shape)
        scores = scores_of(pack)
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(DEVICE, dtype)
        backwards = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(4)).to(DEVICE, dtype)
        for grad in (whole, backwards.permute(*reversed(range(len(shape)))), whole[:1].expand(shape)):
            got = triton.weight_grad_scores(grad, scores, *pack)
            want = expected("weight_grad_scores", grad, scores, *pack)
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_sides_of_two_dtypes():
    pack = pack_of(header(scale=1.0), "seed", "sign", (5, 33))
    x, grad, scores = small_integers(4, 33, dtype=torch.bfloat16), small_integers(4, 5), scores_of(pack)
    assert torch.equal(run(grad, x, scores, pack), wanted(grad, x.float(), scores, pack))


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
        assert run(torch.ones(2, shape[0]), torch.ones(2, shape[1]), scores, pack).shape == (0,)
        assert triton.weight_grad_scores(torch.ones(shape), scores, *pack).shape == (0,)


def test_refusals():
    pack = pack_of(header(), "seed", "sign", (3, 31))
    x, grad, scores = torch.zeros(2, 31, device=DEVICE), torch.zeros(2, 3, device=DEVICE), scores_of(pack)
    for refused in (
        lambda: run(grad, x.double(), scores, pack),
        lambda: run(grad.double(), x, scores, pack),
        lambda: run(grad, x, scores.half(), pack),
        lambda: run(grad, x, scores, (*pack[:-2], "stored", (3, 31))),
    ):
        with pytest.raises(Unsupported):
            refused()
    with pytest.raises(ValueError, match=r"grad: size \[2, 4\], expected \[2, 3\]"):
        run(torch.zeros(2, 4, device=DEVICE), x, scores, pack)
    with pytest.raises(ValueError, match=r"x: size \[30\], expected \[31\]"):
        run(grad, x[:, 1:], scores, pack)
    with pytest.raises(ValueError, match=r"grad: size \[3, 30\], expected \[3, 31\]"):
        triton.weight_grad_scores(torch.zeros(3, 30, device=DEVICE), scores, *pack)


@pytest.mark.parametrize("residency", ["seed", "planes"])
def test_backward_reaches_the_backend(residency):
    pack = pack_of(header(scale=1.0), residency, "sign", (5, 33))
    if pack[2] is None:
        offsets = reference.offsets(pack[0].cpu(), 5, 33).to(DEVICE)
        pack = (*pack[:2], offsets, *pack[3:])
    x, grad, scores = small_integers(4, 33), small_integers(4, 5), scores_of(pack).requires_grad_()
    with fk.backends.use("triton"):
        torch.ops.frozen_kernels.linear(x, None, scores, *pack).backward(grad)
        assert torch.equal(scores.grad, wanted(grad, x, scores.detach(), pack))
        scores.grad = None
        torch.ops.frozen_kernels.weight(scores, *pack, torch.float32).backward(grad.T @ x)
        assert torch.equal(scores.grad, wanted(grad, x, scores.detach(), pack))
        scores.grad = None
        rows = torch.arange(5, device=DEVICE)
        torch.ops.frozen_kernels.embedding(rows, scores, *pack, torch.float32, -1).backward(grad.T @ x)
        assert torch.equal(scores.grad, wanted(grad, x, scores.detach(), pack))
