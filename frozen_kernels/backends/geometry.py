"""Linear layers and convolutions of one to three dimensions, transposed or not, as one geometry with two sides.

Taps slide over the wide side (input of a convolution, result of a transposed one), whose channels make the columns of
the weight; the channels of the narrow side make its rows. What is missing of three spatial dimensions stands in front,
with one tap and size 1. A linear layer is the geometry of one tap, its leading dimensions are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..format import memory_format_of


class Side(NamedTuple):
    """Sizes and strides, in elements, of [batch, channel, depth, height, width]."""

    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def pixels(self) -> int:
        batch, _, depth, height, width = self.size
        return batch * depth * height * width


class Geometry(NamedTuple):
    """Taps, stride, padding and dilation of depth, height and width; groups; whether the layer is a transposed one."""

    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False


POINT = Geometry((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1))

# by how many of the three spatial dimensions are missing
_ONES = ((), (1,), (1, 1), (1, 1, 1))
_ZEROS = ((), (0,), (0, 0), (0, 0, 0))


def geometry(
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
) -> Geometry:
    """Of a convolution, from the torch shape of its weight."""
    ones, zeros = _ONES[5 - len(shape)], _ZEROS[5 - len(shape)]
    return Geometry(
        (*ones, *shape[2:]), (*ones, *stride), (*zeros, *padding), (*ones, *dilation), groups, transposed
    )  # fmt: skip


def side(x: Tensor) -> Side:
    """Of [batch, channel, up to 3 spatial dimensions]; a missing dimension has size 1 and stride 0."""
    size, stride = x.shape, x.stride()
    missing = 5 - len(size)
    return Side((*size[:2], *_ONES[missing], *size[2:]), (*stride[:2], *_ZEROS[missing], *stride[2:]))


def as_pixels(*tensors: Tensor) -> list[tuple[Tensor, Side]]:
    """Each [..., K] with its side; all number their pixels alike. A copy only past five dimensions."""
    found = []
    for x in tensors:
        channels = x.shape[-1]
        if not channels or not x.is_contiguous():
            break
        count = x.numel()
        found.append((x, Side((1, channels, 1, 1, count // channels), (count, 1, count, count, channels))))
    else:
        return found
    flat = [x.flatten(0, x.dim() - 5) if x.dim() > 5 else x for x in tensors]
    return [(x, side(x[(None,) * (5 - x.dim())].movedim(-1, 1))) for x in flat]


def with_result(x: Tensor, size: Sequence[int], linear: bool) -> tuple[Tensor, Tensor, Side, Side]:
    """A fresh result of an input, laid out as that; the input, and the sides of input and result."""
    if linear:
        y = x.new_empty(size)
        (x, x_side), (_, y_side) = as_pixels(x, y)
        return y, x, x_side, y_side
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    return y, x, side(x), side(y)
