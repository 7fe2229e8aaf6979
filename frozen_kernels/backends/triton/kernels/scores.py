"""Gradients of scores: sums of dL/dW in tiles of registers, stored for the free weights alone, in stream order.

`plan_kernel` lays out what a tile needs of the format: free words, the free weights before each word in its chunk and,
for generated signs, sign words. Tiles start at multiples of a width that divides a chunk, so one table entry per row
gives their positions.
"""

import triton
import triton.language as tl

from .tile import CONSTANT, NORMAL, SIGN
from .words import (
    BYTE_PURPOSE,
    CHUNK_WORDS,
    byte_totals,
    header_word,
    interleave,
    partition_words,
    philox,
    sign_words,
    valid_bits,
)


@triton.jit
def plan_kernel(free, start, signs, header, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words of the partition and, unless `signs` is None, of the signs; one program per chunk of a block of rows."""
    words = (cols + 31) // 32
    chunks = (words + CHUNK_WORDS - 1) // CHUNK_WORDS
    chunk = tl.program_id(0) % chunks
    row = ((tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    word = (chunk * CHUNK_WORDS + tl.arange(0, WORDS))[None, :].to(tl.int64)
    inside = (row < rows) & (word < words)
    at = row * words + word
    _, free_words = partition_words(header, row.to(tl.uint32), word.to(tl.uint32), ROWS, WORDS)
    free_words = free_words & valid_bits(word, cols)
    count = (byte_totals(free_words) >> 24).to(tl.int32)
    tl.store(free + at, free_words.to(tl.int32, bitcast=True), mask=inside)
    tl.store(start + at, (tl.cumsum(count, 1) - count).to(tl.int16), mask=inside)
    if signs is not None:
        sign = sign_words(header, None, rows, cols, row, word, ROWS, WORDS)
        tl.store(signs + at, sign.to(tl.int32, bitcast=True), mask=inside)


@triton.jit
def sign_of(score):
    """1, -1, or 0 for zeros and NaN."""
    return tl.where(score > 0.0, 1.0, tl.where(score < 0.0, -1.0, 0.0))


@triton.jit
def code_bytes(header, draw, cols, row, col0, inside, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Bytes of a tile as int32 [ROWS, COLS]; col0 a multiple of 16."""
    if draw is None:
        call = (col0 // 16 + tl.arange(0, COLS // 16))[None, :].to(tl.uint32)
        purpose = (header_word(header, 3) << 8) | BYTE_PURPOSE
        x0, x1, x2, x3 = philox(
            header_word(header, 0), header_word(header, 1), call, row.to(tl.uint32), purpose, header_word(header, 2)
        )
        quads = interleave(x0, x1, x2, x3, ROWS, COLS // 16)
        shift = (8 * tl.arange(0, 4)[None, None, :]).to(tl.uint32)
        values = tl.reshape((quads[:, :, None] >> shift) & 255, (ROWS, COLS))
    else:
        values = tl.load(draw + row * cols + (col0 + tl.arange(0, COLS))[None, :], mask=inside, other=0)
    return values.to(tl.int32)


@triton.jit
def store_word(
    out,
    scores,
    count,
    gradient,
    header,
    free,
    start,
    signs,
    draw,
    normal_table,
    offsets,
    rows,
    cols,
    row,
    row_inside,
    col0,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """store_free of a tile inside one word."""
    words = (cols + 31) // 32
    chunks = (words + CHUNK_WORDS - 1) // CHUNK_WORDS
    row_inside = row_inside & (col0 < cols)
    line = row.to(tl.int32)
    at = line * words + col0 // 32
    free_word = tl.load(free + at, mask=row_inside, other=0).to(tl.uint32, bitcast=True)
    position = tl.load(offsets + line * chunks + col0 // (CHUNK_WORDS * 32), mask=row_inside, other=0)
    position += tl.load(start + at, mask=row_inside, other=0)
    lane = (col0 % 32 + tl.arange(0, COLS))[None, :]
    bit = ((lane >> 1) | ((lane & 1) << 4)).to(tl.uint32)
    one = tl.full((), 1, tl.uint32)
    rank = (byte_totals(free_word & ((one << bit) - 1)) >> 24).to(tl.int32)
    wanted = (((free_word >> bit) & 1) != 0) & (position + rank < count)
    if CODE == SIGN:
        sign_word = tl.load(signs + at, mask=row_inside, other=0).to(tl.uint32, bitcast=True)
        value = tl.where(((sign_word >> bit) & 1) != 0, -gradient, gradient)
    elif CODE == CONSTANT:
        value = gradient
    else:
        drawn = code_bytes(header, draw, cols, row, col0, wanted, ROWS, COLS)
        code = tl.load(normal_table + drawn) if CODE == NORMAL else (2 * drawn - 255).to(tl.float32)
        value = gradient * code
    if scores is not None:
        value = value * header_word(header, 6).to(tl.float32, bitcast=True)
        value = value * sign_of(tl.load(scores + position + rank, mask=wanted, other=0.0).to(tl.float32))
    tl.store(out + position + rank, value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def store_free(
    out,
    scores,
    count,
    gradient,
    header,
    free,
    start,
    signs,
    draw,
    normal_table,
    offsets,
    rows,
    cols,
    row,
    row_inside,
    col0,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The free weights of a tile of dL/dW at their stream positions; row int64 [ROWS, 1], row_inside [ROWS, 1].

    With `scores` None they are partial sums, which `finish_kernel` ends.
    """
    if COLS > 32:
        # a word at a time: its free bits, signs and position are one load per row, and few registers are live
        HALF: tl.constexpr = COLS // 2
        low, high = tl.split(tl.permute(tl.reshape(gradient, (ROWS, 2, HALF)), (0, 2, 1)))
        store_free(
            out, scores, count, low, header, free, start, signs, draw, normal_table, offsets, rows, cols, row,
            row_inside, col0, CODE, ROWS, HALF,
        )  # fmt: skip
        store_free(
            out, scores, count, high, header, free, start, signs, draw, normal_table, offsets, rows, cols, row,
            row_inside, col0 + HALF, CODE, ROWS, HALF,
        )  # fmt: skip
    else:
        store_word(
            out, scores, count, gradient, header, free, start, signs, draw, normal_table, offsets, rows, cols, row,
            row_inside, col0, CODE, ROWS, COLS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "parts"])
def finish_kernel(out, scores, sums, header, count, parts, BLOCK: tl.constexpr, SUMS: tl.constexpr):
    """out = (sum over the parts) * scale * sign(score), sums [parts, count] added in a fixed order."""
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = position < count
    total = tl.zeros((BLOCK,), tl.float32)
    for part0 in range(0, parts, SUMS):
        part = (part0 + tl.arange(0, SUMS))[:, None]
        at = sums + part.to(tl.int64) * count + position[None, :]
        total += tl.sum(tl.load(at, mask=(part < parts) & inside[None, :], other=0.0), 0)
    total = total * header_word(header, 6).to(tl.float32, bitcast=True)
    total = total * sign_of(tl.load(scores + position, mask=inside, other=0.0).to(tl.float32))
    tl.store(out + position, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weight_scores_kernel(
    out,
    scores,
    count,
    grad,
    grad_stride,
    taps,
    channels,
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
    COLS: tl.constexpr,
):
    """From dL/dW of torch's shape; grad_stride and taps are of depth, height and width, then of row and channel."""
    blocks = (cols + COLS - 1) // COLS
    col0 = tl.program_id(0) % blocks * COLS
    row = ((tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = (col0 + tl.arange(0, COLS))[None, :]
    tap = col // channels
    place = (col - tap * channels).to(tl.int64) * grad_stride[4]
    place += (tap % taps[2]).to(tl.int64) * grad_stride[2]
    place += (tap // taps[2] % taps[1]).to(tl.int64) * grad_stride[1]
    place += (tap // (taps[2] * taps[1])).to(tl.int64) * grad_stride[0]
    inside = (row < rows) & (col < cols)
    gradient = tl.load(grad + row * grad_stride[3] + place, mask=inside, other=0.0).to(tl.float32)
    store_free(
        out, scores, count, gradient, header, free, start, signs, draw, normal_table, offsets, rows, cols, row,
        row < rows, col0, CODE, ROWS, COLS,
    )  # fmt: skip
