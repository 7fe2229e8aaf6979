"""A model's layers and tensors paired with those of a file: everything is checked before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import FreezeConfig
from ..convert.choose import candidates
from ..nn.attention import open_attentions
from ..nn.conv1d import is_conv1d
from ..nn.layer import FrozenLayer, Made
from ..nn.models import frozen_layers, named_modules, replace_modules, spread, unwrapped
from ..nn.twins import is_layer, twin_of
from ..tensor import FrozenTensor
from ..text import listed
from .layout import Masked, Read
from .report import Imported

_VALUES = {fmt.VALUE_DTYPES[name]: name for name in ("float32", "float16", "bfloat16")}


class Slot(NamedTuple):
    """A parameter or saved buffer of the model."""

    owner: nn.Module
    tensor: Tensor


class Plan(NamedTuple):
    """What is to be done to a model: layers to replace, and tensors to write; and the entries of a report."""

    twins: list[tuple[nn.Module, FrozenLayer]]
    copies: list[tuple[Tensor, Tensor]]
    layers: list[Imported]
    dense: list[tuple[str, str]]
    loaded: list[str]


def _named(name: str, wrapped: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules under every name that they have, as in a state; wrappers leave no trace in names."""
    module = unwrapped(wrapped)
    yield name, module
    for child, part in module._modules.items():
        if part is not None:
            yield from _named(f"{name}.{child}" if name else child, part)


def slots(model: nn.Module) -> dict[str, Slot]:
    """Parameters and saved buffers of a plain model by each of their names.

    ValueError for a bare layer, frozen layers, a model that is spread over processes, and tensors without memory.
    """
    if isinstance(model, FrozenLayer) or is_layer(model):
        raise ValueError(f"model: a bare {type(model).__name__} has no name in a file; put it in a module")
    if spread(model):
        raise ValueError("model: spread over processes; load before DistributedDataParallel or fully_shard")
    frozen = list(frozen_layers(model))
    if frozen:
        raise ValueError(f"model: {listed(frozen)} frozen already; load into a plain torch model")
    found = {}
    for prefix, module in _named("", model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or name in module._non_persistent_buffers_set:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                raise ValueError(f"model: {full!r} is lazy: run a batch through the model first")
            if tensor.is_meta:
                raise ValueError(f"model: {full!r} is on the meta device; give it memory by model.to_empty first")
            expanded = any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
            if expanded or tensor.is_inference():
                raise ValueError(f"model: {full!r} is an expanded or inference tensor and cannot be loaded in place")
            found[full] = Slot(module, tensor)
    return found


def _check_names(held: dict[str, Slot], read: Read) -> None:
    given = {*read.rest, *(f"{layer}.weight" for layer in read.masked)}
    missing = sorted(held.keys() - given)
    unexpected = sorted(given - held.keys())
    if missing or unexpected:
        raise ValueError(
            f"missing in the file: {listed(missing) or 'nothing'}; not in the model: {listed(unexpected) or 'nothing'}"
        )


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    return "floating" if dtype.is_floating_point else "bool" if dtype == torch.bool else "integer"


def _fitted(name: str, value: Tensor, slot: Slot) -> Tensor:
    """The value in the shape that the model has; ValueError that names the tensor, and both shapes or dtypes."""
    target = slot.tensor
    if _kind(value.dtype) != _kind(target.dtype):
        raise ValueError(f"{name!r}: {value.dtype} in the file, {target.dtype} in the model")
    wide = isinstance(slot.owner, nn.Linear) and value.dim() > 2 and target.dim() == 2
    if wide and value.shape == (*target.shape, *[1] * (value.dim() - 2)):
        return value.reshape(target.shape)  # a classifier that was a convolution of 1x1
    if value.shape != target.shape:
        raise ValueError(f"{name!r}: {list(value.shape)} in the file, {list(target.shape)} in the model")
    return value


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, NaN among them."""
    b = b.to(a.device)
    return a is b or bool(((a == b) | ((a != a) & (b != b))).all())


def _fitted_masks(held: dict[str, Slot], read: Read) -> dict[str, Masked]:
    found: dict[str, Masked] = {}
    first_of: dict[int, str] = {}
    for layer, (weight, keep) in read.masked.items():
        name = f"{layer}.weight"
        slot = held[name]
        shaped = _fitted(name, weight, slot)
        bad = int((~shaped.isfinite()).sum())
        if bad:
            raise ValueError(f"{name!r}: {bad} of {weight.numel()} weights are not finite")
        found[layer] = Masked(shaped, keep.reshape(shaped.shape))
        first = first_of.setdefault(id(slot.tensor), layer)
        if not all(_same(a, b) for a, b in zip(found[first], found[layer], strict=True)):
            raise ValueError(f"{first!r} and {layer!r}: one weight in the model, but not the same in the file")
    return found


def _unfit(module: Any, masked: Masked, reasons: dict[int, str]) -> str | None:
    """Why a masked weight cannot be held by a frozen layer, None where it can."""
    if not is_layer(module):
        return f"{type(module).__name__} has no frozen twin"
    if id(module) in reasons:
        return reasons[id(module)]
    row = getattr(module, "padding_idx", None)
    if row is not None and bool((masked.weight[row] * masked.keep[row]).any()):
        return f"row {row} of padding is not zero, and a frozen embedding's is"
    return None


def _stored_twin(module: Any, weight: Tensor, keep: Tensor) -> FrozenLayer:
    """The frozen layer that stands for a plain one with this weight, its kept values packed in the weight's dtype."""
    device, count = module.weight.device, weight.numel()
    weight, keep = (weight.T, keep.T) if is_conv1d(module) else (weight, keep)
    record = FrozenTensor.stored(weight.to(device), keep.to(device), values=_VALUES[weight.dtype])
    dropped = count - int(keep.sum())
    config = FreezeConfig(code="stored", sparsity=dropped / count if count else 0.0, scope="local")
    return twin_of(module).from_module(module, config, state=Made(record, (0, 0, count), "packed"))


def _copies(held: dict[str, Slot], rest: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What is to be written where; ValueError where two names of one tensor have different values."""
    found: dict[int, tuple[str, Tensor, Tensor]] = {}
    for name, value in rest.items():
        target = held[name].tensor
        fitted = _fitted(name, value, held[name])
        first, _, same = found.setdefault(id(target), (name, target, fitted))
        if not _same(same, fitted):
            raise ValueError(f"{first!r} and {name!r}: one tensor in the model, but not the same in the file")
    return [(target, value) for _, target, value in found.values()]


def plan(model: nn.Module, held: dict[str, Slot], read: Read) -> Plan:
    """What is to be done to load what was read; the model is not changed. ValueError where the two do not fit."""
    _check_names(held, read)
    masked = _fitted_masks(held, read)
    module_of = {layer: held[f"{layer}.weight"].owner for layer in masked}
    ids = {id(module) for module in module_of.values()}
    skipped = candidates(model, lambda module, name: id(module) in ids)[1]
    modules = dict(named_modules(model))
    reasons = {id(modules[name]): why for name, why in skipped if name in modules}
    twins: dict[int, tuple[nn.Module, FrozenLayer]] = {}
    first_of: dict[int, FrozenLayer] = {}  # layers of one torch Parameter are one stored weight
    layers, dense, rest = [], [], dict(read.rest)
    for layer, (weight, keep) in masked.items():
        module = module_of[layer]
        why = _unfit(module, masked[layer], reasons)
        if why is not None:
            dense.append((layer, why))
            rest[f"{layer}.weight"] = weight * keep
            continue
        if weight.dtype not in _VALUES:
            raise ValueError(f"'{layer}.weight': {weight.dtype}; stored values are {', '.join(_VALUES.values())}")
        if id(module) not in twins:
            twins[id(module)] = module, _stored_twin(module, weight, keep)
            first_of.setdefault(id(held[f"{layer}.weight"].tensor), twins[id(module)][1]).share_with(
                twins[id(module)][1]
            )
            kind, values = type(twins[id(module)][1]).__name__, _VALUES[weight.dtype]
            layers.append(Imported(layer, kind, tuple(weight.shape), int(keep.sum()), weight.numel(), values))
    return Plan(list(twins.values()), _copies(held, rest), layers, dense, list(read.rest))


def carry_out(model: nn.Module, planned: Plan) -> None:
    """Change the model as planned."""
    for target, value in planned.copies:
        target.copy_(value)
    open_attentions(model, [module for module, _ in planned.twins])
    replace_modules(model, planned.twins)
