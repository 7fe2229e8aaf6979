"""`verify`: whether a ticket is whole."""

from __future__ import annotations

import argparse
from typing import Any

from ..tickets.file import read_ticket, verify_ticket


def verify(options: argparse.Namespace) -> None:
    """Digest, counts and supermasks of a ticket, and every keep plane regenerated from its seed."""
    ticket = read_ticket(options.file)
    verify_ticket(ticket)
    planes = sum(len(record.supermask_names) for record in ticket.records)
    print(f"{ticket.path}: whole; {planes} keep planes regenerate as written")


def add(commands: Any) -> None:
    """The command and its options."""
    sub = commands.add_parser("verify", help=verify.__doc__)
    sub.add_argument("file", metavar="FILE", help="a ticket")
    sub.set_defaults(run=verify)
