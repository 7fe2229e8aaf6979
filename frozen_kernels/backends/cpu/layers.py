"""The layer ops of the CPU backend: linear layers, convolutions and transposed convolutions with their gradients.

Every layer is one geometry with two sides: the taps slide over the wide side (input of a convolution, output of a
transposed one), whose channels make columns; the channels of the narrow side make rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...format import memory_format_of
from ..errors import Unsupported
from .kernels import _C, DTYPES, SHAPE, _dtype, _pack, _threads, with_offsets

LARGE_RESULT = 4 << 20  # bytes: malloc maps a block of this size anew at each call


def _check_size(name: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(got) != tuple(wanted):
        raise ValueError(f"{name}: size {list(got)}, expected {list(wanted)}")


def _side(x: Tensor, spatial: int) -> list[int]:
    """Pointer, dtype and the strides of [batch, channel, three spatial dimensions]."""
    stride = x.stride()
    return [x.data_ptr(), DTYPES[x.dtype], *stride[:2], *[0] * (3 - spatial), *stride[2:]]


def _epilogue(bias: Tensor | None, gain: Tensor | None, relu: bool, channels: int) -> list[int]:
    args = [0, 0, 0, 0, 0, relu]
    if bias is not None:
        _dtype(bias.dtype, "bias")
        _check_size("bias", bias.shape, [channels])
        args[:3] = bias.data_ptr(), DTYPES[bias.dtype], bias.stride(0)
    if gain is not None:
        if gain.dtype != torch.float32:
            raise Unsupported(f"gain is {gain.dtype}, not float32")
        _check_size("gain", gain.shape, [channels])
        args[3:5] = gain.data_ptr(), gain.stride(0)
    return args


def _to_fill(out: Tensor) -> Tensor:
    """A fresh result; a large one is asked to lie in huge pages before it is written."""
    if out.nbytes >= LARGE_RESULT:
        _C.prefer_huge_pages(out.data_ptr(), out.nbytes)
    return out


def _sizes(wide: Tensor, narrow: Tensor, shape: Sequence[int], stride, padding, dilation, groups: int) -> list[int]:
    spatial = len(shape) - 2
    sizes = [wide.shape[0], groups, *[1, 1, 1, 1, 0, 1] * (3 - spatial)]
    for i in range(spatial):
        sizes += [wide.shape[i + 2], narrow.shape[i + 2], shape[i + 2], stride[i], padding[i], dilation[i]]
    return sizes


def _convolve(
    x: Tensor,
    bias: Tensor | None,
    out: Tensor,
    pack: Sequence,
    geometry: Sequence,
    wide_out: bool,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    spatial = out.dim() - 2
    wide, narrow = (out, x) if wide_out else (x, out)
    run = _C.convolve_transposed if wide_out else _C.convolve
    packed = _pack(*pack)
    sides = [_side(x, spatial), _side(out, spatial)]
    sizes = _sizes(wide, narrow, pack[SHAPE], *geometry)
    run(packed.args, sizes, *sides, _epilogue(bias, gain, relu, out.shape[1]), _threads())
    return out


def _score_gradient(wide: Tensor, narrow: Tensor, scores: Tensor, pack: Sequence, geometry: Sequence) -> Tensor:
    _dtype(scores.dtype, "scores")
    spatial = wide.dim() - 2
    scores, out = scores.contiguous(), torch.empty_like(scores, memory_format=torch.contiguous_format)
    sizes = _sizes(wide, narrow, pack[SHAPE], *geometry)
    sides = [_side(wide, spatial), _side(narrow, spatial)]
    ends = [scores.data_ptr(), out.data_ptr(), scores.numel(), DTYPES[scores.dtype]]
    packed = _pack(*with_offsets(pack))
    _C.score_gradient(packed.args, sizes, *sides, *ends, _threads())
    return out


class _Rows:
    """What is asked of a contiguous [..., K] as [1, K, 1, 1, rows]: the view would take longer than a small layer."""

    __slots__ = ("data_ptr", "dtype", "shape")

    def __init__(self, x: Tensor, rows: int, cols: int) -> None:
        self.data_ptr, self.dtype, self.shape = x.data_ptr, x.dtype, (1, cols, 1, 1, rows)

    def dim(self) -> int:
        return 5

    def stride(self) -> tuple[int, ...]:
        cols, rows = self.shape[1], self.shape[4]
        return (rows * cols, 1, rows * cols, rows * cols, cols)


def _as_pixels(*sides: Tensor) -> list[Any]:
    """Each [..., K] as [batch, K, two more pixel dimensions and one]; a copy only past five dimensions."""
    if all(x.is_contiguous() and x.shape[-1] for x in sides):
        return [_Rows(x, x.numel() // x.shape[-1], x.shape[-1]) for x in sides]
    flat = [x.flatten(0, x.dim() - 5) if x.dim() > 5 else x for x in sides]
    return [x[(None,) * (5 - x.dim())].movedim(-1, 1) for x in flat]


_LINEAR = ((1, 1, 1), (0, 0, 0), (1, 1, 1), 1)


def _linear_pack(pack: Sequence) -> list:
    return [*pack[:SHAPE], [*pack[SHAPE], 1, 1, 1]]


def linear(x: Tensor, bias: Tensor | None, scores: Tensor | None, *pack, gain=None, relu=False) -> Tensor:
    _dtype(x.dtype, "x")
    rows, cols = pack[SHAPE]
    _check_size("last dimension of x", x.shape[-1:], [cols])
    out = _to_fill(x.new_empty(*x.shape[:-1], rows))
    wide, narrow = _as_pixels(x, out)
    _convolve(wide, bias, narrow, _linear_pack(pack), _LINEAR, False, gain, relu)
    return out


def linear_grad_input(grad: Tensor, *pack) -> Tensor:
    _dtype(grad.dtype, "grad")
    rows, cols = pack[SHAPE]
    _check_size("last dimension of grad", grad.shape[-1:], [rows])
    out = _to_fill(grad.new_empty(*grad.shape[:-1], cols))
    narrow, wide = _as_pixels(grad, out)
    _convolve(narrow, None, wide, _linear_pack(pack), _LINEAR, wide_out=True)
    return out


def linear_grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *pack) -> Tensor:
    _dtype(grad.dtype, "grad")
    _dtype(x.dtype, "x")
    rows, cols = pack[SHAPE]
    _check_size("x", x.shape, [*x.shape[:-1], cols])
    _check_size("grad", grad.shape, [*x.shape[:-1], rows])
    wide, narrow = _as_pixels(x, grad)
    return _score_gradient(wide, narrow, scores, _linear_pack(pack), _LINEAR)


def _empty(size: Sequence[int], like: Tensor) -> Tensor:
    return _to_fill(torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format_of(like)))


def _convolution(name: str) -> tuple[Callable, Callable, Callable]:
    def out_size(x: Sequence[int], pack: Sequence, stride, padding, dilation, groups: int) -> list[int]:
        shape = pack[SHAPE]
        _check_size("channels of x", (x[1],), (shape[1] * groups,))
        return ops.conv_output_size(x, shape, stride, padding, dilation)

    def forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args, gain=None, relu=False) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        _dtype(x.dtype, "x")
        geometry = (stride, padding, dilation, groups)
        out = _empty(out_size(x.shape, pack, *geometry), x)
        return _convolve(x, bias, out, pack, geometry, False, gain, relu)

    def grad_input(grad: Tensor, input_size: Sequence[int], *args) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        _dtype(grad.dtype, "grad")
        geometry = (stride, padding, dilation, groups)
        _check_size("grad", grad.shape, out_size(input_size, pack, *geometry))
        return _convolve(grad, None, _empty(input_size, grad), pack, geometry, wide_out=True)

    def grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *args) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        _dtype(grad.dtype, "grad")
        _dtype(x.dtype, "x")
        geometry = (stride, padding, dilation, groups)
        _check_size("grad", grad.shape, out_size(x.shape, pack, *geometry))
        return _score_gradient(x, grad, scores, pack, geometry)

    return forward, grad_input, grad_scores


def _transposed(name: str) -> tuple[Callable, Callable, Callable]:
    def out_size(x: Sequence[int], pack: Sequence, stride, padding, output_padding, dilation, groups: int) -> list[int]:
        shape = pack[SHAPE]
        _check_size("channels of x", [x[1]], [shape[0]])
        return ops.conv_transpose_output_size(x, shape, stride, padding, output_padding, dilation, groups)

    def forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args, gain=None, relu=False) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        _dtype(x.dtype, "x")
        size = out_size(x.shape, pack, stride, padding, output_padding, dilation, groups)
        return _convolve(x, bias, _empty(size, x), pack, (stride, padding, dilation, groups), True, gain, relu)

    def grad_input(grad: Tensor, input_size: Sequence[int], *args) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        _dtype(grad.dtype, "grad")
        size = out_size(input_size, pack, stride, padding, output_padding, dilation, groups)
        _check_size("grad", grad.shape, size)
        geometry = (stride, padding, dilation, groups)
        return _convolve(grad, None, _empty(input_size, grad), pack, geometry, wide_out=False)

    def grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *args) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        _dtype(grad.dtype, "grad")
        _dtype(x.dtype, "x")
        size = out_size(x.shape, pack, stride, padding, output_padding, dilation, groups)
        _check_size("grad", grad.shape, size)
        return _score_gradient(grad, x, scores, pack, (stride, padding, dilation, groups))

    return forward, grad_input, grad_scores


conv1d, conv1d_grad_input, conv1d_grad_scores = _convolution("conv1d")
conv2d, conv2d_grad_input, conv2d_grad_scores = _convolution("conv2d")
conv3d, conv3d_grad_input, conv3d_grad_scores = _convolution("conv3d")
conv_transpose1d, conv_transpose1d_grad_input, conv_transpose1d_grad_scores = _transposed("conv_transpose1d")
conv_transpose2d, conv_transpose2d_grad_input, conv_transpose2d_grad_scores = _transposed("conv_transpose2d")
conv_transpose3d, conv_transpose3d_grad_input, conv_transpose3d_grad_scores = _transposed("conv_transpose3d")
