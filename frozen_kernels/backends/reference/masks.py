"""Bit planes and supermask streams."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import format as fmt
from ...format import pack_bits, unpack_bits
from .generate import byte_draws, fill, partition, sign_bits


def pack(keep: Tensor, partition: Tensor) -> Tensor:
    return pack_bits(fmt.stream_order(keep)[fmt.stream_order(partition == 0)])


def unpack(stream: Tensor, partition: Tensor) -> Tensor:
    rows, cols = partition.shape
    free = fmt.stream_order(partition == 0)
    kept = torch.zeros_like(free)
    kept[free] = unpack_bits(stream, int(free.sum()))
    back = torch.arange(cols, device=partition.device) // 32 * 32 + fmt.bit_of_column(cols, partition.device)
    # column k stands at the rank of its bit position within the row
    rank = back.argsort().argsort()
    return kept.reshape(rows, cols)[:, rank] | (partition == 1)


def planes(keep: Tensor) -> Tensor:
    rows, cols = keep.shape
    out = torch.zeros(rows, fmt.words(cols) * 32, dtype=torch.int64, device=keep.device)
    position = torch.arange(cols, device=keep.device) // 32 * 32 + fmt.bit_of_column(cols, keep.device)
    out[:, position] = keep.to(torch.int64)
    words = (out.reshape(rows, fmt.words(cols), 32) << torch.arange(32, device=keep.device)).sum(-1)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def from_planes(plane: Tensor, cols: int) -> Tensor:
    """bool [rows, cols] of an int32 plane [rows, words]: the inverse of `planes`."""
    columns = torch.arange(cols, device=plane.device)
    return (plane[:, columns >> 5] >> fmt.bit_of_column(cols, plane.device) & 1).bool()


def offsets(header: Tensor, rows: int, cols: int) -> Tensor:
    free = partition(header, rows, cols, 0, 0) == 0
    span = fmt.CHUNK_WORDS * 32
    padded = torch.zeros(rows, fmt.chunks(cols) * span, dtype=torch.bool, device=header.device)
    padded[:, :cols] = free
    out = torch.zeros(rows * fmt.chunks(cols) + 1, dtype=torch.int64, device=header.device)
    out[1:] = padded.reshape(-1, span).sum(1).cumsum(0)
    return out


def plane_offsets(keep: Tensor, cols: int) -> Tensor:
    counts = torch.zeros(keep.shape[0], fmt.chunks(cols) * fmt.CHUNK_WORDS, dtype=torch.int64, device=keep.device)
    counts[:, : keep.shape[1]] = popcounts(keep)
    out = torch.zeros(keep.shape[0] * fmt.chunks(cols) + 1, dtype=torch.int64, device=keep.device)
    out[1:] = counts.reshape(-1, fmt.CHUNK_WORDS).sum(1).cumsum(0)
    return out


def pack_values(weight: Tensor, keep: Tensor) -> Tensor:
    cols = fmt.matrix_shape(weight.shape)[1]
    return fmt.stream_order(fmt.to_matrix(weight))[fmt.stream_order(from_planes(keep, cols))]


def keep_plane(header: Tensor, supermask: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    return planes(unpack(supermask, partition(header, rows, cols, 0, 0)))


def pack_plane(header: Tensor, keep: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    return pack(from_planes(keep, cols), partition(header, rows, cols, 0, 0))


def draw_plane(header: Tensor, code: str, rows: int, cols: int) -> Tensor:
    if code == "constant":
        raise ValueError("code: 'constant' has no draw to store")
    fields = fmt.header_fields(header)
    out = torch.empty(rows, cols, dtype=torch.uint8, device=header.device)
    if code == "sign":
        return planes(fill(out, 0, 0, lambda r, c: sign_bits(fields, r, c)).bool())
    return fill(out, 0, 0, lambda r, c: byte_draws(fields, r, c))


def popcounts(bits: Tensor) -> Tensor:
    """int64, of each element of a uint8 or int32 tensor."""
    table = torch.tensor([bin(i).count("1") for i in range(256)], device=bits.device)
    return table[bits.contiguous().view(torch.uint8).int()].view(*bits.shape, bits.element_size()).sum(-1)


def popcount(bits: Tensor) -> Tensor:
    return popcounts(bits).sum()
