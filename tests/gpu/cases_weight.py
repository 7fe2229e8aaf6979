"""Materialised weights against the reference and the golden vectors, bit for bit."""

from __future__ import annotations

import pytest
import torch
from common import (
    CODES_AND_DTYPES,
    INTERPRETING,
    RESIDENCIES,
    THRESHOLDS,
    VECTORS,
    dense,
    header,
    pack_of,
    same_bits,
    sha256,
)
from helpers import pairwise

from frozen_kernels import format
from frozen_kernels.backends.triton import weight

SMALL = [(1, 1), (3, 31), (5, 33)]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"{c['rows']}x{c['cols']}-{c['code']}")
def test_golden_vectors(case, monkeypatch):
    rows, cols, code = case["rows"], case["cols"], case["code"]
    if rows > 100 and INTERPRETING:
        monkeypatch.setattr("frozen_kernels.backends.triton.weights.ROWS", 8192)  # the interpreter pays per program
    fields = {"seed": int(case["seed"]), "stream": case["stream"], "generation": case["generation"], "scale": 1.0}
    if rows * cols < 40_000:
        everything = pack_of(header((0, 65536), **fields), "seed", code, (rows, cols))
        assert sha256(weight(None, *everything, torch.float32).to(torch.int16)) == case["codes_int16_sha256"]
    h = header((case["tau_prune"], case["tau_freeze"]), **fields)
    keep = (torch.arange(rows)[:, None] * cols + torch.arange(cols)) % 3 == 0
    pack = pack_of(h, "seed", code, (rows, cols), keep)
    assert sha256(pack[1]) == case["supermask_sha256"]
    assert sha256(weight(None, *pack, torch.float32).to(torch.int16)) == case["effective_int16_sha256"]


@pytest.mark.parametrize("code", format.CODES)
@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_seed_weight_at_every_threshold(thresholds, code):
    for shape in SMALL if code == "sign" else SMALL[-1:]:
        pack = pack_of(header(thresholds), "seed", code, shape)
        assert same_bits(weight(None, *pack, torch.float32), dense(pack)), shape


SIZES = [((33, 147), THRESHOLDS[0]), ((64, 576), THRESHOLDS[1])]


@pytest.mark.parametrize(("kind", "residency", "size"), pairwise(CODES_AND_DTYPES, RESIDENCIES, SIZES), ids=str)
def test_weight_bitwise(kind, residency, size):
    (code, dtype), (shape, thresholds) = kind, size
    # a scale with a full significand, so that the rounding to the dtype is at work
    pack = pack_of(header(thresholds, scale=0.0371293), residency, code, shape)
    assert same_bits(weight(None, *pack, dtype), dense(pack, dtype))


@pytest.mark.parametrize(
    ("residency", "code", "thresholds"),
    [("seed", "sign", (20011, 45003)), ("seed", "normal", (0x2F00, 0xA100)), ("mask", "uniform", (20011, 45003))],
    ids=str,
)
def test_weight_past_one_chunk(residency, code, thresholds):
    pack = pack_of(header(thresholds), residency, code, (70, 1025))
    assert same_bits(weight(None, *pack, torch.float32), dense(pack))


@pytest.mark.parametrize("shape", [(6, 5, 3, 2), (4, 7, 5), (2, 3, 2, 2, 2)], ids=str)
def test_weight_of_convolutions_in_torch_order(shape):
    for residency in ("seed", "planes"):
        pack = pack_of(header(), residency, "uniform", shape)
        got = weight(None, *pack, torch.float32)
        assert got.is_contiguous()
        assert same_bits(got, dense(pack))
