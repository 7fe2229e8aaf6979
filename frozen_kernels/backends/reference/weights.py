"""The effective weight by the definition, and the gradient of the scores that choose it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import format as fmt
from ...format import Pack
from .generate import codes, codes_of_draw, partition
from .masks import from_planes, unpack


def _keep(pack: Pack, rows: int, cols: int) -> Tensor:
    if pack.keep is not None:
        return from_planes(pack.keep, cols)
    if pack.supermask is None:
        raise ValueError("supermask: a frozen tensor needs a supermask, a keep plane or a dense weight, got none")
    return unpack(pack.supermask, partition(pack.header, rows, cols, 0, 0))


def _stored(pack: Pack, dtype: torch.dtype) -> Tensor:
    """All values where kept, or the kept values times the scales of their rows, in their places."""
    values, (rows, cols) = pack.values, fmt.matrix_shape(pack.shape)
    if values is None:
        raise ValueError("values: a stored weight needs them, got none")
    keep = _keep(pack, rows, cols)
    if values.dim() == len(pack.shape):
        return torch.where(fmt.from_matrix(keep, pack.shape), values, 0.0).to(dtype)
    stream = torch.zeros(rows * cols, dtype=values.dtype, device=values.device)
    stream[fmt.stream_order(keep)] = values
    matrix = fmt.from_stream(stream, rows, cols)
    if pack.row_scale is not None:
        matrix = matrix.to(torch.float32) * pack.row_scale[:, None]
    return fmt.from_matrix(matrix.to(dtype), pack.shape)


def _scale(header: Tensor) -> Tensor:
    return header[fmt.SCALE].view(torch.float32)


def _codes(pack: Pack) -> Tensor:
    """int16 [rows, cols], from the draws where the tensor holds them: a header gives those of one generation."""
    rows, cols = fmt.matrix_shape(pack.shape)
    if pack.draw is None or pack.code == "constant":
        return codes(pack.header, pack.code, rows, cols, 0, 0)
    draw = from_planes(pack.draw, cols) if pack.code == "sign" else pack.draw
    return codes_of_draw(pack.code, draw.to(torch.int64))


def effective(pack: Pack, dtype: torch.dtype) -> Tensor:
    """The weight in torch's shape: `float32(code) * scale` where kept, rounded once; the dense one where it is held."""
    if pack.dense is not None:
        return pack.dense.to(dtype)
    if pack.code == fmt.STORED:
        return _stored(pack, dtype)
    rows, cols = fmt.matrix_shape(pack.shape)
    value = _codes(pack).to(torch.float32) * _scale(pack.header)
    value = torch.where(_keep(pack, rows, cols), value, 0.0)
    return fmt.from_matrix(value.to(dtype), pack.shape)


def weight(scores: Tensor | None, pack: Pack, dtype: torch.dtype) -> Tensor:
    value = effective(pack, dtype)
    return value.clone() if value is pack.dense else value


def weight_grad_scores(grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
    """Straight-through: `sign(S) * dL/dW * code * scale` on the free weights, in stream order.

    `dL/dW * value` of stored weights, whose scores are compared as they are.
    """
    rows, cols = fmt.matrix_shape(pack.shape)
    work = torch.promote_types(grad.dtype, torch.float32)
    if pack.code == fmt.STORED:
        if pack.values is None or pack.values.dim() != len(pack.shape):
            raise ValueError("values: all of a stored weight are needed for a score gradient; it is packed")
        return fmt.stream_order(fmt.to_matrix(grad.to(work) * pack.values)).to(scores.dtype)
    local = fmt.to_matrix(grad).to(work) * _codes(pack) * _scale(pack.header)
    free = fmt.stream_order(partition(pack.header, rows, cols, 0, 0) == 0)
    return (fmt.stream_order(local)[free] * scores.sign()).to(scores.dtype)
