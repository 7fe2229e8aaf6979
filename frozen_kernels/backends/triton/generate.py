"""Format ops that make elements on the Triton backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...format import CODES, check_code, chunks
from ..checks import checked_offsets
from .launch import check_cols, header_of, normal_table, on

BLOCK_WORDS = 128  # of an element kernel: 4096 elements for 128 threads


def shard_blocks(rows: int, cols: int, col0: int) -> dict[str, Any]:
    """Blocks across a shard, from a multiple of four words before it, and their shape; programs under "grid"."""
    span = col0 % 128 + cols
    block = 4 if span <= 128 else 8
    height = BLOCK_WORDS // block
    across = -(-span // (32 * block))
    return {"grid": (-(-rows // height) * across,), "across": across, "ROWS": height, "WORDS": block}


def launch(kernel: Any, out: Tensor, extent: tuple[int, int, int, int], *args: Any, **constants: Any) -> Tensor:
    """Run an element kernel over a shard (rows, cols, row0, col0) of a matrix that is not empty."""
    rows, cols, row0, col0 = extent
    blocks = shard_blocks(rows, cols, col0)
    with on(out.device):
        kernel[blocks.pop("grid")](
            out, *args, rows=rows, cols=cols, row0=row0, col0=col0, **blocks, **constants,
        )  # fmt: skip
    return out


def codes(header: Tensor, code: str, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header, code_id = header_of(header), CODES.index(check_code(code))
    out = torch.empty(rows, cols, dtype=torch.int16, device=header.device)
    if out.numel():
        from .kernels.generate import codes_kernel

        table = normal_table(header.device) if code == "normal" else None
        launch(codes_kernel, out, (rows, cols, row0, col0), header, table, CODE=code_id)
    return out


def draws(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header = header_of(header)
    out = torch.empty(rows, cols, dtype=torch.int32, device=header.device)
    if out.numel():
        from .kernels.generate import draws_kernel

        launch(draws_kernel, out, (rows, cols, row0, col0), header)
    return out


def partition(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header = header_of(header)
    out = torch.empty(rows, cols, dtype=torch.int8, device=header.device)
    if out.numel():
        from .kernels.generate import partition_kernel

        launch(partition_kernel, out, (rows, cols, row0, col0), header)
    return out


def uniform_scores(header: Tensor, bound: float, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header = header_of(header)
    out = torch.empty(rows, cols, dtype=torch.float32, device=header.device)
    if out.numel():
        from .kernels.generate import uniform_scores_kernel

        launch(uniform_scores_kernel, out, (rows, cols, row0, col0), header, _float32(bound))
    return out


def _float32(value: float) -> float:
    """Rounded once here: a launch takes floats as it likes."""
    return float(torch.tensor(value, dtype=torch.float32, device="cpu"))


def free_draws(header: Tensor, offsets: Tensor, rows: int, cols: int, purpose: int) -> Tensor:
    header = header_of(header)
    check_cols(cols)
    offsets = checked_offsets(offsets, header, rows, cols)
    out = torch.empty(int(offsets[-1]), dtype=torch.int32, device=header.device)
    if out.numel():
        from .kernels.masks import free_draws_kernel

        programs = -(-rows // 16) * chunks(cols)
        with on(out.device):
            free_draws_kernel[(programs,)](out, header, offsets, rows, cols, PURPOSE=purpose, ROWS=16, WORDS=4)
    return out


def histogram(header: Tensor, rows: int, cols: int) -> Tensor:
    header = header_of(header)
    out = torch.zeros(65536, dtype=torch.int64, device=header.device)
    if rows * cols:
        from .kernels.generate import histogram_kernel

        # twice the threads: an atomic holds an address and a count per element, which would spill
        launch(histogram_kernel, out, (rows, cols, 0, 0), header, num_warps=8)
    return out


def partition_counts(header: Tensor, rows: int, cols: int) -> Tensor:
    header = header_of(header)
    out = torch.zeros(3, dtype=torch.int64, device=header.device)
    if rows * cols:
        from .kernels.generate import partition_counts_kernel

        with on(out.device):
            across = chunks(cols)
            partition_counts_kernel[(-(-rows // 16) * across,)](out, header, rows, cols, across, ROWS=16, WORDS=32)
    return out
