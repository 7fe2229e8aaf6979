"""Stored weights: tiles of kept values, in registers.

Kept values lie in stream order: by row, then word, then bit of the word. So a weight's value lies behind those of the
words before and of the kept bits below its own.
"""

import triton
import triton.language as tl

from .words import CHUNK_WORDS, byte_totals, column_bits


@triton.jit
def count_of(words):
    return (byte_totals(words) >> 24).to(tl.int32)


@triton.jit
def below(bit):
    """The bits of a word below one; `bit` uint32."""
    return (tl.full(bit.shape, 1, tl.uint32) << bit) - 1


@triton.jit
def first_place(offsets, keep, row, word0, words):
    """int64 [ROWS, 1]: the place of the first value from any word on; `row` int64 are existing ones."""
    chunk = word0 // CHUNK_WORDS
    word = chunk * CHUNK_WORDS + tl.arange(0, CHUNK_WORDS)[None, :]
    before = tl.load(keep + row * words + word, mask=word < word0, other=0).to(tl.uint32, bitcast=True)
    start = tl.load(offsets + row * ((words + CHUNK_WORDS - 1) // CHUNK_WORDS) + chunk)
    return start + tl.sum(count_of(before), 1)[:, None]


@triton.jit
def next_values(first, kept, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Values [ROWS, 32 * WORDS] of keep words [ROWS, WORDS], 0 where dropped, and how many values each row takes.

    `first` [ROWS, 1] are pointers to the first values.
    """
    count = count_of(kept)
    start = tl.cumsum(count, 1) - count
    bit = column_bits()
    kept = kept[:, :, None]
    place = start[:, :, None] + count_of(kept & below(bit))
    values = tl.load(first[:, :, None] + place, mask=((kept >> bit) & 1) != 0, other=0)
    return tl.reshape(values, (ROWS, 32 * WORDS)), tl.sum(count, 1)[:, None]


@triton.jit
def values_at(values, places, keep, row_scale, row, column, words, inside):
    """Values of any rows (int64) and columns, times their rows' scales; 0 where dropped or not inside.

    `places` [rows, words] are those of the words' first values.
    """
    at = row * words + (column >> 5)
    kept = tl.load(keep + at, mask=inside, other=0).to(tl.uint32, bitcast=True)
    bit = (((column & 31) >> 1) | ((column & 1) << 4)).to(tl.uint32)
    place = tl.load(places + at, mask=inside, other=0) + count_of(kept & below(bit))
    found = tl.load(values + place, mask=((kept >> bit) & 1) != 0, other=0)
    if row_scale is not None:
        found = found.to(tl.float32) * tl.load(row_scale + row, mask=inside, other=0.0)
    return found


@triton.jit
def rounded(values, DTYPE: tl.constexpr):
    """Values of any dtype in another one, rounded once."""
    if values.dtype != DTYPE:
        values = values.to(tl.float32).to(DTYPE)
    return values
