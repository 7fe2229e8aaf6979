"""The effective weight on the CPU, and the score gradient of a gradient of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...format import Pack
from ..checks import check_dtype, check_size
from .extension import _C, DTYPES, pack_args, score_args, threads
from .masks import with_offsets


def weight(scores: Tensor | None, pack: Pack, dtype: torch.dtype) -> Tensor:
    """The effective weight in torch's shape and order."""
    check_dtype("dtype", dtype)
    args, held = pack_args(pack)
    out = torch.empty(tuple(held.shape), dtype=dtype)
    _C.weight(args, held.shape[1], math.prod(held.shape[2:]), DTYPES[dtype], out.data_ptr(), threads())
    return out


def weight_grad_scores(grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
    """From the gradient of a weight of torch's shape and any strides."""
    check_dtype("grad", grad.dtype)
    check_size("grad", grad.shape, pack.shape)
    ends, scores = score_args(scores, pack.header)
    args, _held = pack_args(with_offsets(pack))
    taps = [0]
    for size, stride in zip(grad.shape[2:], grad.stride()[2:], strict=True):
        taps = [start + i * stride for start in taps for i in range(size)]
    row_stride, channel_stride = grad.stride()[:2]
    at, dtype, out = grad.data_ptr(), DTYPES[grad.dtype], torch.empty_like(scores)
    _C.weight_grad_scores(
        args, at, dtype, pack.shape[1], row_stride, channel_stride, taps, ends, out.data_ptr(), threads()
    )  # fmt: skip
    return out
