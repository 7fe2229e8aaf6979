"""Plain text for reports, pictures and the command line: tables, lists of names, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NAMES_SHOWN = 5


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines of columns: text on the left, numbers on the right; empty cells are either."""
    cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    numeric = [all(not row[i] or row[i][0].isdigit() for row in cells) for i in range(len(head))]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    lines = []
    for line in [list(head), *cells]:
        padded = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def bytes_text(size: float) -> str:
    """A number of bytes in decimal units: 950 B, 12 kB, 1.5 MB."""
    return _scaled(size, (" B", " kB", " MB", " GB"))


def count_text(count: float) -> str:
    """A number of things: 950, 36.9 k, 1.18 M."""
    return _scaled(count, ("", " k", " M", " G"))


def _scaled(value: float, units: Sequence[str]) -> str:
    """Three digits in the first unit in which they are below 1000, or in the last."""
    for unit in units[:-1]:
        if float(f"{value:.3g}") < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}{units[-1]}"


def percent_text(share: float) -> str:
    return f"{100 * share:.4g} %"
