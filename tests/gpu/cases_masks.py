"""Planes, streams and their tables against the reference and the golden vectors, bit for bit."""

from __future__ import annotations

import pytest
import torch
from common import DEVICE, INTERPRETING, THRESHOLDS, VECTORS, header, same_bits, sha256
from torch import Tensor

from frozen_kernels import format as fmt
from frozen_kernels.backends import Unsupported, reference, triton

SHAPES = [(1, 1), (3, 31), (5, 33), (33, 147), (19, 70)]


def random_keep(rows: int, cols: int) -> Tensor:
    return torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) < 0.5


def guarded(t: Tensor) -> Tensor:
    """On the device under test, in the middle of a larger tensor and aligned to one element only."""
    around = torch.full((t.numel() + 2,), t.new_tensor(1).item(), dtype=t.dtype)
    around[1:-1] = t.flatten()
    return around.to(DEVICE)[1:-1].view(t.shape)


def check(h: Tensor, rows: int, cols: int) -> None:
    """Every op on one partition, each from the reference's arguments."""
    extent, keep = (rows, cols), random_keep(rows, cols)
    on_device, part = h.to(DEVICE), reference.partition(h, rows, cols, 0, 0)
    offsets = reference.offsets(h, *extent)
    assert same_bits(triton.offsets(on_device, *extent), offsets)
    stream = reference.pack(keep, part)
    plane = reference.keep_plane(h, stream, offsets, *extent)
    kept = reference.unpack(stream, part)
    offsets = offsets.to(DEVICE)
    assert same_bits(triton.pack(guarded(keep), guarded(part)), stream)
    assert same_bits(triton.unpack(guarded(stream), guarded(part)), kept)
    assert same_bits(triton.planes(guarded(kept)), plane)
    assert same_bits(triton.keep_plane(on_device, guarded(stream), offsets, *extent), plane)
    assert same_bits(triton.pack_plane(on_device, guarded(plane), offsets, *extent), stream)
    for purpose in (fmt.SCORE, fmt.SEARCH):
        drawn = triton.free_draws(on_device, offsets, *extent, purpose)
        assert same_bits(drawn, reference.free_draws(h, offsets.cpu(), *extent, purpose)), purpose
    for bits in (stream, plane):
        assert same_bits(triton.popcount(guarded(bits)), reference.popcount(bits))


@pytest.mark.parametrize("place", range(len(THRESHOLDS)))
def test_every_threshold(place):
    """A threshold decides within a word, and a shape which words there are: each meets two of the others."""
    for step in range(2) if place else range(len(SHAPES)):
        check(header(THRESHOLDS[place]), *SHAPES[(place + 2 * step) % len(SHAPES)])


@pytest.mark.parametrize(("place", "extent"), [(0, (17, 1025)), (3, (17, 1025)), (5, (3, 2100))])
def test_past_one_chunk(place, extent):
    check(header(THRESHOLDS[place]), *extent)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"{c['rows']}x{c['cols']}-{c['code']}")
def test_golden_vectors(case, monkeypatch):
    rows, cols = case["rows"], case["cols"]
    if rows > 100 and INTERPRETING:  # it pays per program
        monkeypatch.setattr("frozen_kernels.backends.triton.masks.PLANE_WORDS", 1 << 15)
        monkeypatch.setattr("frozen_kernels.backends.triton.masks.ELEMENT_WORDS", 1 << 15)
        monkeypatch.setattr("frozen_kernels.backends.triton.generate.BLOCK_WORDS", 1 << 15)
    fields = {"seed": int(case["seed"]), "stream": case["stream"], "generation": case["generation"]}
    h = header((case["tau_prune"], case["tau_freeze"]), **fields).to(DEVICE)
    offsets = triton.offsets(h, rows, cols)
    keep = ((torch.arange(rows)[:, None] * cols + torch.arange(cols)) % 3 == 0).to(DEVICE)
    stream = triton.pack(keep, triton.partition(h, rows, cols, 0, 0))
    assert sha256(stream) == case["supermask_sha256"]
    plane = triton.keep_plane(h, stream, offsets, rows, cols)
    assert sha256(plane) == case["keep_words_sha256"]
    assert sha256(triton.pack_plane(h, plane, offsets, rows, cols)) == case["supermask_sha256"]


def test_a_stream_of_another_length_is_read_as_far_as_it_goes():
    h = header()
    part, offsets = reference.partition(h, 5, 33, 0, 0), reference.offsets(h, 5, 33).to(DEVICE)
    stream = reference.pack(random_keep(5, 33), part)
    short = stream.clone()
    short[-2:] = 0
    for held, same in ((stream[:-2], short), (torch.cat([stream, stream.new_tensor([255])]), stream)):
        got = triton.keep_plane(h.to(DEVICE), guarded(held), offsets, 5, 33)
        assert same_bits(got, reference.keep_plane(h, same, offsets.cpu(), 5, 33))
        assert same_bits(triton.unpack(guarded(held), part.to(DEVICE)), reference.unpack(same, part))


def test_popcount_of_more_than_one_block():
    generator = torch.Generator().manual_seed(0)
    for bits in (
        torch.randint(0, 256, (20_003,), generator=generator, dtype=torch.uint8),
        torch.randint(-(1 << 31), 1 << 31, (9, 1001), generator=generator, dtype=torch.int64).to(torch.int32),
        torch.full((8200,), -1, dtype=torch.int32),
        torch.empty(0, dtype=torch.uint8),
    ):
        assert same_bits(triton.popcount(bits.to(DEVICE)), reference.popcount(bits))


def test_operands_of_any_strides():
    h = header()
    part, keep = reference.partition(h, 33, 70, 0, 0), random_keep(33, 70)
    wide = torch.stack([part, part], -1).to(DEVICE)[..., 0]
    tall = keep.T.contiguous().to(DEVICE).T
    assert same_bits(triton.pack(tall, wide), reference.pack(keep, part))
    assert same_bits(triton.planes(tall), reference.planes(keep))


@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (5, 0), (0, 0)])
def test_empty(rows, cols):
    check(header(), rows, cols)


def test_refusals():
    h = header()
    offsets, part = reference.offsets(h, 5, 33).to(DEVICE), reference.partition(h, 5, 33, 0, 0).to(DEVICE)
    keep, stream = torch.ones(5, 33, dtype=torch.bool, device=DEVICE), torch.zeros(9, dtype=torch.uint8, device=DEVICE)
    plane = torch.zeros(5, 2, dtype=torch.int32, device=DEVICE)
    h = h.to(DEVICE)
    for match, refused in (
        (r"offsets: shape \(6,\) expected, got \(5,\)", lambda: triton.keep_plane(h, stream, offsets[:-1], 5, 33)),
        (r"supermask: torch.uint8.*int32", lambda: triton.keep_plane(h, plane, offsets, 5, 33)),
        (r"keep: shape \(5, 2\) expected, got \(5, 1\)", lambda: triton.pack_plane(h, plane[:, :1], offsets, 5, 33)),
        (r"keep: shape \(5, 33\).*\(4, 33\)", lambda: triton.pack(keep[:4], part)),
        (r"keep: torch.bool expected, got torch.int8", lambda: triton.planes(part)),
        (r"partition: 2 dimensions expected, got 1", lambda: triton.unpack(stream, part[0])),
        (r"bits: int32 or uint8 expected, got torch.int64", lambda: triton.popcount(offsets)),
    ):
        with pytest.raises(ValueError, match=match):
            refused()
    with pytest.raises(Unsupported, match="columns"):
        triton.offsets(h, 1, 1 << 31)
