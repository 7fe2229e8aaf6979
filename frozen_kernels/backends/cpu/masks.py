"""Bit planes and supermask streams on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ...format import Pack, chunks, matrix_shape, words
from ..checks import check_dtype, checked_bits, checked_offsets, keep_and_partition, matrix, operand
from .extension import _C, check_cpu, check_reach, code_id, header_of, pack_args, threads, weight_args

VALUES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)  # that are packed


def offsets(header: Tensor, rows: int, cols: int) -> Tensor:
    header, out = header_of(header), torch.empty(rows * chunks(cols) + 1, dtype=torch.int64)
    _C.offsets(header.data_ptr(), rows, cols, out.data_ptr(), threads())
    return out


def with_offsets(pack: Pack) -> Pack:
    """A pack with the stream offsets that a score gradient needs; made where the tensor does not hold them."""
    if pack.offsets is not None:
        return pack
    return pack._replace(offsets=offsets(pack.header, *matrix_shape(pack.shape)))


def pack(keep: Tensor, partition: Tensor) -> Tensor:
    check_cpu("keep", keep)
    keep, partition = keep_and_partition(keep, partition)
    rows, cols = keep.shape
    free = _C.count_free(partition.data_ptr(), partition.numel(), threads())
    out = torch.empty(-(-free // 8), dtype=torch.uint8)
    _C.pack(keep.data_ptr(), partition.data_ptr(), rows, cols, out.data_ptr(), out.numel(), threads())
    return out


def unpack(stream: Tensor, partition: Tensor) -> Tensor:
    check_cpu("stream", stream)
    stream = operand("stream", stream, stream.device, torch.uint8)
    partition = matrix("partition", partition, stream.device, torch.int8)
    rows, cols = partition.shape
    free = _C.count_free(partition.data_ptr(), partition.numel(), threads())
    if stream.numel() != -(-free // 8):
        raise ValueError(f"stream: {-(-free // 8)} bytes expected for {free} free weights, got {stream.numel()}")
    out = torch.empty(rows, cols, dtype=torch.bool)
    address = stream.data_ptr()
    _C.unpack(address, stream.numel(), partition.data_ptr(), rows, cols, out.data_ptr(), threads())
    return out


def planes(keep: Tensor) -> Tensor:
    check_cpu("keep", keep)
    keep = matrix("keep", keep, keep.device, torch.bool)
    rows, cols = keep.shape
    out = torch.empty(rows, words(cols), dtype=torch.int32)
    _C.planes(keep.data_ptr(), rows, cols, out.data_ptr(), threads())
    return out


def _mask_args(
    header: Tensor, supermask: Tensor | None, offsets: Tensor, keep: Tensor | None, rows: int, cols: int
) -> tuple[tuple[int, ...], Pack]:
    return pack_args(Pack(header, supermask, offsets, keep, None, None, None, None, "constant", (rows, cols)))


def keep_plane(header: Tensor, supermask: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    args, _held = _mask_args(header, supermask, offsets, None, rows, cols)
    out = torch.empty(rows, words(cols), dtype=torch.int32)
    _C.keep_plane(args, out.data_ptr(), threads())
    return out


def pack_plane(header: Tensor, keep: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    offsets = checked_offsets(offsets, header, rows, cols)
    args, _held = _mask_args(header, None, offsets, keep, rows, cols)
    out = torch.empty(-(-int(offsets[-1]) // 8), dtype=torch.uint8)
    _C.pack_plane(args, out.data_ptr(), out.numel(), threads())
    return out


def plane_offsets(keep: Tensor, cols: int) -> Tensor:
    check_cpu("keep", keep)
    rows = keep.shape[0]
    keep = operand("keep", keep, keep.device, torch.int32, (rows, words(cols)))
    out = torch.empty(rows * chunks(cols) + 1, dtype=torch.int64)
    _C.plane_offsets(keep.data_ptr(), rows, cols, out.data_ptr(), threads())
    return out


def pack_values(weight: Tensor, keep: Tensor) -> Tensor:
    """From a weight of torch's shape and any strides."""
    check_cpu("weight", weight)
    check_dtype("weight", weight.dtype, VALUES)
    check_reach("weight", weight)
    rows, cols = matrix_shape(weight.shape)
    keep = operand("keep", keep, weight.device, torch.int32, (rows, words(cols)))
    starts = plane_offsets(keep, cols)
    out = torch.empty(int(starts[-1]), dtype=weight.dtype)
    # elements are copied whatever they mean: the dtype id is not read
    args, taps = weight_args(weight, 0)
    kept, size = (rows, keep.data_ptr(), 0), weight.element_size()
    _C.pack_values(args, size, weight.shape[1], taps, kept, starts.data_ptr(), out.data_ptr(), threads())
    return out


def draw_plane(header: Tensor, code: str, rows: int, cols: int) -> Tensor:
    """The stored draws of a code: a sign plane, or a byte per element."""
    header, kind = header_of(header), code_id(code)
    if code == "constant":
        raise ValueError("code: 'constant' has no draw to store")
    if code == "sign":
        out = torch.empty(rows, words(cols), dtype=torch.int32)
    else:
        out = torch.empty(rows, cols, dtype=torch.uint8)
    _C.draw_plane(header.data_ptr(), kind, rows, cols, out.data_ptr(), threads())
    return out


def popcount(bits: Tensor) -> Tensor:
    check_cpu("bits", bits)
    bits = checked_bits(bits)
    return torch.tensor(_C.popcount(bits.data_ptr(), bits.numel() * bits.element_size(), threads()), dtype=torch.int64)
