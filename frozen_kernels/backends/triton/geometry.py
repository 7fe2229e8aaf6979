"""Convolutions of any dimension as one geometry with two sides, padded in front to three spatial dimensions.

Taps slide over the wide side (input of a convolution, output of a transposed one), whose channels make the columns of
the weight; the channels of the narrow side make its rows. A linear layer is the geometry of one tap and no space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Side(NamedTuple):
    """Sizes and strides, in elements, of [batch, channel, depth, height, width]."""

    size: tuple[int, int, int, int, int]
    stride: tuple[int, int, int, int, int]

    @property
    def pixels(self) -> int:
        batch, _, depth, height, width = self.size
        return batch * depth * height * width


class Geometry(NamedTuple):
    """Taps, stride, padding and dilation of depth, height and width."""

    taps: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    dilation: tuple[int, int, int]
    groups: int


POINT = Geometry((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)


def _three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    depth, height, width = (*[fill] * (3 - len(values)), *values)
    return depth, height, width


def geometry(shape: Sequence[int], stride: Sequence, padding: Sequence, dilation: Sequence, groups: int) -> Geometry:
    """Of a convolution, from the torch shape of its weight."""
    return Geometry(_three(shape[2:], 1), _three(stride, 1), _three(padding, 0), _three(dilation, 1), groups)


def side(x: Tensor) -> Side:
    """Of [batch, channel, 1 to 3 spatial dimensions]; a missing dimension has size 1 and stride 0."""
    stride = x.stride()
    return Side((x.shape[0], x.shape[1], *_three(x.shape[2:], 1)), (stride[0], stride[1], *_three(stride[2:], 0)))


def flat_side(x: Tensor) -> Side:
    """Of [batch, channel]."""
    return Side((x.shape[0], x.shape[1], 1, 1, 1), (x.stride(0), x.stride(1), 0, 0, 0))
