"""The effective weight by the definition, and the gradient of the scores that choose it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import format as fmt
from ...format import Pack
from .generate import codes, partition
from .masks import from_planes, unpack


def _keep(pack: Pack, rows: int, cols: int) -> Tensor:
    if pack.keep is not None:
        return from_planes(pack.keep, cols)
    if pack.supermask is None:
        raise ValueError("supermask: a frozen tensor needs a supermask, a keep plane or a dense weight, got none")
    return unpack(pack.supermask, partition(pack.header, rows, cols, 0, 0))


def _scale(header: Tensor) -> Tensor:
    return header[fmt.SCALE].view(torch.float32)


def effective(pack: Pack, dtype: torch.dtype) -> Tensor:
    """The weight in torch's shape: `float32(code) * scale` where kept, rounded once; the dense one where it is held."""
    if pack.dense is not None:
        return pack.dense.to(dtype)
    rows, cols = fmt.matrix_shape(pack.shape)
    value = codes(pack.header, pack.code, rows, cols, 0, 0).to(torch.float32) * _scale(pack.header)
    value = torch.where(_keep(pack, rows, cols), value, 0.0)
    return fmt.from_matrix(value.to(dtype), pack.shape)


def weight(scores: Tensor | None, pack: Pack, dtype: torch.dtype) -> Tensor:
    value = effective(pack, dtype)
    return value.clone() if value is pack.dense else value


def weight_grad_scores(grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
    """Straight-through: `sign(S) * dL/dW * code * scale` on the free weights, in stream order."""
    rows, cols = fmt.matrix_shape(pack.shape)
    work = torch.promote_types(grad.dtype, torch.float32)
    local = fmt.to_matrix(grad).to(work) * codes(pack.header, pack.code, rows, cols, 0, 0) * _scale(pack.header)
    free = fmt.stream_order(partition(pack.header, rows, cols, 0, 0) == 0)
    return (fmt.stream_order(local)[free] * scores.sign()).to(scores.dtype)
