"""Score gradients of layers: dL/dW[row, column] = sum over pixels of narrow[pixel, row] * wide[pixel at tap, channel].

Spatial dimensions are counted from the inner one: 0 is width, 1 height, 2 depth; `DIMS` of them stand beside the batch,
none where both sides are one run of pixels. Strides are of these three, then of channel and batch. `steps` holds
stride, padding, dilation and taps of each dimension. A `magic` and a `shift` divide by the narrow side's size.
"""

import triton
import triton.language as tl

from .scores import store_free

NOT_SPECIAL = [
    *("count", "rows", "width", "height", "depth", "narrow_width", "narrow_height", "narrow_depth"),
    *("magic_width", "magic_height", "magic_depth", "shift_width", "shift_height", "shift_depth", "span"),
]


@triton.jit
def divide(number, magic, shift):
    """number // d for 0 <= number < 2^31, from the launcher's reciprocal of d."""
    product = number.to(tl.uint32).to(tl.uint64) * magic.to(tl.uint32).to(tl.uint64)
    return (product >> shift.to(tl.uint64)).to(tl.int32)


@triton.jit
def offset(number, LONG: tl.constexpr):
    """An element offset: int64 where the tensor may need it, for int32 takes half the registers."""
    return number.to(tl.int64) if LONG else number.to(tl.int32)


@triton.jit
def pixel_places(
    pixel,
    narrow_stride,
    wide_stride,
    narrow_width,
    narrow_height,
    narrow_depth,
    magic_width,
    magic_height,
    magic_depth,
    shift_width,
    shift_height,
    shift_depth,
    steps,
    DIMS: tl.constexpr,
    LONG: tl.constexpr,
):
    """Offsets on both sides, and where tap 0 lies on the wide side in depth, height and width."""
    width = pixel
    height = pixel
    depth = pixel
    if DIMS == 0:
        narrow = offset(pixel, LONG) * narrow_stride[0]
        wide = offset(pixel, LONG) * wide_stride[0]
    else:
        rest = divide(pixel, magic_width, shift_width)
        at = pixel - rest * narrow_width
        width = at * steps[0] - steps[1]
        narrow = offset(at, LONG) * narrow_stride[0]
        wide = offset(width, LONG) * wide_stride[0]
        if DIMS > 1:
            pixel = rest
            rest = divide(pixel, magic_height, shift_height)
            at = pixel - rest * narrow_height
            height = at * steps[4] - steps[5]
            narrow += offset(at, LONG) * narrow_stride[1]
            wide += offset(height, LONG) * wide_stride[1]
        if DIMS > 2:
            pixel = rest
            rest = divide(pixel, magic_depth, shift_depth)
            at = pixel - rest * narrow_depth
            depth = at * steps[8] - steps[9]
            narrow += offset(at, LONG) * narrow_stride[2]
            wide += offset(depth, LONG) * wide_stride[2]
        narrow += offset(rest, LONG) * narrow_stride[4]
        wide += offset(rest, LONG) * wide_stride[4]
    return narrow, wide, depth, height, width


@triton.jit
def tap_places(tap, wide_stride, steps, DIMS: tl.constexpr, LONG: tl.constexpr):
    """Offset of a tap on the wide side, and its way in depth, height and width."""
    width = tap * 0
    height = width
    depth = width
    total = offset(width, LONG)
    if DIMS > 0:
        width = tap % steps[3] * steps[2]
        total += offset(width, LONG) * wide_stride[0]
    if DIMS > 1:
        height = tap // steps[3] % steps[7] * steps[6]
        total += offset(height, LONG) * wide_stride[1]
    if DIMS > 2:
        depth = tap // (steps[3] * steps[7]) * steps[10]
        total += offset(depth, LONG) * wide_stride[2]
    return total, depth, height, width


@triton.jit
def within(depth, height, width, wide_depth, wide_height, wide_width, DIMS: tl.constexpr):
    # as uint32 what is below 0 lies past the end
    inside = width.to(tl.uint32, bitcast=True) < wide_width.to(tl.uint32)
    if DIMS > 1:
        inside = inside & (height.to(tl.uint32, bitcast=True) < wide_height.to(tl.uint32))
    if DIMS > 2:
        inside = inside & (depth.to(tl.uint32, bitcast=True) < wide_depth.to(tl.uint32))
    return inside


@triton.jit(do_not_specialize=NOT_SPECIAL)
def score_gemm_kernel(
    out,
    scores,
    count,
    narrow,
    wide,
    narrow_stride,
    wide_stride,
    steps,
    width,
    height,
    depth,
    narrow_width,
    narrow_height,
    narrow_depth,
    magic_width,
    magic_height,
    magic_depth,
    shift_width,
    shift_height,
    shift_depth,
    pixels,
    span,
    channels,
    group_rows,
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
    DIMS: tl.constexpr,
    LONG: tl.constexpr,
    PADDED: tl.constexpr,
    ONE_TAP: tl.constexpr,
    NARROW_LAST: tl.constexpr,
    WIDE_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """One tile of dL/dW over pixels [span * program_id(1), + span); channels last or pixels last on either side.

    With `ONE_TAP` no tile crosses from one tap to the next. With `scores` None, partial sums [program_id(1), count].
    """
    row_blocks = (group_rows + ROWS - 1) // ROWS
    col_blocks = (cols + COLS - 1) // COLS
    block = tl.program_id(0)
    group = block // (row_blocks * col_blocks)
    col0 = block // row_blocks % col_blocks * COLS
    row = block % row_blocks * ROWS + tl.arange(0, ROWS)
    row_inside = row < group_rows
    row = row.to(tl.int64) + group.to(tl.int64) * group_rows
    col = col0 + tl.arange(0, COLS)
    col_inside = col < cols
    tap = (col0 if ONE_TAP else col) // channels
    tap_offset, tap_depth, tap_height, tap_width = tap_places(tap, wide_stride, steps, DIMS, LONG)
    col_offset = offset(col - tap * channels + group * channels, LONG) * wide_stride[3] + tap_offset
    row_offset = offset(row, LONG) * narrow_stride[3]
    first = tl.program_id(1) * span
    total = tl.zeros((ROWS, COLS), tl.float32)
    for pixel0 in range(first, tl.minimum(pixels - first, span) + first, PIXELS):
        pixel = pixel0 + tl.arange(0, PIXELS)
        narrow_offset, wide_offset, d, h, w = pixel_places(
            pixel, narrow_stride, wide_stride, narrow_width, narrow_height, narrow_depth, magic_width, magic_height,
            magic_depth, shift_width, shift_height, shift_depth, steps, DIMS, LONG,
        )  # fmt: skip
        inside = pixel < pixels
        if NARROW_LAST:
            at = narrow_offset[:, None] + row_offset[None, :]
            a = tl.trans(tl.load(narrow + at, mask=inside[:, None] & row_inside[None, :], other=0.0))
        else:
            at = narrow_offset[None, :] + row_offset[:, None]
            a = tl.load(narrow + at, mask=inside[None, :] & row_inside[:, None], other=0.0)
        if PADDED and ONE_TAP:
            inside = inside & within(d + tap_depth, h + tap_height, w + tap_width, depth, height, width, DIMS)
        if WIDE_LAST:
            at = wide_offset[:, None] + col_offset[None, :]
            mask = inside[:, None] & col_inside[None, :]
            if PADDED and not ONE_TAP:
                mask = mask & within(
                    d[:, None] + tap_depth[None, :], h[:, None] + tap_height[None, :],
                    w[:, None] + tap_width[None, :], depth, height, width, DIMS,
                )  # fmt: skip
            b = tl.load(wide + at, mask=mask, other=0.0)
        else:
            at = wide_offset[None, :] + col_offset[:, None]
            mask = inside[None, :] & col_inside[:, None]
            if PADDED and not ONE_TAP:
                mask = mask & within(
                    d[None, :] + tap_depth[:, None], h[None, :] + tap_height[:, None],
                    w[None, :] + tap_width[:, None], depth, height, width, DIMS,
                )  # fmt: skip
            b = tl.trans(tl.load(wide + at, mask=mask, other=0.0))
        if a.dtype != b.dtype:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        if a.dtype == tl.float32:
            # short chains of sums, for their error grows with their length
            total += tl.dot(a, b, input_precision="ieee")
        else:
            total = tl.dot(a, b, total)
    if scores is None:
        out += tl.program_id(1).to(tl.int64) * count
    store_free(
        out, scores, count, total, header, free, start, signs, draw, normal_table, offsets, rows, cols, row[:, None],
        row_inside[:, None], col0, CODE, ROWS, COLS,
    )  # fmt: skip


@triton.jit(do_not_specialize=NOT_SPECIAL)
def score_depthwise_kernel(
    out,
    scores,
    count,
    narrow,
    wide,
    narrow_stride,
    wide_stride,
    steps,
    width,
    height,
    depth,
    narrow_width,
    narrow_height,
    narrow_depth,
    magic_width,
    magic_height,
    magic_depth,
    shift_width,
    shift_height,
    shift_depth,
    pixels,
    span,
    channels,
    group_rows,
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
    DIMS: tl.constexpr,
    LONG: tl.constexpr,
    PADDED: tl.constexpr,
    LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """As score_gemm_kernel where every group has one wide channel: columns are taps, and a tile spans groups."""
    row_blocks = (rows + ROWS - 1) // ROWS
    col0 = tl.program_id(0) // row_blocks * COLS
    row = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = col0 + tl.arange(0, COLS)
    tap_offset, tap_depth, tap_height, tap_width = tap_places(col, wide_stride, steps, DIMS, LONG)
    narrow_row = offset(row, LONG) * narrow_stride[3]
    wide_row = offset(row // group_rows, LONG) * wide_stride[3]
    first = tl.program_id(1) * span
    if LAST:
        narrow_row, wide_row, row_inside = (
            narrow_row[None, None, :],
            wide_row[None, None, :],
            (row < rows)[None, None, :],
        )
        lanes = tl.arange(0, PIXELS)[None, :, None]
        total = tl.zeros((COLS, PIXELS, ROWS), tl.float32)
    else:
        narrow_row, wide_row, row_inside = (
            narrow_row[None, :, None],
            wide_row[None, :, None],
            (row < rows)[None, :, None],
        )
        lanes = tl.arange(0, PIXELS)[None, None, :]
        total = tl.zeros((COLS, ROWS, PIXELS), tl.float32)
    for pixel0 in range(first, tl.minimum(pixels - first, span) + first, PIXELS):
        pixel = pixel0 + lanes
        narrow_offset, wide_offset, d, h, w = pixel_places(
            pixel, narrow_stride, wide_stride, narrow_width, narrow_height, narrow_depth, magic_width, magic_height,
            magic_depth, shift_width, shift_height, shift_depth, steps, DIMS, LONG,
        )  # fmt: skip
        inside = (pixel < pixels) & row_inside
        a = tl.load(narrow + narrow_offset + narrow_row, mask=inside, other=0.0).to(tl.float32)
        tap_inside = (pixel < pixels) & (col < cols)[:, None, None]
        if PADDED:
            tap_inside = tap_inside & within(
                d + tap_depth[:, None, None], h + tap_height[:, None, None], w + tap_width[:, None, None],
                depth, height, width, DIMS,
            )  # fmt: skip
        at = wide_offset + tap_offset[:, None, None] + wide_row
        b = tl.load(wide + at, mask=tap_inside & row_inside, other=0.0).to(tl.float32)
        total += a * b
    gradient = tl.trans(tl.sum(total, 1 if LAST else 2))
    if scores is None:
        out += tl.program_id(1).to(tl.int64) * count
    row = row[:, None]
    store_free(
        out, scores, count, gradient, header, free, start, signs, draw, normal_table, offsets, rows, cols, row,
        row < rows, col0, CODE, ROWS, COLS,
    )  # fmt: skip
