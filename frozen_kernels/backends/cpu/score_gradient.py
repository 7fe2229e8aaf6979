"""The score gradient of a layer on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ...format import Pack
from ..checks import check_dtype
from ..geometry import Geometry, as_pixels, side
from ..native import side_args, sizes
from .extension import _C, pack_args, score_args, threads
from .masks import with_offsets


def score_gradient(wide: Tensor, narrow: Tensor, scores: Tensor, pack: Pack, geometry: Geometry) -> Tensor:
    """From the tensors on both sides of the layer."""
    check_dtype("x or grad", wide.dtype)
    check_dtype("x or grad", narrow.dtype)
    (scores_at, count, dtype), scores = score_args(scores, pack.header)
    args, held = pack_args(with_offsets(pack))
    if len(held.shape) == 2:
        (wide, wide_side), (narrow, narrow_side) = as_pixels(wide, narrow)
    else:
        wide_side, narrow_side = side(wide), side(narrow)
    out = torch.empty_like(scores)
    ends = side_args(wide, wide_side), side_args(narrow, narrow_side)
    at = sizes(wide_side, narrow_side, geometry)
    _C.score_gradient(args, at, *ends, scores_at, out.data_ptr(), count, dtype, threads())
    return out
