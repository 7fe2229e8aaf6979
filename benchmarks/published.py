"""Edge-popup as published (arXiv 2402.14029), in plain torch: what the fused training is compared with.

Code, scores, their gradient, the partition and the supermask are float tensors of the weight's shape. A forward
multiplies weight and supermask, and after each step all scores are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.nn.models import replace_module


class _MaskedWeight(torch.autograd.Function):
    """`code * scale * supermask`, with the straight-through gradient `sign(scores) * dL/dW * code * scale`."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, supermask: Tensor, code: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(scores, code)
        ctx.scale = scale
        return code * scale * supermask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:  # type: ignore[override]
        scores, code = ctx.saved_tensors
        return scores.sign() * grad * code * ctx.scale, None, None, None


def _product(layer: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    if isinstance(layer, fk.nn.FrozenLinear):
        return F.linear
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return lambda x, weight, bias: F.conv2d(x, weight, bias, *geometry)


class PublishedLayer(nn.Module):
    """A linear layer or a 2-d convolution with the weights, the partition and the scores of a frozen one.

    Buffers and `scores` have the weight's shape. `partition` is -1 pruned, 0 free, 1 locked.
    """

    code: Tensor
    partition: Tensor
    supermask: Tensor

    def __init__(self, layer: fk.nn.FrozenLayer) -> None:
        super().__init__()
        codes = fmt.codes(layer.rows, layer.cols, seed=layer.seed, stream=layer.stream, code=layer.code)
        scores = torch.zeros(layer.rows * layer.cols)
        if layer.scores is not None:
            scores[free_positions(layer)] = layer.scores.detach()
        self.config, self.sigma, self.bias = layer.config, layer.sigma, layer.bias
        self.scores = nn.Parameter(fmt.from_matrix(scores.view(layer.rows, layer.cols), layer.shape))
        self.register_buffer("code", fmt.from_matrix(codes.float(), layer.shape))
        self.register_buffer("partition", layer.partition().float())
        self.register_buffer("supermask", layer.keep_mask().float())
        self.scale = layer.scale
        self.product = _product(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.masked_weight(), self.bias)

    def masked_weight(self) -> Tensor:
        return _MaskedWeight.apply(self.scores, self.supermask, self.code, self.scale)

    def ranked(self) -> Tensor:
        """|scores|, pruned weights at -inf and locked ones at inf."""
        ranked = torch.where(self.partition < 0, -math.inf, self.scores.abs())
        return torch.where(self.partition > 0, math.inf, ranked)

    def apply_threshold(self, threshold: float) -> None:
        """Keep what lies strictly above, and rescale as the settings say."""
        self.supermask = torch.where(
            self.partition == 0, (self.ranked() > threshold).float(), (self.partition > 0).float()
        )
        if self.config.scaling != "none":
            factor = self.config.factor(int(self.supermask.sum()), self.supermask.numel())
            self.scale = fmt.scale_of(self.config.code, self.sigma, factor)


def free_positions(layer: fk.nn.FrozenLayer) -> Tensor:
    """Where the free weights of a frozen layer lie in its matrix, flattened, in the order of its scores."""
    index = torch.arange(layer.rows * layer.cols).view(layer.rows, layer.cols)
    part = fmt.to_matrix(layer.partition())
    return fmt.stream_order(index)[fmt.stream_order(part == 0)]


def published(model: nn.Module) -> nn.Module:
    """Replace the frozen layers of a model, in place."""
    for layer in [m for m in model.modules() if isinstance(m, fk.nn.FrozenLayer)]:
        replace_module(model, layer, PublishedLayer(layer))
    return model


@torch.no_grad()
def sort_step(model: nn.Module) -> None:
    """New supermasks: one threshold for all layers, or one for each, from all scores sorted."""
    layers = [m for m in model.modules() if isinstance(m, PublishedLayer)]
    scope, sparsity = layers[0].config.scope, layers[0].config.sparsity
    for group in [layers] if scope == "global" else [[layer] for layer in layers]:
        ranked = torch.cat([layer.ranked().flatten() for layer in group]).sort().values
        rank = math.floor(ranked.numel() * sparsity)
        threshold = float(ranked[rank - 1]) if rank else -math.inf
        for layer in group:
            layer.apply_threshold(threshold)
