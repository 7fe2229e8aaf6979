"""Linear layers: the product with a weight that is decoded tile by tile."""

import triton
import triton.language as tl

from .tile import tile
from .words import header_word, stream_position


@triton.jit
def linear_kernel(
    y,
    x,
    bias,
    gain,
    header,
    supermask,
    offsets,
    keep,
    draw,
    normal_table,
    supermask_bytes,
    batch,
    rows,
    cols,
    x_batch_stride,
    x_col_stride,
    CODE: tl.constexpr,
    ROWS: tl.constexpr,
    BATCH: tl.constexpr,
    RELU: tl.constexpr,
    WORDS: tl.constexpr,
):
    """y[batch, rows] = relu((x @ codes^T) * scale * gain + bias), summed in float32; codes exist in registers only."""
    words = (cols + 31) // 32
    blocks = (rows + ROWS - 1) // ROWS
    row = ((tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    sample = ((tl.program_id(0) // blocks).to(tl.int64) * BATCH + tl.arange(0, BATCH))[None, :]
    scale = header_word(header, 6).to(tl.float32, bitcast=True)
    # free weights of a row are contiguous in the stream, so the position is carried from its first chunk
    position = stream_position(offsets, keep, rows, cols, row, 0, ROWS)
    total = tl.zeros((ROWS, BATCH), tl.float32)
    for word0 in range(0, words, WORDS):
        codes, position = tile(
            header, supermask, supermask_bytes, keep, draw, normal_table, rows, cols, row, word0, position,
            CODE, ROWS, WORDS,
        )  # fmt: skip
        col = (word0 * 32 + tl.arange(0, 32 * WORDS))[:, None].to(tl.int64)
        inputs = tl.load(
            x + sample * x_batch_stride + col * x_col_stride, mask=(sample < batch) & (col < cols), other=0.0
        )
        total = tl.dot(codes.to(inputs.dtype), inputs, total, input_precision="ieee")
    if gain is not None:
        scale = scale * tl.load(gain + row, mask=row < rows, other=0.0)
    result = total * scale
    if bias is not None:
        result = result + tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    if RELU:
        result = tl.where(result < 0.0, 0.0, result)  # NaN is not below 0
    tl.store(y + sample * rows + row, result.to(y.dtype.element_ty), mask=(row < rows) & (sample < batch))
