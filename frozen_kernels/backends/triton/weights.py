"""The effective weight on the Triton backend, and the score gradient of a gradient of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...format import Pack, chunks
from ..checks import check_dtype, check_operand, check_size
from .launch import WORDS, decode_args, on
from .score_gradient import Scores

ROWS = 32  # of a tile
GRAD_TILE = (16, 128)


def weight(scores: Tensor | None, pack: Pack, dtype: torch.dtype) -> Tensor:
    """The effective weight in torch's shape and order."""
    check_dtype("dtype", dtype)
    args = decode_args(pack)
    out = torch.empty(tuple(pack.shape), dtype=dtype, device=pack.header.device)
    if out.numel():
        from .kernels.weight import weight_kernel

        programs = -(-args["rows"] // ROWS) * chunks(args["cols"])
        with on(out.device):
            weight_kernel[(programs,)](out, **args, TAPS=math.prod(pack.shape[2:]), ROWS=ROWS, WORDS=WORDS)
    return out


def weight_grad_scores(grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
    """From the gradient of a weight of torch's shape and any strides."""
    check_operand("grad", grad, pack.header)
    check_dtype("grad", grad.dtype)
    check_size("grad", grad.shape, pack.shape)
    task = Scores(scores, pack)
    if not task.rows or not task.cols or not scores.numel():
        return task.out
    from .kernels.scores import weight_scores_kernel

    space = grad.dim() - 2
    if space > 3:
        grad, space = grad.flatten(2), 1
    taps = (*[1] * (3 - space), *grad.shape[2:])
    stride = (*[0] * (3 - space), *grad.stride()[2:], *grad.stride()[:2])
    rows, cols = GRAD_TILE
    programs = -(-task.rows // rows) * -(-task.cols // cols)
    with on(scores.device):
        task.run(
            weight_scores_kernel, programs, 1, grad=grad, grad_stride=stride, taps=taps, channels=grad.shape[1],
            ROWS=rows, COLS=cols,
        )  # fmt: skip
    return task.out
