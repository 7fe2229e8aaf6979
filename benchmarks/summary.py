"""The table of targets: what was measured for each, and whether it is met."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from .records import OK, REFUSED, Row
from .registry import SHORT
from .targets import FASTER, LONGER, TARGETS, Target

LAYERED = ("linear", "resnet", "mobilenet", "model", "gradient")
BUSY = 50.0  # times a second that a thread had to give way; an idle machine has a few


def line_of(row: Row) -> str:
    """A row in a line of text."""
    if row["status"] != OK:
        return f"{row['name']:58} refused: {row['note']}"
    text = f"{row['name']:58} {float(row['median']):9.4g} {row['unit']}"
    if row["ratio"]:
        text += f"  {float(row['ratio']):6.2f}x {row['baseline']}"
    if row["other_ratio"]:
        text += f"  {float(row['other_ratio']):6.2f}x {row['other']}"
    return text


def reading(target: Target, row: Row, best: bool = False) -> float | None:
    """What a row says to a target, by medians or by the fastest calls; None where it was not measured."""
    columns = ("ratio", "best_ratio") if target.unit in (FASTER, LONGER) else ("median", "best")
    cell = row[columns[best]]
    if not cell:
        return None
    return 1 / float(cell) if target.unit == LONGER else float(cell)


def _value(target: Target, rows: Sequence[Row], best: bool) -> str:
    """The target's statistic over medians or over the fastest calls, with the case at its end where there are more."""
    found = [(value, row["name"]) for row in rows if (value := reading(target, row, best)) is not None]
    if not found:
        return ""
    text = f"{target.value([v for v, _ in found]):.3g} {target.unit}"
    if target.statistic == "geomean":
        return f"{text} (geometric mean)"
    name = (max if target.statistic == "maximum" else min)(found)[1]
    return f"{text}, {name}" if len(found) > 1 and not best else text


def cells(target: Target, rows: Sequence[Row]) -> tuple[str, ...]:
    """A target, its goal, what was reached by medians and by the fastest calls, and whether that meets it."""
    least = "at most" if target.statistic == "maximum" else "at least"
    isa = rows[0].get("isa", "") if rows else ""  # a GPU's rows have none
    wanted = target.goal_on(isa)
    goal = "" if wanted is None else f"{least} {wanted:g} {target.unit}"
    mine = [row for row in rows if row["line"] == target.line]
    missing = Counter(row["status"] for row in mine if row["status"] != OK)
    if missing or not mine:
        why = ", ".join(f"{count} {status}" for status, count in missing.items()) or "not measured"
        return target.text, goal, why, "", "no" if REFUSED in missing else ""
    values = [value for row in mine if (value := reading(target, row)) is not None]
    met = "" if wanted is None else "yes" if target.met(target.value(values), isa) else "no"
    return target.text, goal, _value(target, mine, best=False), _value(target, mine, best=True), met


def _groups(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Geometric means of ratios by kind of layer, batch and what is kept."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["status"] == OK and row["group"] in LAYERED:
            key: tuple[str, ...] = (row["group"], SHORT[row["dtype"]], row["batch"], row["code"], row["residency"])
            found.setdefault(key, []).append(row)
    out: list[tuple[str, ...]] = []
    for key, members in found.items():
        ratios, masked = ([float(r[c]) for r in members if r[c]] for c in ("ratio", "other_ratio"))
        over_masked = f"{statistics.geometric_mean(masked):.2f}" if masked else ""
        mean = f"{statistics.geometric_mean(ratios):.2f}"
        out.append((*key, str(len(members)), mean, f"{min(ratios):.2f}", over_masked))
    return out


def _busy(rows: Sequence[Row]) -> list[str]:
    """A warning where other programs ran at the same time."""
    timed = [row for row in rows if row["preempted_per_s"]]
    disturbed = sum(float(row["preempted_per_s"]) > BUSY for row in timed)
    if not disturbed:
        return []
    return [
        "",
        f"Other programs took the processors during {disturbed} of {len(timed)} timed cases; their figures are noisy.",
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Targets against what was measured, and a table of geometric means."""
    first = rows[0]
    out = [
        f"{first['machine']}, {first['threads']} threads, kernels {first['isa']}, torch {first['torch']}.",
        "Times as fast as torch, medians of alternating calls; cases of a line are listed in the CSV beside this file.",
        "",
        "| what | target | measured (medians) | fastest calls | met |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(cells(target, rows)) + " |" for target in TARGETS),
        "",
        "| cases | dtype | batch | code | residency | count | x torch, geometric mean | worst | x masked dense |",
        "|---|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(group) + " |" for group in _groups(rows)),
        "",
        *(f"{row['name']}: {row['note']}." for row in rows if row["note"]),
        *_busy(rows),
        "",
    ]
    return "\n".join(out)
