"""What layouts have in common: what one reads out of a state, and the checks and the top-k that several need."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..text import listed
from ..tickets.container import short
from .source import Checkpoint


class Given(NamedTuple):
    """The keyword arguments of `load_` that say what a file does not."""

    sparsity: float | Mapping[str, float] | None = None
    fixed: bool | None = None
    scaling: str | None = None


class Masked(NamedTuple):
    """A weight as the network uses it where `keep`, bool of its shape, is True; it is zero elsewhere."""

    weight: Tensor
    keep: Tensor


class Read(NamedTuple):
    """What a layout says: masked weights by layer, other tensors by name, what was computed, and what was outdated."""

    masked: dict[str, Masked]
    rest: dict[str, Tensor]
    recomputed: list[str]
    stale: list[str]


class Layout(NamedTuple):
    """A kind of file: its name, the fields of `Given` that it takes, and how it is recognised and read."""

    name: str
    settings: tuple[str, ...]
    recognised: Callable[[dict[str, Tensor]], bool]
    read: Callable[[Checkpoint, Given], Read]


def owners(state: Iterable[str], leaf: str) -> list[str]:
    """Names of the layers that have both a weight and a tensor `leaf`, in the order of the state."""
    names = set(state)
    found = [name.rpartition(".")[0] for name in state if name.rpartition(".")[2] == leaf and "." in name]
    return [name for name in found if f"{name}.weight" in names]


def without(state: dict[str, Tensor], layers: Iterable[str], leaves: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a state that are none of the `leaves` of the `layers`."""
    taken = {f"{layer}.{leaf}" for layer in layers for leaf in leaves}
    return {name: value for name, value in state.items() if name not in taken}


def like_weight(state: dict[str, Tensor], layer: str, leaf: str) -> Tensor:
    """A tensor of a layer that has its weight's shape; ValueError that names both where it has another."""
    weight, found = state[f"{layer}.weight"], state[f"{layer}.{leaf}"]
    if found.shape != weight.shape:
        raise ValueError(
            f"'{layer}.{leaf}': {list(found.shape)}, but '{layer}.weight' in the same file is {list(weight.shape)}"
        )
    return found


def scores_of(state: dict[str, Tensor], layer: str, leaf: str) -> Tensor:
    """Scores of the weight's shape; ValueError where they are no floating numbers, or one is NaN."""
    found = like_weight(state, layer, leaf)
    if not found.is_floating_point():
        raise ValueError(f"'{layer}.{leaf}': floating scores, got {found.dtype}")
    count = int(found.isnan().sum())
    if count:
        raise ValueError(f"'{layer}.{leaf}': NaN at {count} of {found.numel()} scores, expected none")
    return found


def bits_of(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """bool: where a mask is 1; ValueError where it is neither 0 nor 1, or not of the shape of `like`."""
    found = state[name]
    if found.shape != like.shape:
        raise ValueError(f"{name!r}: {list(found.shape)}, but what it masks is {list(like.shape)}")
    others = int(((found != 0) & (found != 1)).sum())
    if others:
        raise ValueError(f"{name!r}: {others} of {found.numel()} values are neither 0 nor 1")
    return found != 0


def drop_lowest(values: Tensor, count: int) -> tuple[Tensor, bool]:
    """bool of the values' shape, False at the `count` lowest, and whether equal values stand on both sides.

    Of equal ones the earlier in torch's flattened order is dropped, as a stable sort has it.
    """
    flat = values.flatten()
    order = flat.sort(stable=True).indices
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[order[:count]] = False
    tied = 0 < count < flat.numel() and bool(flat[order[count - 1]] == flat[order[count]])
    return keep.view(values.shape), tied


def fraction(name: str, value: object) -> float:
    """The value as a float; ValueError where it is no number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name}: a number in [0, 1], got {value!r}")
    return float(value)


def by_layer(sparsity: float | Mapping[str, Any], layers: list[str]) -> dict[str, float]:
    """The sparsity of each layer; ValueError where a mapping does not name just those layers."""
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(layers, fraction("sparsity", sparsity))
    missing, unknown = [n for n in layers if n not in sparsity], [n for n in sparsity if n not in layers]
    if missing or unknown:
        raise ValueError(
            f"sparsity: one for each layer that the file masks; missing: {listed(missing) or 'none'}; "
            f"no such layer: {listed([short(n) for n in unknown]) or 'none'}"
        )
    return {name: fraction(f"sparsity of {name!r}", sparsity[name]) for name in layers}


def computed(layer: str, keep: Tensor, how: str, tied: bool) -> str:
    """The line of a report on a mask that was made anew."""
    ties = "; scores that are equal at the border were dropped in flattened order" if tied else ""
    return f"{layer}: mask, {int(keep.sum()):,} of {keep.numel():,} kept, {how}{ties}"
