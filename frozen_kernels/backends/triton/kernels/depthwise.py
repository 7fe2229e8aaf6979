"""Convolutions of one input channel a group, and their transposes, without a GEMM: its tiles would be mostly empty.

The weight has few columns, one for each tap, so its words are read for each tap and held by no tile.
"""

import triton
import triton.language as tl

from .product import finished, pixel_offset, tap_of
from .stored import values_at
from .tile import CONSTANT, NORMAL, SIGN, STORED


@triton.jit
def tap_codes(keep, draw, normal_table, row, tap, cols, mask, CODE: tl.constexpr):
    """Codes of one tap's column, those of bits doubled (see `operand.unit`); row int64 of any shape."""
    words = (cols + 31) // 32
    at = row * words + (tap >> 5)
    bit = tl.full((), ((tap & 31) >> 1) | ((tap & 1) << 4), tl.uint32)
    kept = (tl.load(keep + at, mask=mask, other=0).to(tl.uint32, bitcast=True) >> bit) & 1
    if CODE == SIGN:
        negative = (tl.load(draw + at, mask=mask, other=0).to(tl.uint32, bitcast=True) >> bit) & 1
        codes = tl.where(negative != 0, -2.0, 2.0)
    elif CODE == CONSTANT:
        codes = tl.full(kept.shape, 2.0, tl.float32)
    else:
        drawn = tl.load(draw + row * cols + tap, mask=mask, other=0).to(tl.int32)
        codes = tl.load(normal_table + drawn) if CODE == NORMAL else (2 * drawn - 255).to(tl.float32)
    return tl.where(kept != 0, codes, 0.0)


@triton.jit
def source_of(at, tap, size, stride, padding, dilation, TRANSPOSED: tl.constexpr):
    """The input coordinate that a tap reads for output coordinates, and whether it exists."""
    if TRANSPOSED:
        moved = at + padding - tap * dilation
        source = moved // stride
        inside = (moved >= 0) & (moved % stride == 0) & (source < size)
    else:
        source = at * stride - padding + tap * dilation
        inside = (source >= 0) & (source < size)
    return source, inside


@triton.jit
def depthwise_kernel(
    y,
    x,
    bias,
    gain,
    header,
    keep,
    draw,
    normal_table,
    values,
    places,
    row_scale,
    multiplier,
    cols,
    x_size,
    x_stride,
    y_size,
    y_stride,
    taps,
    stride,
    padding,
    dilation,
    CODE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    RELU: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One tile of y; `multiplier` rows of the weight belong to a group, and to an output channel where `TRANSPOSED`."""
    blocks = (y_size[1] + CHANNELS - 1) // CHANNELS
    channel = (tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)[None, :]
    pixel = tl.program_id(0) // blocks * PIXELS + tl.arange(0, PIXELS)
    w, h, d = pixel % y_size[4], pixel // y_size[4] % y_size[3], pixel // y_size[4] // y_size[3] % y_size[2]
    batch = (pixel // y_size[4] // y_size[3] // y_size[2]).to(tl.int64)
    exists = (channel < y_size[1]) & (batch < y_size[0])[:, None]
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for tap in range(taps[0] * taps[1] * taps[2]):
        td, th, tw = tap_of(tap, taps[1], taps[2])
        at_d, in_d = source_of(d, td, x_size[2], stride[0], padding[0], dilation[0], TRANSPOSED)
        at_h, in_h = source_of(h, th, x_size[3], stride[1], padding[1], dilation[1], TRANSPOSED)
        at_w, in_w = source_of(w, tw, x_size[4], stride[2], padding[2], dilation[2], TRANSPOSED)
        image = pixel_offset(batch, at_d, at_h, at_w, x_stride)
        inside = exists & (in_d & in_h & in_w)[:, None]
        for i in range(multiplier if TRANSPOSED else 1):
            row = channel * multiplier + i if TRANSPOSED else channel
            source = row if TRANSPOSED else channel // multiplier
            if CODE == STORED:
                column = tl.full((1, 1), tap, tl.int32)
                codes = values_at(values, places, keep, row_scale, row, column, (cols + 31) // 32, channel < y_size[1])
                codes = codes.to(tl.float32)
            else:
                codes = tap_codes(keep, draw, normal_table, row, tap, cols, channel < y_size[1], CODE)
            inputs = tl.load(x + image[:, None] + source * x_stride[1], mask=inside, other=0.0).to(tl.float32)
            total += codes * inputs
    result = finished(total, header, bias, gain, channel, y_size[1], CODE, RELU)
    at = pixel_offset(batch, d, h, w, y_stride)
    tl.store(y + at[:, None] + channel * y_stride[1], result.to(y.dtype.element_ty), mask=exists)
