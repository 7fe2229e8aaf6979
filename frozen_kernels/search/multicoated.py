"""Multicoated supermasks: several thresholds on one score (Okoshi et al. 2022, ICML, multicoated supermasks)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import register_preset
from ..nn.layer import FrozenLayer
from .edge_popup import EdgePopup
from .rule import update_masks

register_preset(
    "multicoated", scope="local", sparsity=0.7, prune_ratio=0.0, lock_ratio=0.0, score_init="kaiming_uniform"
)


class Multicoated(EdgePopup):
    """`EdgePopup` with several coats: a weight counts as often as coats keep it, `count * code * scale`.

    Preset "multicoated" with the three sparsities of the paper's published ResNet-50: the first coat has that of the
    settings, 0.7, the others `sparsities`. All are thresholds on |score|, so each coat keeps a part of the one before.
    The gradient of a score is that of one coat; the published code adds those of all, which is a higher learning rate.

    Args:
        model, refresh_every: as of `EdgePopup`.
        sparsities: of the second coat and those after it, rising, below 1.

    Raises:
        ValueError: as of `EdgePopup`; no sparsity, or one that is not above that of the coat before.
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

    def _update(self) -> None:
        coats: list[dict[FrozenLayer, Tensor]] = [{} for _ in range(1 + len(self.sparsities))]
        update_masks(self.layers, adopt=coats[0].__setitem__)
        for coat, asked in zip(coats[1:], self.sparsities, strict=True):
            update_masks(self.layers, lambda own, asked=asked: asked, coat.__setitem__)  # type: ignore[misc]
        for layer in self.layers:
            if layer.free:
                kept = torch.stack([fmt.unpack_bits(coat[layer], layer.free) for coat in coats])
                layer.adopt_counts(kept.sum(0, dtype=torch.uint8), len(coats))
