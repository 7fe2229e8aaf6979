"""What the commands have in common: wrong input, told in one line."""

from __future__ import annotations

import re
from collections.abc import Callable

SEEDS = 1 << 64
MOST_THREADS = 1024


class Usage(Exception):
    """Input that a command cannot use: told in one line, exit status 2."""


def whole(option: str, least: int, most: int | None = None) -> Callable[[str], int]:
    """What reads an option's integer. `Usage` for anything else."""
    expected = f"an integer of {least} or more" if most is None else f"an integer from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise Usage(f"{option}: {expected}, got {text!r}") from None
        if value < least or (most is not None and value > most):
            raise Usage(f"{option}: {expected}, got {value}")
        return value

    return read


def one_line(why: BaseException) -> str:
    """An exception's type and the first line of what it says."""
    said = str(why).strip().splitlines()
    return f"{type(why).__name__}: {said[0]}" if said else type(why).__name__


def shown(why: BaseException) -> str:
    """What an exception says in one line, without characters that would steer a terminal."""
    said = " ".join(line.strip() for line in str(why).strip().splitlines())
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", said)
