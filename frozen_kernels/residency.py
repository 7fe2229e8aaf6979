"""What frozen layers keep in memory."""

from __future__ import annotations

from torch import nn

from .layer import FrozenLayer
from .search import frozen_layers
from .tensor import RESIDENCIES

CHOICES = (*RESIDENCIES, "auto")


def auto_residency(layer: FrozenLayer) -> str:
    """A fixed rule: sign codes hold two planes, 2 bits a weight; other codes one mask bit, bytes regenerated."""
    return "planes" if layer.code == "sign" else "mask"


def set_residency(model: nn.Module, residency: str) -> dict[str, str]:
    """Hold every frozen layer as seed, mask, planes or dense, or as `auto` picks; returns what each layer got by name.

    Fused residencies (all but dense) give bitwise the same outputs. ValueError for another name or a model without
    frozen layers.
    """
    if residency not in CHOICES:
        raise ValueError(f"residency: one of {', '.join(CHOICES)}, got {residency!r}")
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers")
    chosen = {n: auto_residency(m) if residency == "auto" else residency for n, m in layers.items()}
    for name, layer in layers.items():
        layer.set_residency(chosen[name])
    return chosen
