"""The product of a layer's weight, or of its transpose, with the pixels of an input, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...format import Pack
from ..checks import check_dtype, checked_epilogue
from ..geometry import Geometry, Side, with_result
from .extension import _C, DTYPES, pack_args, threads

LARGE_RESULT = 4 << 20  # bytes: malloc maps a block of this size anew at each call


def side_args(x: Tensor, at: Side) -> tuple[int, ...]:
    """Address, dtype and strides."""
    return (x.data_ptr(), DTYPES[x.dtype], *at.stride)


def sizes(wide: Side, narrow: Side, geometry: Geometry) -> tuple[int, ...]:
    """Batch and groups, then of each spatial dimension both sizes, taps, stride, padding and dilation."""
    batch, _, depth, height, width = wide.size
    _, _, narrow_depth, narrow_height, narrow_width = narrow.size
    (k0, k1, k2), (s0, s1, s2), (p0, p1, p2), (d0, d1, d2), groups, _ = geometry
    return (
        batch, groups,
        depth, narrow_depth, k0, s0, p0, d0,
        height, narrow_height, k1, s1, p1, d1,
        width, narrow_width, k2, s2, p2, d2,
    )  # fmt: skip


def _epilogue(bias: Tensor | None, gain: Tensor | None, relu: bool) -> tuple[int, ...]:
    added = (0, 0, 0) if bias is None else (bias.data_ptr(), DTYPES[bias.dtype], 1)
    factor = (0, 0) if gain is None else (gain.data_ptr(), 1)
    return (*added, *factor, relu)


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
    """`relu(gain * W x + bias)` of that size; with `back` the product of the transposed layer."""
    check_dtype("grad" if back else "x", x.dtype)
    args, held = pack_args(pack, product=True)
    linear, transposed = len(held.shape) == 2, geometry.transposed != back
    y, x, x_side, y_side = with_result(x, size, linear)
    bias, gain = checked_epilogue(bias, gain, y_side.size[1], held.header)
    if y.nbytes >= LARGE_RESULT:
        _C.prefer_huge_pages(y.data_ptr(), y.nbytes)
    run, wide, narrow = (_C.convolve_transposed, y_side, x_side) if transposed else (_C.convolve, x_side, y_side)
    ends = side_args(x, x_side), side_args(y, y_side)
    run(args, sizes(wide, narrow, geometry), *ends, _epilogue(bias, gain, relu), threads())
    return y
