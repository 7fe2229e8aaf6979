"""Generators of the weight format on the CPU: words, then codes, draws and partitions per element."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import checked_offsets
from .extension import _C, code_id, header_of, threads


def codes(header: Tensor, code: str, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header, out = header_of(header), torch.empty(rows, cols, dtype=torch.int16)
    _C.codes(header.data_ptr(), code_id(code), (rows, cols, row0, col0), out.data_ptr(), threads())
    return out


def draws(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header, out = header_of(header), torch.empty(rows, cols, dtype=torch.int32)
    _C.draws(header.data_ptr(), (rows, cols, row0, col0), out.data_ptr(), threads())
    return out


def partition(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header, out = header_of(header), torch.empty(rows, cols, dtype=torch.int8)
    _C.partition(header.data_ptr(), (rows, cols, row0, col0), out.data_ptr(), threads())
    return out


def uniform_scores(header: Tensor, bound: float, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header, out = header_of(header), torch.empty(rows, cols, dtype=torch.float32)
    _C.uniform_scores(header.data_ptr(), bound, (rows, cols, row0, col0), out.data_ptr(), threads())
    return out


def free_draws(header: Tensor, offsets: Tensor, rows: int, cols: int, purpose: int) -> Tensor:
    header = header_of(header)
    offsets = checked_offsets(offsets, header, rows, cols)
    out = torch.empty(int(offsets[-1]), dtype=torch.int32)
    _C.free_draws(header.data_ptr(), offsets.data_ptr(), rows, cols, purpose, out.data_ptr(), threads())
    return out


def histogram(header: Tensor, rows: int, cols: int) -> Tensor:
    header, out = header_of(header), torch.empty(65536, dtype=torch.int64)
    _C.histogram(header.data_ptr(), rows, cols, out.data_ptr(), threads())
    return out


def partition_counts(header: Tensor, rows: int, cols: int) -> Tensor:
    header, out = header_of(header), torch.empty(3, dtype=torch.int64)
    _C.partition_counts(header.data_ptr(), rows, cols, out.data_ptr(), threads())
    return out
