"""The score gradient of a layer by the definition: torch's gradient of the weight, then that of the free weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as nn_grad

from ...format import Pack
from .weights import weight_grad_scores


def score_gradient(wide: Tensor, narrow: Tensor, scores: Tensor, pack: Pack, geometry: Any) -> Tensor:
    """From the tensors on both sides of the layer. It sums over the batch: half precision sums in float32."""
    work = torch.promote_types(torch.promote_types(wide.dtype, narrow.dtype), torch.float32)
    wide, narrow = wide.to(work), narrow.to(work)
    if len(pack.shape) == 2:
        grad = narrow.reshape(-1, narrow.shape[-1]).T @ wide.reshape(-1, wide.shape[-1])
    else:
        grad = _convolution(wide, narrow, pack.shape, geometry)
    return weight_grad_scores(grad, scores, pack)


def _convolution(wide: Tensor, narrow: Tensor, shape: Sequence[int], geometry: Any) -> Tensor:
    dims = len(shape) - 2
    stride, padding, dilation = geometry.stride[-dims:], geometry.padding[-dims:], geometry.dilation[-dims:]
    along = zip(wide.shape[2:], narrow.shape[2:], shape[2:], stride, padding, dilation, strict=True)
    # an output padding of a stride or more makes a convolution of the wide side longer than the narrow one
    missing = [(n + 2 * p - d * (k - 1) - 1) // s + 1 - m for n, m, k, s, p, d in along]
    if any(missing):
        narrow = F.pad(narrow, [n for more in reversed(missing) for n in (0, more)])
    weight_gradient = getattr(nn_grad, f"conv{dims}d_weight")
    return weight_gradient(wide, list(shape), narrow, stride, padding, dilation, geometry.groups)
