"""Bytes of a ticket on disk by kind, and of its frozen weights in memory by residency."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..format import HEADER_WORDS
from ..tensor import default_residency, residencies_of, resident_bytes, stored_bytes
from ..text import table
from ..tickets.features import features_of
from ..tickets.file import TensorRecord, Ticket, read_ticket

_BESIDE = {"stored": "stored values", "signs": "stored signs", "coats": "coats after the first"}


class TicketBytes(NamedTuple):
    """Bytes of a ticket by kind on disk and of its frozen weights by residency; `print` it, or `.to_json()`."""

    path: str
    masks: int | None  # of a bank
    weights: int
    disk: list[tuple[str, int]]
    resident: list[tuple[str, int]]

    def to_json(self, **options: Any) -> str:
        """All figures as JSON; `options` go to `json.dumps`."""
        values = self._asdict() | {"disk": dict(self.disk), "resident": dict(self.resident)}
        return json.dumps(values, **options)

    def __str__(self) -> str:
        many = "" if self.masks is None else f", a bank of {self.masks} masks"
        ready = "" if self.masks is None else ", all masks held ready"
        return (
            f"{self.path}: {self.weights:,} frozen weights{many}\n\n"
            f"{table(('on disk', 'bytes', 'bits/weight'), self._rows(self.disk))}\n\n"
            f"{table(('in memory', 'bytes', 'bits/weight'), self._rows(self.resident))}\n\n"
            f"in memory: computed, frozen weights alone{ready}; dense is float32. Add the ordinary tensors."
        )

    def _rows(self, sizes: list[tuple[str, int]]) -> list[tuple[str, int, str]]:
        return [(name, size, f"{8 * size / max(self.weights, 1):.3f}") for name, size in sizes]


def ticket_bytes(path: str) -> TicketBytes:
    """What the tensors of a ticket take in its file, and what its weights would take in each residency."""
    ticket = read_ticket(path)
    weights = sum(r.rows * r.cols for r in ticket.records)
    masks = sum(ticket.tensors[name].nbytes for r in ticket.records for name in r.supermask_names)
    beside: dict[str, int] = {}
    for r in ticket.records:
        for feature in features_of(r):
            names = {f"{r.name}.{end}" for end in feature.tensors(r)} - {*r.supermask_names}
            size = sum(ticket.tensors[name].nbytes for name in names if name in ticket.tensors)
            beside[feature.name] = beside.get(feature.name, 0) + size
    ordinary = sum(t.nbytes for t in ticket.ordinary.values())
    disk = [("supermasks", masks), *((_BESIDE.get(name, name), size) for name, size in beside.items())]
    disk += [("ordinary tensors", ordinary), ("metadata", ticket.header_bytes)]
    disk.append(("file", ticket.file_bytes))
    many = None if ticket.masks is None else len(ticket.masks)
    return TicketBytes(str(ticket.path), many, weights, disk, _resident(ticket))


def _resident(ticket: Ticket) -> list[tuple[str, int]]:
    codes = {r.code for r in ticket.records}
    # those of the codes that have the most; other codes are in their own beside them
    shown = max((residencies_of(code) for code in codes), key=len)
    out: list[tuple[str, int]] = []
    for residency in shown:
        size = sum(_held(r, _nearest(r, residency), ticket) for r in ticket.records)
        beside = sorted({_nearest(r, residency) for r in ticket.records} - {residency})
        out.append((", ".join((residency, *beside)), size))
    return out


def _nearest(record: TensorRecord, residency: str) -> str:
    """The residency itself, or the one that a tensor has in its place."""
    layered = record.coats is not None, record.generations is not None
    return residency if residency in residencies_of(record.code, *layered) else default_residency(record.code, *layered)


def _held(record: TensorRecord, residency: str, ticket: Ticket) -> int:
    """Bytes of a weight in a residency, under each mask of a bank: what masks have in common is there once."""
    others = len(record.networks) - 1
    if record.values is not None:
        size = sum(stored_bytes(record.shape, n.kept, record.values, residency) for n in record.networks)
        scale = 4 * record.rows if record.values == "int8" else 0
        union = ticket.tensors[f"{record.name}.values"].nbytes + ticket.tensors[record.supermask_names[0]].nbytes
        return size - others * scale + (union if record.masks is not None else 0)
    alone = resident_bytes(
        record.shape,
        record.code,
        record.free,
        residency,
        coats=record.coats or 1,
        generations=record.generations or 1,
        row_scaled=f"{record.name}.row_scale" in ticket.tensors,
    )
    if not others:
        return alone
    if residency == "seed":
        return alone + others * (4 * HEADER_WORDS + -(-record.free // 8))
    # the draws are those of all masks
    own = "mask" if residency == "planes" else residency
    return alone + others * resident_bytes(record.shape, record.code, record.free, own)
