"""Initial scores of a tensor: a function of its seed, the same on every machine (format section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import format as fmt

_BLOCK = 1 << 16  # weights whose temporaries exist at once


def drawn(draws: Tensor, kind: str, cols: int) -> Tensor:
    """float32 scores from int32 SCORE draws, computed in float64 and rounded once. They take the draws' memory."""
    sigma = fmt.kaiming_sigma(cols)
    bound = torch.tensor(math.sqrt(3.0) * sigma, dtype=torch.float32)
    scores = draws.view(torch.float32)
    for start in range(0, draws.numel(), _BLOCK):
        draw, score = draws[start : start + _BLOCK], scores[start : start + _BLOCK]
        if kind == "kaiming_uniform":
            score.copy_((draw >> 8).to(torch.float32) * 2.0**-23 * bound)
        elif kind == "unit_uniform":
            score.copy_(((draw.to(torch.int64) & 0xFFFFFFFF).to(torch.float64) + 0.5) * 2.0**-32)
        else:
            probability = ((draw.to(torch.int64) & 0xFFFFFFFF).to(torch.float64) + 0.5) * 2.0**-32
            score.copy_(torch.special.ndtri(probability) * sigma)
    return scores


def magnitudes(header: Tensor, code: str, rows: int, cols: int, free: int, scale: float) -> Tensor:
    """float32 [free]: |weight| of each free weight in stream order, a block of rows at a time."""
    ops = torch.ops.frozen_kernels
    scores = torch.empty(free, dtype=torch.float32, device=header.device)
    step, done = max(_BLOCK // max(cols, 1), 1), 0
    for row in range(0, rows, step):
        count = min(step, rows - row)
        is_free = fmt.stream_order(ops.partition(header, count, cols, row, 0) == 0)
        values = fmt.stream_order(ops.codes(header, code, count, cols, row, 0))[is_free] * scale
        scores[done : done + values.numel()] = values.abs()
        done += values.numel()
    return scores


def byte_magnitudes(header: Tensor, rows: int, cols: int) -> tuple[Tensor, int]:
    """uint8 [free]: |normal code| of each free weight in stream order, whatever the header's code; and the sum of the
    locked ones'."""
    ops, free, locked = torch.ops.frozen_kernels, [], 0
    step = max(_BLOCK // max(cols, 1), 1)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        partition = fmt.stream_order(ops.partition(header, count, cols, row, 0))
        values = fmt.stream_order(ops.codes(header, "normal", count, cols, row, 0)).abs()
        free.append(values[partition == 0].to(torch.uint8))
        locked += int(values[partition == 1].sum())
    return torch.cat([torch.empty(0, dtype=torch.uint8, device=header.device), *free]), locked


def initial_scores(
    header: Tensor, offsets: Tensor, code: str, rows: int, cols: int, free: int, kind: str, scale: float
) -> Tensor:
    """float32 [free] scores of a header and its offsets, both on the CPU; `scale` is the factor on every code."""
    if kind == "magnitude":
        return magnitudes(header, code, rows, cols, free, scale)
    return drawn(torch.ops.frozen_kernels.free_draws(header, offsets, rows, cols, fmt.SCORE), kind, cols)
