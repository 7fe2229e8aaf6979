"""The selection that makes supermasks, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .extension import _C, check_cpu, score_args, threads


def select(scores: Sequence[Tensor], rank: int) -> Tensor:
    check_cpu("scores", scores[0])
    found = [score_args(tensor, scores[0]) for tensor in scores]
    return torch.tensor(_C.select([args for args, _held in found], int(rank), threads()), dtype=torch.int64)


def pack_above(scores: Tensor, key: Tensor) -> Tensor:
    check_cpu("scores", scores)
    args, held = score_args(scores, scores)
    out = torch.empty(-(-held.numel() // 8), dtype=torch.uint8)
    _C.pack_above(args, int(key), out.data_ptr(), threads())
    return out
