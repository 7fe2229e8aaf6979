"""`to_dense`: a copy of a frozen model in torch's own layers."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..nn.attention import FrozenMultiheadAttention, close_attention
from ..nn.layers import plain_twin
from ..nn.models import frozen_layers, replace_modules, unwrapped


@torch.inference_mode(False)
@torch.no_grad()
def to_dense(model: nn.Module) -> nn.Module:
    """A copy of the model with torch's own layers, which hold the effective weights; the model itself is unchanged.

    Of a model in `torch.compile`, `DataParallel` or `DistributedDataParallel`, the one inside; one under `fully_shard`
    cannot be copied, says torch.

    A folded gain goes into the dense weight, rounded once more; a layer with a folded ReLU becomes
    `Sequential(layer, ReLU)`, its hooks on the inner layer. Layers of one seed and stream share a Parameter where their
    weights are equal.

    Args:
        model: with frozen layers, bare or in a wrapper.

    Raises:
        ValueError: a model without frozen layers, or on the meta device.
    """
    model = copy.deepcopy(unwrapped(model))
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers to make dense")
    first_of: dict[tuple, nn.Parameter] = {}
    made: list[tuple[nn.Module, nn.Module]] = []
    for name, layer in layers.items():
        if layer.device.type == "meta":
            raise ValueError(f"model: {name!r} is on the meta device: it has no weight")
        plain = plain_twin(layer)
        first = first_of.setdefault((*layer.identity, layer.device, layer.dtype), plain.weight)
        if torch.equal(first, plain.weight):
            plain.weight = first
        new = nn.Sequential(plain, nn.ReLU()).train(layer.training) if layer.relu else plain
        if layer is model:
            return new
        made.append((layer, new))
    replace_modules(model, made)
    if isinstance(model, FrozenMultiheadAttention):
        return close_attention(model)
    attentions = [module for module in model.modules() if isinstance(module, FrozenMultiheadAttention)]
    replace_modules(model, [(module, close_attention(module)) for module in attentions])
    return model
