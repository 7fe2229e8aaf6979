"""The product of a layer's weight, or of its transpose, with the pixels of an input, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...format import Pack
from ..checks import check_dtype, checked_epilogue
from ..geometry import Geometry, with_result
from ..native import epilogue_args, side_args, sizes
from .extension import _C, pack_args, threads

LARGE_RESULT = 4 << 20  # bytes: malloc maps a block of this size anew at each call


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
    if linear and x.dim() and x.stride(-1) != 1:
        x = x.contiguous()  # as in a prepared call: kernels are chosen by strides, and each has its own bits
    y, x, x_side, y_side = with_result(x, size, linear)
    bias, gain = checked_epilogue(bias, gain, y_side.size[1], held.header)
    if y.nbytes >= LARGE_RESULT:
        _C.prefer_huge_pages(y.data_ptr(), y.nbytes)
    run, wide, narrow = (_C.convolve_transposed, y_side, x_side) if transposed else (_C.convolve, x_side, y_side)
    ends = side_args(x, x_side), side_args(y, y_side)
    run(args, sizes(wide, narrow, geometry), *ends, epilogue_args(bias, gain, relu), threads())
    return y
