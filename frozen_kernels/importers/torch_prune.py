"""States of `torch.nn.utils.prune`: `weight_orig` and `weight_mask`, whose product is the weight.

A bias and any other parameter can be pruned, too; those are loaded as the product.
"""

from __future__ import annotations

from torch import Tensor

from .layout import Given, Layout, Masked, Read, bits_of
from .source import Checkpoint


def _pruned(state: dict[str, Tensor]) -> list[str]:
    """Names of pruned parameters."""
    names = [name.removesuffix("_orig") for name in state if name.endswith("_orig")]
    return [name for name in names if f"{name}_mask" in state]


def _read(found: Checkpoint, given: Given) -> Read:
    state, pruned = found.state, _pruned(found.state)
    taken = {f"{name}_{part}" for name in pruned for part in ("orig", "mask")}
    rest = {name: value for name, value in state.items() if name not in taken}
    masked = {}
    for name in pruned:
        values = state[f"{name}_orig"]
        keep = bits_of(state, f"{name}_mask", values)
        layer, _, leaf = name.rpartition(".")
        if layer and leaf == "weight":
            masked[layer] = Masked(values, keep)
        else:
            rest[name] = values * keep
    return Read(masked, rest, [], [])


LAYOUT = Layout("torch-prune", (), lambda state: bool(_pruned(state)), _read)
