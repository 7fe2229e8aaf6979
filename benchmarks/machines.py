"""The table of speed in docs/benchmarks.md, of every machine type. `python -m benchmarks.machines [--write]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .records import OK, Row, read_rows, write_whole
from .run import RESULTS, registered
from .summary import reading
from .targets import LONGER, TARGETS, Target
from .verify import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- speed: python -m benchmarks.machines --write -->\n", "<!-- end of speed -->\n"


def recorded() -> list[list[Row]]:
    """The records of all machine types, best instruction set last."""
    order = ("portable", "neon", "avx2", "avx512", "vnni", "amx")
    tables = [registered(read_rows(path)) for path in sorted(RESULTS.glob("*.csv"))]
    return sorted((rows for rows in tables if rows), key=lambda rows: order.index(rows[0]["isa"]))


def _cell(target: Target, rows: Sequence[Row]) -> str:
    """What a machine type reached, with its goal; bold where that is met."""
    isa = rows[0]["isa"]
    mine = [row for row in rows if row["line"] == target.line and row["status"] == OK]
    values = [value for row in mine if (value := reading(target, row)) is not None]
    if not values:
        return ""
    value, goal = target.value(values), target.goal_on(isa)
    if goal is None:
        return f"{value:.3g}"
    return f"**{value:.3g}** / {goal:.3g}" if target.met(value, isa) else f"{value:.3g} / {goal:.3g}"


def table() -> str:
    """Targets by machine types: a ratio, then the goal; bold where it is met."""
    machines = recorded()
    heads = [f"`{rows[0]['isa']}`" for rows in machines]
    lines = ["| what | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for target in TARGETS:
        found = [_cell(target, rows) for rows in machines]
        if any(found):
            what = {"maximum": "; at most", "geomean": "; geometric mean"}.get(target.statistic, "")
            what = (": its time over torch's" if target.unit == LONGER else "") + what
            lines.append(f"| {target.text}{what} | " + " | ".join(found) + " |")
    names = {
        f"`{rows[0]['isa']}`: {rows[0]['machine']}, {rows[0]['threads']} threads, torch {rows[0]['torch']}"
        for rows in machines
    }
    return "\n".join([*lines, "", "; ".join(sorted(names)) + ".", ""])


def section(text: str) -> tuple[int, int]:
    """Where the table stands in the page."""
    begin = text.index(BEGIN) + len(BEGIN)
    return begin, text.index(END, begin)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    if not options.write:
        print(table())
        return 0
    text = PAGE.read_text()
    begin, end = section(text)
    write_whole(PAGE, text[:begin] + table() + text[end:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
