"""Embeddings bit for bit, and the gradients of their scores exact on small integers."""

from __future__ import annotations

import pytest
import torch
from common import (
    CODES_AND_DTYPES,
    DEVICE,
    DTYPES,
    INTERPRETING,
    RESIDENCIES,
    dense,
    expected,
    header,
    pack_of,
    same_bits,
    scores_of,
    small_integers,
)
from helpers import pairwise
from torch.nn import functional as F

from frozen_kernels import format
from frozen_kernels.backends import Unsupported, triton
from frozen_kernels.backends.triton import embeddings as launchers

INDICES = torch.tensor([[0, 5, 36, 5, 2, 5], [9, 1, 5, 20, 36, 8], [3, 3, 3, 3, 3, 7]])


def indices(dtype=torch.int64):
    return INDICES.to(DEVICE, dtype)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    if INTERPRETING:
        # the interpreter pays per program
        monkeypatch.setattr(launchers, "ROWS", 32)
        monkeypatch.setattr(launchers, "GRAD_ROWS", 32)


LOOKUPS = pairwise(CODES_AND_DTYPES, RESIDENCIES, [(1, torch.int64), (33, torch.int32), (147, torch.int64)], [-1, 5])


@pytest.mark.parametrize(("kind", "residency", "size", "padding_idx"), LOOKUPS, ids=str)
def test_rows_bitwise(kind, residency, size, padding_idx):
    (code, dtype), (cols, index) = kind, size
    pack = pack_of(header(scale=0.0371293), residency, code, (37, cols))
    want = dense(pack, dtype)[indices()] * (indices() != padding_idx)[..., None].to(dtype)
    got = triton.embedding(indices(index), None, *pack, dtype, padding_idx)
    assert torch.equal(got, want) and got.dtype == dtype


def test_rows_past_one_chunk():
    for code, residency in (("sign", "seed"), ("normal", "mask")):
        pack = pack_of(header((0x2F00, 0xA100)), residency, code, (37, 1057))
        got = triton.embedding(indices(), None, *pack, torch.float32, -1)
        assert same_bits(got, dense(pack)[indices()])


def test_indices_of_any_shape_and_strides():
    pack = pack_of(header(), "seed", "sign", (37, 33))
    table = dense(pack)
    for index in (indices().T, indices()[:, ::2], indices()[0, 0], indices()[:0], indices()[:, :1].expand(3, 4)):
        got = triton.embedding(index, None, *pack, torch.float32, -1)
        assert same_bits(got, table[index])


GRADIENTS = pairwise(
    CODES_AND_DTYPES, RESIDENCIES, [(1, torch.int64, torch.float32), (147, torch.int32, torch.bfloat16)], [-1, 5]
)


@pytest.mark.parametrize(("kind", "residency", "size", "padding_idx"), GRADIENTS, ids=str)
def test_gradient_exact_on_small_integers(kind, residency, size, padding_idx):
    (code, dtype), (cols, index, score_dtype) = kind, size
    pack = pack_of(header(scale=0.5), residency, code, (37, cols))
    scores, grad = scores_of(pack, score_dtype), small_integers(3, 6, cols, dtype=dtype)
    got = triton.embedding_grad_scores(grad, indices(index), scores, *pack, padding_idx)
    assert got.dtype == score_dtype
    assert torch.equal(got, expected("embedding_grad_scores", grad, indices(), scores, *pack, padding_idx))


def test_gradient_of_any_strides():
    pack = pack_of(header(scale=1.0), "seed", "sign", (37, 33))
    scores = scores_of(pack)
    for grad, index in (
        (small_integers(6, 3, 33).transpose(0, 1), indices()),
        (small_integers(33, 3, 6).permute(1, 2, 0), indices()),
        (torch.ones((), device=DEVICE).expand(3, 6, 33), indices()),
        (small_integers(6, 3, 66)[..., ::2], indices().T),
        (small_integers(33), indices()[0, 0]),
        (small_integers(0, 6, 33), indices()[:0]),
    ):
        got = triton.embedding_grad_scores(grad, index, scores, *pack, -1)
        assert torch.equal(got, expected("embedding_grad_scores", grad, index, scores, *pack, -1)), grad.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_many_lookups_within_twice_torch(dtype):
    generator = torch.Generator().manual_seed(1)
    pack = pack_of(header((0, 0), scale=format.scale_of("normal", 0.1)), "seed", "normal", (5, 70))
    scores = torch.ones_like(scores_of(pack))
    index = torch.randint(0, 5, (400,), generator=generator).to(DEVICE)
    grad = torch.randn(400, 70, generator=generator).to(DEVICE, dtype)
    table = torch.zeros(5, 70, dtype=torch.float64, device=DEVICE).requires_grad_()
    F.embedding(index, table).backward(grad.double())
    exact = expected("weight_grad_scores", table.grad, scores.double(), *pack)
    plain = torch.zeros(5, 70, dtype=dtype, device=DEVICE).requires_grad_()
    F.embedding(index, plain).backward(grad)
    torchs = expected("weight_grad_scores", plain.grad.double(), scores.double(), *pack) - exact
    ours = triton.embedding_grad_scores(grad, index, scores, *pack, -1).double() - exact
    assert ours.abs().max() <= 2 * torchs.abs().max(), (ours.abs().max(), torchs.abs().max())
    assert ours.square().mean().sqrt() <= 2 * torchs.square().mean().sqrt()


def test_indices_out_of_range():
    pack = pack_of(header(), "seed", "sign", (11, 33))
    scores = scores_of(pack)
    for bad in (11, -1, 2**40):
        index = torch.tensor([0, bad], device=DEVICE)
        grad = small_integers(2, 33)
        if INTERPRETING:
            with pytest.raises(IndexError, match="0 to 10"):
                triton.embedding(index, None, *pack, torch.float32, -1)
        else:
            got = triton.embedding(index, None, *pack, torch.float32, -1)
            assert torch.equal(got[0], dense(pack)[0]) and got[1].isnan().all()
            got = triton.embedding_grad_scores(grad, index, scores, *pack, -1)
            assert torch.equal(got, expected("embedding_grad_scores", grad[:1], index[:1], scores, *pack, -1))


def test_refusals():
    pack = pack_of(header(), "seed", "sign", (11, 33))
    scores, grad = scores_of(pack), small_integers(2, 33)
    index = torch.tensor([0, 3], device=DEVICE)
    with pytest.raises(Unsupported):
        triton.embedding(index, None, *pack, torch.float64, -1)
    with pytest.raises(Unsupported):
        triton.embedding_grad_scores(grad.double(), index, scores, *pack, -1)
    with pytest.raises(ValueError, match="int32 or int64 expected"):
        triton.embedding(index.float(), None, *pack, torch.float32, -1)
    with pytest.raises(ValueError, match=r"grad: size \[2, 32\], expected \[2, 33\]"):
        triton.embedding_grad_scores(grad[:, 1:], index, scores, *pack, -1)


def test_no_weights():
    for shape in ((3, 0), (3, 4)):
        pack = pack_of(header((65536, 65536)), "seed", "sign", shape)
        index, scores = torch.tensor([0, 2], device=DEVICE), torch.zeros(0, device=DEVICE)
        assert torch.equal(
            triton.embedding(index, None, *pack, torch.float32, -1), torch.zeros(2, shape[1], device=DEVICE)
        )
        grad = torch.ones(2, shape[1], device=DEVICE)
        assert triton.embedding_grad_scores(grad, index, scores, *pack, -1).shape == (0,)
