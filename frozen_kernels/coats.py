"""Several coats of one mask (Okoshi et al. 2022): nested keep planes, and the streams that a file holds of them.

A weight counts as often as coats keep it. Each coat keeps only what the one before keeps, so a file needs one bit for
each of those positions and no more (docs/format.md, section 8).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import format as fmt

MOST = 255  # coats: counts are bytes


def _bits(plane: Tensor) -> Tensor:
    """bool, flat: the bits of words in stream order, with those behind the last column."""
    return fmt.unpack_bits(plane.contiguous().view(torch.uint8).flatten(), 32 * plane.numel())


def coat_streams(keep: Tensor, coats: Tensor) -> list[Tensor]:
    """uint8 streams of the coats after the first: of each a bit for every position that the coat before keeps.

    `keep` int32 [rows, words], `coats` int32 [C - 1, rows, words].
    """
    found, before = [], _bits(keep)
    for plane in coats.unbind():
        here = _bits(plane)
        found.append(fmt.pack_bits(here[before]))
        before = here
    return found


def coat_planes(keep: Tensor, streams: Sequence[Tensor]) -> Tensor:
    """The inverse of `coat_streams`: int32 [len(streams), rows, words]; of each stream's length nothing is checked."""
    coats = torch.empty(len(streams), *keep.shape, dtype=torch.int32, device=keep.device)
    before = _bits(keep)
    for plane, stream in zip(coats.unbind(), streams, strict=True):
        kept = fmt.unpack_bits(stream, int(before.sum()))
        before[before.clone()] = kept
        plane.copy_(fmt.pack_bits(before).view(torch.int32).view(keep.shape))
    return coats


def check_coats(coats: Tensor, keep: Tensor, name: str = "coats") -> None:
    """ValueError unless `coats` are int32 [C - 1, rows, words] whose planes each lie within the one before.

    `keep`: int32 [rows, words], the plane of the first coat.
    """
    size = coats.shape[0] if coats.dim() else 0
    if coats.dtype != torch.int32 or tuple(coats.shape) != (size, *keep.shape) or not 1 <= size < MOST:
        raise ValueError(
            f"{name}: int32 [1 to {MOST - 1}, {keep.shape[0]}, {keep.shape[1]}], got {coats.dtype} {list(coats.shape)}"
        )
    before = keep
    for number, plane in enumerate(coats.unbind(), 2):
        outside = int(torch.ops.frozen_kernels.popcount(plane & ~before))
        if outside:
            raise ValueError(f"{name}: coat {number} keeps {outside} weights that coat {number - 1} drops, expected 0")
        before = plane


def sum_of_squares(kept: Tensor, coats: Tensor) -> Tensor:
    """int64 scalar on the device: the sum of count^2 over a weight whose first coat keeps `kept`; nobody waits for it.

    A count c is the sum of 2 i - 1 over the coats i up to c.
    """
    popcount = torch.ops.frozen_kernels.popcount
    for number, plane in enumerate(coats.unbind(), 2):
        kept = kept + (2 * number - 1) * popcount(plane)
    return kept
