"""Which weights a search keeps: a threshold over the scores that compete, and packed masks. Plain tensors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import sharded

_BLOCK = 1 << 18  # scores that are copied at once, a multiple of 8


class Competitor(NamedTuple):
    """One tensor in a competition: its scores (None without free weights), how many weights it has and how many of them
    are pruned, and the sparsity that it asks for."""

    scores: Tensor | None
    weights: int
    pruned: int
    sparsity: float


def rank_of(competitors: Sequence[Competitor]) -> tuple[list[Tensor], int]:
    """The scores that compete, and which of them in order of |score| is the highest that is dropped.

    That is the `floor(n * sparsity)`-th smallest of all n weights: pruned ones count as -inf and locked ones as +inf.
    The rank is 0 where it falls on no free weight and all are kept. Tensors that share scores count once.
    """
    unique = list({id(c.scores) if c.scores is not None else -i: c for i, c in enumerate(competitors, 1)}.values())
    sparsities = {c.sparsity for c in unique}
    count = sum(c.weights for c in unique)
    if len(sparsities) == 1:
        rank = math.floor(count * sparsities.pop())
    else:
        rank = math.floor(math.fsum(c.weights * c.sparsity for c in unique))
    rank -= sum(c.pruned for c in unique)
    scores = [c.scores.detach() for c in unique if c.scores is not None]
    return scores, min(max(rank, 0), sum(s.numel() for s in scores))


def threshold(competitors: Sequence[Competitor], device: torch.device) -> Tensor | None:
    """int64 key over the scores that compete: a weight is kept iff its |score| orders strictly above it.

    None where all free weights are kept. Collective where the scores are sharded.
    """
    scores, rank = rank_of(competitors)
    if rank == 0:
        return None
    if any(map(sharded.is_sharded, scores)):
        return sharded.select([(scores, rank)], device)[0]
    return torch.ops.frozen_kernels.select(scores, rank)


def pack_above(scores: Tensor, key: Tensor, device: torch.device) -> Tensor:
    """uint8 [ceil(count / 8)] on `device`: which |scores| order above the key. Collective where they are sharded."""
    if sharded.is_sharded(scores):
        return sharded.pack_above([scores], [key], device)[0]
    return torch.ops.frozen_kernels.pack_above(scores.detach(), key.to(device))


def pack_negative(scores: Tensor, device: torch.device) -> Tensor:
    """uint8 [ceil(count / 8)] on `device`: which scores are below 0. Collective where they are sharded."""
    none, held = torch.zeros((), dtype=torch.int64, device=device), scores.detach()
    if sharded.is_sharded(scores) or held.device.type != "cpu":
        return pack_above((-held).clamp_(min=0), none, device)
    # the same memory for each part: memory that is new to the process costs more than the bits
    copied = held.new_empty(min(_BLOCK, held.numel()))
    packed = [torch.zeros(0, dtype=torch.uint8, device=device)]
    for part in held.split(_BLOCK):
        packed.append(pack_above(torch.neg(part, out=copied[: part.numel()]).clamp_(min=0), none, device))
    return torch.cat(packed)
