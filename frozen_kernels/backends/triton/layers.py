"""The layer ops on the Triton backend: linear layers, convolutions, their transposes, and gradients of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ... import ops
from ...format import memory_format_of
from ..errors import Unsupported
from .geometry import POINT, Side, flat_side, geometry, side
from .launch import DTYPES, check_operand, check_size, check_tensor, decode_args
from .product import Epilogue, product

SHAPE = 7  # place in an op's pack


def _epilogue(bias: Tensor | None, gain: Tensor | None, relu: bool, header: Tensor, channels: int) -> Epilogue:
    """Bias and gain of any strides: a small copy costs less than what a refusal falls back to."""
    if bias is not None:
        bias = bias.contiguous()
        check_size("bias", bias.shape, [channels])
        check_tensor("bias", bias, header, DTYPES, channels)
    if gain is not None:
        gain = gain.contiguous()
        check_size("gain", gain.shape, [channels])
        check_tensor("gain", gain, header, (torch.float32,), channels)
    return Epilogue(bias, gain, relu)


def _as_pixels(x: Tensor, y: Tensor) -> tuple[Tensor, Side, Side]:
    """The input, and its side and a fresh result's, as [batch, K], or both as five dimensions where strides forbid it.

    A copy only past five dimensions.
    """
    pixels = math.prod(x.shape[:-1])
    try:
        flat = x.view(pixels, x.shape[-1])
    except RuntimeError:
        if x.dim() <= 5:
            # of the result too: its pixels must be numbered like those of the input
            return x, _spread(x), _spread(y)
        flat = x.reshape(pixels, x.shape[-1])
    return flat, flat_side(flat), flat_side(y.view(pixels, y.shape[-1]))


def _spread(x: Tensor) -> Side:
    return side(x[(None,) * (5 - x.dim())].movedim(-1, 1))


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2:
        raise Unsupported(f"linear needs a weight of 2 dimensions, got shape {tuple(shape)}")
    rows, cols = shape
    return rows, cols


def linear(
    x: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    *pack,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu(gain * x @ weight^T + bias)` for x [..., cols], codes decoded in registers and no dense weight."""
    shape, header = pack[SHAPE], pack[0]
    check_operand("x", x, header)
    rows, cols = _matrix(shape)
    args = decode_args(*pack)
    check_size("last dimension of x", x.shape[-1:], [cols])
    epilogue = _epilogue(bias, gain, relu, header, rows)
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device=x.device)
    x, x_side, y_side = _as_pixels(x, y)
    product(y, y_side, x, x_side, args, POINT, False, epilogue)
    return y


def linear_grad_input(grad: Tensor, *pack) -> Tensor:
    """`grad @ weight` for grad [..., rows]."""
    shape, header = pack[SHAPE], pack[0]
    check_operand("grad", grad, header)
    rows, cols = _matrix(shape)
    args = decode_args(*pack)
    check_size("last dimension of grad", grad.shape[-1:], [rows])
    out = torch.empty((*grad.shape[:-1], cols), dtype=grad.dtype, device=grad.device)
    grad, grad_side, out_side = _as_pixels(grad, out)
    product(out, out_side, grad, grad_side, args, POINT, True)
    return out


def _convolve(out_size, x: Tensor, pack: Sequence, spatial: Sequence, transposed: bool, epilogue: Epilogue) -> Tensor:
    args, groups = decode_args(*pack), spatial[-1]
    if groups < 1 or args["rows"] % groups:
        raise ValueError(f"groups = {groups} does not divide rows = {args['rows']}")
    out = torch.empty(out_size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    product(out, side(out), x, side(x), args, geometry(pack[SHAPE], *spatial), transposed, epilogue)
    return out


def _convolution(name: str) -> tuple[Callable, Callable]:
    def out_size(x: Sequence[int], pack: Sequence, stride, padding, dilation, groups: int) -> list[int]:
        shape = pack[SHAPE]
        check_size("channels of x", (x[1],), (shape[1] * groups,))
        return ops.conv_output_size(x, shape, stride, padding, dilation)

    def forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args, gain=None, relu=False) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        check_operand("x", x, pack[0])
        spatial = (stride, padding, dilation, groups)
        size = out_size(x.shape, pack, *spatial)
        return _convolve(size, x, pack, spatial, False, _epilogue(bias, gain, relu, pack[0], size[1]))

    def grad_input(grad: Tensor, input_size: Sequence[int], *args) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        check_operand("grad", grad, pack[0])
        spatial = (stride, padding, dilation, groups)
        check_size("grad", grad.shape, out_size(input_size, pack, *spatial))
        return _convolve(tuple(input_size), grad, pack, spatial, True, Epilogue())

    forward.__name__, grad_input.__name__ = name, f"{name}_grad_input"
    return forward, grad_input


def _transposed(name: str) -> tuple[Callable, Callable]:
    def out_size(x: Sequence[int], pack: Sequence, stride, padding, output_padding, dilation, groups: int) -> list[int]:
        shape = pack[SHAPE]
        check_size("channels of x", [x[1]], [shape[0]])
        return ops.conv_transpose_output_size(x, shape, stride, padding, output_padding, dilation, groups)

    def forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args, gain=None, relu=False) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        check_operand("x", x, pack[0])
        size = out_size(x.shape, pack, stride, padding, output_padding, dilation, groups)
        spatial = (stride, padding, dilation, groups)
        return _convolve(size, x, pack, spatial, True, _epilogue(bias, gain, relu, pack[0], size[1]))

    def grad_input(grad: Tensor, input_size: Sequence[int], *args) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        check_operand("grad", grad, pack[0])
        size = out_size(input_size, pack, stride, padding, output_padding, dilation, groups)
        check_size("grad", grad.shape, size)
        return _convolve(tuple(input_size), grad, pack, (stride, padding, dilation, groups), False, Epilogue())

    forward.__name__, grad_input.__name__ = name, f"{name}_grad_input"
    return forward, grad_input


conv1d, conv1d_grad_input = _convolution("conv1d")
conv2d, conv2d_grad_input = _convolution("conv2d")
conv3d, conv3d_grad_input = _convolution("conv3d")
conv_transpose1d, conv_transpose1d_grad_input = _transposed("conv_transpose1d")
conv_transpose2d, conv_transpose2d_grad_input = _transposed("conv_transpose2d")
conv_transpose3d, conv_transpose3d_grad_input = _transposed("conv_transpose3d")
