"""Layer ops by the definition: build the effective weight, call torch, and gather the gradient of the free weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as nn_grad

from ... import format as fmt
from .generate import codes, partition
from .masks import from_planes, unpack

Pack = Sequence  # header, supermask, offsets, keep, draw, dense, code, shape


def _keep(header: Tensor, supermask: Tensor | None, keep: Tensor | None, rows: int, cols: int) -> Tensor:
    if keep is not None:
        return from_planes(keep, cols)
    if supermask is None:
        raise ValueError("supermask: a frozen tensor needs a supermask, a keep plane or a dense weight, got none")
    return unpack(supermask, partition(header, rows, cols, 0, 0))


def _scale(header: Tensor) -> Tensor:
    return header[fmt.SCALE].view(torch.float32)


def _effective(pack: Pack, dtype: torch.dtype) -> Tensor:
    header, supermask, _, keep, _, dense, code, shape = pack
    if dense is not None:
        return dense.to(dtype)
    rows, cols = fmt.matrix_shape(shape)
    value = codes(header, code, rows, cols, 0, 0).to(torch.float32) * _scale(header)
    value = torch.where(_keep(header, supermask, keep, rows, cols), value, 0.0)
    return fmt.from_matrix(value.to(dtype), shape)


def weight(scores: Tensor | None, *args) -> Tensor:
    *pack, dtype = args
    value = _effective(pack, dtype)
    return value.clone() if value is pack[5] else value


def weight_grad_scores(grad: Tensor, scores: Tensor, *pack) -> Tensor:
    """Straight-through: `sign(S) * dL/dW * code * scale` on the free weights, in stream order."""
    header, shape, code = pack[0], pack[7], pack[6]
    rows, cols = fmt.matrix_shape(shape)
    work = torch.promote_types(grad.dtype, torch.float32)
    local = fmt.to_matrix(grad).to(work) * codes(header, code, rows, cols, 0, 0) * _scale(header)
    free = fmt.stream_order(partition(header, rows, cols, 0, 0) == 0)
    return (fmt.stream_order(local)[free] * scores.sign()).to(scores.dtype)


def _accurate(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A score gradient sums over the batch: half precision sums in float32, like the kernels."""
    work = torch.promote_types(grad.dtype, torch.float32)
    return grad.to(work), x.to(work)


def _epilogue(y: Tensor, bias: Tensor | None, gain: Tensor | None, relu: bool, channel: int) -> Tensor:
    """relu(gain * y + bias) of a y that has its bias already where there is no gain; rounded once to y's dtype."""
    if gain is not None:
        later = [1] * (y.dim() - 1 - channel)
        gain = gain.view(-1, *later)
        y = (y * gain if bias is None else torch.addcmul(bias.view(-1, *later), y, gain)).to(y.dtype)
    return y.relu_() if relu else y


def linear(x: Tensor, bias: Tensor | None, scores: Tensor | None, *pack, gain=None, relu=False) -> Tensor:
    y = F.linear(x, _effective(pack, x.dtype), bias if gain is None else None)
    return _epilogue(y, bias, gain, relu, y.dim() - 1)


def linear_grad_input(grad: Tensor, *pack) -> Tensor:
    return (grad @ _effective(pack, grad.dtype)).contiguous()


def linear_grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *pack) -> Tensor:
    grad, x = _accurate(grad, x)
    grad_weight = grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return weight_grad_scores(grad_weight, scores, *pack)


def embedding(indices: Tensor, scores: Tensor | None, *args) -> Tensor:
    *pack, dtype, padding_idx = args
    table = weight(None, *pack, dtype)
    if padding_idx >= 0:
        table[padding_idx] = 0
    return F.embedding(indices, table)


def embedding_grad_scores(grad: Tensor, indices: Tensor, scores: Tensor, *args) -> Tensor:
    *pack, padding_idx = args
    rows, cols = fmt.matrix_shape(pack[7])
    table = torch.zeros(rows, cols, dtype=torch.promote_types(grad.dtype, torch.float32), device=grad.device)
    table.index_add_(0, indices.flatten(), grad.reshape(-1, cols).to(table.dtype))
    if padding_idx >= 0:
        table[padding_idx] = 0
    return weight_grad_scores(table, scores, *pack)


def _convolution(name: str) -> tuple[Callable, Callable, Callable]:
    function = getattr(F, name)
    input_gradient = getattr(nn_grad, f"{name}_input")
    weight_gradient = getattr(nn_grad, f"{name}_weight")

    def forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args, gain=None, relu=False) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        inner_bias = bias if gain is None else None
        y = function(x, _effective(pack, x.dtype), inner_bias, stride, padding, dilation, groups)
        return _epilogue(y, bias, gain, relu, 1).contiguous(memory_format=fmt.memory_format_of(x))

    def grad_input(grad: Tensor, input_size: Sequence[int], *args) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        w = _effective(pack, grad.dtype)
        g = input_gradient(input_size, w, grad, stride, padding, dilation, groups)
        return g.contiguous(memory_format=fmt.memory_format_of(grad))

    def grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *args) -> Tensor:
        *pack, stride, padding, dilation, groups = args
        grad, x = _accurate(grad, x)
        g = weight_gradient(x, list(pack[7]), grad, stride, padding, dilation, groups)
        return weight_grad_scores(g, scores, *pack)

    return forward, grad_input, grad_scores


def _transposed(name: str, twin: str) -> tuple[Callable, Callable, Callable]:
    function, plain = getattr(F, name), getattr(F, twin)
    weight_gradient = getattr(nn_grad, f"{twin}_weight")

    def forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args, gain=None, relu=False) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        inner_bias = bias if gain is None else None
        y = function(x, _effective(pack, x.dtype), inner_bias, stride, padding, output_padding, groups, dilation)
        return _epilogue(y, bias, gain, relu, 1).contiguous(memory_format=fmt.memory_format_of(x))

    def grad_input(grad: Tensor, input_size: Sequence[int], *args) -> Tensor:
        *pack, stride, padding, _, dilation, groups = args
        g = plain(grad, _effective(pack, grad.dtype), None, stride, padding, dilation, groups)
        # an output padding of a stride or more makes this convolution's result longer than the input
        for dim in range(2, g.dim()):
            g = g.narrow(dim, 0, input_size[dim])
        return g.contiguous(memory_format=fmt.memory_format_of(grad))

    def grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *args) -> Tensor:
        *pack, stride, padding, output_padding, dilation, groups = args
        grad, x = _accurate(grad, x)
        longer = [o // s for o, s in zip(output_padding, stride, strict=True)]
        x = F.pad(x, [n for more in reversed(longer) for n in (0, more)])
        # a transposed convolution is the input gradient of a convolution whose input is this one's output
        g = weight_gradient(grad, list(pack[7]), x, stride, padding, dilation, groups)
        return weight_grad_scores(g, scores, *pack)

    return forward, grad_input, grad_scores


conv1d, conv1d_grad_input, conv1d_grad_scores = _convolution("conv1d")
conv2d, conv2d_grad_input, conv2d_grad_scores = _convolution("conv2d")
conv3d, conv3d_grad_input, conv3d_grad_scores = _convolution("conv3d")
conv_transpose1d, conv_transpose1d_grad_input, conv_transpose1d_grad_scores = _transposed("conv_transpose1d", "conv1d")
conv_transpose2d, conv_transpose2d_grad_input, conv_transpose2d_grad_scores = _transposed("conv_transpose2d", "conv2d")
conv_transpose3d, conv_transpose3d_grad_input, conv_transpose3d_grad_scores = _transposed("conv_transpose3d", "conv3d")
