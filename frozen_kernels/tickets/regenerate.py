"""What a seed, two thresholds and a supermask give: by way of the keep plane, or a block of weights at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import format as fmt

_BLOCK = 1 << 18  # weights in a block, a whole number of the chunks that a stream offset counts


class Regenerated(NamedTuple):
    """Counts of a partition, and what was asked for: the hash of the keep plane, the plane, and stream offsets."""

    pruned: int
    locked: int
    free: int
    keep_sha256: str | None
    keep: Tensor | None
    offsets: Tensor | None


def hash_plane(plane: Tensor) -> str:
    """sha256 of a plane int32 [rows, words], its words little-endian."""
    return hashlib.sha256(_little(plane.cpu()).data).hexdigest()


def _little(plane: Tensor) -> np.ndarray:
    return np.ascontiguousarray(plane.numpy()).astype("<i4", copy=False)


def _blocks(rows: int, cols: int) -> Iterator[tuple[int, int, int, int]]:
    """First row, rows, first column and columns of blocks in stream order: rows together, or one row in parts."""
    if cols == 0:
        return
    together = max(_BLOCK // cols, 1)
    for row in range(0, rows, together):
        for col in range(0, cols, cols if cols <= _BLOCK else _BLOCK):
            yield row, min(together, rows - row), col, min(_BLOCK, cols - col)


def _bits(stream: np.ndarray, start: int, count: int) -> Tensor:
    """uint8 [ceil(count / 8)]: the bits of a stream from `start` on as a stream of their own."""
    piece = stream[start >> 3 : (start + count + 7) >> 3]
    shift = start & 7
    if shift:
        after = np.zeros_like(piece)
        after[:-1] = piece[1:]
        piece = piece >> shift | after << (8 - shift)
    out = piece[: (count + 7) >> 3].copy()
    if count & 7:
        out[-1] &= (1 << (count & 7)) - 1
    return torch.from_numpy(out)


def _of_plane(header: Tensor, rows: int, cols: int, supermask: Tensor, hashed: bool) -> Regenerated | None:
    """All of it by way of the keep plane, from bits to bits; None where the supermask has not the right length."""
    ops = torch.ops.frozen_kernels
    offsets = ops.offsets(header, rows, cols)
    free = int(offsets[-1])
    if -(-free // 8) != len(supermask):
        return None
    stream = _bits(supermask.numpy(), 0, free)
    keep = ops.keep_plane(header, stream, offsets, rows, cols)
    locked = int(ops.popcount(keep)) - int(ops.popcount(stream))
    return Regenerated(rows * cols - locked - free, locked, free, hash_plane(keep) if hashed else None, keep, offsets)


def regenerate(
    header: Tensor,
    rows: int,
    cols: int,
    supermask: Tensor,
    *,
    hashed: bool = True,
    hold_keep: bool = False,
    hold_offsets: bool = False,
) -> Regenerated:
    """Counts, keep plane and stream offsets of a frozen tensor on the CPU, a block at a time where no plane is held.

    Where the supermask has not the length that the seed gives, the counts say so, and there is no hash and no plane.

    Args:
        header: int32 [8].
        rows, cols: of the matrix.
        supermask: uint8 [ceil(free / 8)].
        hashed: whether to hash the keep plane, int32 [rows, words].
        hold_keep: whether to return it.
        hold_offsets: whether to return the offsets, int64 [rows * chunks + 1].
    """
    if hold_keep and rows * cols:
        found = _of_plane(header, rows, cols, supermask, hashed)
        if found is not None:
            return found if hold_offsets else found._replace(offsets=None)
    ops = torch.ops.frozen_kernels
    stream, digest = supermask.numpy(), hashlib.sha256()
    keep = torch.empty(rows, fmt.words(cols), dtype=torch.int32, device="cpu") if hold_keep else None
    counts = np.zeros((rows if hold_offsets else 0, fmt.chunks(cols)), np.int64)
    locked = free = 0
    all_free = int(header[fmt.TAU_FREEZE]) == 0
    for row, height, col, width in _blocks(rows, cols):
        if all_free:
            partition = torch.zeros(height, width, dtype=torch.int8, device="cpu")
        else:
            partition = ops.partition(header, height, width, row, col)
        is_free = partition.numpy() == 0
        here = int(np.count_nonzero(is_free))
        if hold_offsets:
            starts = np.arange(0, width, 32 * fmt.CHUNK_WORDS)
            chunk = col // (32 * fmt.CHUNK_WORDS)
            counts[row : row + height, chunk : chunk + len(starts)] = np.add.reduceat(
                is_free, starts, axis=1, dtype=np.int64
            )
        if (hashed or hold_keep) and free + here <= 8 * len(stream):
            plane = ops.planes(ops.unpack(_bits(stream, free, here), partition))
            if hashed:
                digest.update(_little(plane).data)
            if keep is not None:
                keep[row : row + height, col // 32 : col // 32 + plane.shape[1]] = plane
        locked += int(np.count_nonzero(partition.numpy() == 1))
        free += here
    fits = -(-free // 8) == len(stream)
    offsets = None
    if hold_offsets:
        offsets = torch.zeros(counts.size + 1, dtype=torch.int64, device="cpu")
        np.cumsum(counts, out=offsets.numpy()[1:])
    return Regenerated(
        rows * cols - locked - free,
        locked,
        free,
        digest.hexdigest() if hashed and fits else None,
        keep if fits else None,
        offsets,
    )
