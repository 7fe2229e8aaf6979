"""Format ops on bit planes and supermask streams on the Triton backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...format import check_code, chunks, matrix_shape, words
from ..checks import check_dtype, checked_bits, checked_offsets, keep_and_partition, matrix, operand
from .generate import launch
from .launch import check_cols, check_live, header_of, on

PLANE_WORDS = 512  # of a block that touches words alone
ELEMENT_WORDS = 128  # of one that touches their elements
POPCOUNT_BLOCK = 8192


def chunk_blocks(rows: int, cols: int, block: int) -> dict[str, Any]:
    """The shape of blocks of `block` words that hold a whole chunk of their rows each; programs under "grid"."""
    width = min(32, 1 << (words(cols) - 1).bit_length())
    height = block // width
    return {"grid": (-(-rows // height) * chunks(cols),), "ROWS": height, "WORDS": width}


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
    header = header_of(header)
    check_cols(cols)
    return _offsets(header, None, rows, cols, header)


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
    keep, partition = keep_and_partition(keep, partition)
    rows, cols = keep.shape
    check_cols(cols)
    return _pack(None, partition, keep.view(torch.uint8), _offsets(None, partition, rows, cols, keep), rows, cols)


def pack_plane(header: Tensor, keep: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    header = header_of(header)
    check_cols(cols)
    offsets = checked_offsets(offsets, header, rows, cols)
    keep = operand("keep", keep, header.device, torch.int32, (rows, words(cols)))
    return _pack(header, None, keep, offsets, rows, cols)


def unpack(stream: Tensor, partition: Tensor) -> Tensor:
    """Which weights are kept. A stream of another length is read as far as it goes: to count it takes a host."""
    check_live(stream)
    stream = operand("stream", stream, stream.device, torch.uint8)
    partition = matrix("partition", partition, stream.device, torch.int8)
    rows, cols = partition.shape
    check_cols(cols)
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
    header = header_of(header)
    check_cols(cols)
    offsets = checked_offsets(offsets, header, rows, cols)
    supermask = operand("supermask", supermask, header.device, torch.uint8)
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
    keep = matrix("keep", keep, keep.device, torch.bool)
    rows, cols = keep.shape
    check_cols(cols)
    out = torch.empty(rows, words(cols), dtype=torch.int32, device=keep.device)
    if out.numel():
        from .kernels.masks import planes_kernel

        blocks = chunk_blocks(rows, cols, ELEMENT_WORDS)
        with on(out.device):
            planes_kernel[blocks.pop("grid")](out, keep.view(torch.uint8), rows, cols, **blocks)
    return out


def plane_offsets(keep: Tensor, cols: int) -> Tensor:
    """The workspace is one more tensor of the result's size, and what torch's scan takes."""
    check_live(keep)
    check_cols(cols)
    rows = keep.shape[0]
    keep = operand("keep", keep, keep.device, torch.int32, (rows, words(cols)))
    counts = torch.zeros(rows * chunks(cols) + 1, dtype=torch.int64, device=keep.device)
    if counts.numel() > 1:
        from .kernels.masks import plane_count_kernel

        blocks = chunk_blocks(rows, cols, PLANE_WORDS)
        with on(keep.device):
            plane_count_kernel[blocks.pop("grid")](counts, keep, rows, cols, **blocks)
    return torch.cumsum(counts, 0)


def pack_values(weight: Tensor, keep: Tensor) -> Tensor:
    """Kept values in stream order. Workspaces: offsets and their counts, and a copy of a weight of other strides."""
    check_live(weight)
    check_dtype("weight", weight.dtype)
    rows, cols = matrix_shape(weight.shape)
    keep = operand("keep", keep, weight.device, torch.int32, (rows, words(cols)))
    offsets = plane_offsets(keep, cols)
    out = torch.empty(int(offsets[-1]), dtype=weight.dtype, device=weight.device)
    if out.numel():
        from .kernels.masks import pack_values_kernel

        blocks = chunk_blocks(rows, cols, ELEMENT_WORDS)
        with on(out.device):
            pack_values_kernel[blocks.pop("grid")](
                out, weight.contiguous(), keep, offsets, rows, cols, TAPS=math.prod(weight.shape[2:]), **blocks
            )
    return out


def draw_plane(header: Tensor, code: str, rows: int, cols: int) -> Tensor:
    """The stored draws of a code: a sign plane, or a byte per element."""
    header = header_of(header)
    if check_code(code) == "constant":
        raise ValueError("code: 'constant' has no draw to store")
    if code != "sign":
        out = torch.empty(rows, cols, dtype=torch.uint8, device=header.device)
        if out.numel():
            from .kernels.generate import byte_plane_kernel

            launch(byte_plane_kernel, out, (rows, cols, 0, 0), header)
        return out
    out = torch.empty(rows, words(cols), dtype=torch.int32, device=header.device)
    if out.numel():
        from .kernels.generate import sign_plane_kernel

        with on(out.device):
            across = chunks(cols)
            sign_plane_kernel[(-(-rows // 16) * across,)](out, header, rows, cols, across, ROWS=16, WORDS=32)
    return out


def popcount(bits: Tensor) -> Tensor:
    check_live(bits)
    bits = checked_bits(bits)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    if bits.numel():
        from .kernels.masks import popcount_kernel

        with on(bits.device):
            popcount_kernel[(-(-bits.numel() // POPCOUNT_BLOCK),)](total, bits, bits.numel(), BLOCK=POPCOUNT_BLOCK)
    return total
