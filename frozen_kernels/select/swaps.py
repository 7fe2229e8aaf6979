"""Masks that keep a fixed number of weights, and the swaps that change them (Zhang et al., arXiv 2104.08700)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import format as fmt

GAP = 0.01  # between the scores of kept and dropped weights when a search begins; they lie around 0


def best(scores: Tensor, kept: int) -> Tensor:
    """uint8: the packed mask of the `kept` highest scores; between equal ones the lower position wins."""
    first = fmt.pack_bits(torch.arange(scores.numel(), device=scores.device) < kept)
    swap = torch.ops.frozen_kernels.swap
    return torch.ops.frozen_kernels.flip(first, swap(scores, first, kept, 1.0))


def centred(supermask: Tensor, count: int) -> Tensor:
    """float32 [count]: the scores that a search starts from, half a gap above 0 where kept and below where dropped."""
    return torch.where(fmt.unpack_bits(supermask, count), GAP / 2, -GAP / 2)


def short_restriction(progress: float) -> float:
    """The share of wanted swaps that are made when `progress` of the epochs, 0 to below 1, has passed."""
    return (1 - progress) ** 4


def _groups(values: Tensor, shape: Sequence[int], of: int) -> Tensor:
    """Values in stream order as [groups, of] of consecutive columns."""
    rows, cols = fmt.matrix_shape(shape)
    return fmt.from_stream(values, rows, cols).view(-1, of)


def best_of_groups(scores: Tensor, shape: Sequence[int], pattern: tuple[int, int]) -> Tensor:
    """uint8: the packed mask of the N highest of every M consecutive columns; between equal ones the first wins."""
    kept, of = pattern
    keep = _chosen(fmt.raw_keys(_groups(scores, shape, of)), torch.zeros(1, of, dtype=torch.bool), kept)
    return fmt.pack_bits(fmt.stream_order(keep.view(fmt.matrix_shape(shape))))


def _chosen(keys: Tensor, keep: Tensor, kept: int) -> Tensor:
    """bool [groups, of]: the `kept` best of each group; between equal ones what `keep` has, then the first, wins."""
    by_kept = (~keep.to(keys.device)).to(torch.int8).expand(keys.shape).sort(dim=1, stable=True).indices
    order = keys.gather(1, by_kept).sort(dim=1, descending=True, stable=True).indices
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, by_kept.gather(1, order)[:, :kept], True)


def swap_in_groups(
    scores: Tensor, supermask: Tensor, shape: Sequence[int], pattern: tuple[int, int], rate: float
) -> Tensor:
    """int64 [2, swaps]: `swap` under a pattern: a weight enters for one of the same group of columns that leaves.

    The best that enters a group is paired with the worst that leaves it, and `ceil(pairs * rate)` pairs are swapped,
    those of the largest gain in score first; between equal gains the lower position that enters.
    """
    (kept, of), (rows, cols) = pattern, fmt.matrix_shape(shape)
    now = _groups(fmt.unpack_bits(supermask, scores.numel()), shape, of)
    keys, values = fmt.raw_keys(_groups(scores, shape, of)), _groups(scores, shape, of).to(torch.float64)
    wanted = _chosen(keys, now, kept)
    places = fmt.from_stream(torch.arange(rows * cols, device=scores.device), rows, cols).view(-1, of)
    pairs = []
    for who, descending in ((wanted & ~now, True), (now & ~wanted, False)):
        group, column = who.nonzero(as_tuple=True)
        by_key = keys[group, column].sort(descending=descending, stable=True).indices
        order = by_key[group[by_key].sort(stable=True).indices]
        pairs.append((places[group[order], column[order]], values[group[order], column[order]]))
    (entering, high), (leaving, low) = pairs
    swaps = math.ceil(entering.numel() * rate)
    gain = (high - low).nan_to_num(nan=math.inf)
    by_place = entering.sort().indices
    chosen = by_place[gain[by_place].sort(descending=True, stable=True).indices][:swaps]
    return torch.stack((entering[chosen], leaving[chosen]))
