"""Tiles of codes, decoded in registers from the words of the format."""

import triton
import triton.language as tl

from .words import BYTE_PURPOSE, header_word, interleave, keep_words, philox, sign_words

SIGN = tl.constexpr(0)
UNIFORM = tl.constexpr(1)
NORMAL = tl.constexpr(2)
CONSTANT = tl.constexpr(3)


@triton.jit
def spread_bits(words, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """[ROWS, WORDS] words -> 0 or 1 of each column [ROWS, 32 * WORDS]; bit j is column 2j, bit 16 + j column 2j + 1."""
    pair = tl.arange(0, 16)[None, None, :, None]
    half = tl.arange(0, 2)[None, None, None, :]
    bits = (words[:, :, None, None] >> (pair + 16 * half).to(tl.uint32)) & 1
    return tl.reshape(bits, (ROWS, 32 * WORDS))


@triton.jit
def draw_bytes(header, draw, rows, cols, row, col, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Bytes of columns as int32 [ROWS, 32 * WORDS]."""
    if draw is None:
        call = (tl.min(col, 1)[:, None] // 16 + tl.arange(0, 2 * WORDS)[None, :]).to(tl.uint32)
        purpose = (header_word(header, 3) << 8) | BYTE_PURPOSE
        x0, x1, x2, x3 = philox(
            header_word(header, 0),
            header_word(header, 1),
            call,
            row.to(tl.uint32),
            purpose,
            header_word(header, 2),
        )
        quads = interleave(x0, x1, x2, x3, ROWS, 2 * WORDS)
        shift = (8 * tl.arange(0, 4)[None, None, :]).to(tl.uint32)
        values = tl.reshape((quads[:, :, None] >> shift) & 255, (ROWS, 32 * WORDS))
    else:
        values = tl.load(draw + row * cols + col, mask=(row < rows) & (col < cols), other=0)
    return values.to(tl.int32)


@triton.jit
def tile(
    header,
    supermask,
    supermask_bytes,
    keep,
    draw,
    normal_table,
    rows,
    cols,
    row,
    word0,
    position,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Codes of one tile as float32 [ROWS, 32 * WORDS], 0 where dropped, and the stream position behind it."""
    word = (word0 + tl.arange(0, WORDS))[None, :].to(tl.int64)
    col = (word0 * 32 + tl.arange(0, 32 * WORDS))[None, :].to(tl.int64)
    kept, position = keep_words(header, supermask, supermask_bytes, keep, rows, cols, row, word, position, ROWS, WORDS)
    kept = spread_bits(kept, ROWS, WORDS) != 0
    if CODE == SIGN:
        negative = spread_bits(sign_words(header, draw, rows, cols, row, word, ROWS, WORDS), ROWS, WORDS) != 0
        codes = tl.where(negative, -1.0, 1.0)
    elif CODE == CONSTANT:
        codes = tl.full((ROWS, 32 * WORDS), 1.0, tl.float32)
    else:
        values = draw_bytes(header, draw, rows, cols, row, col, ROWS, WORDS)
        codes = tl.load(normal_table + values) if CODE == NORMAL else (2 * values - 255).to(tl.float32)
    return tl.where(kept, codes, 0.0), position
