"""Tiles of codes, decoded in registers from the words of the format."""

import triton
import triton.language as tl

from .stored import next_values
from .words import bytes_of, columns_of, keep_words, sign_words

SIGN = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
NORMAL = tl.constexpr(2)
CONSTANT = tl.constexpr(3)
STORED = tl.constexpr(4)


@triton.jit
def draw_bytes(header, draw, rows, cols, row, word0, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Bytes of columns as int32 [ROWS, 32 * WORDS]."""
    if draw is None:
        values = bytes_of(header, row, 2 * word0, ROWS, 2 * WORDS)
    else:
        col = (word0 * 32 + tl.arange(0, 32 * WORDS))[None, :].to(tl.int64)
        values = tl.load(draw + row * cols + col, mask=(row < rows) & (col < cols), other=0).to(tl.int32)
    return values


@triton.jit
def tile(
    header,
    supermask,
    supermask_bytes,
    keep,
    draw,
    normal_table,
    values,
    row_scale,
    rows,
    cols,
    row,
    word0,
    position,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Codes of one tile as float32 [ROWS, 32 * WORDS], 0 where dropped, and the stream position behind it.

    Those of a stored weight are its values, times the scales of their rows.
    """
    word = (word0 + tl.arange(0, WORDS))[None, :].to(tl.int64)
    words, position = keep_words(header, supermask, supermask_bytes, keep, rows, cols, row, word, position, ROWS, WORDS)
    kept = columns_of(words, ROWS, WORDS) != 0
    if CODE == STORED:
        codes, count = next_values(values + position, words, ROWS, WORDS)
        codes = codes.to(tl.float32)
        if row_scale is not None:
            codes = codes * tl.load(row_scale + row, mask=row < rows, other=0.0)
        position += count
    elif CODE == SIGN:
        negative = columns_of(sign_words(header, draw, rows, cols, row, word, ROWS, WORDS), ROWS, WORDS) != 0
        codes = tl.where(negative, -1.0, 1.0)
    elif CODE == CONSTANT:
        codes = tl.full((ROWS, 32 * WORDS), 1.0, tl.float32)
    else:
        drawn = draw_bytes(header, draw, rows, cols, row, word0, ROWS, WORDS)
        codes = tl.load(normal_table + drawn) if CODE == NORMAL else (2 * drawn - 255).to(tl.float32)
    return tl.where(kept, codes, 0.0), position
