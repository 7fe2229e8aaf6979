"""Search ops on the Triton backend: the threshold of a rank, and the masks of what lies above it.

`swap` and `flip` are the reference's: sorts and scatters, for which torch has kernels, a few times a search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..checks import check_dtype, operand
from .launch import check_live, on

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # compared as float32
COUNTERS = 256 + 256 + 32768  # of a key's three digits
GROUP = 32  # tensors per launch, whose addresses lie in registers
BLOCK = 4096
SPAN = 32768  # scores per program
BYTES = 512  # of a mask per program


def _check_scores(scores: Tensor, like: Tensor) -> Tensor:
    check_dtype("scores", scores.dtype, DTYPES)
    return operand("scores", scores, like.device, scores.dtype)


def _groups(scores: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors that one launch reads: of one dtype, not empty, GROUP at most."""
    groups = []
    for dtype in DTYPES:
        same = [s for s in scores if s.dtype == dtype and s.numel()]
        groups += [same[i : i + GROUP] for i in range(0, len(same), GROUP)]
    return groups


def _count_digit(counts: Tensor, group: list[Tensor], rank: int, digit: int) -> None:
    from .kernels.select import count_kernel

    # few compiled variants: one per power of two of tensors, the last repeated where no program begins
    width = 1 << (len(group) - 1).bit_length()
    sizes = [s.numel() for s in group]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // SPAN))
    spare = width - len(group)
    tensors = (*group, *group[-1:] * spare)
    with on(counts.device):
        count_kernel[(starts[-1],)](
            counts, tensors, (*starts[: len(group)], *starts[-1:] * spare), (*sizes, *sizes[-1:] * spare), rank,
            DIGIT=digit, COUNT=width, BLOCK=BLOCK, SPAN=SPAN, num_warps=8,
        )  # fmt: skip


def select(scores: Sequence[Tensor], rank: int) -> Tensor:
    """Key of the rank-th smallest |score| over all tensors, int64 on their device.

    Three passes over digits of 8, 8 and 15 bits: 12 bytes read per float32 score, two times 256 atomics per 32768
    scores, and in the last pass one atomic per score that shares the result's upper 16 bits. One launch per pass and
    32 tensors of a dtype, then one for the key; the workspace is 266 kB.
    """
    check_live(scores[0])
    held = [_check_scores(s, scores[0]) for s in scores]
    total = sum(s.numel() for s in held)
    if not 1 <= rank <= total:
        raise ValueError(f"rank: 1 to the number of scores {total}, got {rank}")
    counts = torch.zeros(COUNTERS, dtype=torch.int64, device=held[0].device)
    out = torch.empty((), dtype=torch.int64, device=held[0].device)
    groups = _groups(held)
    for digit in range(3):
        for group in groups:
            _count_digit(counts, group, rank, digit)
    from .kernels.select import key_kernel

    with on(out.device):
        key_kernel[(1,)](out, counts, rank, BLOCK=BLOCK, num_warps=8)
    return out


def pack_above(scores: Tensor, key: Tensor) -> Tensor:
    """uint8 [ceil(count / 8)]: which scores order above the key, a 0-dimensional int64 tensor."""
    check_live(scores)
    scores = _check_scores(scores, scores)
    key = operand("key", key, scores.device, torch.int64, ())
    out = torch.empty(-(-scores.numel() // 8), dtype=torch.uint8, device=scores.device)
    if out.numel():
        from .kernels.select import pack_above_kernel

        with on(out.device):
            pack_above_kernel[(-(-out.numel() // BYTES),)](out, scores, key, scores.numel(), BYTES=BYTES)
    return out


def swap(scores: Tensor, supermask: Tensor, kept: int, rate: float) -> Tensor:
    """Waits for the device, which counts what is kept and what changes."""
    check_live(scores)
    return reference.swap(scores, supermask, kept, rate)


def flip(supermask: Tensor, positions: Tensor) -> Tensor:
    """The workspace is four integers of 64 bits for each byte."""
    check_live(supermask)
    return reference.flip(supermask, positions)
