"""The product of a layer by the definition: build the effective weight and call torch with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as nn_grad

from ...format import Pack, memory_format_of
from .weights import effective


def product(
    x: Tensor,
    pack: Pack,
    geometry: Any,
    size: Sequence[int],
    back: bool,
    bias: Tensor | None = None,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu(gain * W x + bias)` of that size; with `back` the product of the transposed layer."""
    linear, inner_bias = len(pack.shape) == 2, bias if gain is None else None
    layer = _linear if linear else _convolution
    y = layer(x, effective(pack, x.dtype), inner_bias, geometry, size, back)
    if gain is not None:
        along = [-1] if linear else [-1, *[1] * (y.dim() - 2)]
        gain = gain.view(along)
        y = (y * gain if bias is None else torch.addcmul(bias.view(along), y, gain)).to(y.dtype)
    if relu:
        y = y.relu_()
    return y if linear else y.contiguous(memory_format=memory_format_of(x))


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Any, size: Sequence[int], back: bool) -> Tensor:
    return (x @ w).contiguous() if back else F.linear(x, w, bias)


def _convolution(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Any, size: Sequence[int], back: bool) -> Tensor:
    dims, groups = w.dim() - 2, geometry.groups
    stride, padding, dilation = geometry.stride[-dims:], geometry.padding[-dims:], geometry.dilation[-dims:]
    if geometry.transposed == back:
        y = getattr(F, f"conv{dims}d")(x, w, bias, stride, padding, dilation, groups)
        # an output padding of a stride or more makes this result longer than a transposed layer's input
        return y[tuple(slice(n) for n in size)] if back else y
    if back:
        return getattr(nn_grad, f"conv{dims}d_input")(size, w, x, stride, padding, dilation, groups)
    along = zip(size[2:], x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    output_padding = [n - (m - 1) * s + 2 * p - d * (k - 1) - 1 for n, m, k, s, p, d in along]
    return getattr(F, f"conv_transpose{dims}d")(x, w, bias, stride, padding, output_padding, groups, dilation)
