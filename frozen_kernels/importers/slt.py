"""Files of slt_within_frozen_network, the code of "Partially Frozen Random Networks Contain Compact Strong Lottery
Tickets" (Otsuka et al., arXiv 2402.14029).

A masked layer has `weight`, `score`, a partition in `ternary_frozen_mask` (-1 pruned, 0 free, 1 locked) and a threshold
in `kthvalue`. It uses `weight * scale` at locked weights and at free ones whose `|score|` is above the threshold.
`mask`, `local_sparsity` and `scale` are what the last forward left, which can be older than the scores: they are made
anew. How the scale follows from a sparsity is not in the file and is told from its value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import SCALINGS
from .layout import Given, Layout, Masked, Read, like_weight, owners, scores_of, without
from .source import Checkpoint

_LEAVES = (
    "weight", "score", "mask", "ternary_frozen_mask", "kthvalue", "scale", "local_sparsity", "global_sparsity",
)  # fmt: skip
_OWN = ("score", "ternary_frozen_mask", "kthvalue")  # of no other layout
_CLOSE = 1e-5  # between a scale in float32 and what a sparsity in float32 gives


class _Layer(NamedTuple):
    """What a file says of a layer, and the mask that its scores give."""

    name: str
    weight: Tensor
    keep: Tensor
    recorded: Tensor
    scale: Tensor
    local: Tensor
    overall: Tensor


def _layers(state: dict[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name for leaf in _OWN for name in owners(state, leaf)))


def _number(state: dict[str, Tensor], name: str) -> Tensor:
    """A tensor of one number; ValueError where it is none, or NaN."""
    found = state[name]
    if found.numel() != 1 or found.is_complex() or bool(found.isnan()):
        raise ValueError(f"{name!r}: one number, got {found.dtype} {list(found.shape)}: {found.flatten()[:4].tolist()}")
    return found


def _layer(state: dict[str, Tensor], name: str) -> _Layer:
    missing = [f"{name}.{leaf}" for leaf in _LEAVES if f"{name}.{leaf}" not in state]
    if missing:
        raise ValueError(f"missing: {missing}, which every layer with a score has")
    scores = scores_of(state, name, "score").abs()
    partition = like_weight(state, name, "ternary_frozen_mask")
    others = int(((partition != 0) & (partition.abs() != 1)).sum())
    if others:
        raise ValueError(
            f"'{name}.ternary_frozen_mask': {others} of {partition.numel()} values are none of -1, 0 and 1"
        )
    threshold = _number(state, f"{name}.kthvalue").reshape(())
    keep = ((scores > threshold) & (partition == 0)) | (partition == 1)
    numbers = (_number(state, f"{name}.{leaf}") for leaf in ("scale", "local_sparsity", "global_sparsity"))
    return _Layer(name, state[f"{name}.weight"], keep, like_weight(state, name, "mask"), *numbers)


def _factor(sparsity: Tensor) -> float:
    """1 / sqrt(1 - sparsity) in the float32 of their code; infinite at 1."""
    return float(1 / (1 - sparsity.to(torch.float32)).sqrt())


def _explains(scaling: str, layer: _Layer) -> bool:
    """Whether the scale of the file is what a scaling gave at the forward that left it."""
    found = float(layer.scale)
    if scaling == "none":
        # before the first forward it is a float 1 in any case, and the sparsity has one dimension
        return found == 1 and (not layer.scale.is_floating_point() or layer.local.dim() == 0)
    source = layer.overall if scaling == "static" else layer.local
    expected = _factor(source)
    close = found == expected or abs(found - expected) <= _CLOSE * abs(expected)
    return close and layer.scale.dim() == source.dim()  # of one element or of none, as what it was computed from


def _anew(scaling: str, layer: _Layer) -> float:
    """The scale that a scaling gives now; 1 where nothing is kept, and theirs would be infinite."""
    kept = int(layer.keep.sum())
    if scaling == "none" or not kept:
        return 1.0
    if scaling == "static":
        return _factor(layer.overall)
    return _factor(1 - torch.tensor(kept, dtype=torch.float32) / layer.keep.numel())


def _scaling(layers: list[_Layer], given: str | None) -> str:
    if given is not None:
        return given
    fitting = [s for s in SCALINGS if all(_explains(s, layer) for layer in layers)]
    if len({tuple(_anew(s, layer) for layer in layers) for s in fitting}) == 1:
        return fitting[0]
    first = layers[0]
    raise ValueError(
        f"scaling: the scales of the file ({first.name}: {float(first.scale):g}) are those of "
        f"{' and of '.join(fitting) or 'no scaling by its sparsities'}; give scaling=, one of {', '.join(SCALINGS)}"
    )


def _stale(layer: _Layer, scale: float) -> list[str]:
    found = []
    moved = int((layer.recorded != layer.keep.to(layer.recorded.dtype)).sum())
    if moved:
        found.append(f"{layer.name}.mask: {moved:,} of {layer.keep.numel():,} values are not what the scores give")
    old = float(layer.scale)
    if abs(old - scale) > _CLOSE * scale:
        found.append(f"{layer.name}.scale: {old:g} in the file, {scale:g} now")
    return found


def _read(found: Checkpoint, given: Given) -> Read:
    layers = [_layer(found.state, name) for name in _layers(found.state)]
    scaling = _scaling(layers, given.scaling)
    masked, recomputed, stale = {}, [], []
    for layer in layers:
        scale = _anew(scaling, layer)
        masked[layer.name] = Masked(layer.weight if scale == 1 else layer.weight * scale, layer.keep)
        kept = int(layer.keep.sum())
        recomputed.append(
            f"{layer.name}: mask, {kept:,} of {layer.keep.numel():,} kept, by |score| above the file's threshold; "
            f"scale {scale:g} by scaling {scaling!r}"
        )
        stale += _stale(layer, scale)
    return Read(masked, without(found.state, masked, _LEAVES), recomputed, stale)


LAYOUT = Layout("slt", ("scaling",), lambda state: bool(_layers(state)), _read)
