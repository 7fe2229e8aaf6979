"""The selection that makes supermasks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import format as fmt
from ...format import pack_bits, unpack_bits


def select(scores: list[Tensor], rank: int) -> Tensor:
    keys = torch.cat([fmt.score_keys(s).flatten() for s in scores])
    if not 1 <= rank <= keys.numel():
        raise ValueError(f"rank: 1 to the number of scores {keys.numel()}, got {rank}")
    return keys.kthvalue(rank).values.to(torch.int64)


def _ordered(keys: Tensor, kept: Tensor) -> Tensor:
    """Positions from best to worst: the higher key, between equal ones what is kept, then the lower position."""
    by_kept = (~kept).to(torch.int8).sort(stable=True).indices
    return by_kept[keys[by_kept].sort(descending=True, stable=True).indices]


def swap(scores: Tensor, supermask: Tensor, kept: int, rate: float) -> Tensor:
    """int64 [2, swaps]: the best that enter and the worst that leave, so that the mask nears the `kept` best scores.

    Of the pairs of weights that should enter and leave, `ceil(pairs * rate)` do (Zhang et al., arXiv 2104.08700).
    """
    fmt.check_supermask(supermask, scores.numel())
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: 0 to 1, got {rate}")
    keep = unpack_bits(supermask, scores.numel())
    if int(keep.sum()) != kept:
        raise ValueError(f"supermask: {int(keep.sum())} weights kept, expected {kept}")
    order = _ordered(fmt.raw_keys(scores), keep)
    wanted = torch.zeros_like(keep)
    wanted[order[:kept]] = True
    entering, leaving = order[(wanted & ~keep)[order]], order[(keep & ~wanted)[order]].flip(0)
    swaps = math.ceil(entering.numel() * rate)
    return torch.stack((entering[:swaps], leaving[:swaps]))


def flip(supermask: Tensor, positions: Tensor) -> Tensor:
    """The supermask with the bits at these positions of the stream changed; none may be there twice."""
    flat, count = positions.flatten(), 8 * supermask.numel()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < count:
        raise IndexError(f"positions: 0 to {count - 1} expected, got {int(flat.min())} to {int(flat.max())}")
    out = supermask.to(torch.int64)
    places, bits = flat >> 3, 1 << (flat & 7)
    change = torch.zeros_like(out).index_add_(0, places, bits)
    return (out ^ change).to(torch.uint8)


def pack_above(scores: Tensor, key: Tensor) -> Tensor:
    return pack_bits(fmt.score_keys(scores).to(torch.int64) > key)
