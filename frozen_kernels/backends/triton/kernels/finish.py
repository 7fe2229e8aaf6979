"""What surrounds a product: float32 inputs as exact bfloat16 parts before it, partial sums after it."""

import triton
import triton.language as tl

from .product import finished, pixel_offset


@triton.jit
def coordinates(index, size):
    """[batch, channel, depth, height, width] of an index into a tensor of these sizes, the last dimension fastest."""
    w = index % size[4]
    h = index // size[4] % size[3]
    d = index // size[4] // size[3] % size[2]
    c = index // size[4] // size[3] // size[2] % size[1]
    b = index // size[4] // size[3] // size[2] // size[1]
    return b, c, d, h, w


@triton.jit
def offset(coordinate, stride):
    b, c, d, h, w = coordinate
    return b * stride[0] + c * stride[1] + d * stride[2] + h * stride[3] + w * stride[4]


@triton.jit
def split_kernel(parts, x, count, part_stride, size, parts_stride, x_stride, COUNT: tl.constexpr):
    """x = parts[0] + parts[1] + parts[2] exactly, but for bits below the smallest bfloat16; each has 8 more bits."""
    index = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    mask = index < count
    at = coordinates(index, size)
    rest = tl.load(x + offset(at, x_stride), mask=mask, other=0.0)
    out = parts + offset(at, parts_stride)
    for _ in tl.static_range(3):
        # cut, not rounded: the largest floats would round to infinity; a NaN keeps a bit that says so
        cut = (rest.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
        high = tl.where(rest == rest, cut, rest)
        tl.store(out, high.to(tl.bfloat16), mask=mask)
        out += part_stride
        # nothing is left of what is not finite, for inf - inf is NaN
        left = rest - high
        rest = tl.where(left == left, left, 0.0)


@triton.jit
def sum_kernel(
    y,
    partial,
    bias,
    gain,
    header,
    pixels,
    rows,
    partial_stride,
    y_size,
    y_stride,
    CODE: tl.constexpr,
    RELU: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """y from `SPLIT` partial sums float32 [SPLIT, pixels, rows], added in order."""
    row_blocks = (rows + ROWS - 1) // ROWS
    row = (tl.program_id(0) % row_blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)[None, :]
    pixel = tl.program_id(0) // row_blocks * PIXELS + tl.arange(0, PIXELS)
    mask = (row < rows) & (pixel < pixels)[:, None]
    source = partial + pixel.to(tl.int64)[:, None] * rows + row
    total = tl.zeros((PIXELS, ROWS), tl.float32)
    for _ in range(SPLIT):
        total += tl.load(source, mask=mask, other=0.0)
        source += partial_stride
    result = finished(total, header, bias, gain, row, rows, CODE, RELU)
    w = pixel % y_size[4]
    h = pixel // y_size[4] % y_size[3]
    d = pixel // y_size[4] // y_size[3] % y_size[2]
    batch = (pixel // y_size[4] // y_size[3] // y_size[2]).to(tl.int64)
    at = pixel_offset(batch, d, h, w, y_stride)
    tl.store(y + at[:, None] + row * y_stride[1], result.to(y.dtype.element_ty), mask=mask)
