"""The layer ops on the Triton backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import Unsupported
from .launch import DTYPES, WORDS, check_dtype, check_tensor, decode_args, on

ROWS = 64  # of a tile


def batch_tile(batch: int, dtype: torch.dtype) -> int:
    """Samples per program: a tensor core takes 16 at least; more than the cap spills registers."""
    return min(16 if dtype == torch.float32 else 64, max(16, 1 << (batch - 1).bit_length()))


def linear(
    x: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu(gain * x @ weight^T + bias)` for x [..., cols], codes decoded in registers and no dense weight."""
    check_dtype("x", x.dtype)
    if len(shape) != 2:
        raise Unsupported(f"linear needs a weight of 2 dimensions, got shape {tuple(shape)}")
    args = decode_args(header, supermask, offsets, keep, draw, dense, code, shape)
    rows, cols = args["rows"], args["cols"]
    if x.device != header.device:
        raise Unsupported(f"x is on {x.device}, the header on {header.device}")
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x: last dimension {cols} expected, got shape {tuple(x.shape)}")
    if bias is not None:
        check_tensor("bias", bias, header, DTYPES, rows)
    if gain is not None:
        check_tensor("gain", gain, header, (torch.float32,), rows)
    batch = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device=x.device)
    if y.numel():
        from .kernels.gemm import linear_kernel

        flat = x.reshape(batch, cols)
        tile = batch_tile(batch, x.dtype)
        programs = -(-rows // ROWS) * -(-batch // tile)
        with on(y.device):
            linear_kernel[(programs,)](
                y, flat, bias, gain, **args, batch=batch, x_batch_stride=flat.stride(0), x_col_stride=flat.stride(1),
                ROWS=ROWS, BATCH=tile, WORDS=WORDS, RELU=relu,
            )  # fmt: skip
    return y
