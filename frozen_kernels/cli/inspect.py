"""`inspect`: what a ticket holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..text import table
from ..tickets.container import short
from ..tickets.file import TensorRecord, read_ticket


def inspect(options: argparse.Namespace) -> None:
    """What a ticket holds; its digest and counts are checked."""
    ticket = read_ticket(options.file)
    print(f"{ticket.path}: format {ticket.metadata['frozen_kernels.format']}, {ticket.file_bytes:,} bytes\n")
    if ticket.masks is not None:
        print(f"a bank of {len(ticket.masks)} masks: {', '.join(map(short, ticket.masks))}\n")
    head = ("frozen", "shape", "code", "seed", "stream", "pruned", "locked", "free", "kept", "scale")
    rows = [
        (short(r.name), _sizes(r.shape), _code(r), str(r.seed), str(r.stream), r.pruned, r.locked, r.free,
         _span([n.kept for n in r.networks], "d"), _span([n.scale for n in r.networks], ".6g"))
        for r in ticket.records
    ]  # fmt: skip
    print(table(head, rows))
    if ticket.ordinary:
        rest = [(short(n), _sizes(t.shape), str(t.dtype).split(".")[-1], t.nbytes) for n, t in ticket.ordinary.items()]
        print("\n" + table(("ordinary", "shape", "dtype", "bytes"), rest))


def _span(values: Sequence[float], form: str) -> str:
    """One value, or the least and the largest of those of a bank's masks."""
    least, most = min(values), max(values)
    return f"{least:{form}}" if least == most else f"{least:{form}} to {most:{form}}"


def _code(record: TensorRecord) -> str:
    code = record.code if record.values is None else f"{record.code} {record.values}"
    code += "" if record.coats is None else f", {record.coats} coats"
    return code if record.generations is None else f"{code}, {record.generations} generations"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def add(commands: Any) -> None:
    """The command and its options."""
    sub = commands.add_parser("inspect", help=inspect.__doc__)
    sub.add_argument("file", metavar="FILE", help="a ticket")
    sub.set_defaults(run=inspect)
