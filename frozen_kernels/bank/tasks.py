"""What of a model each task has of its own beside its masks: ordinary tensors, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..nn.layer import OWN_BUFFERS, FrozenLayer
from ..nn.models import named_modules

_OF_A_WEIGHT = (*OWN_BUFFERS, "scores", "tuned", "gain")


class Place(NamedTuple):
    """Where a model holds an ordinary tensor."""

    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> Tensor:
        held = self.module._parameters if self.attribute in self.module._parameters else self.module._buffers
        tensor = held[self.attribute]
        assert tensor is not None
        return tensor


def _ordinary(model: nn.Module) -> dict[str, Place]:
    """Parameters and saved buffers by name, but for what is part of a frozen weight."""
    found: dict[str, Place] = {}
    for prefix, module in named_modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            weight = isinstance(module, FrozenLayer) and name in _OF_A_WEIGHT
            if tensor is not None and name not in module._non_persistent_buffers_set and not weight:
                found[f"{prefix}.{name}" if prefix else name] = Place(module, name)
    return found


def places_of(model: nn.Module, per_task: Iterable[str] | None) -> dict[str, Place]:
    """The tensors that each task has of its own: those named, or below modules named; None: those of batch norms.

    ValueError for a name that is none of the model's, or a tensor that others share.
    """
    ordinary = _ordinary(model)
    if per_task is None:
        return {name: place for name, place in ordinary.items() if isinstance(place.module, _NormBase)}
    if isinstance(per_task, str):
        raise ValueError(f"per_task: a list of names, got the string {per_task!r}")
    found: dict[str, Place] = {}
    for wanted in per_task:
        inside = {n: p for n, p in ordinary.items() if n == wanted or n.startswith(f"{wanted}.")}
        if not inside:
            raise ValueError(f"per_task: {wanted!r} is no ordinary parameter or buffer, nor a module with any")
        found |= inside
    users: dict[int, list[str]] = {}
    for name, place in ordinary.items():
        users.setdefault(id(place.tensor), []).append(name)
    for name, place in found.items():
        if len(users[id(place.tensor)]) > 1:
            raise ValueError(
                f"per_task: {name!r} is one tensor with {users[id(place.tensor)]}, of one task it cannot be"
            )
    return {name: place for name, place in ordinary.items() if name in found}


@torch.no_grad()
def values_of(places: Mapping[str, Place]) -> dict[str, Tensor]:
    """The tensors as they are now, in memory of their own."""
    return {name: place.tensor.detach().clone() for name, place in places.items()}


@torch.no_grad()
def put_values(places: Mapping[str, Place], values: Mapping[str, Tensor]) -> None:
    """Write one task's tensors into the model's."""
    for name, place in places.items():
        place.tensor.copy_(values[name])


def task_module(places: Mapping[str, Place], module: nn.Module, values: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """The forward of an ordinary layer with one task's tensors, in eval mode."""
    own: nn.Module = object.__new__(type(module))
    own.__dict__.update(module.__dict__)
    own.__dict__.update(_parameters=dict(module._parameters), _buffers=dict(module._buffers), training=False)
    own.__dict__.pop("forward", None)
    for name, place in places.items():
        if place.module is module:
            held = own._parameters if place.attribute in own._parameters else own._buffers
            held[place.attribute] = values[name]  # type: ignore[assignment]
    return own.forward
