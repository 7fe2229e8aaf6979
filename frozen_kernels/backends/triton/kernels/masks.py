"""Bit planes, supermask streams and kept values.

A block is some rows by the words of one chunk, whose stream position is known.
"""

import triton
import triton.language as tl

from .generate import score_draws
from .stored import below, count_of
from .words import (
    byte_totals,
    column_bits,
    columns_of,
    extract,
    free_and_locked,
    kept_words,
    runs,
    stream_position,
    words_of,
)


@triton.jit
def chunk_block(cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """A program's rows [ROWS, 1], words [1, WORDS] and chunk."""
    chunks = (cols + 1023) // 1024
    row = (tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    chunk = tl.program_id(0) % chunks
    return row, (chunk * 32 + tl.arange(0, WORDS))[None, :].to(tl.int64), chunk


@triton.jit
def elements(rows, cols, row, word, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Places of a block's elements [ROWS, 32 * WORDS] in a matrix, and which it has."""
    col = tl.min(word, 1)[:, None] * 32 + tl.arange(0, 32 * WORDS)[None, :]
    return row * cols + col, (row < rows) & (col < cols)


@triton.jit
def partition_of(header, partition, rows, cols, row, word, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Words of the free and of the locked columns: of a stored partition int8 [rows, cols], generated where None."""
    if partition is None:
        free, locked = free_and_locked(header, cols, row, word, ROWS, WORDS)
    else:
        place, inside = elements(rows, cols, row, word, ROWS, WORDS)
        kind = tl.load(partition + place, mask=inside, other=-1)
        free = words_of(kind == 0, ROWS, WORDS)
        locked = words_of(kind == 1, ROWS, WORDS)
    return free, locked


@triton.jit
def count_kernel(counts, header, partition, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """counts[1 + row * chunks + chunk]: the free weights of a chunk."""
    row, word, chunk = chunk_block(cols, ROWS, WORDS)
    free, _ = partition_of(header, partition, rows, cols, row, word, ROWS, WORDS)
    count = tl.sum((byte_totals(free) >> 24).to(tl.int32), 1)[:, None]
    tl.store(counts + 1 + row * ((cols + 1023) // 1024) + chunk, count.to(tl.int64), mask=row < rows)


@triton.jit
def keep_kernel(
    out, header, partition, supermask, offsets, supermask_bytes, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """What a supermask keeps: a plane int32 [rows, words], or a byte per element where the partition is stored."""
    row, word, chunk = chunk_block(cols, ROWS, WORDS)
    free, locked = partition_of(header, partition, rows, cols, row, word, ROWS, WORDS)
    position = stream_position(offsets, rows, cols, row, chunk, ROWS)
    kept, _ = kept_words(supermask, supermask_bytes, free, position)
    kept = kept | locked
    if partition is None:
        place = row * ((cols + 31) // 32) + word
        tl.store(out + place, kept.to(tl.int32, bitcast=True), mask=(row < rows) & (word * 32 < cols))
    else:
        place, inside = elements(rows, cols, row, word, ROWS, WORDS)
        tl.store(out + place, columns_of(kept, ROWS, WORDS).to(tl.uint8), mask=inside)


@triton.jit
def pack_kernel(out, header, partition, keep, offsets, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The stream, as int32 that start at 0, of a plane, or of a byte per element where the partition is stored."""
    row, word, chunk = chunk_block(cols, ROWS, WORDS)
    free, _ = partition_of(header, partition, rows, cols, row, word, ROWS, WORDS)
    if partition is None:
        real = (row < rows) & (word * 32 < cols)
        kept = tl.load(keep + row * ((cols + 31) // 32) + word, mask=real, other=0).to(tl.uint32, bitcast=True)
    else:
        place, inside = elements(rows, cols, row, word, ROWS, WORDS)
        kept = words_of(tl.load(keep + place, mask=inside, other=0) != 0, ROWS, WORDS)
    position = stream_position(offsets, rows, cols, row, chunk, ROWS)
    before, totals, _ = runs(free, position)
    run = extract(kept, free, totals)
    # runs have no padding, so two words of the stream may hold parts of one, and a word parts of many
    at = (before & 31).to(tl.uint32)
    low = (run << at).to(tl.int32, bitcast=True)
    high = ((run >> 1) >> (31 - at)).to(tl.int32, bitcast=True)
    first = out + (before >> 5)
    tl.atomic_or(first, low, mask=(row < rows) & (low != 0), sem="relaxed")
    tl.atomic_or(first + 1, high, mask=(row < rows) & (high != 0), sem="relaxed")


@triton.jit
def free_draws_kernel(out, header, offsets, rows, cols, PURPOSE: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """The draw of each free weight in stream order, of purpose SCORE or SEARCH."""
    row, word, chunk = chunk_block(cols, ROWS, WORDS)
    position = stream_position(offsets, rows, cols, row, chunk, ROWS)
    last = tl.minimum(chunk * 32 + 32, (cols + 31) // 32)
    bit = column_bits()
    one = tl.full((ROWS, WORDS, 32), 1, tl.uint32)
    for word0 in range(chunk * 32, last, WORDS):
        word = (word0 + tl.arange(0, WORDS))[None, :].to(tl.int64)
        free, _ = free_and_locked(header, cols, row, word, ROWS, WORDS)
        before, _, position = runs(free, position)
        free = free[:, :, None]
        rank = byte_totals(free & ((one << bit) - 1)) >> 24
        first = tl.min(word, 1)[:, None]
        draw = tl.reshape(score_draws(header, row, first, PURPOSE, ROWS, WORDS), (ROWS, WORDS, 32))
        taken = (row < rows)[:, :, None] & (((free >> bit) & 1) != 0)
        tl.store(out + before[:, :, None] + rank, draw.to(tl.int32, bitcast=True), mask=taken)


@triton.jit
def planes_kernel(out, keep, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    row, word, _ = chunk_block(cols, ROWS, WORDS)
    place, inside = elements(rows, cols, row, word, ROWS, WORDS)
    words = words_of(tl.load(keep + place, mask=inside, other=0) != 0, ROWS, WORDS)
    place = row * ((cols + 31) // 32) + word
    tl.store(out + place, words.to(tl.int32, bitcast=True), mask=(row < rows) & (word * 32 < cols))


@triton.jit
def popcount_kernel(total, bits, count, BLOCK: tl.constexpr):
    """Adds a block's set bits to total int64."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + i, mask=i < count, other=0).to(tl.uint32)
    tl.atomic_add(total, tl.sum((byte_totals(word) >> 24).to(tl.int32), 0).to(tl.int64), sem="relaxed")


@triton.jit
def plane_block(keep, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """A program's rows, words and chunk, the keep words and their places in the plane, and which of them exist."""
    row, word, chunk = chunk_block(cols, ROWS, WORDS)
    at = row * ((cols + 31) // 32) + word
    inside = (row < rows) & (word * 32 < cols)
    return row, word, chunk, tl.load(keep + at, mask=inside, other=0).to(tl.uint32, bitcast=True), at, inside


@triton.jit
def plane_count_kernel(counts, keep, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """counts[1 + row * chunks + chunk]: the kept weights of a chunk."""
    row, _, chunk, kept, _, _ = plane_block(keep, rows, cols, ROWS, WORDS)
    count = tl.sum(count_of(kept), 1)[:, None]
    tl.store(counts + 1 + row * ((cols + 1023) // 1024) + chunk, count.to(tl.int64), mask=row < rows)


@triton.jit
def places_kernel(places, keep, offsets, rows, cols, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """places[row, word]: where a word's first value lies."""
    row, _, chunk, kept, at, inside = plane_block(keep, rows, cols, ROWS, WORDS)
    first, _, _ = runs(kept, stream_position(offsets, rows, cols, row, chunk, ROWS))
    tl.store(places + at, first.to(places.dtype.element_ty), mask=inside)


@triton.jit
def pack_values_kernel(
    out, weight, keep, offsets, rows, cols, TAPS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr
):
    """The kept values of a contiguous weight of torch's shape in stream order."""
    row, word, chunk, kept, _, _ = plane_block(keep, rows, cols, ROWS, WORDS)
    first, _, _ = runs(kept, stream_position(offsets, rows, cols, row, chunk, ROWS))
    bit = column_bits()
    col = word[:, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    channels = cols // TAPS
    place = col % channels * TAPS + col // channels if TAPS > 1 else col
    kept = kept[:, :, None]
    taken = ((kept >> bit) & 1) != 0
    values = tl.load(weight + row[:, :, None] * cols + place, mask=taken, other=0)
    tl.store(out + first[:, :, None] + count_of(kept & below(bit)), values, mask=taken)
