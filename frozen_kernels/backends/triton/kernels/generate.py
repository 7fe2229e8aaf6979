"""Elements of weight format 1, one by one: codes, draws, partitions and scores of any shard of a matrix."""

import triton
import triton.language as tl

from .tile import NORMAL, SIGN, UNIFORM
from .words import (
    SCORE_PURPOSE,
    SEARCH_PURPOSE,
    byte_totals,
    bytes_of,
    columns_of,
    free_and_locked,
    generated,
    partition_draws,
    partition_words,
    signs_of,
    valid_bits,
    versioned,
)


@triton.jit
def shard(rows, cols, row0, col0, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """A program's block of the whole matrix: its rows [ROWS, 1], first word, places in the output and which it has.

    Blocks start at a multiple of four words, one call's signs, so a shard's first block may begin before the shard.
    """
    block = tl.program_id(0)
    row = (block // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    word0 = col0.to(tl.int64) // 128 * 4 + (block % across) * WORDS
    col = word0 * 32 + tl.arange(0, 32 * WORDS)[None, :] - col0
    return row + row0, word0, row * cols + col, (row < rows) & (col >= 0) & (col < cols)


@triton.jit
def score_draws(header, row, word0, PURPOSE: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The draw of each column, of purpose SCORE or SEARCH, uint32 [ROWS, 32 * WORDS]."""
    if PURPOSE == SEARCH_PURPOSE:
        c2 = versioned(header, SEARCH_PURPOSE)
    else:
        c2 = tl.full((), PURPOSE, tl.uint32)
    return generated(header, c2, row, word0 * 8, ROWS, 8 * WORDS)


@triton.jit(do_not_specialize=["row0", "col0"])
def codes_kernel(
    out, header, normal_table, rows, cols, row0, col0, across,
    CODE: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    row, word0, place, inside = shard(rows, cols, row0, col0, across, ROWS, WORDS)
    if CODE == SIGN:
        codes = 1 - 2 * columns_of(signs_of(header, row, word0, ROWS, WORDS), ROWS, WORDS).to(tl.int32)
    elif CODE == UNIFORM:
        codes = 2 * bytes_of(header, row, 2 * word0, ROWS, 2 * WORDS) - 255
    elif CODE == NORMAL:
        codes = tl.load(normal_table + bytes_of(header, row, 2 * word0, ROWS, 2 * WORDS))
    else:
        codes = tl.full((ROWS, 32 * WORDS), 1, tl.int32)
    tl.store(out + place, codes.to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=["row0", "col0"])
def draws_kernel(out, header, rows, cols, row0, col0, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    row, word0, place, inside = shard(rows, cols, row0, col0, across, ROWS, WORDS)
    u = partition_draws(header, row, word0 + tl.arange(0, WORDS)[None, :], ROWS, WORDS)
    tl.store(out + place, u.to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["row0", "col0"])
def histogram_kernel(counts, header, rows, cols, row0, col0, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """How often each draw occurs: integer atomics on 65536 counts, which draws hit evenly."""
    row, word0, _, inside = shard(rows, cols, row0, col0, across, ROWS, WORDS)
    u = partition_draws(header, row, word0 + tl.arange(0, WORDS)[None, :], ROWS, WORDS)
    tl.atomic_add(counts + u.to(tl.int32), tl.full(u.shape, 1, tl.int64), mask=inside, sem="relaxed")


@triton.jit(do_not_specialize=["row0", "col0"])
def partition_kernel(out, header, rows, cols, row0, col0, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    row, word0, place, inside = shard(rows, cols, row0, col0, across, ROWS, WORDS)
    word = (word0 + tl.arange(0, WORDS)[None, :]).to(tl.uint32)
    unpruned, free = partition_words(header, row.to(tl.uint32), word, ROWS, WORDS)
    unpruned = columns_of(unpruned, ROWS, WORDS).to(tl.int32)
    free = columns_of(free, ROWS, WORDS).to(tl.int32)
    tl.store(out + place, (2 * unpruned - free - 1).to(tl.int8), mask=inside)


@triton.jit
def partition_counts_kernel(counts, header, rows, cols, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Adds a block's pruned, locked and free weights to counts int64 [3]."""
    block = tl.program_id(0)
    row = (block // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    word = ((block % across).to(tl.int64) * WORDS + tl.arange(0, WORDS))[None, :]
    free, locked = free_and_locked(header, cols, row, word, ROWS, WORDS)
    real = (row < rows) & (word * 32 < cols)
    free_count = tl.sum(tl.where(real, (byte_totals(free) >> 24).to(tl.int32), 0)).to(tl.int64)
    locked_count = tl.sum(tl.where(real, (byte_totals(locked) >> 24).to(tl.int32), 0)).to(tl.int64)
    every = tl.sum(tl.where(real, (byte_totals(valid_bits(word, cols)) >> 24).to(tl.int32), 0)).to(tl.int64)
    tl.atomic_add(counts, every - free_count - locked_count, sem="relaxed")
    tl.atomic_add(counts + 1, locked_count, sem="relaxed")
    tl.atomic_add(counts + 2, free_count, sem="relaxed")


@triton.jit(do_not_specialize=["row0", "col0"])
def uniform_scores_kernel(out, header, bound, rows, cols, row0, col0, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    row, word0, place, inside = shard(rows, cols, row0, col0, across, ROWS, WORDS)
    draw = score_draws(header, row, word0, SCORE_PURPOSE, ROWS, WORDS).to(tl.int32, bitcast=True)
    # exact before the bound, which rounds once: no sum here that a compiler could contract
    exact = (draw >> 8).to(tl.float32) * (2.0**-23)
    tl.store(out + place, exact * tl.full((), bound, tl.float32), mask=inside)


@triton.jit
def sign_plane_kernel(out, header, rows, cols, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    block = tl.program_id(0)
    row = (block // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    word0 = (block % across).to(tl.int64) * WORDS
    word = word0 + tl.arange(0, WORDS)[None, :]
    words = signs_of(header, row, word0, ROWS, WORDS) & valid_bits(word, cols)
    place = row * ((cols + 31) // 32) + word
    tl.store(out + place, words.to(tl.int32, bitcast=True), mask=(row < rows) & (word * 32 < cols))


@triton.jit(do_not_specialize=["row0", "col0"])
def byte_plane_kernel(out, header, rows, cols, row0, col0, across, ROWS: tl.constexpr, WORDS: tl.constexpr):
    row, word0, place, inside = shard(rows, cols, row0, col0, across, ROWS, WORDS)
    tl.store(out + place, bytes_of(header, row, 2 * word0, ROWS, 2 * WORDS).to(tl.uint8), mask=inside)
