"""Embeddings: rows of the weight by index, and the gradient of their scores."""

import triton
import triton.language as tl

from .scores import store_free
from .tile import tile
from .words import CHUNK_WORDS, header_word, stream_position


@triton.jit(do_not_specialize=["count", "padding_idx"])
def embedding_kernel(
    out,
    indices,
    count,
    padding_idx,
    header,
    supermask,
    offsets,
    keep,
    draw,
    normal_table,
    values,
    row_scale,
    supermask_bytes,
    rows,
    cols,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """out[i] = the weight's row indices[i]; zeros at `padding_idx`, NaN where there is no such row."""
    words = (cols + 31) // 32
    chunks = (words + CHUNK_WORDS - 1) // CHUNK_WORDS
    chunk = tl.program_id(0) % chunks
    at = ((tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    index = tl.load(indices + at, mask=at < count, other=0).to(tl.int64)
    exists = (index >= 0) & (index < rows)
    row = tl.where(exists, index, rows)  # past the end nothing is read
    scale = header_word(header, 6).to(tl.float32, bitcast=True)
    position = stream_position(offsets, rows, cols, row, chunk, ROWS)
    for word0 in range(chunk * CHUNK_WORDS, tl.minimum((chunk + 1) * CHUNK_WORDS, words), WORDS):
        codes, position = tile(
            header, supermask, supermask_bytes, keep, draw, normal_table, values, row_scale, rows, cols, row, word0,
            position, CODE, ROWS, WORDS,
        )  # fmt: skip
        col = (word0 * 32 + tl.arange(0, 32 * WORDS))[None, :].to(tl.int64)
        found = tl.where(exists, codes * scale, float("nan"))
        found = tl.where(exists & (index == padding_idx), 0.0, found)
        tl.store(out + at * cols + col, found.to(out.dtype.element_ty), mask=(at < count) & (col < cols))


@triton.jit(do_not_specialize=["count", "padding_idx", "rows"])
def embedding_scores_kernel(
    out,
    scores,
    count,
    grad,
    grad_row_stride,
    grad_col_stride,
    lookups,
    bounds,
    padding_idx,
    header,
    free,
    start,
    signs,
    draw,
    normal_table,
    offsets,
    rows,
    cols,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    HITS: tl.constexpr,
    COLS: tl.constexpr,
):
    """A row's gradient is the sum of grad over its lookups, which are lookups[bounds[row] : bounds[row + 1]]."""
    blocks = (cols + COLS - 1) // COLS
    col0 = tl.program_id(0) % blocks * COLS
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    hit = tl.load(bounds + row, mask=row < rows, other=0)
    last = tl.load(bounds + row + 1, mask=row < rows, other=0)
    last = tl.where(row == padding_idx, hit, last)
    most = tl.max(last - hit, 0)
    hit = hit[:, None] + tl.arange(0, HITS)[None, :]
    col = (col0 + tl.arange(0, COLS))[None, None, :]
    total = tl.zeros((ROWS, HITS, COLS), tl.float32)
    for _ in range(0, most, HITS):
        lookup = tl.load(lookups + hit, mask=hit < last[:, None], other=0).to(tl.int64)[:, :, None]
        at = lookup * grad_row_stride + col.to(tl.int64) * grad_col_stride
        mask = (hit < last[:, None])[:, :, None] & (col < cols)
        total += tl.load(grad + at, mask=mask, other=0.0).to(tl.float32)
        hit += HITS
    row = row[:, None]
    store_free(
        out, scores, count, tl.sum(total, 1), header, free, start, signs, draw, normal_table, offsets, rows, cols, row,
        row < rows, col0, CODE, ROWS, COLS,
    )  # fmt: skip
