"""Tickets: one `.safetensors` file with everything of a frozen network that no seed regenerates (format section 7).

`ticket_file` knows the file by itself; this module moves it out of a model and into one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import FreezeConfig
from ..convert.freeze import candidates
from ..nn.layer import FrozenLayer
from ..nn.layers import TWINS
from ..nn.models import frozen_layers, has_sharded, replace_module, reshard, unwrapped
from ..select.sharded import whole
from .file import (
    DTYPE_NAMES,
    DTYPES,
    PREFIX,
    TensorRecord,
    Ticket,
    TicketError,
    bytes_of,
    check_regenerated,
    content_digest,
    hash_keep_plane,
    read_ticket,
    short,
    verify_ticket,
)

__all__ = ["TensorRecord", "Ticket", "TicketError", "load_ticket", "read_ticket", "save_ticket", "verify_ticket"]

_FROZEN_STATE = ("header", "scores", "supermask")  # what of a frozen layer is in its record, or not saved
_NAMES_SHOWN = 5


class _Slot(NamedTuple):
    """A parameter or buffer of the model that a ticket stores as it is."""

    name: str
    owner: nn.Module
    tensor: Tensor


def _slots(model: nn.Module, to_freeze: set[int]) -> Iterator[_Slot]:
    """Ordinary parameters and saved buffers, each module once; `to_freeze`: ids of layers about to be replaced."""
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or name in module._non_persistent_buffers_set:
                continue
            if isinstance(module, FrozenLayer) and name in _FROZEN_STATE:
                continue
            if id(module) in to_freeze and name != "bias":
                continue
            yield _Slot(f"{prefix}.{name}" if prefix else name, module, tensor)


def _gathered(slots: Iterator[_Slot]) -> Iterator[_Slot]:
    """The same slots with sharded tensors whole, tied ones still tied; collective where there are any."""
    found: dict[int, Tensor] = {}
    for slot in slots:
        if id(slot.tensor) not in found:
            found[id(slot.tensor)] = whole(slot.tensor)
        yield slot._replace(tensor=found[id(slot.tensor)])


def _tied(slots: Iterator[_Slot]) -> list[list[_Slot]]:
    """Slots grouped by the memory that they show, in traversal order; ValueError for what no file can hold."""
    groups: dict[object, list[_Slot]] = {}
    for slot in slots:
        t = slot.tensor
        if isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise ValueError(f"model: {slot.name!r} is lazy: run a batch through the model first")
        if t.device.type == "meta":
            raise ValueError(f"model: {slot.name!r} is on the meta device: it has no values")
        if t.layout != torch.strided or t.dtype not in DTYPE_NAMES:
            raise ValueError(
                f"model: {slot.name!r} is {t.dtype}, {t.layout}; a ticket holds {', '.join(DTYPES)}, strided"
            )
        same_memory = (t.device, t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        groups.setdefault(same_memory if t.numel() else id(t), []).append(slot)
    return list(groups.values())


def _check_root(model: nn.Module) -> None:
    if isinstance(model, (FrozenLayer, *TWINS)):
        raise ValueError(f"model: a bare {type(model).__name__} has no name in a ticket; put it in a module")


def _check_unwrapped(model: nn.Module) -> None:
    if unwrapped(model) is not model or has_sharded(model):
        raise ValueError("model: spread over processes; load a ticket before DistributedDataParallel or fully_shard")


def _record_of(name: str, layer: FrozenLayer) -> TensorRecord:
    keep = hash_keep_plane(layer.frozen)
    known: dict[str, Any] = {**fmt.header_fields(layer.header), **layer.counts}
    record = TensorRecord(name=name, shape=layer.shape, keep_sha256=keep, **known)
    return TensorRecord.from_json(record.to_json())  # refuses what a reader would


def _frozen_state(model: nn.Module) -> tuple[list[TensorRecord], dict[str, Tensor]]:
    """Records in stream order and supermasks by tensor name; layers of one seed and stream are one tensor."""
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers; a ticket holds what freeze_ made")
    first_of: dict[tuple[int, int], TensorRecord] = {}
    supermasks: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.device.type == "meta":
            raise ValueError(f"model: {name!r} is on the meta device: it has no supermask")
        if layer.folded:
            raise ValueError(
                f"model: {name!r} has a folded gain or ReLU, which no ticket holds: save it before folding"
            )
        record, supermask = _record_of(name, layer), layer.packed_supermask().cpu()
        first = first_of.setdefault((layer.seed, layer.stream), record)
        if first is record:
            supermasks[record.supermask_name] = supermask
        elif first.to_json() != record.to_json() | {"name": first.name}:
            raise ValueError(
                f"model: {first.name!r} and {name!r} both have seed {layer.seed} and stream {layer.stream}, "
                "but not the same shape, code, scale and mask; give one of them another stream"
            )
    return sorted(first_of.values(), key=lambda r: (r.stream, r.seed)), supermasks


@torch.no_grad()
def save_ticket(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the frozen network in `model` to one file: seeds, thresholds, supermasks, and every other parameter.

    Scores are not saved: a ticket holds the masks as they are. Tied parameters are stored once. The file appears whole
    or not at all, and the same model always gives the same bytes, within `DistributedDataParallel` too. Under
    `fully_shard` ordinary parameters are gathered: call it on every rank, each with its path or all with one.

    Raises:
        ValueError: no frozen layers, a bare or a folded layer, tensors on the meta device or of a dtype that
            safetensors lacks, or two layers that share seed and stream but not their state. Nothing is written.
        OSError: the file cannot be written; what was there before is still there.
    """
    model = unwrapped(model)
    _check_root(model)
    reshard(model)
    records, tensors = _frozen_state(model)
    shapes = {record.shape for record in records}
    for group in _tied(_gathered(_slots(model, set()))):
        for slot in group:
            # a reader takes a tied layer without a stored weight for a frozen one, so those are stored again
            if slot is group[0] or (type(slot.owner) in TWINS and tuple(slot.tensor.shape) in shapes):
                tensors[slot.name] = slot.tensor.detach().cpu().contiguous().clone()
    metadata = {
        PREFIX + "format": str(fmt.VERSION),
        PREFIX + "requires": "[]",
        PREFIX + "tensors": json.dumps([r.to_json() for r in records], separators=(",", ":"), ensure_ascii=False),
    }
    import safetensors.torch  # importing the package needs torch and numpy only

    metadata[PREFIX + "digest"] = content_digest(metadata, tensors)
    try:
        data = safetensors.torch.save(tensors, metadata)
    except safetensors.SafetensorError as why:
        raise ValueError(f"model: {why}") from None
    _write_whole(os.path.realpath(path), data)


def _ordered_header(data: bytes) -> tuple[bytes, memoryview]:
    """The header of a safetensors file with its metadata sorted, which the library leaves to chance, and the rest."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[8 + size :]


def _write_whole(path: str, data: bytes) -> None:
    """Replace `path` by safetensors `data` in one step; a process killed before that leaves the old file."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: is a directory")
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".ticket-{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(_ordered_header(data))
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            os.chmod(temporary, os.stat(path).st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # the rename itself; not every system can sync a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _restored_config(record: TensorRecord) -> tuple[FreezeConfig, float]:
    """Settings and sigma that give a record's seed, code, thresholds and scale again."""
    total = record.rows * record.cols
    grid = record.tau_prune | record.tau_freeze
    config = FreezeConfig(
        seed=record.seed,
        code=record.code,
        sparsity=(total - record.kept) / total if total else 0.0,
        prune_ratio=record.pruned / total if total else 0.0,
        lock_ratio=record.locked / total if total else 0.0,
        threshold_bits=16 - min((grid & -grid).bit_length() - 1, 15) if grid else 1,
    )
    sigma = fmt.kaiming_sigma(record.cols)
    for scaling in ("none", "dynamic"):
        scaled = replace(config, scaling=scaling)
        if fmt.scale_of(record.code, sigma, scaled.factor(record.kept, total)) == record.scale:
            return scaled, sigma
    return config, record.scale * fmt.RMS[record.code]


Pairs = dict[str, tuple[nn.Module, TensorRecord]]


def _weight_of(layer: nn.Module) -> tuple[object, tuple[int, ...]]:
    """What layers of one weight have in common, and its shape."""
    if isinstance(layer, FrozenLayer):
        return (layer.seed, layer.stream), layer.shape
    return id(layer.weight), tuple(layer.weight.shape)  # type: ignore[union-attr, arg-type]


def _pair_layers(model: nn.Module, ticket: Ticket) -> Pairs:
    """Which record each layer takes; layers of one weight take the record of the one that the ticket names."""
    modules = dict(model.named_modules())
    plain, skipped = candidates(model, lambda module, name: True)
    layers = {name: m for name, m in modules.items() if name in plain or isinstance(m, FrozenLayer)}
    pairs: Pairs = {}
    named_by_weight: dict[object, list[TensorRecord]] = {}
    for record in ticket.records:
        layer = layers.get(record.name)
        if layer is None:
            found = modules.get(record.name)
            why = "the model has no such module" if found is None else f"the model has a {type(found).__name__} there"
            raise ValueError(f"{short(record.name)}: frozen in the ticket; {dict(skipped).get(record.name, why)}")
        weight, shape = _weight_of(layer)
        if shape != record.shape:
            raise ValueError(
                f"{short(record.name)}: shape {list(record.shape)} in the ticket, {list(shape)} in the model"
            )
        pairs[record.name] = layer, record
        named_by_weight.setdefault(weight, []).append(record)
    for name, layer in layers.items():
        frozen = isinstance(layer, FrozenLayer)
        if name in pairs or (not frozen and f"{name}.weight" in ticket.tensors):
            continue
        weight, shape = _weight_of(layer)
        named = [record for record in named_by_weight.get(weight, []) if record.shape == shape]
        if len(named) == 1:
            pairs[name] = layer, named[0]
        elif named:
            tied = ", ".join(short(record.name) for record in named)
            raise ValueError(f"{name!r}: shares its weight in the model with {tied}, which are several in the ticket")
        elif frozen:
            raise ValueError(f"{name!r}: frozen in the model, not in the ticket")
    return pairs


def _pair_tensors(model: nn.Module, ticket: Ticket, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """(tensor of the model, stored tensor) for all ordinary tensors; ValueError where any does not fit."""
    stored = ticket.ordinary
    plain = {id(layer) for layer, _ in pairs.values() if not isinstance(layer, FrozenLayer)}
    copies, missing, used = [], [], set()
    for group in _tied(_slots(model, plain)):
        given = [slot for slot in group if slot.name in stored]
        for slot in given:
            old, new = slot.tensor, stored[slot.name]
            if old.shape != new.shape or old.dtype != new.dtype:
                raise ValueError(
                    f"{slot.name!r}: {new.dtype} {list(new.shape)} in the ticket, "
                    f"{old.dtype} {list(old.shape)} in the model"
                )
            if not np.array_equal(bytes_of(new), bytes_of(stored[given[0].name])):
                raise ValueError(f"{slot.name!r}: tied to {given[0].name!r} in the model, other values in the ticket")
            if old.is_inference() or any(s == 0 and n > 1 for s, n in zip(old.stride(), old.shape, strict=True)):
                raise ValueError(
                    f"{slot.name!r}: an expanded or inference tensor of the model cannot be loaded in place"
                )
        if given:
            copies.append((group[0].tensor, stored[given[0].name]))
            used |= {slot.name for slot in given}
        else:
            missing.append(group[0].name)
    extra = sorted(set(stored) - used)
    if missing or extra:
        raise ValueError(f"tensors: not in the ticket {_some(missing)}, not in the model {_some(extra)}")
    return copies


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{short(names[:_NAMES_SHOWN])}{more}"


@torch.no_grad()
def load_ticket(model: nn.Module, path: str | os.PathLike[str], *, verify: bool = True) -> nn.Module:
    """Load a ticket into `model`, in place, and return it; its frozen layers are finalized.

    Args:
        model: the plain model, whose layers are replaced by frozen ones, or a frozen one of the same shapes.
        path: the file.
        verify: compare each regenerated keep plane with the ticket's hash; the counts are compared in any case.

    Raises:
        TicketError: not a whole ticket of this version, or one for another model; the message names the file, the
            tensor and both values. The model is unchanged.
        OSError: the file is missing or cannot be read.
    """
    try:
        _check_root(model)
        _check_unwrapped(model)
    except ValueError as why:
        raise TicketError(f"{os.fsdecode(path)}: {why}") from None
    ticket = read_ticket(path)
    try:
        pairs = _pair_layers(model, ticket)
        copies = _pair_tensors(model, ticket, pairs)
    except ValueError as why:
        raise TicketError(f"{ticket.path}: {why}") from None
    for name, (layer, _) in pairs.items():
        if _is_meta(layer):
            raise TicketError(f"{ticket.path}: {name!r} of the model is on the meta device; give it memory first")
    for record in ticket.records:
        check_regenerated(ticket, record, verify)
    new: dict[str, FrozenLayer] = {}
    for name, (layer, record) in pairs.items():
        if not isinstance(layer, FrozenLayer):
            config, sigma = _restored_config(record)
            state = record.header(), ticket.tensors[record.supermask_name]
            twin = TWINS[type(layer)]
            new[name] = twin.from_module(layer, config, stream=record.stream, sigma=sigma, state=state)  # type: ignore[attr-defined]
    # nothing above has changed the model, nothing below refuses
    for old, stored in copies:
        old.copy_(stored)
    for name, (layer, record) in pairs.items():
        if isinstance(layer, FrozenLayer):
            layer.restore(record.header(), ticket.tensors[record.supermask_name], *_restored_config(record))
        else:
            replace_module(model, layer, new[name])
    return model


def _is_meta(layer: nn.Module) -> bool:
    device = layer.device if isinstance(layer, FrozenLayer) else layer.weight.device  # type: ignore[union-attr]
    return device.type == "meta"
