"""Score gradients on the Triton backend: compact sums of dL/dW, and no dense gradient of a weight.

Declared workspaces: the plan (free words and what lies before each in its chunk, 1.5 bits per weight; where signs are
generated, sign words of 1 bit), the stream offsets where the tensor holds none, and partial sums where few tiles have
many pixels: at most `PROGRAMS` tiles of float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...format import CODES, Pack, chunks, words
from ..checks import check_dtype, checked_scores
from ..errors import Unsupported
from ..geometry import Geometry, Side, as_pixels, side
from .launch import generator_args, on
from .masks import offsets

PROGRAMS = 264  # wanted where few tiles have many pixels: two for each multiprocessor of a large GPU
PART_BLOCKS = 8  # blocks of pixels that a part sums at least
MAX_PIXELS = (1 << 31) - 1024  # pixels are counted in int32
MAX_WORDS = (1 << 31) - 1024  # of the weight, counted in int32
MAX_EXTENT = (1 << 31) - 1  # of a side whose offsets fit int32
PLAN_ROWS, FINISH_BLOCK, FINISH_SUMS = 16, 128, 8
DEPTHWISE_TAPS = 16
FEW_ROWS = 16  # of a group: under it, groups of one wide channel share tiles


class Scores:
    """Checked scores of a pack, their gradient to fill, and the arguments that every kernel filling it takes."""

    def __init__(self, scores: Tensor, pack: Pack) -> None:
        args = generator_args(pack)
        header, rows, cols = args["header"], args["rows"], args["cols"]
        if rows * words(cols) > MAX_WORDS:
            raise Unsupported(f"{rows} rows of {words(cols)} words are more than {MAX_WORDS}")
        scores = checked_scores(scores, header)
        if args["offsets"] is None:
            args["offsets"] = offsets(header, rows, cols)
        self.rows, self.cols, self.scores = rows, cols, scores
        self.out = torch.empty_like(scores)
        self.args: dict[str, Any] = {**args, "count": scores.numel()}

    def plan(self) -> dict[str, Any]:
        """Lays out the workspace that tiles read; inside `on(device)`."""
        from .kernels.scores import plan_kernel

        header, per_row = self.args["header"], words(self.cols)
        free = torch.empty(self.rows, per_row, dtype=torch.int32, device=header.device)
        start = torch.empty(self.rows, per_row, dtype=torch.int16, device=header.device)
        signs, generated = None, None
        if self.args["CODE"] == CODES.index("sign"):
            signs = self.args["draw"]
            if signs is None:
                signs = generated = torch.empty_like(free)
        width = min(32, max(4, 1 << (per_row - 1).bit_length()))
        programs = -(-self.rows // PLAN_ROWS) * chunks(self.cols)
        plan_kernel[(programs,)](
            free, start, generated, header, self.rows, self.cols, ROWS=PLAN_ROWS, WORDS=width
        )  # fmt: skip
        return {**self.args, "free": free, "start": start, "signs": signs}

    def run(self, kernel: Any, programs: int, parts: int, **args: Any) -> None:
        """Launches `programs` tiles times `parts` parts of their pixels; inside `on(device)`."""
        args = {**self.plan(), **args}
        if parts == 1:
            kernel[(programs, 1)](out=self.out, scores=self.scores, **args)
            return
        from .kernels.scores import finish_kernel

        sums = torch.empty(parts, self.out.numel(), dtype=torch.float32, device=self.out.device)
        kernel[(programs, parts)](out=sums, scores=None, **args)
        finish_kernel[(-(-self.out.numel() // FINISH_BLOCK),)](
            self.out, self.scores, sums, args["header"], self.out.numel(), parts, BLOCK=FINISH_BLOCK,
            SUMS=FINISH_SUMS,
        )  # fmt: skip


class _Dim(NamedTuple):
    """A dimension of pixels: sizes of both sides, how taps slide, and strides in elements."""

    narrow: int
    wide: int
    taps: int
    stride: int
    padding: int
    dilation: int
    narrow_stride: int
    wide_stride: int

    @property
    def plain(self) -> bool:
        return self.taps == 1 and self.padding == 0


def pixel_dims(g: Geometry, wide: Side, narrow: Side) -> list[_Dim]:
    """Batch, then up to three spatial dimensions, outer to inner; those that run on in memory are made one."""
    found = [_Dim(narrow.size[0], wide.size[0], 1, 1, 0, 1, narrow.stride[0], wide.stride[0])]
    for i in range(3):
        sizes, strides = (narrow.size[i + 2], wide.size[i + 2]), (narrow.stride[i + 2], wide.stride[i + 2])
        found.append(_Dim(*sizes, g.taps[i], g.stride[i], g.padding[i], g.dilation[i], *strides))
    kept: list[_Dim] = []
    for dim in found:
        if dim.plain:
            if dim.narrow == 1:
                continue
            # one tap: its stride is a stride in memory
            dim = dim._replace(stride=1, wide_stride=dim.wide_stride * dim.stride)
            outer = kept[-1] if kept and kept[-1].plain else None
            if outer and (outer.narrow_stride, outer.wide_stride) == (
                dim.narrow * dim.narrow_stride, dim.narrow * dim.wide_stride,
            ):  # fmt: skip
                kept[-1] = dim._replace(narrow=outer.narrow * dim.narrow)
                continue
        kept.append(dim)
    return kept if kept and kept[0].plain else [_Dim(1, 1, 1, 1, 0, 1, 0, 0), *kept]


def reciprocal(divisor: int) -> tuple[int, int]:
    """`(magic, shift)` with n // divisor = n * magic >> shift for all n < 2^31; magic has 32 bits."""
    shift = 31 + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


def extent(s: Side) -> int:
    """Elements from the first to the last of a side."""
    return 1 + sum((size - 1) * stride for size, stride in zip(s.size, s.stride, strict=True))


def place_args(dims: list[_Dim], wide: Side, narrow: Side) -> dict[str, Any]:
    """The arguments by which a kernel finds pixels and taps on both sides."""
    batch, inner = dims[0], dims[:0:-1]
    none = _Dim(1, 1, 1, 1, 0, 1, 0, 0)
    three = [*inner, none, none, none][:3] if inner else [batch, none, none]
    args: dict[str, Any] = {
        "narrow_stride": (*(d.narrow_stride for d in three), narrow.stride[1], batch.narrow_stride),
        "wide_stride": (*(d.wide_stride for d in three), wide.stride[1], batch.wide_stride),
        "steps": tuple(n for d in three for n in (d.stride, d.padding, d.dilation, d.taps)),
        "DIMS": len(inner),
        "PADDED": any(d.padding > 0 for d in inner),
        "LONG": max(extent(wide), extent(narrow)) > MAX_EXTENT,
    }
    for name, dim in zip(("width", "height", "depth"), three, strict=True):
        magic, shift = reciprocal(max(dim.narrow, 1))
        args |= {name: dim.wide, f"narrow_{name}": dim.narrow, f"magic_{name}": magic, f"shift_{name}": shift}
    return args


def power_above(n: int, low: int, high: int) -> int:
    """The smallest power of two from n up, within [low, high]."""
    return min(high, max(low, 1 << (n - 1).bit_length()))


def gemm_tile(half: bool, copied: bool, group_rows: int, cols: int) -> tuple[int, int, int]:
    """Rows and pixels of a tile of `cols` columns, and its warps: the largest that spill no register on any target."""
    if not half:
        return power_above(group_rows, 16, 64), 16, 4
    rows = power_above(group_rows, 16, 128 if copied else 64)
    return rows, 64 if copied else 32, 8 if rows * cols >= 64 * 128 else 4


def parts_of(pixels: int, block: int, programs: int) -> tuple[int, int]:
    """How many parts of the pixels are summed apart, and the pixels of each: from shapes alone, so always the same."""
    blocks = max(1, -(-pixels // block))
    parts = max(1, min(PROGRAMS // programs, blocks // PART_BLOCKS))
    span = -(-blocks // parts) * block
    return max(1, -(-pixels // span)), span


def score_gradient(wide: Tensor, narrow: Tensor, scores: Tensor, pack: Pack, geometry: Geometry) -> Tensor:
    """From the tensors on both sides of the layer."""
    check_dtype("x or grad", wide.dtype)
    check_dtype("x or grad", narrow.dtype)
    task = Scores(scores, pack)
    if len(pack.shape) == 2:
        (wide, wide_side), (narrow, narrow_side) = as_pixels(wide, narrow)
    else:
        wide_side, narrow_side = side(wide), side(narrow)
    pixels = narrow_side.pixels
    if pixels > MAX_PIXELS:
        raise Unsupported(f"{pixels} pixels are more than {MAX_PIXELS}")
    if not task.rows or not task.cols or not scores.numel():
        return task.out
    args = place_args(pixel_dims(geometry, wide_side, narrow_side), wide_side, narrow_side)
    channels, group_rows = wide_side.size[1] // geometry.groups, task.rows // geometry.groups
    narrow_last = args["narrow_stride"][3] <= args["narrow_stride"][0]
    wide_last = args["wide_stride"][3] <= args["wide_stride"][0] * args["steps"][0]
    args |= {"narrow": narrow, "wide": wide, "pixels": pixels, "channels": channels, "group_rows": group_rows}
    with on(scores.device):
        if channels == 1 and group_rows < FEW_ROWS:
            _depthwise(task, pixels, wide_last, args)
        else:
            _gemm(task, pixels, narrow_last, wide_last, geometry.groups, args)
    return task.out


def _gemm(task: Scores, pixels: int, narrow_last: bool, wide_last: bool, groups: int, args: dict[str, Any]) -> None:
    from .kernels.score_gemm import score_gemm_kernel

    channels, group_rows = args["channels"], args["group_rows"]
    half = torch.float32 not in (args["narrow"].dtype, args["wide"].dtype)
    cols = power_above(task.cols, 32, 128 if half else 64)
    one_tap = channels == task.cols or channels % cols == 0
    # runs of channels under one tap go to shared memory past the registers
    rows, block, warps = gemm_tile(half, narrow_last and wide_last and one_tap, group_rows, cols)
    programs = groups * -(-group_rows // rows) * -(-task.cols // cols)
    parts, span = parts_of(pixels, block, programs)
    task.run(
        score_gemm_kernel, programs, parts, **args, span=span, ONE_TAP=one_tap, NARROW_LAST=narrow_last,
        WIDE_LAST=wide_last, ROWS=rows, COLS=cols, PIXELS=block, num_warps=warps,
    )  # fmt: skip


def _depthwise(task: Scores, pixels: int, last: bool, args: dict[str, Any]) -> None:
    from .kernels.score_gemm import score_depthwise_kernel

    # the dimension that lies together in memory is the longer one
    rows, block = (32, 8) if last else (4, 64)
    programs = -(-task.rows // rows) * -(-task.cols // DEPTHWISE_TAPS)
    parts, span = parts_of(pixels, block, programs)
    task.run(
        score_depthwise_kernel, programs, parts, **args, span=span, LAST=last, ROWS=rows, COLS=DEPTHWISE_TAPS,
        PIXELS=block,
    )  # fmt: skip
