"""Plain text for reports and the command line: tables, and lists of names."""

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
