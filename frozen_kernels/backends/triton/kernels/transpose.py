"""Planes turned on their side: words along the rows of a group, for products with the transposed weight."""

import triton
import triton.language as tl


@triton.jit
def column_of_bit(bit):
    """The column of a word that its bit stands for; the same of rows in a transposed word."""
    return tl.where(bit < 16, 2 * bit, 2 * bit - 31)


@triton.jit
def transpose_kernel(
    out,
    plane,
    channels,
    rows,
    plane_words,
    taps,
    words_per_tap,
    OUT: tl.constexpr,
    WORDS: tl.constexpr,
):
    """out[group * rows + r, tap * words_per_tap + w]: bit of row 32 w + i of the group, at column tap * rows + r.

    `plane` [groups * channels, plane_words] holds the weight of format 1: `channels` rows of a group, columns
    `tap * rows + r`. Bits of rows past the group's last are 0. One program turns `WORDS` words of 32 * `OUT` rows.
    """
    blocks = (plane_words + WORDS - 1) // WORDS
    out_blocks = (words_per_tap + OUT - 1) // OUT
    group = (tl.program_id(0) // blocks // out_blocks).to(tl.int64)
    # [OUT, 32 rows of a word, WORDS, 32 columns of a word]
    word = tl.program_id(0) // blocks % out_blocks * OUT + tl.arange(0, OUT)
    bit = tl.arange(0, 32)
    channel = word[:, None, None] * 32 + column_of_bit(bit)[None, :, None]
    at = (tl.program_id(0) % blocks * WORDS + tl.arange(0, WORDS))[None, None, :]
    held = tl.load(
        plane + (group * channels + channel) * plane_words + at, mask=(channel < channels) & (at < plane_words), other=0
    ).to(tl.uint32, bitcast=True)
    shift = bit.to(tl.uint32)
    made = tl.sum(((held[:, :, :, None] >> shift[None, None, None, :]) & 1) << shift[None, :, None, None], 1)
    column = tl.reshape(at, (1, WORDS, 1)) * 32 + column_of_bit(bit)[None, None, :]
    row = group * rows + column % rows
    target = out + row * (taps * words_per_tap) + column // rows * words_per_tap + word[:, None, None]
    inside = (column < taps * rows) & (word[:, None, None] < words_per_tap)
    tl.store(target, made.to(tl.int32, bitcast=True), mask=inside)
