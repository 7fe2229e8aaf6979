"""UGT: edge-popup whose sparsity ramps up (Huang et al. 2022, arXiv 2211.15335, untrained graph networks)."""

from __future__ import annotations

from torch import nn

from ..config import register_preset
from .edge_popup import EdgePopup
from .rule import check_count, update_masks

register_preset("ugt", scope="global", prune_ratio=0.0, lock_ratio=0.0)


class UGT(EdgePopup):
    """`EdgePopup` that begins dense: the sparsity rises linearly from 0 to the layers' own over the first half.

    Preset "ugt": all layers compete, nothing is fixed before the search. At step t of `steps` the masks have the share
    `min(1, 2 * t / steps)` of the sparsity; those that the constructor makes keep all free weights.

    Args:
        model: as of `EdgePopup`.
        refresh_every: as of `EdgePopup`.
        steps: calls of `step()` in the whole search.

    Raises:
        ValueError: as of `EdgePopup`, or `steps` is no integer >= 1.
    """

    def __init__(self, model: nn.Module, *, steps: int, refresh_every: int = 1) -> None:
        self.of_steps = check_count("steps", steps, 1)
        super().__init__(model, refresh_every)

    @property
    def ramp(self) -> float:
        """The share of the sparsity that masks made now have."""
        return min(1.0, 2 * self.steps / self.of_steps)

    def _update(self) -> None:
        update_masks(self.layers, lambda layer: layer._replace(sparsity=layer.sparsity * self.ramp))
