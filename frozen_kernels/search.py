"""Edge-popup: a supermask from the ranks of scores (Ramanujan et al. 2020; global: Otsuka et al., arXiv 2402.14029)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .layer import FrozenLayer, local_threshold


def frozen_layers(model: nn.Module) -> dict[str, FrozenLayer]:
    """Frozen layers of a model by qualified name, each once, in traversal order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FrozenLayer)}


@torch.no_grad()
def update_masks(layers: Iterable[FrozenLayer]) -> None:
    """New thresholds and masks from the scores as they are: one for all global layers, one per local layer."""
    layers = list(layers)
    together = [layer for layer in layers if layer.config.scope == "global"]
    groups = [together] if together else []
    by_scores: dict[int, list[FrozenLayer]] = {}
    for layer in layers:
        if layer.config.scope == "local":
            by_scores.setdefault(id(layer.scores), []).append(layer)
    groups += by_scores.values()
    for group in groups:
        key = local_threshold(group)
        for layer in group:
            layer.apply_threshold(key)


class EdgePopup:
    """Searches the supermask of a frozen model: optimise `parameters()`, and call `step()` after the optimizer's.

    `floor(n * sparsity)` of the `n` weights end below the threshold (pruned ones first) and are dropped; kept is what
    has |score| strictly above it. Layers of scope global compete with each other, local ones within themselves.

    Raises:
        ValueError: the model has no frozen layer with scores.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found = list(frozen_layers(model).values())
        self._check()

    @property
    def layers(self) -> list[FrozenLayer]:
        """The layers that compete now."""
        # a layer without free weights still counts in a global rank; a finalized one is no longer searched
        return [m for m in self._found if m.scores is not None or m.free == 0]

    def _check(self) -> None:
        if not self.parameters():
            count = len(self._found)
            why = f"its {count} frozen layers are finalized or have no free weight" if count else "it has none"
            raise ValueError(f"model: a search needs frozen layers with scores, {why}")

    def parameters(self) -> list[nn.Parameter]:
        """The scores, shared ones once, and nothing else of the model."""
        return list({id(layer.scores): layer.scores for layer in self.layers if layer.scores is not None}.values())

    def param_groups(self, **options: object) -> list[dict]:
        """One optimizer group with the scores and the options given, such as weight_decay."""
        return [{"params": self.parameters(), **options}]

    def step(self) -> None:
        """New threshold, new packed masks: every mask becomes the one that the scores now say.

        Layers finalized since keep theirs; ValueError where no layer has scores any more. Nothing here waits for a
        GPU: how many weights a mask keeps is counted when `counts` is asked.
        """
        self._check()
        update_masks(self.layers)
