"""What a layer is to hold of a ticket's tensor, in the residency and on the device where the layer is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..coats import coat_planes
from ..nn.layer import FrozenLayer, Made
from ..tensor import FrozenTensor, default_residency, residencies_of
from .bits import deposit_bits
from .features import tensors_of
from .file import TensorRecord, Ticket, check_regenerated
from .regenerate import Regenerated, regenerate

Pairs = dict[str, tuple[nn.Module, TensorRecord]]  # a layer by its name, and the record that it takes


class _Place(NamedTuple):
    """Where and how a layer is to hold its weight."""

    residency: str
    device: torch.device
    dtype: torch.dtype


def _place(layer: nn.Module, residency: str | None, record: TensorRecord) -> _Place:
    if isinstance(layer, FrozenLayer):
        residency, device, dtype = residency or layer.residency, layer.device, layer.dtype
    else:
        weight: Any = layer.weight
        device, dtype = weight.device, weight.dtype
    possible = residencies_of(record.code, record.coats is not None, record.generations is not None)
    if residency not in possible:
        residency = default_residency(record.code, record.coats is not None, record.generations is not None)
    return _Place(residency, torch.device("cpu") if device.type == "meta" else device, dtype)


def _hold(record: TensorRecord, found: Regenerated, supermask: Tensor, own: dict[str, Tensor], place: _Place) -> Made:
    """A tensor as a layer holds it, from what was regenerated of it on the CPU; no partition is made again.

    `own`: the tensors of its features, by the end of their names.
    """
    base = FrozenTensor(record.shape, record.code, record.header().to(place.device))
    counts = found.pruned, found.locked, found.free

    def there(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(place.device)

    coats = None
    if record.coats is not None:
        assert found.keep is not None
        coats = coat_planes(found.keep, [own[f"coat{i}"] for i in range(2, 1 + record.coats)])
    if record.code not in fmt.CODES:
        packed = base._replace(
            keep=there(found.keep), values=there(own.get("values")), row_scale=there(own.get("row_scale")),
            coats=there(coats),
        )  # fmt: skip
        if record.code == fmt.SIGNS:
            packed = packed._replace(draw=there(_sign_plane(record, supermask, own["signs"])))
        return Made(packed.hold(place.residency, place.dtype), counts, place.residency)
    if record.coats is not None or record.generations is not None:
        whole = base._replace(
            supermask=there(supermask), offsets=there(found.offsets), keep=there(found.keep), coats=there(coats),
            generations=there(own.get("generation")),
        )  # fmt: skip
        return Made(whole.hold(place.residency, place.dtype), counts, place.residency)
    if place.residency == "seed":
        assert found.offsets is not None
        held = base._replace(supermask=supermask.to(place.device), offsets=found.offsets.to(place.device))
        return Made(held, counts, "seed")
    assert found.keep is not None
    masked = base._replace(keep=found.keep.to(place.device))
    if place.residency == "dense":
        held = base._replace(supermask=supermask.to(place.device), dense=masked.weight(place.dtype))
    elif place.residency == "planes" and record.code != "constant":
        draw = torch.ops.frozen_kernels.draw_plane(base.header, record.code, record.rows, record.cols)
        held = masked._replace(draw=draw)
    else:
        held = masked
    return Made(held, counts, place.residency)


def _sign_plane(record: TensorRecord, supermask: Tensor, signs: Tensor) -> Tensor:
    """int32 [rows, words] on the CPU: the sign plane of the kept weights' signs."""
    ops, header = torch.ops.frozen_kernels, record.header()
    every = deposit_bits(signs, supermask, record.rows * record.cols)
    offsets = ops.offsets(header, record.rows, record.cols)
    plane: Tensor = ops.keep_plane(header, every, offsets, record.rows, record.cols)
    return plane


def copied(made: Made) -> Made:
    """The same in memory of its own."""
    copies: dict[str, Any] = {name: t.clone() for name, t in made.frozen._asdict().items() if isinstance(t, Tensor)}
    return made._replace(frozen=made.frozen._replace(**copies))


def make(ticket: Ticket, pairs: Pairs, residency: str | None, verify: bool, end: str | None = None) -> dict[str, Made]:
    """What each layer is to hold, by name, checked against the ticket, whose supermasks are used up.

    Errors call a tensor by the name of its record, and `end` behind it.
    """
    layers_of: dict[str, list[str]] = {}
    for name, (_, record) in pairs.items():
        layers_of.setdefault(record.name, []).append(name)
    made: dict[str, Made] = {}
    for record in ticket.records:
        places = {name: _place(pairs[name][0], residency, record) for name in layers_of[record.name]}
        kinds = {place.residency for place in places.values()}
        supermask = ticket.tensors.pop(record.supermask_name)
        names = {end: f"{record.name}.{end}" for end in tensors_of(record)}
        own = {end: ticket.tensors.pop(name) for end, name in names.items() if name in ticket.tensors}
        layered = record.coats is not None or record.generations is not None
        found = regenerate(
            record.header(), record.rows, record.cols, supermask, hashed=verify,
            hold_keep=kinds != {"seed"}, hold_offsets=layered or "seed" in kinds,
        )  # fmt: skip
        check_regenerated(ticket, record, found, None if end is None else f"{record.name}.{end}")
        for name, place in places.items():
            held = _hold(record, found, supermask, own, place)._replace(gain=own.get("gain"))
            made[name] = copied(held) if made.keys() & places.keys() else held
    return made
