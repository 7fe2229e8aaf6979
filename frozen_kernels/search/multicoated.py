"""Multicoated supermasks: several thresholds on one score (Okoshi et al. 2022, ICML, multicoated supermasks)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import register_preset
from ..nn.layer import FrozenLayer
from ..select.thresholds import Competitor
from .edge_popup import EdgePopup
from .rule import competing, kept_of, update_masks

register_preset(
    "multicoated", scope="local", sparsity=0.7, prune_ratio=0.0, lock_ratio=0.0, score_init="kaiming_uniform"
)


class Multicoated(EdgePopup):
    """`EdgePopup` with several coats: a weight counts as often as coats keep it, `count * code * scale`.

    Preset "multicoated" with the three sparsities of the paper's published ResNet-50: the first coat has that of the
    settings, 0.7, the others `sparsities`. All are thresholds on |score|, so each coat keeps a part of the one before.
    Locked weights count once: a later coat of sparsity s keeps `1 - s` of all weights, and all of these are free ones.
    The gradient of a score is that of one coat; the published code adds those of all, which is a higher learning rate.

    Args:
        model: as of `EdgePopup`.
        refresh_every: as of `EdgePopup`.
        sparsities: of the second coat and those after it, rising, below 1.

    Raises:
        ValueError: as of `EdgePopup`; no sparsity, one that is not above that of the coat before, or one for which the
            first coat keeps too few free weights.
    """

    def __init__(
        self, model: nn.Module, sparsities: Sequence[float] = (0.9212, 0.9685), refresh_every: int = 1
    ) -> None:
        super().__init__(model, refresh_every)
        self.sparsities = [float(s) for s in sparsities]
        first = {layer.config.sparsity for layer in self.layers}
        chain = [max(first), *self.sparsities, 1.0]
        if not self.sparsities or any(not a < b for a, b in pairwise(chain)):
            raise ValueError(f"sparsities: rising, from above the first coat's {chain[0]} to below 1, got {sparsities}")
        self._check_reach()

    def _check_reach(self) -> None:
        """ValueError where a later coat would keep more free weights than the first, as beside many locked ones."""
        names = {id(layer): name for name, layer in self._found.items()}
        for group in competing(self.layers):
            unique = {id(layer) if layer.scores is None else id(layer.scores): layer for layer in group}.values()
            free, weights = kept_of(list(unique)), sum(layer.rows * layer.cols for layer in unique)
            # each asks for less than the one before
            asked = self.sparsities[0]
            wanted = weights - math.floor(weights * asked)
            if wanted > free:
                others = f" and {len(unique) - 1} others" if len(unique) > 1 else ""
                raise ValueError(
                    f"sparsities: {asked} of {names[id(group[0])]!r}{others} is {wanted} of {weights} weights, and the "
                    f"first coat keeps {free} free ones; locked weights count once, so at least {1 - free / weights:g}"
                )

    def _update(self) -> None:
        coats: list[dict[FrozenLayer, Tensor]] = [{} for _ in range(1 + len(self.sparsities))]
        update_masks(self.layers, adopt=coats[0].__setitem__)
        for coat, asked in zip(coats[1:], self.sparsities, strict=True):
            update_masks(self.layers, partial(_free_alone, asked), coat.__setitem__)
        for layer in self.layers:
            if layer.free:
                kept = torch.stack([fmt.unpack_bits(coat[layer], layer.free) for coat in coats])
                layer.adopt_counts(kept.sum(0, dtype=torch.uint8), len(coats))


def _free_alone(sparsity: float, layer: Competitor) -> Competitor:
    """A layer that competes for a later coat: what is not free is dropped there, locked weights too."""
    free = 0 if layer.scores is None else layer.scores.numel()
    return layer._replace(sparsity=sparsity, pruned=layer.weights - free)
