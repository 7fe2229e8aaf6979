"""Measures again and compares with the record of this machine type: `python -m benchmarks.check [--filter REGEX]`.

Exit status 0, 1 where a ratio fell beyond the noise or a case came out wrong, 2 where there is nothing to compare with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from frozen_kernels.text import table

from . import machine
from .records import OK, Row, read_rows
from .registry import Case
from .run import QUICK_SECONDS, RESULTS, SECONDS, choose, measure, parser

FLOOR = 0.05  # of a ratio: what two runs differ by whatever their quartiles say
SPREADS = 2.0  # half quartile distances that count as noise
COUNTED = 0.01  # of a value that is counted, not measured


class Comparison(NamedTuple):
    """Change of a case as new over old, above 1 is better; noise is from 1 / (1 + `allowed`) to 1 + `allowed`."""

    name: str
    old: float
    new: float
    unit: str
    change: float
    allowed: float
    verdict: str


def _spread(row: Row) -> float:
    """Half the distance of a ratio's quartiles, relative to it."""
    return (float(row["ratio_high"]) - float(row["ratio_low"])) / (2 * float(row["ratio"]))


def compare(old: Row, new: Row) -> Comparison | None:
    """One case now and then; None where the record has no figure, or one of another size."""
    if old["status"] != OK or old["shape"] != new["shape"]:
        return None
    timed = bool(old["ratio"])
    column = "ratio" if timed else "median"
    was, unit = float(old[column]), "x" if timed else old["unit"]
    if new["status"] != OK:
        return Comparison(old["name"], was, float("nan"), unit, 0.0, 0.0, f"refused: {new['note']}")
    now = float(new[column])
    if timed:
        change, allowed = now / was, FLOOR + SPREADS * (_spread(old) + _spread(new))
    elif unit == "of dense":  # a share near 0, where only the difference means anything
        change, allowed = (1 + was) / (1 + now), FLOOR
    else:
        change, allowed = was / now, FLOOR if old["group"] in ("memory", "load") else COUNTED
    verdict = "worse" if change * (1 + allowed) < 1 else "better" if change > 1 + allowed else ""
    return Comparison(old["name"], was, now, unit, change, allowed, verdict)


def is_regression(found: Comparison) -> bool:
    return found.verdict == "worse" or found.verdict.startswith("refused")


def check(
    recorded: Sequence[Row], chosen: Sequence[Case], measured: Callable[[Sequence[Case]], list[Row]]
) -> list[Comparison]:
    """Compares all; what seems worse is measured once more, and only a case that is worse both times stays so."""
    then = {row["name"]: row for row in recorded}
    known = [case for case in chosen if case.name in then]
    found = {row["name"]: compare(then[row["name"]], row) for row in measured(known)}
    suspects = {name for name, c in found.items() if c is not None and is_regression(c)}
    settings = {case.setting for case in known if case.name in suspects}
    if suspects:
        for row in measured([case for case in known if case.setting in settings]):
            if row["name"] in suspects:
                found[row["name"]] = compare(then[row["name"]], row)
    return [c for c in found.values() if c is not None]


def _same_machine(rows: Sequence[Row]) -> bool:
    here = machine.identity()
    return all(row[key] == here[key] for row in rows for key in ("machine", "threads", "isa"))


def _report(found: Sequence[Comparison]) -> str:
    cells = [
        (
            c.name,
            f"{c.old:.3g} {c.unit}",
            f"{c.new:.3g} {c.unit}",
            f"{c.change - 1:+.1%}",
            f"{c.allowed:.1%}",
            c.verdict,
        )
        for c in found
    ]
    return table(("case", "recorded", "now", "change", "noise", ""), cells)


def main(arguments: Sequence[str] | None = None) -> int:
    root = parser(__doc__)
    root.add_argument("--record", type=Path, help="the CSV; by default that of this machine type")
    options = root.parse_args(arguments)
    torch.set_num_threads(options.threads)
    path = options.record or RESULTS / f"{machine.slug()}.csv"
    rows = read_rows(path) if path.exists() else []
    if not rows or not _same_machine(rows):
        print(f"{path}: no record of this machine type ({machine.slug()}); nothing compared. `make bench` makes one.")
        return 2
    try:
        chosen = choose(options.filter)
    except (ValueError, re.error) as why:
        root.error(str(why))
    seconds = QUICK_SECONDS if options.quick else SECONDS
    found = check(rows, chosen, lambda members: measure(members, seconds, quiet=True))
    print(_report(found))
    worse = [c for c in found if is_regression(c)]
    print(f"\n{len(found)} compared, {len(worse)} worse beyond the noise")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
