"""The selection that makes supermasks."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import format as fmt
from .masks import pack_bits


def select(scores: list[Tensor], rank: int) -> Tensor:
    keys = torch.cat([fmt.score_keys(s).flatten() for s in scores])
    if not 1 <= rank <= keys.numel():
        raise ValueError(f"rank: 1 to the number of scores {keys.numel()}, got {rank}")
    return keys.kthvalue(rank).values.to(torch.int64)


def pack_above(scores: Tensor, key: Tensor) -> Tensor:
    return pack_bits(fmt.score_keys(scores).to(torch.int64) > key)
