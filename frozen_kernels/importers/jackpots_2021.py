"""Files of lottery-jackpots of 2021, the code of "Lottery Jackpots Exist in Pre-trained Models" (arXiv 2104.08700).

A masked layer has `weight` and scores in `mask`; it uses `weight` where `|mask|` is not among the `int(rate * n)`
lowest. The rates, the fraction removed of each layer in order, are the list `cfg` beside the state.
"""

from __future__ import annotations

from typing import Any

from .layout import Given, Layout, Masked, Read, by_layer, computed, drop_lowest, fraction, owners, scores_of, without
from .source import Checkpoint

_ASK = (
    "sparsity: this file has no list 'cfg' of the rates of its layers; give sparsity=, the fraction of zeros, one "
    "number or one by layer name"
)
# layouts whose layers have a `mask`, too
_OTHERS = ("b_mask", "score", "ternary_frozen_mask")


def _rates(cfg: Any, layers: list[str]) -> dict[str, float]:
    if not isinstance(cfg, (list, tuple)) or len(cfg) != len(layers):
        got = f"{len(cfg)} entries" if isinstance(cfg, (list, tuple)) else type(cfg).__name__
        raise ValueError(f"'cfg': a list of {len(layers)} rates, one for each layer with a mask, got {got}")
    return {layer: fraction(f"'cfg', rate of {layer!r}", rate) for layer, rate in zip(layers, cfg, strict=True)}


def _read(found: Checkpoint, given: Given) -> Read:
    state, layers = found.state, owners(found.state, "mask")
    if given.sparsity is not None:
        rates = by_layer(given.sparsity, layers)
    elif found.cfg is not None:
        rates = _rates(found.cfg, layers)
    else:
        raise ValueError(_ASK)
    masked, recomputed = {}, []
    for layer in layers:
        scores = scores_of(state, layer, "mask")
        # int() of a float product can drop one weight less than was counted: the published networks do
        keep, tied = drop_lowest(scores.abs(), int(rates[layer] * scores.numel()))
        source = "'cfg'" if given.sparsity is None else "sparsity"
        recomputed.append(computed(layer, keep, f"by |mask| and {source} {rates[layer]:g}", tied))
        masked[layer] = Masked(state[f"{layer}.weight"], keep)
    return Read(masked, without(state, layers, ("weight", "mask")), recomputed, [])


LAYOUT = Layout(
    "jackpots-2021",
    ("sparsity",),
    lambda state: bool(owners(state, "mask")) and not any(owners(state, leaf) for leaf in _OTHERS),
    _read,
)
