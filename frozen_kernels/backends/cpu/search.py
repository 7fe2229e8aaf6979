"""The selection that makes supermasks, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...format import check_supermask
from ..checks import operand
from ..errors import Unsupported
from .extension import _C, check_cpu, score_args, threads

POSITIONS = 1 << 32  # that the kernel of a swap tells apart


def select(scores: Sequence[Tensor], rank: int) -> Tensor:
    check_cpu("scores", scores[0])
    found = [score_args(tensor, scores[0]) for tensor in scores]
    return torch.tensor(_C.select([args for args, _held in found], int(rank), threads()), dtype=torch.int64)


def swap(scores: Tensor, supermask: Tensor, kept: int, rate: float) -> Tensor:
    check_cpu("scores", scores)
    check_cpu("supermask", supermask)
    args, held = score_args(scores, scores)
    check_supermask(supermask, held.numel())
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: 0 to 1, got {rate}")
    if held.numel() >= POSITIONS:
        raise Unsupported(f"scores are {held.numel()}; the kernel takes fewer than {POSITIONS}")
    mask = supermask.contiguous()
    found = _C.swap(args, mask.data_ptr(), kept, rate, threads())
    return torch.frombuffer(found, dtype=torch.int64).view(2, -1) if found else torch.empty(2, 0, dtype=torch.int64)


def flip(supermask: Tensor, positions: Tensor) -> Tensor:
    check_cpu("supermask", supermask)
    positions = operand("positions", positions, supermask.device, torch.int64)
    out = operand("supermask", supermask, supermask.device, torch.uint8).clone()
    _C.flip(out.data_ptr(), out.numel(), positions.data_ptr(), positions.numel())
    return out


def pack_above(scores: Tensor, key: Tensor) -> Tensor:
    check_cpu("scores", scores)
    args, held = score_args(scores, scores)
    out = torch.empty(-(-held.numel() // 8), dtype=torch.uint8)
    _C.pack_above(args, int(key), out.data_ptr(), threads())
    return out
