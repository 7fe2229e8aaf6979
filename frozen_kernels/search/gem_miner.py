"""Gem-Miner: scores in [0, 1], kept above 1/2, dropped for good now and then (Sreenivasan et al. 2022, 2202.12002)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import register_preset
from .rule import MaskRule, check_count, check_state, highest, kept_of

register_preset("gem_miner", scope="global", prune_ratio=0.0, lock_ratio=0.0, score_init="unit_uniform")

_KEPT_ABOVE = 0.5


class GemMiner(MaskRule):
    """Keeps what has a score above 1/2; every few epochs the lowest scores are dropped for good.

    Preset "gem_miner": scores begin uniform in (0, 1), and stay there. After k of the K times that something is dropped
    the share `density^(k / K)` of the free weights is left, of all layers of scope global together, so at most the
    density of the settings is kept at the end. The paper has L2 on the scores, which is the optimizer's weight decay:
    `search.param_groups(weight_decay=...)`. It thins the mask out further.

    Args:
        model: as of `MaskRule`.
        epochs: of the whole search.
        steps_per_epoch: calls of `step()` in each.
        freeze_every: epochs between two times that something is dropped for good.

    Raises:
        ValueError: as of `MaskRule`; a count is no integer >= 1; more epochs between two drops than there are.
    """

    def __init__(self, model: nn.Module, *, epochs: int, steps_per_epoch: int, freeze_every: int = 5) -> None:
        self.period = check_count("freeze_every", freeze_every, 1) * check_count("steps_per_epoch", steps_per_epoch, 1)
        self.periods = check_count("epochs", epochs, 1) // freeze_every
        if not self.periods:
            raise ValueError(f"freeze_every: {freeze_every}, but there are {epochs} epochs")
        super().__init__(model)
        self._alive = {
            name: torch.ones(layer.free, dtype=torch.bool, device=layer.device)
            for name, layer in self._by_scores().values()
        }

    def keep(self, name: str, scores: Tensor) -> Tensor:
        return (scores > _KEPT_ABOVE) & self._alive[name]

    def slope(self, name: str, scores: Tensor) -> Tensor:
        return self._alive[name].to(scores.dtype)

    def refresh(self) -> None:
        """As of `MaskRule`; scores are clamped to [0, 1] first, and at the end of a period the lowest are dropped."""
        self._check_scores()
        with torch.no_grad():
            for scores in self.parameters():
                # a score of 0 would be one that gets no gradient
                scores.clamp_(torch.finfo(scores.dtype).tiny, 1.0)
            done, left = divmod(self.steps, self.period)
            if done and not left and done <= self.periods:
                self._drop(done / self.periods)
        super().refresh()

    def _drop(self, progress: float) -> None:
        """Leave `density^progress` of the free weights alive, those of the highest scores."""
        groups: dict[object, list[str]] = {}
        for i, (name, layer) in self._by_scores().items():
            groups.setdefault("global" if layer.config.scope == "global" else i, []).append(name)
        for names in groups.values():
            layers = [self._found[name] for name in names]
            free = sum(layer.free for layer in layers)
            wanted = kept_of(layers) / free if free else 0.0
            kept = free - math.floor(free * (1 - wanted**progress))
            keys = {
                i: self._scores(layer).masked_fill(~self._alive[name], -math.inf)
                for i, (name, layer) in enumerate(zip(names, layers, strict=True))
            }
            for i, alive in highest(keys, kept).items():
                self._alive[names[i]] &= alive

    def state_dict(self) -> dict[str, Any]:
        """The steps, and `alive`: of each layer by name the packed bits of what is not dropped for good."""
        return {"steps": self.steps, "alive": {name: fmt.pack_bits(alive) for name, alive in self._alive.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, and `refresh()`. ValueError for another state, with nothing changed."""
        check_state(state, "steps", "alive")
        steps, alive = check_count("steps", state["steps"], 0), state["alive"]
        if not isinstance(alive, Mapping) or set(alive) != set(self._alive):
            found = sorted(map(str, alive)) if isinstance(alive, Mapping) else type(alive).__name__
            raise ValueError(f"alive: of {sorted(self._alive)}, got {found}")
        for name, bits in alive.items():
            fmt.check_supermask(bits, self._found[name].free, f"alive: {name!r}")
        self._alive = {
            name: fmt.unpack_bits(bits.to(self._found[name].device), self._found[name].free)
            for name, bits in alive.items()
        }
        self._go_on(steps)
