"""What the commands have in common: wrong input, and numbers."""

from __future__ import annotations

import argparse


class Usage(Exception):
    """Input that a command cannot use: told in one line, exit status 2."""


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"1 or more, got {value}")
    return value


def one_line(why: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    said = str(why).strip().splitlines()
    return f"{type(why).__name__}: {said[0]}" if said else type(why).__name__
