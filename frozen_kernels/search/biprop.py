"""Biprop: signs of the weights, times one number for each layer (Diffenderfer & Kailkhura 2021, arXiv 2103.09377)."""

from __future__ import annotations

from torch import Tensor, nn

from .. import format as fmt
from ..config import register_preset
from ..nn.layer import FrozenLayer
from ..select.initial import byte_magnitudes
from .edge_popup import EdgePopup
from .rule import update_masks

register_preset("biprop", code="sign", scope="local", prune_ratio=0.0, lock_ratio=0.0, score_init="kaiming_uniform")


class Biprop(EdgePopup):
    """`EdgePopup` over weights `alpha * sign(W) * keep`, alpha the mean magnitude of the weights that a layer keeps.

    Preset "biprop". The signs are those of code "sign". The magnitudes are those that code "normal" has under the same
    seed and stream, with the sigma that the layer was made with, Kaiming's times the gain of the settings where the
    constructor was given no other; its draws do not depend on the signs. Each step sets the layer's scale to
    alpha, which waits for the device; a ticket is that of edge-popup. One byte a weight is held for the magnitudes.

    Args:
        model: as of `EdgePopup`.
        refresh_every: as of `EdgePopup`.

    Raises:
        ValueError: as of `EdgePopup`, or a layer has another code or a scaling.
    """

    def __init__(self, model: nn.Module, refresh_every: int = 1) -> None:
        super().__init__(model, refresh_every)
        for name, layer in self._found.items():
            found = (layer.config.code, layer.config.scaling)
            if found != ("sign", "none"):
                raise ValueError(f"model: biprop needs code 'sign' and scaling 'none', {name!r} has {found}")
        self._magnitudes: dict[FrozenLayer, tuple[object, Tensor, int]] = {}

    def _update(self) -> None:
        update_masks(self.layers, adopt=self._adopt)

    def _adopt(self, layer: FrozenLayer, supermask: Tensor) -> None:
        layer.sigma = self.alpha(layer, supermask)
        layer.adopt_supermask(supermask)

    def alpha(self, layer: FrozenLayer, supermask: Tensor) -> float:
        """The mean magnitude of the weights of a `layer` that a `supermask` keeps, 0 where none; locked ones count.

        `supermask` is uint8 [ceil(free / 8)].
        """
        made = self._magnitudes.get(layer)
        if made is None or made[0] != layer.identity or made[1].device != layer.device:
            made = (layer.identity, *byte_magnitudes(layer.header, layer.rows, layer.cols))
            self._magnitudes[layer] = made
        _, free, locked = made
        keep = fmt.unpack_bits(supermask, layer.free)
        kept = layer.counts["locked"] + int(keep.sum())
        total = locked + int((free * keep).sum())
        return total / kept * layer.first_sigma / fmt.RMS["normal"] if kept else 0.0
