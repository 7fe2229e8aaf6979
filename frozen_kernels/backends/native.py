"""What compiled extensions are told of tensors: numbers for dtypes, addresses and strides of sides, sizes of layers."""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import Geometry, Side

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
VALUE_DTYPES = {**DTYPES, torch.int8: 3}


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


def epilogue_args(bias: Tensor | None, gain: Tensor | None, relu: bool) -> tuple[int, ...]:
    """Address, dtype and stride of a bias, address and stride of a gain, 0 for none; whether a ReLU follows."""
    added = (0, 0, 0) if bias is None else (bias.data_ptr(), DTYPES[bias.dtype], 1)
    factor = (0, 0) if gain is None else (gain.data_ptr(), 1)
    return (*added, *factor, relu)
