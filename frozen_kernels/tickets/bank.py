"""The file of a bank: a ticket with several supermasks over each tensor, and one task's ordinary tensors for each.

Section 8 of the format (docs/format.md), feature `bank`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..nn.layer import FrozenLayer, Made
from ..nn.views import record_of
from ..process import release_memory
from ..tensor import ALL_RESIDENCIES, FrozenTensor
from .container import short
from .file import PER_MASK, BankMask, TensorRecord, Ticket, TicketError, check_regenerated, read_ticket
from .made import Pairs, copied, make
from .model import file_parts, fitted, frozen_state, loadable, ordinary_state, place, writable
from .regenerate import regenerate

_OF_MASK = ".mask."  # between the name of an ordinary tensor and that of the task whose it is


class BankTask(NamedTuple):
    """One mask to be written: a layer for each name that holds it, and the task's ordinary tensors by name."""

    views: Mapping[str, FrozenLayer]
    values: Mapping[str, Tensor]


class LoadedBank(NamedTuple):
    """What a file gave: of each mask a record for each layer, and the task's ordinary tensors; by name.

    `unions`: of packed stored layers the bits that any mask keeps, their values, and the scales of int8 rows.
    """

    per_task: list[str]
    masks: dict[str, dict[str, FrozenTensor]]
    values: dict[str, dict[str, Tensor]]
    unions: dict[str, tuple[Tensor, Tensor, Tensor | None]]


def chosen_values(kept: Tensor, union: Tensor, bits: Tensor, count: int) -> Tensor:
    """The values of one mask, 1-D in stream order, out of those that a union of masks keeps.

    `union` and `bits` are uint8 [ceil(count / 8)]; what `bits` keeps the union keeps, too.
    """
    return kept[fmt.unpack_bits(bits, count)[fmt.unpack_bits(union, count)]]


def per_task_names(names: Iterable[str], masks: Sequence[str]) -> list[str]:
    """The ordinary tensors of which a file with these names has one for each mask."""
    present, end = set(names), _OF_MASK + masks[0]
    found = [name.removesuffix(end) for name in names if name.endswith(end)]
    return [name for name in found if all(f"{name}{_OF_MASK}{mask}" in present for mask in masks)]


@torch.no_grad()
def bank_parts(
    model: nn.Module, tasks: Mapping[str, BankTask], values: Mapping[str, Sequence[Tensor]]
) -> list[bytes | memoryview]:
    """The bytes of a bank's file; `values`: what is stored of each stored layer by name.

    ValueError for a model that no ticket holds, and for names of ordinary tensors that look like a task's.
    """
    model = writable(model)
    states = {name: frozen_state(task.views) for name, task in tasks.items()}
    plain = next(iter(states.values()))[0]
    records = [
        replace(record, masks=tuple(_mask_of(name, state[0][at], record) for name, state in states.items()))
        for at, record in enumerate(plain)
    ]
    tensors: dict[str, Tensor] = {}
    for record in records:
        for (_, own), end in zip(states.values(), record.supermask_names, strict=True):
            tensors[end] = own[record.supermask_name]
        if record.values is not None:
            names = [name for name in record.tensor_names if name not in record.supermask_names]
            tensors.update(zip(names, values[record.name], strict=True))
    ordinary = ordinary_state(model, records)
    per_task = next(iter(tasks.values())).values
    for name in per_task:
        del ordinary[name]
    for mask, task in tasks.items():
        ordinary |= {f"{n}{_OF_MASK}{mask}": t.detach().cpu().contiguous().clone() for n, t in task.values.items()}
    read = per_task_names(ordinary, list(tasks))
    if set(read) != set(per_task):
        raise ValueError(f"model: {short(sorted(set(read) - set(per_task)))} would be read as tensors of each task")
    parts = file_parts(records, tensors | ordinary)
    for record in records:
        TensorRecord.from_json(record.to_json())  # refuses what a reader would
    return parts


def _mask_of(name: str, record: TensorRecord, first: TensorRecord) -> BankMask:
    if record.name != first.name or record.free != first.free:
        raise ValueError(f"model: mask {name!r} has {record.name!r} where others have {first.name!r}")
    return BankMask(name, *(getattr(record, field) for field in PER_MASK))


def _union(ticket: Ticket, record: TensorRecord) -> Tensor:
    bits = ticket.tensors[record.supermask_names[0]]
    for name in record.supermask_names[1:]:
        bits = bits | ticket.tensors[name]
    return bits


def _network(ticket: Ticket, mask: str, per_task: Sequence[str]) -> Ticket:
    """The ticket of one mask, as if it had been saved alone."""
    assert ticket.masks is not None
    at = ticket.masks.index(mask)
    tensors = {name: t for name, t in ticket.ordinary.items() if _task_of(name, per_task, ticket.masks) is None}
    tensors |= {name: ticket.tensors[f"{name}{_OF_MASK}{mask}"] for name in per_task}
    records = tuple(record.networks[at] for record in ticket.records)
    for record, network in zip(ticket.records, records, strict=True):
        bits = ticket.tensors[record.supermask_names[at]]
        tensors[record.supermask_name] = bits
        for name in network.tensor_names[1:]:
            tensors[name] = ticket.tensors[name]
        if record.values is not None:
            values = f"{record.name}.values"
            tensors[values] = chosen_values(tensors[values], _union(ticket, record), bits, record.free)
    return replace(ticket, records=records, tensors=tensors)


def _task_of(name: str, per_task: Sequence[str], masks: Sequence[str]) -> str | None:
    """The mask whose tensor this is; None for one of all."""
    tensor, _, mask = name.rpartition(_OF_MASK)
    return mask if tensor in per_task and mask in masks else None


def _check_plain(layer: FrozenLayer, record: TensorRecord) -> None:
    """ValueError where a frozen layer has what no mask of a bank has and a load would leave."""
    for what, there in (("a folded ReLU", layer.relu), ("tuned values", layer.tuned is not None)):
        if there:
            raise ValueError(f"{short(record.name)}: {what} in the model, none in the bank")


def _check_backbone(layer: FrozenLayer, record: TensorRecord, ticket: Ticket) -> None:
    """ValueError where a frozen layer is not what the bank's masks are of: another seed, partition or values."""
    for what, held in (("coats", layer.coats), ("generations", layer.generations)):
        if held is not None:
            raise ValueError(f"{short(record.name)}: {what} in the model, none in the bank")
    fields: dict[str, Any] = fmt.header_fields(layer.header.cpu())
    for field in ("code", "seed", "stream", "generation", "tau_prune", "tau_freeze"):
        said, own = getattr(record, field), fields[field]
        if said != own:
            raise ValueError(f"{short(record.name)}: {field} {said} in the bank, {own} in the model")
    if record.values is not None:
        _check_values(layer, record, ticket)


def _check_values(layer: FrozenLayer, record: TensorRecord, ticket: Ticket) -> None:
    name, count = f"{record.name}.values", record.free
    union, said = _union(ticket, record), ticket.tensors[f"{record.name}.values"]
    scale = ticket.tensors.get(f"{record.name}.row_scale")
    held: Tensor = layer.values.detach().cpu()  # type: ignore[union-attr]
    both = fmt.unpack_bits(union, count)
    if layer.packed:
        if held.dtype != said.dtype:
            raise ValueError(f"{short(name)}: {said.dtype} in the bank, {held.dtype} in the model")
        ours = fmt.unpack_bits(layer.packed_supermask().cpu(), count)
        said, own, both = said[ours[both]], held[both[ours]], both & ours
    else:
        own = fmt.stream_order(fmt.to_matrix(held))[both]
        if scale is not None:
            row = both.nonzero().flatten() // max(record.cols, 1)
            own = torch.where(scale[row] > 0, own.float() / scale[row], 0.0).round().clamp(-127, 127)
        own = own.to(said.dtype)
    other = ~((said == own) | ((said != said) & (own != own)))
    if other.any():
        at = int(other.nonzero()[0])
        place_of = int(both.nonzero()[at])
        raise ValueError(
            f"{short(name)}: {said[at].item()} at weight {place_of} of the stream in the bank, {own[at].item()} in the "
            f"model, and {int(other.sum())} of {other.numel()} differ"
        )


@torch.no_grad()
def load_bank(
    model: nn.Module,
    path: str | os.PathLike[str],
    verify: bool,
    residency: str | None,
    check_tasks: Callable[[nn.Module, list[str]], object],
) -> LoadedBank:
    """Load the first network of a bank's file into a model, in place, and give what all its masks are.

    Frozen layers of the same backbone keep what they hold. `check_tasks` says by ValueError that tensors of these names
    cannot be each task's own, before the model is changed. Errors: see `MaskBank.load`.
    """
    if residency is not None and residency not in ALL_RESIDENCIES:
        raise ValueError(f"residency: one of {', '.join(ALL_RESIDENCIES)}, got {residency!r}")
    inside, ticket = loadable(model, path), read_ticket(path)
    if ticket.masks is None:
        raise TicketError(f"{ticket.path}: one network and no bank; load_ticket loads it")
    per_task = per_task_names(ticket.ordinary, ticket.masks)
    networks = {mask: _network(ticket, mask, per_task) for mask in ticket.masks}
    for network in networks.values():
        fitted(inside, network)
    pairs, copies = fitted(inside, networks[ticket.masks[0]])
    stay = _staying(pairs, ticket)
    try:
        check_tasks(inside, per_task)
    except ValueError as why:
        raise TicketError(f"{ticket.path}: {why}") from None
    masks: dict[str, dict[str, FrozenTensor]] = {}
    first: dict[str, Made] = {}
    for mask, network in networks.items():
        made = _made(ticket, network, mask, pairs, stay, residency, verify)
        first = first or {name: copied(own) for name, own in made.items() if name not in stay}
        masks[mask] = {name: own.frozen for name, own in made.items()}
    unions = {}
    for name, (_, record) in pairs.items():
        if record.values is not None and name not in stay:
            whole = next(r for r in ticket.records if r.name == record.name)
            device = next(iter(masks.values()))[name].header.device
            held = [_union(ticket, whole), *(ticket.tensors.get(f"{record.name}.{e}") for e in ("values", "row_scale"))]
            unions[name] = tuple(None if t is None else t.to(device) for t in held)
    values = {mask: {name: network.tensors[name] for name in per_task} for mask, network in networks.items()}
    place(inside, pairs, copies, first, stay)
    release_memory()
    return LoadedBank(per_task, masks, values, unions)  # type: ignore[arg-type]


def _staying(pairs: Pairs, ticket: Ticket) -> set[str]:
    """The frozen layers that keep what they hold: all but those on the meta device, and finalized stored ones.

    TicketError where one is of another backbone.
    """
    whole = {record.name: record for record in ticket.records}
    stay = set()
    for name, (layer, record) in pairs.items():
        if not isinstance(layer, FrozenLayer):
            continue
        try:
            _check_plain(layer, record)
            if layer.device.type == "meta":
                continue
            _check_backbone(layer, whole[record.name], ticket)
        except ValueError as why:
            raise TicketError(f"{ticket.path}: {why}") from None
        if not (layer.stored and layer.packed):
            stay.add(name)
    return stay


def _made(
    ticket: Ticket, network: Ticket, mask: str, pairs: Pairs, stay: set[str], residency: str | None, verify: bool
) -> dict[str, Made]:
    """What each layer holds of one mask, by name; TicketError where a keep plane regenerates differently."""
    kinds: dict[str, list[TensorRecord]] = {"searched": [], "staying": [], "new": []}
    kind_of: dict[str, str] = {}
    for name, (_, record) in pairs.items():
        kind = "new" if name not in stay else "searched" if record.values is not None else "staying"
        if kind_of.setdefault(record.name, kind) != kind:
            raise TicketError(f"{ticket.path}: {short(record.name)}: frozen in a part of its layers alone")
    for record in network.records:
        kinds[kind_of[record.name]].append(record)
    made: dict[str, Made] = {}
    for kind in ("staying", "new"):
        own = {name: pair for name, pair in pairs.items() if kind_of[pair[1].name] == kind}
        part = replace(network, records=tuple(kinds[kind]), tensors=dict(network.tensors))
        made |= make(part, own, residency if kind == "new" else None, verify, f"supermask.{mask}")
    for record in kinds["searched"]:
        supermask = network.tensors[record.supermask_name]
        found = regenerate(record.header(), record.rows, record.cols, supermask, hashed=verify)
        check_regenerated(ticket, record, found, f"{record.supermask_name}.{mask}")
        for name, (layer, other) in pairs.items():
            if isinstance(layer, FrozenLayer) and other.name == record.name:
                held = record_of(layer)._replace(supermask=supermask.to(layer.device, copy=True), dense=None)
                made[name] = Made(held, (found.pruned, found.locked, found.free), "dense")
    return made
