"""All supermasks of a model as one packed tensor, which clients of a federated search exchange."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, unwrapped
from ..select import sharded
from ..select.aggregate import check_mean


def weights_of(model: nn.Module) -> dict[str, list[FrozenLayer]]:
    """The frozen weights of a model by the name of their first layer, in traversal order, each with all its layers.

    ValueError where the model has none, or one is on the meta device.
    """
    found: dict[tuple[object, ...], list[FrozenLayer]] = {}
    names: dict[tuple[object, ...], str] = {}
    for name, layer in frozen_layers(unwrapped(model)).items():
        if layer.device.type == "meta":
            raise ValueError(f"model: {name or 'model'!r} is on the meta device: it has no supermask")
        names.setdefault(layer.identity, name or "model")
        found.setdefault(layer.identity, []).append(layer)
    if not found:
        raise ValueError("model: no frozen layers, which are what has masks")
    return {names[identity]: layers for identity, layers in found.items()}


def _check_coats(weights: dict[str, list[FrozenLayer]]) -> None:
    for name, layers in weights.items():
        if layers[0].coats is not None:
            raise ValueError(
                f"model: {name!r} has {1 + layers[0].coats.shape[0]} coats, expected 1: a packed mask has one bit for "
                "each weight; save_ticket and state_dict hold all coats"
            )


@torch.no_grad()
def masks(model: nn.Module) -> Tensor:
    """The supermasks of all frozen layers as one tensor, uint8 [sum of ceil(free / 8)], on the first layer's device.

    The supermask of each weight as in a ticket (one bit for each free weight, in stream order), layer after layer in
    traversal order; layers of one weight come once. Every layer begins on a byte: a slice is a layer's own supermask,
    and the whole is one bit for each free weight and less than a byte for each layer. A copy: the model keeps its own.
    Signs and generations are not in it.

    Raises:
        ValueError: the model has no frozen layers, layers on the meta device, or in several coats: one bit cannot say
            how often a weight counts.
    """
    weights = weights_of(model)
    _check_coats(weights)
    found = [layers[0].packed_supermask() for layers in weights.values()]
    return torch.cat([mask.to(found[0].device) for mask in found])


def _parts(model: nn.Module, given: Tensor, what: str, per_byte: int) -> Iterator[tuple[str, list[FrozenLayer], slice]]:
    """Each weight's name, layers and place in a tensor with so many values for each byte of the masks."""
    weights = weights_of(model)
    begin, whole = 0, per_byte * sum(-(-layers[0].free // 8) for layers in weights.values())
    for name, layers in weights.items():
        end = begin + per_byte * -(-layers[0].free // 8)
        if end > given.numel():
            raise ValueError(
                f"{what}: {name!r} with {layers[0].free} free weights is at {begin} to {end}, got {given.numel()} "
                f"in all, the model has {whole}"
            )
        yield name, layers, slice(begin, end)
        begin = end
    if begin != given.numel():
        raise ValueError(f"{what}: {given.numel()} in all, the model has {whole}: {name!r}, the last, ends at {begin}")


@torch.no_grad()
def load_masks(model: nn.Module, packed: Tensor) -> None:
    """Take the supermasks of all frozen layers from one tensor; the inverse of `masks`.

    Scales follow where they are dynamic. Scores stay as they are: the next `search.step()` makes masks of them again.

    Args:
        model: with the same frozen layers as the model that `masks` read, in a wrapper or not.
        packed: uint8 [sum of ceil(free / 8)], on any device.

    Raises:
        ValueError: another dtype or size, bits set after a layer's last free weight, or a layer in several coats, which
            one mask would drop; the layer and both values are named. The model is unchanged.
        RuntimeError: a layer of stored values or signs is finalized: those of weights that it drops are gone.
    """
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.dim() != 1:
        found = f"{packed.dtype} {list(packed.shape)}" if isinstance(packed, Tensor) else type(packed).__name__
        raise ValueError(f"packed: uint8 of 1 dimension, got {found}")
    _check_coats(weights_of(model))
    parts = list(_parts(model, packed, "packed", 1))
    for name, layers, place in parts:
        fmt.check_supermask(packed[place], layers[0].free, f"packed: {name!r}")
        first = layers[0]
        if (first.stored and first.packed) or (first.signed and first.scores is None):
            what, kept = "values" if first.stored else "signs", first.counts["kept"]
            raise RuntimeError(
                f"packed: {name!r} is finalized with {kept} of {first.free} {what}, those of other masks are gone"
            )
    for _, layers, place in parts:
        first = layers[0]
        # memory of its own: the caller may go on writing to the tensor
        first.set_supermask(packed[place].to(first.device, copy=True))
        for other in layers[1:]:
            if first.stored:
                first.share_with(other)
            else:
                other.set_supermask(first.packed_supermask())


@torch.no_grad()
def load_mean(model: nn.Module, mean: Tensor, least: float = 0.01) -> None:
    """Set the scores of all frozen layers to the logit of a mean of masks: `log(p / (1 - p))`, as FedPM does.

    So that sigmoid(score) is the probability of each weight. Masks follow at the next `search.step()`.

    Args:
        model: one whose layers have scores.
        mean: floating [8 * bytes], of `aggregate_masks`.
        least: means are brought into [least, 1 - least], where the logit is finite.

    Raises:
        ValueError: a mean of another size (the layer and both values are named), dtype or range; `least` out of
            (0, 0.5]; or a layer that is finalized. The model is unchanged.
    """
    check_mean(mean)
    if not 0 < least <= 0.5:
        raise ValueError(f"least: above 0 and at most 0.5, got {least!r}")
    parts = list(_parts(model, mean, "mean", 8))
    for name, layers, _ in parts:
        if layers[0].scores is None and layers[0].free:
            raise ValueError(f"mean: {name!r} is finalized, its {layers[0].free} free weights have no scores")
    for _, layers, place in parts:
        first = layers[0]
        if first.scores is None:
            continue
        scores = torch.logit(mean[place][: first.free].to(torch.float32), eps=least).to(first.device)
        if sharded.is_sharded(first.scores):
            sharded.copy_part_(first.scores, scores.to(first.scores.dtype))
        else:
            first.scores.copy_(scores)
