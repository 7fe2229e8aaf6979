"""Planes transposed: words along the rows of a group, for products with the transposed weight."""

import triton
import triton.language as tl


@triton.jit
def transpose_kernel(
    out,
    plane,
    channels,
    rows,
    plane_words,
    taps,
    words_per_tap,
    ROWS: tl.constexpr,
):
    """out[group * rows + r, tap * words_per_tap + w]: bit of row 32 w + i of the group, at column tap * rows + r.

    `plane` [groups * channels, plane_words] holds the weight of format 1: `channels` rows of a group, columns
    `tap * rows + r`. Bits of rows past the group's last are 0. One program makes `ROWS` words of one tap and one w.
    """
    row_blocks = (rows + ROWS - 1) // ROWS
    r = tl.program_id(0) % row_blocks * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(0) // row_blocks % words_per_tap
    tap = tl.program_id(0) // row_blocks // words_per_tap
    group = tl.program_id(1)
    column = tap * rows + r
    bit = (((column & 31) >> 1) | ((column & 1) << 4)).to(tl.uint32)
    made = tl.zeros((ROWS,), tl.uint32)
    for i in tl.static_range(32):
        channel = word * 32 + (2 * i if i < 16 else 2 * i - 31)
        source = (group * channels + channel).to(tl.int64) * plane_words + (column >> 5)
        held = tl.load(plane + source, mask=(r < rows) & (channel < channels), other=0).to(tl.uint32, bitcast=True)
        made = made | (((held >> bit) & 1) << i)
    at = (group * rows + r).to(tl.int64) * (taps * words_per_tap) + tap * words_per_tap + word
    tl.store(out + at, made.to(tl.int32, bitcast=True), mask=r < rows)
