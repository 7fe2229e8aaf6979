"""Sampled supermasks: each weight is kept by chance (Zhou et al. 2019, arXiv 1905.01067)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import register_preset
from .rule import MaskRule, by_chance

register_preset("sampled", scope="local", prune_ratio=0.0, lock_ratio=0.0)


class Sampled(MaskRule):
    """Keeps each weight with the probability `sigmoid(score)`, drawn anew at each step; its slope is the sigmoid's.

    Preset "sampled". The draw is the format's, of the layer's seed and stream and the step (docs/format.md, section 3),
    so a search that is resumed draws what it would have drawn; forward and backward between two steps see one mask.
    Scores have no sparsity to meet: that of the settings counts for the masks of `freeze_` alone. The paper judges by
    the mean accuracy of ten sampled masks. A ticket holds one: the last sampled, or after `settle()` the likeliest.

    Args:
        model: as of `MaskRule`.

    Raises:
        ValueError: as of `MaskRule`.
    """

    def keep(self, name: str, scores: Tensor) -> Tensor:
        draws = self._found[name].search_draws(self.steps)
        return by_chance(draws, torch.sigmoid(scores.to(torch.float64)))

    def slope(self, name: str, scores: Tensor) -> Tensor:
        probability = torch.sigmoid(scores)
        return probability * (1 - probability)

    def settle(self) -> None:
        """Masks that keep what is kept with a probability above 1/2, which is a score above 0."""
        self._make(lambda name, scores: scores > 0)
