"""Files of lottery-jackpots since 2023, the code of "Lottery Jackpots Exist in Pre-trained Models" (arXiv 2104.08700).

A masked layer has `weight`, scores in `mask`, and the mask in `b_mask`. With short restriction the mask is no function
of the scores, so `b_mask` is what counts.
"""

from __future__ import annotations

from .layout import Given, Layout, Masked, Read, bits_of, owners, scores_of, without
from .source import Checkpoint


def _read(found: Checkpoint, given: Given) -> Read:
    state, layers = found.state, owners(found.state, "b_mask")
    masked = {}
    for layer in layers:
        weight = state[f"{layer}.weight"]
        if f"{layer}.mask" not in state:
            raise ValueError(f"'{layer}.mask': missing beside '{layer}.b_mask'")
        scores_of(state, layer, "mask")
        masked[layer] = Masked(weight, bits_of(state, f"{layer}.b_mask", weight))
    return Read(masked, without(state, layers, ("weight", "mask", "b_mask")), [], [])


LAYOUT = Layout("jackpots-2023", (), lambda state: bool(owners(state, "b_mask")), _read)
