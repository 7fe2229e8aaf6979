"""Gains of layers in tickets: what applies to each row beside a frozen weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn.layer import FrozenLayer
from ..nn.layers import FrozenEmbedding
from .container import short
from .file import TensorRecord


def unsaved_part(layer: FrozenLayer) -> str | None:
    """What of a layer no ticket holds, None where one holds all of it."""
    if layer.relu:
        return "a folded ReLU"
    if layer.gain is None:
        return None
    if not _rows_are_outputs(layer):
        return f"a gain for {layer.outputs} outputs beside {layer.rows} rows, which are its inputs"
    if not layer.gain.isfinite().all():
        return f"a gain that is not finite, {short(layer.gain.tolist())}"
    if not torch.equal(layer.gain.to(torch.float32).to(layer.gain.dtype), layer.gain):
        return "a gain beyond float32"
    return None


def _rows_are_outputs(layer: nn.Module) -> bool:
    kinds = (nn.Embedding, nn.modules.conv._ConvTransposeNd, FrozenEmbedding)
    return not isinstance(layer, kinds) and not getattr(layer, "transposed", False)


def gain_of(layer: FrozenLayer) -> dict[str, Tensor]:
    """What a ticket stores of a layer's gain, float32 [rows], by the end of its name; empty where there is none."""
    return {} if layer.gain is None else {"gain": layer.gain.to(torch.float32)}


def check_gain(layer: nn.Module, record: TensorRecord) -> None:
    """ValueError where a ticket's gain is for no layer of such a kind, or one of a ticket and a frozen layer has it."""
    if isinstance(layer, FrozenLayer) and (layer.gain is not None) != record.gain:
        here, there = ("a gain", "none") if record.gain else ("no gain", "one")
        raise ValueError(f"{short(record.name)}: {here} in the ticket, {there} in the model")
    if record.gain and not _rows_are_outputs(layer):
        raise ValueError(f"{short(record.name)}: a gain for each row in the ticket, a {type(layer).__name__} has none")
