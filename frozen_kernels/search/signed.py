"""Signed supermasks: two thresholds on one score, -1, 0 or +1 (Koster et al. 2022, arXiv 2201.13361)."""

from __future__ import annotations

import numbers

from torch import Tensor, nn

from ..config import register_preset
from .rule import MaskRule

register_preset("signed", code="signs", scope="local")


class Signed(MaskRule):
    """Keeps what has a score above the threshold, as +1, or below its negative, as -1; others are dropped.

    Preset "signed": code "signs", a ticket stores a keep bit a weight and a sign bit a kept one. Gradients pass
    straight through both thresholds. With a share of weights to keep in place of thresholds this is `EdgePopup` over
    code "signs". The paper's weights are signed constants, whose sign the mask's sign takes in.

    Args:
        model: as of `MaskRule`.
        threshold: above 0; 0.01 in the published code.

    Raises:
        ValueError: as of `MaskRule`; another threshold, or a layer of another code.
    """

    def __init__(self, model: nn.Module, threshold: float = 0.01) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not 0 < threshold < float("inf"):
            raise ValueError(f"threshold: a number above 0, got {threshold!r}")
        super().__init__(model)
        self.threshold: float = float(threshold)
        check_signed(self)

    def keep(self, name: str, scores: Tensor) -> Tensor:
        return scores.abs() > self.threshold


def check_signed(rule: MaskRule) -> None:
    """ValueError where a layer of a rule has another code than "signs"."""
    for name, layer in rule._found.items():
        if not layer.signed:
            raise ValueError(f"model: {type(rule).__name__} needs code 'signs', {name!r} has {layer.code!r}")


__all__ = ["Signed"]
