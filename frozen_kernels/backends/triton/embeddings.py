"""The embedding and its score gradient on the Triton backend.

On a GPU an index out of range cannot be reported without waiting for it: its row is NaN, and its gradient goes nowhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...format import Pack, chunks
from ..checks import check_dtype, check_indices, check_operand, check_size
from ..errors import Unsupported
from .launch import WORDS, decode_args, on
from .score_gradient import MAX_PIXELS, Scores, power_above

ROWS = 16  # lookups of a tile
GRAD_ROWS, GRAD_HITS, GRAD_COLS = 4, 8, 64  # rows, lookups of each and columns at a time


def _flat_indices(indices: Tensor, header: Tensor, rows: int) -> Tensor:
    check_indices(indices, header)
    if indices.numel() > MAX_PIXELS:
        raise Unsupported(f"{indices.numel()} indices are more than {MAX_PIXELS}")
    if indices.is_cpu and indices.numel():
        low, high = (int(n) for n in indices.aminmax())
        if low < 0 or high >= rows:
            raise IndexError(f"index is {low if low < 0 else high}, expected 0 to {rows - 1}")
    return indices.reshape(-1).contiguous()  # a view of every other index is flat too


def embedding(indices: Tensor, scores: Tensor | None, pack: Pack, dtype: torch.dtype, padding_idx: int) -> Tensor:
    """Rows of the weight for indices of any shape; the row of `padding_idx` (negative: none) is zero."""
    check_dtype("dtype", dtype)
    args = decode_args(pack)
    flat = _flat_indices(indices, args["header"], args["rows"])
    out = torch.empty(*indices.shape, args["cols"], dtype=dtype, device=flat.device)
    if out.numel():
        from .kernels.embedding import embedding_kernel

        programs = -(-flat.numel() // ROWS) * chunks(args["cols"])
        with on(out.device):
            embedding_kernel[(programs,)](
                out, flat, flat.numel(), padding_idx, **args, ROWS=ROWS, WORDS=WORDS
            )  # fmt: skip
    return out


def embedding_grad_scores(grad: Tensor, indices: Tensor, scores: Tensor, pack: Pack, padding_idx: int) -> Tensor:
    """Lookups are summed row by row in their own order, so the result is always the same.

    Declared workspaces: sorted indices and where each row begins among them, and a copy of a gradient whose leading
    dimensions do not run on in memory.
    """
    check_operand("grad", grad, pack.header)
    check_dtype("grad", grad.dtype)
    task = Scores(scores, pack)
    rows, cols = task.rows, task.cols
    check_size("grad", grad.shape, [*indices.shape, cols])
    flat = _flat_indices(indices, pack.header, rows)
    if not rows or not cols or not scores.numel():
        return task.out
    from .kernels.embedding import embedding_scores_kernel

    grad = grad.reshape(flat.numel(), cols)
    ordered, lookups = torch.sort(flat, stable=True)
    every_row = torch.arange(rows + 1, dtype=flat.dtype, device=flat.device)
    bounds = torch.searchsorted(ordered, every_row, out_int32=True)
    width = power_above(cols, 16, GRAD_COLS)
    programs = -(-rows // GRAD_ROWS) * -(-cols // width)
    with on(scores.device):
        task.run(
            embedding_scores_kernel, programs, 1, grad=grad, grad_row_stride=grad.stride(0),
            grad_col_stride=grad.stride(1), lookups=lookups, bounds=bounds, padding_idx=padding_idx, ROWS=GRAD_ROWS,
            HITS=GRAD_HITS, COLS=width,
        )  # fmt: skip
    return task.out
