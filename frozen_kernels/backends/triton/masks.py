"""Format ops on bit planes and supermask streams on the Triton backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...format import chunks, words
from ..errors import Unsupported
from .launch import MAX_COLS, check_header, check_live, on, operand

PLANE_WORDS = 512  # of a block that touches words alone
ELEMENT_WORDS = 128  # of one that touches their elements
POPCOUNT_BLOCK = 8192


def chunk_blocks(rows: int, cols: int, block: int) -> dict[str, Any]:
    """The shape of blocks of `block` words that hold a whole chunk of their rows each; programs under "grid"."""
    width = min(32, 1 << (words(cols) - 1).bit_length())
    height = block // width
    return {"grid": (-(-rows // height) * chunks(cols),), "ROWS": height, "WORDS": width}


def _check_cols(cols: int) -> None:
    if cols > MAX_COLS:
        raise Unsupported(f"{cols} columns are more than {MAX_COLS}")


def _matrix(name: str, t: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    if t.dim() != 2:
        raise ValueError(f"{name}: 2 dimensions expected, got {t.dim()}")
    _check_cols(t.shape[1])
    return operand(name, t, like, dtype)


def _checked_offsets(offsets: Tensor, header: Tensor, rows: int, cols: int) -> Tensor:
    _check_cols(cols)
    return operand("offsets", offsets, header, torch.int64, (rows * chunks(cols) + 1,))


def _offsets(header: Tensor | None, partition: Tensor | None, rows: int, cols: int, like: Tensor) -> Tensor:
    """Free weights before each (row, chunk), and all of them last; of a stored partition, or of the header's."""
    counts = torch.zeros(rows * chunks(cols) + 1, dtype=torch.int64, device=like.device)
    if counts.numel() > 1:
        from .kernels.masks import count_kernel

        blocks = chunk_blocks(rows, cols, PLANE_WORDS if partition is None else ELEMENT_WORDS)
        with on(like.device):
            count_kernel[blocks.pop("grid")](counts, header, partition, rows, cols, **blocks)
    return torch.cumsum(counts, 0)


def offsets(header: Tensor, rows: int, cols: int) -> Tensor:
    """The workspace is one more tensor of the result's size, and what torch's scan takes."""
    header = check_header(header)
    _check_cols(cols)
    return _offsets(header, None, rows, cols, header)


def free_draws(header: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    header = check_header(header)
    offsets = _checked_offsets(offsets, header, rows, cols)
    out = torch.empty(int(offsets[-1]), dtype=torch.int32, device=header.device)
    if out.numel():
        from .kernels.masks import free_draws_kernel

        programs = -(-rows // 16) * chunks(cols)
        with on(out.device):
            free_draws_kernel[(programs,)](out, header, offsets, rows, cols, ROWS=16, WORDS=4)
    return out


def _pack(
    header: Tensor | None, partition: Tensor | None, keep: Tensor, offsets: Tensor, rows: int, cols: int
) -> Tensor:
    free = int(offsets[-1])
    # whole words, which atomics need
    out = torch.zeros(-(-free // 32), dtype=torch.int32, device=keep.device)
    if free:
        from .kernels.masks import pack_kernel

        blocks = chunk_blocks(rows, cols, PLANE_WORDS if partition is None else ELEMENT_WORDS)
        with on(out.device):
            pack_kernel[blocks.pop("grid")](out, header, partition, keep, offsets, rows, cols, **blocks)
    return out.view(torch.uint8)[: -(-free // 8)]


def pack(keep: Tensor, partition: Tensor) -> Tensor:
    check_live(keep)
    keep = _matrix("keep", keep, keep, torch.bool)
    partition = _matrix("partition", partition, keep, torch.int8)
    if keep.shape != partition.shape:
        raise ValueError(f"keep: shape {tuple(partition.shape)} of the partition expected, got {tuple(keep.shape)}")
    rows, cols = keep.shape
    return _pack(None, partition, keep.view(torch.uint8), _offsets(None, partition, rows, cols, keep), rows, cols)


def pack_plane(header: Tensor, keep: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    header = check_header(header)
    offsets = _checked_offsets(offsets, header, rows, cols)
    keep = operand("keep", keep, header, torch.int32, (rows, words(cols)))
    return _pack(header, None, keep, offsets, rows, cols)


def unpack(stream: Tensor, partition: Tensor) -> Tensor:
    """Which weights are kept. A stream of another length is read as far as it goes: to count it takes a host."""
    check_live(stream)
    stream = operand("stream", stream, stream, torch.uint8)
    partition = _matrix("partition", partition, stream, torch.int8)
    rows, cols = partition.shape
    out = torch.empty(rows, cols, dtype=torch.bool, device=partition.device)
    if out.numel():
        from .kernels.masks import keep_kernel

        offsets = _offsets(None, partition, rows, cols, partition)
        blocks = chunk_blocks(rows, cols, ELEMENT_WORDS)
        with on(out.device):
            keep_kernel[blocks.pop("grid")](
                out.view(torch.uint8), None, partition, stream, offsets, stream.numel(), rows, cols, **blocks
            )
    return out


def keep_plane(header: Tensor, supermask: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    header = check_header(header)
    offsets = _checked_offsets(offsets, header, rows, cols)
    supermask = operand("supermask", supermask, header, torch.uint8)
    out = torch.empty(rows, words(cols), dtype=torch.int32, device=header.device)
    if out.numel():
        from .kernels.masks import keep_kernel

        blocks = chunk_blocks(rows, cols, PLANE_WORDS)
        with on(out.device):
            keep_kernel[blocks.pop("grid")](
                out, header, None, supermask, offsets, supermask.numel(), rows, cols, **blocks
            )
    return out


def planes(keep: Tensor) -> Tensor:
    check_live(keep)
    keep = _matrix("keep", keep, keep, torch.bool)
    rows, cols = keep.shape
    out = torch.empty(rows, words(cols), dtype=torch.int32, device=keep.device)
    if out.numel():
        from .kernels.masks import planes_kernel

        blocks = chunk_blocks(rows, cols, ELEMENT_WORDS)
        with on(out.device):
            planes_kernel[blocks.pop("grid")](out, keep.view(torch.uint8), rows, cols, **blocks)
    return out


def popcount(bits: Tensor) -> Tensor:
    check_live(bits)
    if bits.dtype not in (torch.int32, torch.uint8):
        raise ValueError(f"bits: int32 or uint8 expected, got {bits.dtype}")
    bits = bits.contiguous()
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    if bits.numel():
        from .kernels.masks import popcount_kernel

        with on(bits.device):
            popcount_kernel[(-(-bits.numel() // POPCOUNT_BLOCK),)](total, bits, bits.numel(), BLOCK=POPCOUNT_BLOCK)
    return total
