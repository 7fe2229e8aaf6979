"""Code "signs" for every backend: kernels get code "sign" with both planes, so that nothing is drawn.

The scale of a row multiplies here, and nowhere else. Rows are the channels of a layer's narrow side: the outputs of a
linear layer or a convolution, the inputs of a transposed one. A product towards that side has the scale as a gain, one
from there takes an input that is scaled, and so does the score gradient. Scores of stored signs are the weights' own
signs: their gradient is `dL/dW * scale * row_scale`, whatever their sign (Koster et al. 2022, straight through).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..format import SIGNS, Pack, matrix_shape
from .checks import operand
from .geometry import Geometry


def row_scale_of(pack: Pack) -> Tensor | None:
    """float32 [rows] of stored signs, None where rows have none, or the effective weight is held."""
    if pack.code != SIGNS or pack.row_scale is None or pack.dense is not None:
        return None
    rows, _ = matrix_shape(pack.shape)
    return operand("row_scale", pack.row_scale, pack.header.device, torch.float32, (rows,))


def as_sign(pack: Pack) -> Pack:
    """A pack that kernels take: stored signs as code "sign" with its planes, and without the scale of rows.

    ValueError where stored signs come without them: kernels would draw others.
    """
    if pack.code != SIGNS:
        return pack
    if pack.dense is None and (pack.keep is None or pack.draw is None):
        missing = "keep" if pack.keep is None else "draw"
        raise ValueError(f"{missing}: stored signs need keep and draw planes, got none")
    return pack._replace(code="sign", row_scale=None)


def scaled(t: Tensor, scale: Tensor, channel: int) -> Tensor:
    """The tensor times one scale per channel; float16, whose range is small, becomes float32."""
    along = [1] * t.dim()
    along[channel] = -1
    work = torch.float32 if t.dtype == torch.float16 else t.dtype
    return (t * scale.view(along)).to(work)


class Signs(NamedTuple):
    """The primitives of a backend, for packs of every code (see `layers`)."""

    backend: ModuleType

    def product(
        self,
        x: Tensor,
        pack: Pack,
        geometry: Geometry,
        size: Sequence[int],
        back: bool,
        bias: Tensor | None = None,
        gain: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        product = self.backend.product.product
        if pack.code != SIGNS:
            return product(x, pack, geometry, size, back, bias, gain, relu)
        scale, pack = row_scale_of(pack), as_sign(pack)
        if scale is None:
            return product(x, pack, geometry, size, back, bias, gain, relu)
        if geometry.transposed == back:
            factor = scale.to(torch.promote_types(scale.dtype, _real(x.dtype)))
            return product(x, pack, geometry, size, back, bias, factor if gain is None else gain * factor, relu)
        inputs = scaled(x, scale, -1 if len(pack.shape) == 2 else 1)
        bias = None if bias is None else bias.to(inputs.dtype)
        return product(inputs, pack, geometry, size, back, bias, gain, relu).to(x.dtype)

    def score_gradient(self, wide: Tensor, narrow: Tensor, scores: Tensor, pack: Pack, geometry: Geometry) -> Tensor:
        gradient = self.backend.score_gradient.score_gradient
        if pack.code != SIGNS:
            return gradient(wide, narrow, scores, pack, geometry)
        scale = row_scale_of(pack)
        if scale is not None:
            narrow = scaled(narrow, scale, -1 if len(pack.shape) == 2 else 1)
        return gradient(wide, narrow, *_unsigned(scores, pack), geometry)

    def weight(self, scores: Tensor | None, pack: Pack, dtype: torch.dtype) -> Tensor:
        scale = row_scale_of(pack)
        if scale is None:
            return self.backend.weights.weight(scores, as_sign(pack), dtype)
        exact = self.backend.weights.weight(scores, as_sign(pack), torch.promote_types(dtype, torch.float32))
        return exact.mul_(scale.view(-1, *[1] * (exact.dim() - 1))).to(dtype)

    def weight_grad_scores(self, grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
        gradient = self.backend.weights.weight_grad_scores
        if pack.code != SIGNS:
            return gradient(grad, scores, pack)
        scale = row_scale_of(pack)
        if scale is not None:
            grad = scaled(grad, scale, 0)
        return gradient(grad, *_unsigned(scores, pack))

    def embedding(
        self, indices: Tensor, scores: Tensor | None, pack: Pack, dtype: torch.dtype, padding_idx: int
    ) -> Tensor:
        look_up: Any = self.backend.embeddings.embedding
        scale = row_scale_of(pack)
        if scale is None:
            return look_up(indices, scores, as_sign(pack), dtype, padding_idx)
        exact = look_up(indices, scores, as_sign(pack), torch.promote_types(dtype, torch.float32), padding_idx)
        return exact.mul_(scale[indices].unsqueeze(-1)).to(dtype)

    def embedding_grad_scores(
        self, grad: Tensor, indices: Tensor, scores: Tensor, pack: Pack, padding_idx: int
    ) -> Tensor:
        gradient = self.backend.embeddings.embedding_grad_scores
        if pack.code != SIGNS:
            return gradient(grad, indices, scores, pack, padding_idx)
        scale = row_scale_of(pack)
        if scale is not None:
            grad = (grad * scale[indices].unsqueeze(-1)).to(torch.promote_types(grad.dtype, torch.float32))
        scores, pack = _unsigned(scores, pack)
        return gradient(grad, indices, scores, pack, padding_idx)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _unsigned(scores: Tensor, pack: Pack) -> tuple[Tensor, Pack]:
    """Scores and a pack whose gradient by `sign(S) * dL/dW * code * scale` has neither sign nor code."""
    return torch.ones_like(scores), pack._replace(code="constant", draw=None, row_scale=None)
