"""Rows of the effective weight, and the gradient of their scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import format as fmt
from ...format import Pack
from .weights import weight, weight_grad_scores


def embedding(indices: Tensor, scores: Tensor | None, pack: Pack, dtype: torch.dtype, padding_idx: int) -> Tensor:
    table = weight(None, pack, dtype)
    if padding_idx >= 0:
        table[padding_idx] = 0
    return F.embedding(indices, table)


def embedding_grad_scores(grad: Tensor, indices: Tensor, scores: Tensor, pack: Pack, padding_idx: int) -> Tensor:
    rows, cols = fmt.matrix_shape(pack.shape)
    table = torch.zeros(rows, cols, dtype=torch.promote_types(grad.dtype, torch.float32), device=grad.device)
    table.index_add_(0, indices.flatten(), grad.reshape(-1, cols).to(table.dtype))
    if padding_idx >= 0:
        table[padding_idx] = 0
    return weight_grad_scores(table, scores, pack)
