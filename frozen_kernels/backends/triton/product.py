"""Launches the product of a weight, or of its transpose, with the pixels of a convolution or linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...format import ALL_CODES, CODES, Pack, words
from ..checks import check_dtype, checked_epilogue
from ..errors import Unsupported
from ..geometry import POINT, Geometry, Side, side, with_result
from . import tuning
from .launch import decode_args, on
from .masks import PLANE_WORDS, chunk_blocks, draw_plane, keep_plane

SIGN, CONSTANT, STORED = (ALL_CODES.index(code) for code in ("sign", "constant", "stored"))

SPLIT_COUNT = 1024  # elements of a program that splits inputs
TRANSPOSE_OUT, TRANSPOSE_WORDS = 4, 2  # words of a program, along rows and along columns
SUM_ROWS, SUM_PIXELS = 64, 16
DEPTHWISE = 16, 128  # pixels and channels of a tile
MOST_PIXELS = (1 << 31) - 1024  # counted in int32, and rounded up to whole tiles
MOST_PROGRAMS = (1 << 31) - 1
MOST_ROWS = 8  # of a group of one input channel: from here on the tiles of the GEMM are the fuller ones


class Epilogue(NamedTuple):
    bias: Tensor | None = None
    gain: Tensor | None = None
    relu: bool = False


NOTHING = Epilogue()


class _Planes(NamedTuple):
    """What a product reads of a weight: words [all rows, width], bits of a tap from a multiple of `words_per_tap`."""

    keep: Tensor
    draw: Tensor | None
    width: int
    words_per_tap: int


def _expanded(args: dict[str, Any], generate: bool) -> tuple[Tensor, Tensor | None]:
    """Keep plane and draws; what the residency lacks and the kernel does not `generate` is a scratch."""
    header, rows, cols = args["header"], args["rows"], args["cols"]
    keep, draw = args["keep"], args["draw"]
    if keep is None:
        keep = keep_plane(header, args["supermask"], args["offsets"], rows, cols)
    if args["CODE"] in (CONSTANT, STORED):
        draw = None
    elif draw is None and not generate:
        draw = draw_plane(header, CODES[args["CODE"]], rows, cols)
    return keep, draw


def _transposed(plane: Tensor, args: dict[str, Any], geometry: Geometry, words_per_tap: int) -> Tensor:
    """A scratch of one bit a weight: the plane with words along the rows of a group, [groups * C, taps * words]."""
    from .kernels.transpose import transpose_kernel

    taps, groups = math.prod(geometry.taps), geometry.groups
    channels, rows = args["rows"] // groups, args["cols"] // taps
    out = torch.empty(groups * rows, taps * words_per_tap, dtype=torch.int32, device=plane.device)
    plane_words = words(args["cols"])
    programs = -(-plane_words // TRANSPOSE_WORDS) * -(-words_per_tap // TRANSPOSE_OUT) * groups
    transpose_kernel[(programs,)](
        out, plane, channels, rows, plane_words, taps, words_per_tap, OUT=TRANSPOSE_OUT, WORDS=TRANSPOSE_WORDS
    )
    return out


def _planes(args: dict[str, Any], geometry: Geometry, transposed: bool, step: int) -> _Planes:
    columns = args["cols"] // math.prod(geometry.taps)
    # a call of the generator makes four words of signs, or 16 bytes, of one row
    signs, bytes_ = not transposed and step % 4 == 0, not transposed or columns % 16 == 0
    keep, draw = _expanded(args, generate=signs if args["CODE"] == SIGN else bytes_)
    if not transposed or args["CODE"] == STORED:
        return _Planes(keep, draw, words(args["cols"]), columns // 32)
    # a tap's words are padded to whole steps
    per_tap = -(-words(args["rows"] // geometry.groups) // step) * step
    if draw is not None and args["CODE"] == SIGN:
        draw = _transposed(draw, args, geometry, per_tap)
    return _Planes(_transposed(keep, args, geometry, per_tap), draw, per_tap * math.prod(geometry.taps), per_tap)


def _places(args: dict[str, Any], by_word: bool) -> Tensor | None:
    """Where the first values of a stored weight's chunks lie, or those of its words: a scratch unless a row has one."""
    rows, cols, values = args["rows"], args["cols"], args["values"]
    if values is None:
        return None
    if not by_word or words(cols) == 1:
        return args["offsets"]
    from .kernels.masks import places_kernel

    dtype = torch.int32 if values.numel() <= torch.iinfo(torch.int32).max else torch.int64
    places = torch.empty(rows, words(cols), dtype=dtype, device=values.device)
    blocks = chunk_blocks(rows, cols, PLANE_WORDS)
    places_kernel[blocks.pop("grid")](places, args["keep"], args["offsets"], rows, cols, **blocks)
    return places


def _with_row_scale(args: dict[str, Any], transposed: bool, epilogue: Epilogue) -> tuple[dict[str, Any], Epilogue]:
    """The scales of a stored weight's rows as gains of the result, whose channels they are unless transposed."""
    scale, gain = args["row_scale"], epilogue.gain
    if transposed or scale is None:
        return args, epilogue
    return {**args, "row_scale": None}, epilogue._replace(gain=scale if gain is None else gain * scale)


def _parts(x: Tensor, at: Side) -> tuple[Tensor, Side, int]:
    """A scratch of three bfloat16 tensors whose sum is x, its side, and the elements from one part to the next."""
    from .kernels.finish import split_kernel

    batch, channels, depth, height, width = at.size
    # channels last: a step of the product then reads runs of them
    parts = torch.empty(3, batch, depth, height, width, channels, dtype=torch.bfloat16, device=x.device)
    own = side(parts[0].movedim(-1, 1))
    count = parts[0].numel()
    # counted in the order of the scratch
    order = (0, 2, 3, 4, 1)
    sizes, from_, to = (tuple(values[i] for i in order) for values in (at.size, at.stride, own.stride))
    split_kernel[(-(-count // SPLIT_COUNT),)](parts, x, count, count, sizes, to, from_, COUNT=SPLIT_COUNT)
    return parts, own, count


def _flat(at: Side) -> Side:
    """The pixels of a side in one dimension where their strides allow it."""
    batch, channel, *space = at.size
    stride = at.stride[4] if space[2] > 1 else at.stride[3] if space[1] > 1 else at.stride[2]
    if math.prod(space) == 1:
        stride = at.stride[0]
    expected = stride
    for size, found in zip(reversed((batch, *space)), reversed((at.stride[0], *at.stride[2:])), strict=True):
        if size > 1 and found != expected:
            return at
        expected *= size
    return Side((at.pixels, channel, 1, 1, 1), (stride, at.stride[1], 0, 0, 0))


def _spatial(geometry: Geometry, *sides: Side) -> int:
    """How many of the last dimensions there are to convolve; 0 where an output pixel is an input pixel."""
    trivial = [
        taps == stride == 1 and padding == 0 and all(at.size[axis + 2] == 1 for at in sides)
        for axis, (taps, stride, padding) in enumerate(zip(*geometry[:3], strict=True))
    ]
    return 0 if all(trivial) else 1 if all(trivial[:2]) else 2 if trivial[0] else 3


def _reach(at: Side, geometry: Geometry) -> int:
    """Elements from the first of a side to the last that a tap may name, be it past the side."""
    taps, _, padding, dilation = geometry[:4]
    past = (0, 0, *((k + 1) * d + p for k, d, p in zip(taps, dilation, padding, strict=True)))
    return sum((size + more) * stride for size, more, stride in zip(at.size, past, at.stride, strict=True))


def _in_parts(dtype: torch.dtype, args: dict[str, Any]) -> bool:
    """Whether inputs are multiplied in parts: float32 ones by codes, which bfloat16 holds as it may not hold values."""
    return dtype == torch.float32 and args["CODE"] != STORED


class _Plan(NamedTuple):
    """How a product is launched: its tile, programs of a group and class of pixels, those of all, parts of the sum."""

    tile: tuning.Tile
    spatial: int
    scalar_tap: bool
    whole: bool
    programs: int
    all_programs: int
    split: int


def _plan(
    y: Side, x: Side, args: dict[str, Any], geometry: Geometry, transposed: bool, dtype: torch.dtype,
    tile: tuning.Tile | None,
) -> _Plan:  # fmt: skip
    taps, groups = math.prod(geometry.taps), geometry.groups
    rows, channels = y.size[1] // groups, x.size[1] // groups
    spatial = _spatial(geometry, x, y)
    if x.stride[1] != 1 and not _in_parts(dtype, args):  # parts are runs of channels
        layout = "strided"
    elif not transposed and taps > 1 and channels % 64:
        layout = "mixed"
    else:
        layout = "runs" if spatial else "linear"
    if tile is None:
        tile = tuning.tile(f"product/{layout}", args["header"].device, dtype, ALL_CODES[args["CODE"]], rows, y.pixels)
    if transposed and args["CODE"] == STORED:
        tile = tile._replace(words=1)  # each weight is looked up, and the registers of more would spill
    block = 32 * tile.words
    scalar = transposed or taps == 1 or channels % block == 0
    if transposed:
        classes = math.prod(geometry.stride)
        steps = _fewest_taps(geometry) * -(-channels // block)
        pixels = y.size[0] * math.prod(-(-n // s) for n, s in zip(y.size[2:], geometry.stride, strict=True))
    else:
        classes, pixels = 1, y.pixels
        steps = taps * -(-channels // block) if scalar else -(-args["cols"] // block)
    programs = -(-rows // tile.rows) * -(-pixels // tile.pixels)
    every = programs * groups * classes
    if every > MOST_PROGRAMS:
        raise Unsupported(f"{every} tiles are more than {MOST_PROGRAMS}")
    whole = scalar and channels % block == 0
    return _Plan(tile, spatial, scalar, whole, programs, every, tuning.split(every, steps))


def _tap_step(geometry: Geometry) -> tuple[int, ...]:
    """From one tap to the next that reads the input grid of a transposed product from the same pixels."""
    return tuple(s // math.gcd(s, d) for s, d in zip(geometry.stride, geometry.dilation, strict=True))


def _fewest_taps(geometry: Geometry) -> int:
    """Taps that a transposed product walks for the class of pixels that has the fewest; one where a class has none."""
    fewest = 1
    for taps, stride, step in zip(geometry.taps, geometry.stride, _tap_step(geometry), strict=True):
        # with a common factor of stride and dilation, no tap meets the grid from some remainders by the stride
        fewest *= max(1, taps // step) if step == stride else 1
    return fewest


def _finish(y: Tensor, at: Side, partial: Tensor, split: int, args: dict[str, Any], epilogue: Epilogue) -> None:
    """Fill y from partial sums; from none where the weight has no columns."""
    from .kernels.finish import sum_kernel

    pixels, rows = at.pixels, at.size[1]
    sum_kernel[(-(-rows // SUM_ROWS) * -(-pixels // SUM_PIXELS),)](
        y, partial, epilogue.bias, epilogue.gain, args["header"], pixels, rows, pixels * rows, at.size, at.stride,
        CODE=args["CODE"], RELU=epilogue.relu, SPLIT=split, ROWS=SUM_ROWS, PIXELS=SUM_PIXELS,
    )  # fmt: skip


def _depthwise(
    y: Tensor, y_side: Side, x: Tensor, x_side: Side, args: dict[str, Any], geometry: Geometry, transposed: bool,
    epilogue: Epilogue,
) -> None:  # fmt: skip
    from .kernels.depthwise import depthwise_kernel

    keep, draw = _expanded(args, generate=False)
    # long in the dimension that lies contiguous in memory
    pixels, channels = DEPTHWISE if x_side.stride[1] == 1 else DEPTHWISE[::-1]
    grid = (-(-y_side.pixels // pixels) * -(-y_side.size[1] // channels),)
    depthwise_kernel[grid](
        y, x, epilogue.bias, epilogue.gain, args["header"], keep, draw, args["normal_table"], args["values"],
        _places(args, by_word=True), args["row_scale"], args["rows"] // geometry.groups, args["cols"], x_side.size,
        x_side.stride, y_side.size, y_side.stride, geometry.taps, geometry.stride, geometry.padding,
        geometry.dilation, CODE=args["CODE"], TRANSPOSED=transposed, RELU=epilogue.relu, PIXELS=pixels,
        CHANNELS=channels,
    )  # fmt: skip


def fill(
    y: Tensor,
    y_side: Side,
    x: Tensor,
    x_side: Side,
    args: dict[str, Any],
    geometry: Geometry,
    transposed: bool,
    epilogue: Epilogue = NOTHING,
    tile: tuning.Tile | None = None,
) -> Any:
    """Fill y with relu(gain * W x + bias), W as it is or transposed; `args` are those of `launch.decode_args`.

    Runs with the tuned tile unless told otherwise, and returns Triton's compiled product kernel, None without one.

    Scratch beside y: planes of at most four bits a weight (bytes where a transposed product draws from groups whose
    columns are no multiple of 16), three bfloat16 of each float32 input, and partial sums of a launch that is split.
    Of a stored weight: a place for each word of 32 weights where transposed, and gains times the scales of rows.
    """
    from .kernels.product import product_kernel

    if not y.numel():
        return None
    args, epilogue = _with_row_scale(args, transposed, epilogue)
    if y_side.pixels > MOST_PIXELS:
        raise Unsupported(f"{y_side.pixels} pixels are more than {MOST_PIXELS}")
    if geometry[:4] == POINT[:4] and _flat(x_side).size[0] == _flat(y_side).size[0] == y_side.pixels:
        x_side, y_side = _flat(x_side), _flat(y_side)
    with on(y.device):
        if not x.numel():
            _finish(y, y_side, y, 0, args, epilogue)
            return None
        one_channel = args["cols"] == math.prod(geometry.taps)
        if one_channel and args["rows"] // geometry.groups <= MOST_ROWS:
            _depthwise(y, y_side, x, x_side, args, geometry, transposed, epilogue)
            return None
        plan = _plan(y_side, x_side, args, geometry, transposed, y.dtype, tile)
        tile, split, groups = plan.tile, plan.split, geometry.groups
        planes = _planes(args, geometry, transposed, tile.words)
        part_stride, partial, all_rows = 0, None, y_side.size[1]
        if _in_parts(x.dtype, args):
            x, x_side, part_stride = _parts(x, x_side)
        if split > 1:
            partial = torch.empty(split, y_side.pixels, all_rows, dtype=torch.float32, device=y.device)
        built = product_kernel[(plan.all_programs, split)](
            y, partial, x, epilogue.bias, epilogue.gain, args["header"], planes.keep, planes.draw,
            args["normal_table"], args["values"], _places(args, transposed), args["row_scale"], groups,
            all_rows // groups, x_side.size[1] // groups, args["cols"], planes.width, planes.words_per_tap,
            part_stride, y_side.pixels * all_rows, plan.programs, x_side.size, x_side.stride, y_side.size,
            y_side.stride, geometry.taps, geometry.stride, geometry.padding, geometry.dilation,
            _tap_step(geometry),
            CODE=args["CODE"], TRANSPOSED=transposed, SPATIAL=plan.spatial,
            LARGE=max(_reach(x_side, geometry), _reach(y_side, geometry)) >= 1 << 31,
            FEW_TAPS=plan.spatial > 0 and plan.scalar_tap and math.prod(geometry.taps) <= 32,
            SCALAR_TAP=plan.scalar_tap, WHOLE=plan.whole, WHOLE_WORDS=planes.width % tile.words == 0,
            PARTS=3 if part_stride else 1, FLUSH=tile.flush, RELU=epilogue.relu, ROWS=tile.rows, PIXELS=tile.pixels,
            WORDS=tile.words, SPLIT=split, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if partial is not None:
            _finish(y, y_side, partial, split, args, epilogue)
        return built


def product(
    x: Tensor,
    pack: Pack,
    geometry: Geometry,
    size: Sequence[int],
    back: bool,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu(gain * W x + bias)` of that size, codes decoded in registers; with `back` of the transposed layer."""
    check_dtype("grad" if back else "x", x.dtype)
    args = decode_args(pack)
    y, x, x_side, y_side = with_result(x, size, len(pack.shape) == 2)
    epilogue = Epilogue(*checked_epilogue(bias, gain, y_side.size[1], pack.header), relu)
    fill(y, y_side, x, x_side, args, geometry, geometry.transposed != back, epilogue)
    return y
