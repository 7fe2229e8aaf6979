"""IteRand: edge-popup whose dropped weights are drawn again now and then (Chijiwa et al. 2021, arXiv 2106.09269)."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import register_preset
from ..generations import MOST, check_redrawn
from ..nn.layer import FrozenLayer
from .edge_popup import EdgePopup
from .rule import by_chance, check_count

register_preset("iterand", code="uniform", scope="local", prune_ratio=0.0, lock_ratio=0.0, score_init="kaiming_uniform")


class IteRand(EdgePopup):
    """`EdgePopup` that draws weights anew which its mask drops: at every `every`-th step each with the chance `rate`.

    Preset "iterand". A weight that is drawn again gets its next generation, which a ticket stores (docs/format.md,
    section 8), at most 256 of them: then it stays. Which ones are drawn again is the format's draw of the step (section
    3), so a search that is resumed goes on as it would have. Layers move to the residency planes.

    Args:
        model: as of `EdgePopup`.
        refresh_every: as of `EdgePopup`.
        every: steps from one time to the next.
        rate: the chance of each dropped weight, in (0, 1].

    Raises:
        ValueError: as of `EdgePopup`; `every` is no integer >= 1, another rate, a code that draws nothing, or a
            layer whose header has another generation than 0.
    """

    def __init__(self, model: nn.Module, *, every: int, rate: float, refresh_every: int = 1) -> None:
        self.every = check_count("every", every, 1)
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 < rate <= 1:
            raise ValueError(f"rate: a number in (0, 1], got {rate!r}")
        self.rate: float = float(rate)
        super().__init__(model, refresh_every)
        for name, layer in self._found.items():
            if layer.code not in fmt.CODES or layer.code == "constant":
                raise ValueError(f"model: weights that are drawn again, {name!r} has code {layer.code!r}")
            try:
                check_redrawn(layer.code, fmt.header_fields(layer.header)["generation"])
            except ValueError as why:
                raise ValueError(f"model: {name!r} has {why}") from None

    def step(self) -> None:
        """As of `EdgePopup`; at every `every`-th step dropped weights are drawn again, after the masks are made."""
        super().step()
        if self.steps % self.every:
            return
        # nothing is adopted before all are chosen
        chosen = {layer: self._chosen(layer) for layer in self.layers if layer.free}
        for layer, which in chosen.items():
            layer.redraw(which)

    @torch.no_grad()
    def _chosen(self, layer: FrozenLayer) -> Tensor:
        dropped = ~fmt.unpack_bits(layer.packed_supermask(), layer.free)
        probability = dropped.to(torch.float64) * self.rate
        return by_chance(layer.search_draws(self.steps), probability) & (layer.generations_of() < MOST - 1)
