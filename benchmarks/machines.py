"""The tables of README.md and docs/benchmarks.md from the records of all machine types.

`python -m benchmarks.machines` prints them, `--write` puts them into the pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from .records import OK, Row, read_rows, write_whole
from .registry import CONV_BATCHES, cases
from .run import RESULTS, registered
from .summary import reading
from .targets import LONGER, TARGETS, Target
from .verify import ROOT

README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
MODELS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "bert_base": "BERT-base"}
HELD = {"dense": "dense torch", "seed": "`seed`, smallest", "mask": "`mask`", "auto": "`auto`, chosen by layer"}
NONE = "-"


def recorded() -> list[list[Row]]:
    """The records of all machine types, best instruction set last."""
    order = ("portable", "neon", "avx2", "avx512", "vnni", "zen4", "amx")
    tables = [registered(read_rows(path)) for path in sorted(RESULTS.glob("*.csv"))]
    return sorted((rows for rows in tables if rows), key=lambda rows: order.index(rows[0]["isa"]))


def _short(rows: Sequence[Row]) -> str:
    """The instruction set of a record, with the processor's maker."""
    return f"`{rows[0]['isa']}` {rows[0]['machine'].split('(')[0].split()[0]}"


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


def _names(machines: Sequence[list[Row]]) -> str:
    """What the short names of machine types stand for, those of one kind of machine together."""
    found: dict[str, list[str]] = {}
    for first, *_ in machines:
        name = f"{first['machine']}, {first['threads']} threads, torch {first['torch']}"
        found.setdefault(name, []).append(f"`{first['isa']}`")
    return "; ".join(f"{', '.join(levels)}: {name}" for name, levels in found.items()) + "."


def table_of_targets() -> str:
    """Targets by machine types: a ratio, then the goal; bold where it is met."""
    machines = recorded()
    heads = [_short(rows) for rows in machines]
    lines = ["| what | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for target in TARGETS:
        found = [_cell(target, rows) for rows in machines]
        if any(found):
            what = {"maximum": "; at most", "geomean": "; geometric mean"}.get(target.statistic, "")
            what = (": its time over torch's" if target.unit == LONGER else "") + what
            lines.append(f"| {target.text}{what} | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", _names(machines), ""])


def _ok(rows: Sequence[Row], name: str) -> Row | None:
    """The row of a case that came out right on a machine type."""
    return next((row for row in rows if row["name"] == name and row["status"] == OK), None)


def _counted(machines: Sequence[list[Row]], name: str, kept: str, kind: str) -> str:
    """Megabytes of a file, or of tensors held the same everywhere, so that any machine type may tell them."""
    found = [row for rows in machines if (row := _ok(rows, f"whole/{name}/{kept}/{kind}"))]
    return f"{float(found[-1]['median']):.3g} MB" if found else NONE


def _with_peaks(machines: Sequence[list[Row]]) -> list[Row]:
    """The record whose peaks the table tells, the last that has any: a peak is measured, and differs by machine."""

    def told(row: Row) -> bool:
        return row["group"] == "whole" and row["name"].endswith("/peak") and row["status"] == OK

    return next((rows for rows in reversed(machines) if any(map(told, rows))), [])


def _forwards(rows: Sequence[Row], name: str, kept: str) -> list[Row | None]:
    """The row of a forward of each batch size."""
    return [_ok(rows, f"model/{name}/b{batch}/fp32/sign/{kept}") for batch in CONV_BATCHES]


def _pair(values: Iterable[str]) -> str:
    """One value for each batch size, a lone dash where there is none."""
    found = list(values)
    return NONE if set(found) == {NONE} else " / ".join(found)


def _held_by_auto(machines: Sequence[list[Row]], name: str) -> str:
    """Megabytes of the models that were timed: `auto` chooses for the machine and for the batch."""
    found = []
    for rows in machines:
        forwards = _forwards(rows, name, "auto")
        held = _pair(f"{float(row['held']):.3g}" if row and row["held"] else NONE for row in forwards)
        if held != NONE:
            found.append(f"{_short(rows)} {held} MB")
    return "; ".join(found) or NONE


def _speeds(rows: Sequence[Row], name: str, kept: str) -> str:
    """How many times as fast as dense torch a forward of each batch size is."""
    if kept == "dense":
        return _pair("1" if row else NONE for row in _timed(rows, name))
    return _pair(f"{float(row['ratio']):.2f}" if row else NONE for row in _forwards(rows, name, kept))


def _timed(rows: Sequence[Row], name: str) -> list[Row | None]:
    """A row of each batch size that tells torch's time: each residency takes turns with it, so that any does."""
    each = zip(*(_forwards(rows, name, kept) for kept in HELD if kept != "dense"), strict=True)
    return [next((row for row in of if row), None) for of in each]


def _whole_ms(value: str) -> str:
    return f"{float(value):.0f}" if float(value) >= 100 else f"{float(value):.3g}"


def _milliseconds(machines: Sequence[list[Row]]) -> str:
    """What dense torch takes for a forward of each batch size."""
    found = []
    for rows in machines:
        times = []
        for name, label in MODELS.items():
            pair = _pair(_whole_ms(row["baseline_median"]) if row else NONE for row in _timed(rows, name))
            if pair != NONE:
                times.append(f"{label} {pair}")
        found.append(f"on {_short(rows)} {', '.join(times)}")
    return "Dense torch takes, in ms at batch 1 / 16: " + ("; ".join(found) or NONE) + "."


def table_of_models(rows: Iterable[str] = ("dense", "seed", "mask")) -> str:
    """Whole models: bytes on disk and in memory, and how fast a forward is on every machine type."""
    everything = recorded()
    machines = _telling_bytes(everything)
    with_peaks = _with_peaks(everything)
    peaks = f"peak on {_short(with_peaks)}" if with_peaks else "peak"
    speeds = [f"times as fast on {_short(rows)}, batch 1 / 16" for rows in machines]
    heads = ["model, how held", "file", "in memory", peaks, *speeds]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, label in MODELS.items():
        for kept in rows:
            how = HELD[kept]
            disk = "dense" if kept == "dense" else "seed"  # the ticket is the same however it is held
            auto = kept == "auto"
            cells = [
                f"**{label}**, {how}" if kept == "dense" else how,
                _counted(everything, name, disk, "disk"),
                _held_by_auto(machines, name) if auto else _counted(everything, name, kept, "resident"),
                _counted([with_peaks], name, kept, "peak"),
                *(_speeds(rows, name, kept) for rows in machines),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_notes(everything, machines), ""])


def _notes(everything: Sequence[list[Row]], machines: Sequence[list[Row]]) -> list[str]:
    """What the table itself cannot say."""
    older = [_short(rows) for rows in everything if rows not in machines]
    found = f"{NONE}: not measured."
    if older:
        found += f" {', '.join(older)}: not measured in this form yet."
    return [found, *([_names(machines)] if machines else [])]


def table_of_models_with_times() -> str:
    """The same with `auto`, and what dense torch takes."""
    return table_of_models(HELD) + f"\n{_milliseconds(_telling_bytes(recorded()))}\n"


def _telling_bytes(machines: Sequence[list[Row]]) -> list[list[Row]]:
    """The records that tell what `auto` held: speeds of the others belong to no bytes."""
    return [rows for rows in machines if any(row["held"] for row in rows)]


def table_of_gradients() -> str:
    """Gradients of one linear layer and one convolution on every machine type."""
    machines = recorded()
    heads = ["gradient", *map(_short, machines)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in cases():
        if case.group == "gradient" and case.residency == "planes":
            layer, of = case.op.split("_grad_")
            size = " x ".join(map(str, case.shape))
            found = [next((r["ratio"] for r in rows if r["name"] == case.name and r["ratio"]), "") for rows in machines]
            cells = [f"{float(ratio):.2f}" if ratio else "" for ratio in found]
            lines.append(f"| of the {of}, {layer} {size}, batch {case.batch} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


TABLES = (
    (README, "models", table_of_models),
    (PAGE, "models", table_of_models_with_times),
    (PAGE, "targets", table_of_targets),
    (PAGE, "gradients", table_of_gradients),
)


def section(text: str, name: str) -> tuple[int, int]:
    """Where a table stands in its page."""
    start = f"<!-- {name}: python -m benchmarks.machines --write -->\n"
    begin = text.index(start) + len(start)
    return begin, text.index(f"<!-- end of {name} -->\n", begin)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into README.md and docs/benchmarks.md")
    options = parser.parse_args(arguments)
    for page, name, table in TABLES:
        if options.write:
            text = page.read_text()
            begin, end = section(text, name)
            write_whole(page, text[:begin] + table() + text[end:])
        else:
            print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
