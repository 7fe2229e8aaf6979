"""The embedding and its score gradient on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ...format import Pack, matrix_shape
from ..checks import check_dtype, check_indices, check_size
from ..native import DTYPES
from .extension import _C, pack_args, score_args, threads
from .masks import with_offsets


def _flat_indices(indices: Tensor, header: Tensor) -> Tensor:
    check_indices(indices, header)
    return indices.to(torch.int64).contiguous()


def embedding(indices: Tensor, scores: Tensor | None, pack: Pack, dtype: torch.dtype, padding_idx: int) -> Tensor:
    """Rows of the weight; `padding_idx` (negative: none) gives zeros."""
    check_dtype("dtype", dtype)
    args, held = pack_args(pack)
    rows = _flat_indices(indices, held.header)
    out = torch.empty(*indices.shape, matrix_shape(held.shape)[1], dtype=dtype)
    _C.embedding(args, rows.data_ptr(), rows.numel(), padding_idx, DTYPES[dtype], out.data_ptr(), threads())
    return out


def embedding_grad_scores(grad: Tensor, indices: Tensor, scores: Tensor, pack: Pack, padding_idx: int) -> Tensor:
    check_dtype("grad", grad.dtype)
    cols = matrix_shape(pack.shape)[1]
    check_size("grad", grad.shape, (*indices.shape, cols))
    ends, scores = score_args(scores, pack.header)
    args, held = pack_args(with_offsets(pack))
    rows = _flat_indices(indices, held.header)
    grad, out = grad.reshape(rows.numel(), cols), torch.empty_like(scores)
    at, count = rows.data_ptr(), rows.numel()
    _C.embedding_grad_scores(
        args, grad.data_ptr(), DTYPES[grad.dtype], *grad.stride(), at, count, padding_idx, ends, out.data_ptr(),
        threads(),
    )  # fmt: skip
    return out
