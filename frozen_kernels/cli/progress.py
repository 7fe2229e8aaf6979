"""Progress on stderr, only where that is a terminal: a bar of tqdm, or lines where it is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable


def reporter() -> Callable[[int, int, str], None] | None:
    """A function of the steps done, their number and what comes next, empty at the end; None where nobody looks."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return _line
    bar: tqdm | None = None

    def show(done: int, total: int, what: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, file=sys.stderr, leave=False)
        bar.update(done - bar.n)
        bar.set_description(what)
        if not what:
            bar.close()

    return show


def _line(done: int, total: int, what: str) -> None:
    if what:
        print(f"{done + 1} of {total}: {what}", file=sys.stderr)
