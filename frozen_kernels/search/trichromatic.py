"""Trichromatic masks: connectivity, sign and magnitude bits, each from scores of its own (2025)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import register_preset
from ..nn.layer import FrozenLayer
from ..nn.models import spread
from ..select.initial import drawn
from .rule import MaskRule, check_count, check_numbers, check_state
from .signed import check_signed

register_preset("trichromatic", code="signs", scope="local")

_KINDS = ("sign", "magnitude")


class Trichromatic(MaskRule):
    """Weights `keep * sign * (1 + bit) * scale` of three masks, each with scores of its own.

    Preset "trichromatic": code "signs". Kept are the highest magnitudes of the layer's scores, as by edge-popup. A sign
    is that of its sign score, a magnitude bit is 1 where its score is above 0: the weight then counts twice, which is a
    second coat. Gradients pass straight through all three. A ticket stores one bit a weight, and two a kept weight.

    `parameters()` holds the scores of the layers, and after them those of signs and magnitudes, which are this search's
    own: they are in `state_dict()`. They begin Kaiming normal from the generator's draws of steps 0 and 1.

    Args:
        model: as of `MaskRule`.

    Raises:
        ValueError: as of `MaskRule`; a layer of another code; or a model that is spread over processes, which would not
            exchange the gradients of this search's scores.
    """

    def __init__(self, model: nn.Module) -> None:
        if spread(model):
            raise ValueError("model: spread over processes, which know nothing of this search's scores")
        super().__init__(model)
        check_signed(self)
        self.own: dict[str, dict[str, nn.Parameter]] = {}
        for name, layer in self._by_scores().values():
            draws = [layer.search_draws(step) for step in range(len(_KINDS))]
            scores = [drawn(d, "kaiming_normal", layer.cols) for d in draws]
            self.own[name] = {kind: nn.Parameter(s) for kind, s in zip(_KINDS, scores, strict=True)}

    def parameters(self) -> list[nn.Parameter]:
        """The scores of the layers, then those of signs and magnitudes of each."""
        own = getattr(self, "own", {})
        return [*super().parameters(), *(scores for kinds in own.values() for scores in kinds.values())]

    def _check_scores(self) -> None:
        super()._check_scores()
        for name, _ in self._by_scores().values():
            for kind in _KINDS:
                check_numbers(f"{kind} scores", name, self.own[name][kind].detach())

    def keys(self, name: str, scores: Tensor) -> Tensor:
        return scores.abs()

    def slope(self, name: str, scores: Tensor) -> Tensor:
        return scores.sign() * self._signs(name) * self._counts(name)

    def _signs(self, name: str) -> Tensor:
        return torch.where(self.own[name]["sign"].detach() < 0, -1.0, 1.0)

    def _counts(self, name: str) -> Tensor:
        return 1.0 + (self.own[name]["magnitude"].detach() > 0)

    def _adopt(self, layer: FrozenLayer, keep: Tensor) -> None:
        name = self._by_scores()[id(layer.scores)][0]
        negative, counts = self._signs(name) < 0, self._counts(name).to(torch.uint8) * keep
        # of all weights in stream order, which are the free ones
        layer.adopt_counts(counts, coats=2, signs=fmt.pack_bits(negative))

    def _gradient_of(self, name: str, layer: FrozenLayer) -> Callable[[Tensor], Tensor]:
        connect = super()._gradient_of(name, layer)

        def hook(grad: Tensor) -> Tensor:
            """From dL/dW * scale: the gradients of the three scores."""
            kept = grad * fmt.unpack_bits(layer.packed_supermask(), layer.free)
            for kind, factor in (("sign", self._counts(name)), ("magnitude", self._signs(name))):
                scores = self.own[name][kind]
                added = (kept * factor).to(scores.dtype)
                scores.grad = added if scores.grad is None else scores.grad + added
            return connect(grad)

        return hook

    def state_dict(self) -> dict[str, Any]:
        """The steps, and `sign` and `magnitude`: the scores of each layer by name, float32 [free]."""
        own = {kind: {name: s[kind].detach().clone() for name, s in self.own.items()} for kind in _KINDS}
        return {"steps": self.steps, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, and `refresh()`. ValueError for another state, with nothing changed."""
        check_state(state, "steps", *_KINDS)
        steps = check_count("steps", state["steps"], 0)
        for kind in _KINDS:
            given = state[kind]
            if not isinstance(given, Mapping) or set(given) != set(self.own):
                found = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
                raise ValueError(f"{kind}: of {sorted(self.own)}, got {found}")
            for name, scores in given.items():
                wanted = list(self.own[name][kind].shape)
                if not isinstance(scores, Tensor) or not scores.is_floating_point() or list(scores.shape) != wanted:
                    found = (
                        f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
                    )
                    raise ValueError(f"{kind}: of {name!r} {found}, expected floating {wanted}")
        with torch.no_grad():
            for kind in _KINDS:
                for name, scores in state[kind].items():
                    self.own[name][kind].copy_(scores)
        self._go_on(steps)
