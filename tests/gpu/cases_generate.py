"""Generated elements against the reference and the golden vectors, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from common import DEVICE, INTERPRETING, THRESHOLDS, VECTORS, header, same_bits, sha256

import frozen_kernels as fk
from frozen_kernels import format
from frozen_kernels.backends import Unsupported, reference, triton

SHAPES = [(1, 1), (3, 31), (5, 33), (33, 147)]
# rows and columns at the ends of the format, and shards that begin inside a word, a call or a block
SHARDS = [(0, 0), (1, 3), (5, 31), (2, 129), (2**32 - 4, 7), (9, 2**34 - 75), (3, 2**33 + 1), (2**31 - 1, 2**31 - 33)]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"{c['rows']}x{c['cols']}-{c['code']}")
def test_golden_vectors(case, monkeypatch):
    rows, cols = case["rows"], case["cols"]
    if rows > 100 and INTERPRETING:
        monkeypatch.setattr("frozen_kernels.backends.triton.generate.BLOCK_WORDS", 1 << 15)  # it pays per program
    fields = {"seed": int(case["seed"]), "stream": case["stream"], "generation": case["generation"]}
    h = header((case["tau_prune"], case["tau_freeze"]), **fields).to(DEVICE)
    at = (rows, cols, 0, 0)
    assert sha256(triton.codes(h, case["code"], *at)) == case["codes_int16_sha256"]
    assert sha256(triton.partition(h, *at)) == case["partition_int8_sha256"]
    assert sha256(triton.draws(h, *at)) == case["u16_uint32_sha256"]
    assert sha256(triton.uniform_scores(h, 1.0, *at)) == case["uniform_scores_float32_sha256"]


@pytest.mark.parametrize(("row0", "col0"), SHARDS)
def test_shards(row0, col0):
    rows, cols = 3, 75
    h = header(generation=2**24 - 1)
    at = (rows, cols, row0, col0)
    for code in format.CODES:
        assert same_bits(triton.codes(h.to(DEVICE), code, *at), reference.codes(h, code, *at)), code
    for name in ("draws", "partition"):
        got = getattr(triton, name)(h.to(DEVICE), *at)
        assert same_bits(got, getattr(reference, name)(h, *at)), name
    for bound in (1.0, 0.1):
        got = triton.uniform_scores(h.to(DEVICE), bound, *at)
        assert same_bits(got, reference.uniform_scores(h, bound, *at)), bound


def test_a_shard_equals_its_part_of_the_whole():
    h = header().to(DEVICE)
    for make in (
        lambda *at: triton.codes(h, "sign", *at),
        lambda *at: triton.codes(h, "normal", *at),
        lambda *at: triton.partition(h, *at),
        lambda *at: triton.draws(h, *at),
        lambda *at: triton.uniform_scores(h, 0.5, *at),
    ):
        whole = make(37, 1300, 0, 0)
        for row0, col0, rows, cols in ((5, 1, 20, 1299), (36, 1298, 1, 2), (7, 1152, 30, 1)):
            assert same_bits(make(rows, cols, row0, col0), whole[row0 : row0 + rows, col0 : col0 + cols])


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_partition_at_every_threshold(thresholds):
    h = header(thresholds)
    for rows, cols in SHAPES:
        part = reference.partition(h, rows, cols, 0, 0)
        assert same_bits(triton.partition(h.to(DEVICE), rows, cols, 0, 0), part)
        want = torch.stack([(part == kind).sum() for kind in (-1, 1, 0)])
        assert same_bits(triton.partition_counts(h.to(DEVICE), rows, cols), want)


@pytest.mark.parametrize("bound", [3.4e38, 1e-42, 1e300, math.inf, math.nan, 0.0, -0.3], ids=str)
def test_uniform_scores_of_any_bound(bound):
    h = header()
    got, want = triton.uniform_scores(h.to(DEVICE), bound, 5, 70, 0, 0), reference.uniform_scores(h, bound, 5, 70, 0, 0)
    nan = torch.tensor(7.5)  # the bits of a NaN are nobody's promise
    assert same_bits(torch.where(got.isnan(), nan.to(DEVICE), got), torch.where(want.isnan(), nan, want))


def test_histogram_and_counts():
    h = header()
    for rows, cols in ((1, 1), (70, 1100)):
        assert same_bits(triton.histogram(h.to(DEVICE), rows, cols), reference.histogram(h, rows, cols))
        assert same_bits(triton.partition_counts(h.to(DEVICE), rows, cols), reference.partition_counts(h, rows, cols))


@pytest.mark.parametrize("code", ["sign", "uniform", "normal"])
def test_draw_planes(code):
    h = header()
    for rows, cols in [*SHAPES, (18, 1100)]:
        assert same_bits(triton.draw_plane(h.to(DEVICE), code, rows, cols), reference.draw_plane(h, code, rows, cols))


@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (5, 0), (0, 0)])
def test_empty(rows, cols):
    h = header().to(DEVICE)
    for code in format.CODES:
        assert triton.codes(h, code, rows, cols, 0, 0).shape == (rows, cols)
    for make in (triton.draws, triton.partition):
        assert make(h, rows, cols, 0, 0).shape == (rows, cols)
    assert triton.uniform_scores(h, 1.0, rows, cols, 0, 0).shape == (rows, cols)
    assert not triton.histogram(h, rows, cols).any() and not triton.partition_counts(h, rows, cols).any()
    assert triton.draw_plane(h, "sign", rows, cols).shape == (rows, format.words(cols))
    assert triton.draw_plane(h, "normal", rows, cols).shape == (rows, cols)


def test_refusals():
    h = header().to(DEVICE)
    with pytest.raises(ValueError, match=r"\(8,\).*\(7,\)"):
        triton.codes(h[:7], "sign", 2, 2, 0, 0)
    with pytest.raises(ValueError, match=r"int32.*int64"):
        triton.draws(h.long(), 2, 2, 0, 0)
    with pytest.raises(ValueError, match="stored"):
        triton.codes(h, "stored", 2, 2, 0, 0)
    with pytest.raises(ValueError, match="constant"):
        triton.draw_plane(h, "constant", 2, 2)
    with pytest.raises(Unsupported):
        triton.free_draws(h, torch.zeros(1, dtype=torch.int64, device="meta"), 0, 2, format.SCORE)
    spaced = torch.stack([h, h], 1)[:, 0]
    assert same_bits(triton.draws(spaced, 3, 31, 0, 0), triton.draws(h, 3, 31, 0, 0))


def test_ops_reach_the_backend():
    with fk.backends.use("triton"):
        got = fk.format.codes(3, 31, seed=7, stream=3, code="uniform", device=DEVICE)
        scores = fk.format.uniform_scores(3, 31, seed=7, stream=3, bound=0.5, device=DEVICE)
    with fk.backends.use("reference"):
        assert same_bits(got, fk.format.codes(3, 31, seed=7, stream=3, code="uniform"))
        assert same_bits(scores, fk.format.uniform_scores(3, 31, seed=7, stream=3, bound=0.5))
