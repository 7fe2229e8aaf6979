"""Gradients of scores are bound by arithmetic, where generated kernels are as good: Triton's."""

from __future__ import annotations

from torch import Tensor

from ...format import Pack
from ..errors import Unsupported
from ..geometry import Geometry


def score_gradient(wide: Tensor, narrow: Tensor, scores: Tensor, pack: Pack, geometry: Geometry) -> Tensor:
    """Unsupported."""
    raise Unsupported("gradients of scores have no CUDA C++ kernel")
