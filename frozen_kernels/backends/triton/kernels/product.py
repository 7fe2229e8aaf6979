"""The one product behind linear layers, convolutions and their transposes: implicit GEMM on decoded tiles.

    y[pixel, row] = sum over taps and channels of code[row, tap, channel] * x[pixel moved by the tap, channel]

A program owns `ROWS` output channels of a group by `PIXELS` output pixels and walks the weight's words in steps of
`WORDS`. W is operand A, decoded in registers; inputs are operand B. Sizes and strides are of [batch, channel, depth,
height, width]. A transposed product reads planes transposed by `transpose.py`, whose words hold input channels too; its
output pixels come in classes that see the same taps, one class for each remainder by the stride.
"""

import triton
import triton.language as tl

from .operand import bit_operand, byte_operand, plane_words, unit
from .stored import first_place, next_values, rounded, values_at
from .tile import CONSTANT, SIGN, STORED
from .words import bytes_of, header_word, signs_of


@triton.jit
def first_tap(residue, stride, dilation, tap_step):
    """The first tap that meets the input grid from pixels of this remainder by the stride; tap_step where none does."""
    first = tl.full((), 0, tl.int32) + tap_step
    for tap in range(tap_step):
        # as a minimum: a search for the last such tap is more than the compiler for AMD can take
        first = tl.minimum(first, tl.where((residue - tap * dilation) % stride == 0, tap, tap_step))
    return first


@triton.jit
def class_of(index, y_size, stride, padding, dilation, tap_step, taps, AXIS: tl.constexpr):
    """Of one axis: pixels of the class, its first tap, the number of its taps, and whether there is any."""
    count = (y_size[AXIS + 2] - index + stride[AXIS] - 1) // stride[AXIS]
    # kept positive, so that remainders are those of mathematics
    residue = index + padding[AXIS] + stride[AXIS] * dilation[AXIS] * taps[AXIS]
    tap = first_tap(residue, stride[AXIS], dilation[AXIS], tap_step[AXIS])
    found = (taps[AXIS] - tap + tap_step[AXIS] - 1) // tap_step[AXIS]
    # where no tap meets the grid one is walked in vain: a loop that surely runs compiles to overlapped tensor cores
    some = (tap < tap_step[AXIS]) & (found > 0)
    return count, tl.where(some, tap, 0), tl.where(some, found, 1), some


@triton.jit
def exists_at(origin, tap, move, x_size, SPATIAL: tl.constexpr):
    """Whether the tap of an axis' index reads an existing input, for triples of depth, height, width."""
    # as unsigned a negative coordinate is a large one
    inside = (origin[2] + tap[2] * move[2]).to(tl.uint32) < x_size[4]
    if SPATIAL >= 2:
        inside = inside & ((origin[1] + tap[1] * move[1]).to(tl.uint32) < x_size[3])
    if SPATIAL == 3:
        inside = inside & ((origin[0] + tap[0] * move[0]).to(tl.uint32) < x_size[2])
    return inside


@triton.jit
def offset_of(at, x_stride, SPATIAL: tl.constexpr):
    offset = at[2] * x_stride[4]
    if SPATIAL >= 2:
        offset = offset + at[1] * x_stride[3]
    if SPATIAL == 3:
        offset = offset + at[0] * x_stride[2]
    return offset


@triton.jit
def pixel_offset(batch, d, h, w, stride):
    """int64, for an image may lie past 2^31 elements itself; batch int64."""
    return batch * stride[0] + d.to(tl.int64) * stride[2] + h.to(tl.int64) * stride[3] + w.to(tl.int64) * stride[4]


@triton.jit
def long_if(value, LARGE: tl.constexpr):
    return value.to(tl.int64) if LARGE else value


@triton.jit
def tap_of(index, taps_h, taps_w):
    return index // taps_w // taps_h, index // taps_w % taps_h, index % taps_w


@triton.jit
def next_tap(channel0, index, tap, taps_h, taps_w, channels, BLOCK: tl.constexpr):
    """The step after one: the next channels of a tap, or the first of the next tap; carried, as divisions are dear."""
    td, th, tw = tap
    over = (channel0 + BLOCK >= channels).to(tl.int32)
    channel0 = tl.where(over != 0, 0, channel0 + BLOCK)
    index = index + over
    tw = tw + over
    over = (tw == taps_w).to(tl.int32)
    tw = tl.where(over != 0, 0, tw)
    th = th + over
    over = (th == taps_h).to(tl.int32)
    th = tl.where(over != 0, 0, th)
    return channel0, index, td + over, th, tw


@triton.jit
def read(source, offset, inside, ALL: tl.constexpr):
    if ALL:
        values = tl.load(source + offset)
    else:
        values = tl.load(source + offset, mask=inside, other=0.0)
    return values


@triton.jit
def decoded(header, keep, draw, normal_table, group, row, row0, local_row, word0, tap, channel0, rows, channels, cols,
            plane_width, CODE: tl.constexpr, DTYPE: tl.constexpr, TRANSPOSED: tl.constexpr, WHOLE_WORDS: tl.constexpr,
            ROWS: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    """Operand [ROWS, 32 * WORDS] of the words from `word0`.

    `row` int64 [ROWS, 1] are rows of the planes and `local_row` of the group, all existing ones; `row0` is the tile's
    first of the group, and where `TRANSPOSED` its columns are those of `tap` from `channel0`.
    """
    word = word0 + tl.arange(0, WORDS)[None, :]
    kept = plane_words(keep, row, word, plane_width, WHOLE_WORDS)
    if CODE == SIGN or CODE == CONSTANT:
        if CODE == CONSTANT:
            signs = tl.zeros_like(kept)
        elif draw is None:
            signs = signs_of(header, row, word0, ROWS, WORDS)
        else:
            signs = plane_words(draw, row, word, plane_width, WHOLE_WORDS)
        codes = bit_operand(kept, signs, DTYPE, ROWS, WORDS)
    else:
        within = tl.arange(0, 32 * WORDS)[None, :]
        if TRANSPOSED:
            # bytes stay in the order of the weight: rows there are the input channels here
            source = (group * channels + channel0 + within).to(tl.int64)
            column = tap * rows + local_row
            inside = channel0 + within < channels
        else:
            source = row
            column = (word0 * 32 + within).to(tl.int64)
            inside = column < cols
        if draw is not None:
            values = tl.load(draw + source * cols + column, mask=inside, other=0).to(tl.int32)
        elif TRANSPOSED:
            # columns of a call are neighbours here too where a group's are a multiple of 16
            call = (tap * rows + row0) // 16
            values = tl.trans(bytes_of(header, tl.trans(source), call, 32 * WORDS, ROWS // 16))
        else:
            values = bytes_of(header, row, 2 * word0, ROWS, 2 * WORDS)
        codes = byte_operand(kept, values, normal_table, CODE, DTYPE, ROWS, WORDS)
    return codes


@triton.jit
def product_kernel(
    y,
    partial,
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
    groups,
    rows,
    channels,
    cols,
    plane_width,
    words_per_tap,
    part_stride,
    partial_stride,
    programs,
    x_size,
    x_stride,
    y_size,
    y_stride,
    taps,
    stride,
    padding,
    dilation,
    tap_step,
    CODE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SPATIAL: tl.constexpr,
    LARGE: tl.constexpr,
    FEW_TAPS: tl.constexpr,
    SCALAR_TAP: tl.constexpr,
    WHOLE: tl.constexpr,
    WHOLE_WORDS: tl.constexpr,
    PARTS: tl.constexpr,
    FLUSH: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    WORDS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One tile of y, or with `partial` one part of its sum over the words, as float32 [SPLIT, pixels, all rows].

    The grid is that of `programs` tiles by groups by classes of output pixels, and of parts.

    `SPATIAL` dimensions are convolved, `LARGE` sides lie past 2^31 elements, `FEW_TAPS` are at most 32, walked one at
    a time. `SCALAR_TAP`: a step lies in one tap, `WHOLE`: and in its channels, `WHOLE_WORDS`: its words are the
    plane's. `PARTS` inputs, `part_stride` apart, are summed, the last first. Every `FLUSH` steps (0: never) the sum of
    the tensor cores, which need not round to nearest, is added to one that does.

    `values` of a stored weight have `places` by chunk, where `TRANSPOSED` by word. There they are multiplied by
    `row_scale`, whose rows are the input channels.
    """
    DTYPE: tl.constexpr = x.dtype.element_ty
    program = tl.program_id(0) % programs
    group = tl.program_id(0) // programs % groups
    shift = tl.program_id(0) // programs // groups  # which class of output pixels
    if TRANSPOSED:
        first_w = shift % stride[2]
        first_h = shift // stride[2] % stride[1]
        first_d = shift // stride[2] // stride[1]
        count_d, tap_d, taps_d, some_d = class_of(first_d, y_size, stride, padding, dilation, tap_step, taps, 0)
        count_h, tap_h, taps_h, some_h = class_of(first_h, y_size, stride, padding, dilation, tap_step, taps, 1)
        count_w, tap_w, taps_w, some_w = class_of(first_w, y_size, stride, padding, dilation, tap_step, taps, 2)
        alive = some_d & some_h & some_w
    else:
        count_d, count_h, count_w = y_size[2], y_size[3], y_size[4]
        taps_d, taps_h, taps_w = taps[0], taps[1], taps[2]
    pixels = y_size[0] * count_d * count_h * count_w
    if TRANSPOSED:
        # a class without pixels stores nothing, and divides by 1
        count_d, count_h, count_w = tl.maximum(count_d, 1), tl.maximum(count_h, 1), tl.maximum(count_w, 1)

    row_blocks = (rows + ROWS - 1) // ROWS
    row0 = program % row_blocks * ROWS
    local_row = (row0 + tl.arange(0, ROWS))[:, None]
    row = (group * rows + local_row).to(tl.int64)
    pixel = program // row_blocks * PIXELS + tl.arange(0, PIXELS)
    exists = (local_row < rows) & (pixel < pixels)[None, :]
    # rows and pixels past the end read what the first ones do: no load of the loop needs a mask for them
    read_local = tl.where(local_row < rows, local_row, 0)
    read_row = (group * rows + read_local).to(tl.int64)
    pixel = tl.where(pixel < pixels, pixel, 0)
    w = long_if(pixel % count_w, LARGE)
    h = long_if(pixel // count_w % count_h, LARGE)
    d = long_if(pixel // count_w // count_h % count_d, LARGE)
    batch = (pixel // count_w // count_h // count_d).to(tl.int64)
    # the first tap reads at `origin`, each further one `move` on
    if TRANSPOSED:
        w, h, d = w * stride[2] + first_w, h * stride[1] + first_h, d * stride[0] + first_d
        origin = ((d + padding[0] - tap_d * dilation[0]) // stride[0],
                  (h + padding[1] - tap_h * dilation[1]) // stride[1],
                  (w + padding[2] - tap_w * dilation[2]) // stride[2])  # fmt: skip
        move = (-(tap_step[0] * dilation[0] // stride[0]), -(tap_step[1] * dilation[1] // stride[1]),
                -(tap_step[2] * dilation[2] // stride[2]))  # fmt: skip
    else:
        origin = (d * stride[0] - padding[0], h * stride[1] - padding[1], w * stride[2] - padding[2])
        move = (dilation[0], dilation[1], dilation[2])
    image = batch * x_stride[0] + (group * channels).to(tl.int64) * x_stride[1]
    if SPATIAL > 0:
        image += offset_of(origin, x_stride, SPATIAL)
    if not LARGE:
        image = image.to(tl.int32)

    BLOCK: tl.constexpr = 32 * WORDS
    within = tl.arange(0, BLOCK)
    if SCALAR_TAP:
        steps_per_tap = (channels + BLOCK - 1) // BLOCK
        steps = taps_d * taps_h * taps_w * steps_per_tap
    else:
        steps_per_tap = 1
        steps = (cols + BLOCK - 1) // BLOCK
    split = tl.program_id(1).to(tl.int64)
    begin = (split * steps // SPLIT).to(tl.int32)
    end = ((split + 1) * steps // SPLIT).to(tl.int32)
    if FEW_TAPS:
        # bit i says whether the i-th tap reads an existing input
        seen = tl.zeros((PIXELS,), tl.uint32)
        for i in range(taps_d * taps_h * taps_w):
            found = exists_at(origin, tap_of(i, taps_h, taps_w), move, x_size, SPATIAL)
            seen = seen | (found.to(tl.uint32) << i)

    if CODE == STORED and not TRANSPOSED:
        first = values + first_place(places, keep, read_row, begin * WORDS, plane_width)
    total = tl.zeros((ROWS, PIXELS), tl.float32)
    for part in range(PARTS):
        source = x + tl.cast(PARTS - 1 - part, tl.int64) * part_stride
        index = begin // steps_per_tap
        channel0 = begin % steps_per_tap * BLOCK
        td, th, tw = tap_of(index, taps_h, taps_w)
        for block in range((end - begin + FLUSH - 1) // FLUSH if FLUSH else 1):
            if FLUSH:
                summed = tl.zeros((ROWS, PIXELS), tl.float32)
                start, stop = begin + block * FLUSH, tl.minimum(begin + (block + 1) * FLUSH, end)
            else:
                summed = total
                start, stop = begin, end
            # without this the compiler keeps a path around the loop, and waits for every product on the other
            tl.assume(stop > start)
            for step in range(start, stop):
                if SPATIAL == 0:
                    tap, channel0, word0 = 0, step * BLOCK, step * WORDS
                    channel = long_if((channel0 + within)[:, None], LARGE)
                    inputs = read(source, image[None, :] + channel * x_stride[1], channel < channels, WHOLE)
                elif SCALAR_TAP:
                    if TRANSPOSED:
                        tap = ((tap_d + td * tap_step[0]) * taps[1] + tap_h + th * tap_step[1]) * taps[2]
                        tap += tap_w + tw * tap_step[2]
                    else:
                        tap = index
                    word0 = tap * words_per_tap + channel0 // 32
                    if FEW_TAPS:
                        inside = ((seen >> index.to(tl.uint32)) & 1) != 0
                    else:
                        inside = exists_at(origin, (td, th, tw), move, x_size, SPATIAL)
                    if TRANSPOSED:
                        inside = inside & alive
                    channel = long_if((channel0 + within)[:, None], LARGE)
                    inside = inside[None, :]
                    if not WHOLE:
                        inside = inside & (channel < channels)
                    at = (long_if(td, LARGE) * move[0], long_if(th, LARGE) * move[1], long_if(tw, LARGE) * move[2])
                    moved = offset_of(at, x_stride, SPATIAL)
                    inputs = read(source + moved, image[None, :] + channel * x_stride[1], inside, False)
                else:
                    tap, word0 = 0, step * WORDS
                    column = long_if((step * BLOCK + within)[:, None], LARGE)
                    at = tap_of(column // channels, taps[1], taps[2])
                    inside = exists_at((origin[0][None, :], origin[1][None, :], origin[2][None, :]), at, move, x_size,
                                       SPATIAL)  # fmt: skip
                    moved = offset_of((at[0] * move[0], at[1] * move[1], at[2] * move[2]), x_stride, SPATIAL)
                    offset = image[None, :] + (moved + column % channels * x_stride[1])
                    inputs = read(source, offset, inside & (column < cols), False)
                if CODE == STORED:
                    if TRANSPOSED:
                        narrow_row = (group * channels + channel0 + within).to(tl.int64)[None, :]
                        codes = values_at(values, places, keep, row_scale, narrow_row, tap * rows + read_local,
                                          plane_width, (channel0 + within < channels)[None, :])  # fmt: skip
                    else:
                        word = word0 + tl.arange(0, WORDS)[None, :]
                        kept = plane_words(keep, read_row, word, plane_width, WHOLE_WORDS)
                        codes, count = next_values(first, kept, ROWS, WORDS)
                        first += count
                    codes = rounded(codes, DTYPE)
                else:
                    codes = decoded(header, keep, draw, normal_table, group, read_row, row0, read_local, word0, tap,
                                    channel0, rows, channels, cols, plane_width, CODE, DTYPE, TRANSPOSED, WHOLE_WORDS,
                                    ROWS, WORDS)  # fmt: skip
                # float32 operands, which a stored weight alone has, are multiplied as they are
                summed = tl.dot(codes, inputs, summed, input_precision="ieee")
                if SPATIAL > 0 and SCALAR_TAP:
                    channel0, index, td, th, tw = next_tap(channel0, index, (td, th, tw), taps_h, taps_w, channels,
                                                           BLOCK)  # fmt: skip
            if FLUSH:
                total += summed
            else:
                total = summed

    if partial is not None:
        at = ((batch * y_size[2] + d) * y_size[3] + h) * y_size[4] + w
        mine = partial + split * partial_stride
        tl.store(mine + at[None, :] * (rows * groups) + row, total, mask=exists)
    else:
        result = finished(total, header, bias, gain, row, rows * groups, CODE, RELU)
        channel = row
        if LARGE:
            at = pixel_offset(batch, d, h, w, y_stride)
        else:
            channel = row.to(tl.int32)
            at = batch.to(tl.int32) * y_stride[0] + d * y_stride[2] + h * y_stride[3] + w * y_stride[4]
        tl.store(y + (at[None, :] + channel * y_stride[1]), result.to(y.dtype.element_ty), mask=exists)


@triton.jit
def finished(total, header, bias, gain, row, all_rows, CODE: tl.constexpr, RELU: tl.constexpr):
    """relu(total * scale * gain + bias) in float32; row int64 [ROWS, 1]."""
    scale = header_word(header, 6).to(tl.float32, bitcast=True) * unit(CODE)
    if gain is not None:
        scale = scale * tl.load(gain + row, mask=row < all_rows, other=0.0)
    result = total * scale
    if bias is not None:
        result = result + tl.load(bias + row, mask=row < all_rows, other=0.0).to(tl.float32)
    if RELU:
        result = tl.where(result < 0.0, 0.0, result)  # NaN is not below 0
    return result
