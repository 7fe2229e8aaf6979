"""The product of a layer's weight, or of its transpose, with few pixels of an input, by CUDA C++ kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...format import ALL_CODES, STORED, Pack
from .. import forced
from ..checks import check_dtype, checked_epilogue, checked_pack
from ..errors import Unsupported
from ..geometry import Geometry, with_result
from ..native import VALUE_DTYPES, epilogue_args, side_args, sizes
from ..triton.launch import on
from ..triton.masks import keep_plane
from . import choices
from .extension import check_gpu, load


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _with_keep(held: Pack, rows: int, cols: int) -> Pack:
    """The weight with a keep plane; that of a seed is a scratch that Triton's kernel makes."""
    if held.keep is not None:
        return held
    if held.supermask is None or held.offsets is None:
        raise Unsupported("neither a keep plane nor a supermask with its offsets")
    return held._replace(keep=keep_plane(held.header, held.supermask, held.offsets, rows, cols))


def _weight(held: Pack, rows: int, cols: int) -> tuple[int, ...]:
    """Addresses and sizes of a weight with a keep plane, as the extension takes them."""
    if held.code == STORED and held.offsets is None:
        raise Unsupported("packed values without their offsets")
    values_dtype = 0 if held.values is None else VALUE_DTYPES[held.values.dtype]
    offsets = held.offsets if held.code == STORED else None
    return (
        held.header.data_ptr(), ALL_CODES.index(held.code), rows, cols, _address(held.keep), _address(held.draw),
        _address(held.values), values_dtype, _address(offsets), _address(held.row_scale),
    )  # fmt: skip


def _residency(held: Pack) -> str:
    if held.code == STORED:
        return "packed"
    return "planes" if held.draw is not None or held.code == "constant" else "mask"


def _check_layer(x: Tensor, geometry: Geometry, op: str, transposed: bool) -> None:
    """Unsupported where no kernel serves a layer whatever its sizes are: before anything is made for it."""
    if geometry.groups != 1:
        raise Unsupported(f"CUDA C++ kernels serve one group, not {geometry.groups}")
    if op in ("conv2d", "stem") and transposed:
        raise Unsupported("the transpose of a convolution has no CUDA C++ kernel")
    if op == "conv2d" and x.shape[1] > 1 and x.stride(1) != 1:
        raise Unsupported(f"CUDA C++ convolutions read channels last, not a channel stride of {x.stride(1)}")


def _stream(device: torch.device) -> int:
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0


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
    """`relu(gain * W x + bias)` of that size; with `back` the product of the transposed layer.

    Unsupported where the table of choices names another backend, unless this one is forced, and where no kernel serves
    the shapes. RuntimeError with CUDA's words where a launch fails.
    """
    check_dtype("grad" if back else "x", x.dtype)
    held, rows, cols = checked_pack(pack)
    transposed = geometry.transposed != back
    if not x.numel() or not math.prod(size):
        raise Unsupported("an empty input or result")
    device, linear = held.header.device, len(held.shape) == 2
    check_gpu(device)
    pixels = math.prod(size) // size[-1 if linear else 1]
    op = choices.op_of(geometry, cols // math.prod(geometry.taps), transposed)
    _check_layer(x, geometry, op, transposed)
    if forced.name is None:
        chosen = choices.choose(op, device, x.dtype, held.code, _residency(held), pixels)
        if chosen.backend != "cuda":
            raise Unsupported(f"the table of choices names {chosen.backend}: {chosen.why}")
    held = _with_keep(held, rows, cols)
    y, x, x_side, y_side = with_result(x, size, linear)
    bias, gain = checked_epilogue(bias, gain, y_side.size[1], held.header)
    wide, narrow = (y_side, x_side) if transposed else (x_side, y_side)
    ends = side_args(x, x_side), side_args(y, y_side)
    with on(device):
        why = load().product(
            _weight(held, rows, cols), sizes(wide, narrow, geometry), *(ends[::-1] if transposed else ends),
            epilogue_args(bias, gain, relu), transposed, device.index or 0, _stream(device),
        )  # fmt: skip
    if why is not None:
        layer = f"weight {tuple(held.shape)}, {pixels} pixels, input of strides {x.stride()} at {x.data_ptr():#x}"
        raise Unsupported(f"CUDA C++ kernels do not serve {why} ({layer})")
    return y
