"""The effective weight, materialised."""

import triton
import triton.language as tl

from .tile import tile
from .words import CHUNK_WORDS, header_word, stream_position


@triton.jit
def weight_kernel(
    out,
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
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """out[row, channel, tap] = code * scale of column `tap * channels + channel`; one program per chunk of 32 words."""
    words = (cols + 31) // 32
    chunks = (words + CHUNK_WORDS - 1) // CHUNK_WORDS
    chunk = tl.program_id(0) % chunks
    row = ((tl.program_id(0) // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    scale = header_word(header, 6).to(tl.float32, bitcast=True)
    position = stream_position(offsets, rows, cols, row, chunk, ROWS)
    for word0 in range(chunk * CHUNK_WORDS, tl.minimum((chunk + 1) * CHUNK_WORDS, words), WORDS):
        codes, position = tile(
            header, supermask, supermask_bytes, keep, draw, normal_table, values, row_scale, rows, cols, row, word0,
            position, CODE, ROWS, WORDS,
        )  # fmt: skip
        col = (word0 * 32 + tl.arange(0, 32 * WORDS))[None, :].to(tl.int64)
        if TAPS == 1:
            place = col
        else:
            channels = cols // TAPS
            place = (col % channels) * TAPS + col // channels
        tl.store(out + row * cols + place, (codes * scale).to(out.dtype.element_ty), mask=(row < rows) & (col < cols))
