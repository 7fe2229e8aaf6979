"""A forward in which each layer gives a weighted sum of its results under several masks, for one thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.attention import FrozenProjection
from ..nn.layer import FrozenLayer

Branch = Callable[..., Tensor]  # a layer's forward under one mask
# the branches of each layer, and what gives the bias that they lack
Branches = Mapping[nn.Module, tuple[Sequence[Branch], Callable[[], "Tensor | None"]]]
# what this thread mixes: the layers of other threads run as ever
_mixture: ContextVar[tuple[Branches, Sequence[Tensor | float]] | None] = ContextVar("mixture", default=None)
_installing = threading.RLock()
_installed: dict[nn.Module, int] = {}


class _Mixed:
    """The forward of a layer while some thread mixes: the sum of its branches, or its own."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        found = _mixture.get()
        if found is None or self.module not in found[0]:
            return type(self.module).forward(self.module, *inputs, **options)
        branches, bias = found[0][self.module]
        given: Tensor | None = None
        if isinstance(self.module, FrozenProjection):
            # the bias comes with the input: it is no part of what alphas weigh
            x, given = _input_and_bias(*inputs, **options)
            inputs, options = (x,), {}
        total: Tensor | None = None
        for alpha, branch in zip(found[1], branches, strict=True):
            if not isinstance(alpha, Tensor) and alpha == 0:
                continue
            part = branch(*inputs, **options)
            weighed = part * (alpha.to(part.dtype) if isinstance(alpha, Tensor) else alpha)
            total = weighed if total is None else total + weighed
        if total is None:
            total = branches[0](*inputs, **options) * 0.0
        for own in (bias(), given):
            total = total if own is None else total + own
        return total


def _input_and_bias(input: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return input, bias


def no_bias() -> None:
    """The bias of a layer whose branches have their own."""


def bias_of(layer: FrozenLayer) -> Callable[[], Tensor | None]:
    """What gives a layer's bias as it is added to the layer's result."""
    taps = len(layer.shape) - 2

    def bias() -> Tensor | None:
        own = layer.bias
        return None if own is None else own.view(-1, *[1] * taps)

    return bias


@contextlib.contextmanager
def mixing(branches: Branches, alphas: Sequence[Tensor | float]) -> Iterator[None]:
    """Within the block the forwards of this thread give sums of their branches, weighted by alphas."""
    with _installing:
        for module in branches:
            if not _installed.get(module):
                module.__dict__["forward"] = _Mixed(module)
            _installed[module] = _installed.get(module, 0) + 1
    token = _mixture.set((branches, alphas))
    try:
        yield
    finally:
        _mixture.reset(token)
        with _installing:
            for module in branches:
                _installed[module] -= 1
                if not _installed[module]:
                    del _installed[module], module.__dict__["forward"]


def entropy(logits: Tensor) -> Tensor:
    """The mean entropy of the predictions of logits [..., classes], in nats."""
    log = torch.log_softmax(logits.float(), -1)
    return -(log.exp() * log).sum(-1).mean()
