"""The product of a layer by the definition: build the effective weight and call torch with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    linear, w = len(pack.shape) == 2, effective(pack, x.dtype)
    layer = _linear if linear else _convolution
    if gain is not None and pack.dense is not None and goes_into_weight(x, w, gain):
        w, gain = times_gain(w, gain, geometry.groups, geometry.transposed), None
    y = with_epilogue(lambda inner: layer(x, w, inner, geometry, size, back), bias, gain, relu, w.dim() - 2)
    return y if linear else y.contiguous(memory_format=memory_format_of(x))


def goes_into_weight(x: Tensor, w: Tensor, gain: Tensor) -> bool:
    """Whether a gain is a pass over fewer elements on the weight than on the result, as far as the input tells.

    Never in float16, where a weight times a small gain is subnormal.
    A gain is finite, as states and tickets ask. Others give NaN where torch's own folding does: in a dropped weight.
    """
    channels = x.shape[-1 if w.dim() == 2 else 1]
    return w.dtype is not torch.float16 and w.numel() * channels < x.numel() * gain.numel()


def times_gain(w: Tensor, gain: Tensor, groups: int, transposed: bool) -> Tensor:
    """A weight with the gain of its output channels in it, rounded once more: made anew in each call, and not kept."""
    later = [1] * (w.dim() - 2)
    if not transposed:
        return (w * gain.view(-1, 1, *later)).to(w.dtype)
    # columns are the channels of one group
    by_group = w.unflatten(0, (groups, -1)) * gain.view(groups, 1, -1, *later)
    return by_group.flatten(0, 1).to(w.dtype)


def with_epilogue(
    layer: Callable[[Tensor | None], Tensor], bias: Tensor | None, gain: Tensor | None, relu: bool, later: int
) -> Tensor:
    """`relu(gain * layer(None) + bias)` of a layer that takes its bias; `later`: dimensions behind that of channels."""
    if gain is None:
        y = layer(bias)
    else:
        y, along = layer(None), [-1, *[1] * later]
        gain = gain.view(along)
        y = (y * gain if bias is None else torch.addcmul(bias.view(along), y, gain)).to(y.dtype)
    return y.relu_() if relu else y


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
