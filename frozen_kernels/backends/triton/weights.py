"""The weight op on the Triton backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...format import chunks
from .launch import WORDS, check_dtype, decode_args, on

ROWS = 32  # of a tile


def weight(
    scores: Tensor | None,
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """The effective weight in torch's shape and order."""
    check_dtype("dtype", dtype)
    args = decode_args(header, supermask, offsets, keep, draw, dense, code, shape)
    out = torch.empty(tuple(shape), dtype=dtype, device=header.device)
    if out.numel():
        from .kernels.weight import weight_kernel

        programs = -(-args["rows"] // ROWS) * chunks(args["cols"])
        with on(out.device):
            weight_kernel[(programs,)](out, **args, TAPS=math.prod(shape[2:]), ROWS=ROWS, WORDS=WORDS)
    return out
