"""The tables of README.md and docs/benchmarks.md from the records of all machine types.

`python -m benchmarks.machines` prints them, `--write` puts them into the pages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .records import OK, Row, read_rows, write_whole
from .registry import CONV_BATCHES, WHOLE_BYTES, cases
from .run import RESULTS, registered
from .summary import reading
from .targets import LONGER, TARGETS, Target
from .verify import ROOT

README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
MODELS = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "bert_base": "BERT-base"}
HELD = {"dense": "dense torch", "auto": "frozen, fastest", "seed": "frozen, smallest"}


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
    heads = [f"`{rows[0]['isa']}`" for rows in machines]
    lines = ["| what | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for target in TARGETS:
        found = [_cell(target, rows) for rows in machines]
        if any(found):
            what = {"maximum": "; at most", "geomean": "; geometric mean"}.get(target.statistic, "")
            what = (": its time over torch's" if target.unit == LONGER else "") + what
            lines.append(f"| {target.text}{what} | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", _names(machines), ""])


def _megabytes(machines: Sequence[list[Row]], name: str, kept: str, kind: str) -> str:
    """Bytes are counted, so any machine type may tell them; the last one is the first to be asked."""
    wanted = f"whole/{name}/{kept}/{kind}"
    found = [float(row["median"]) for rows in machines for row in rows if row["name"] == wanted and row["median"]]
    return f"{found[-1]:.3g} MB" if found else ""


def _times(rows: Sequence[Row], name: str, kept: str) -> str:
    """A forward of each batch size: milliseconds of dense torch, or how many times as fast ours is."""
    found = []
    for batch in CONV_BATCHES:
        setting = f"model/{name}/b{batch}/fp32/sign/"
        # each residency was timed in turns with dense torch, so that any of them tells torch's time
        wanted = setting if kept == "dense" else setting + kept
        row = next((row for row in rows if row["name"].startswith(wanted) and row["status"] == OK), None)
        if row is None:
            return ""
        found.append(f"{float(row['baseline_median']):.3g}" if kept == "dense" else f"{float(row['ratio']):.2f}x")
    return " / ".join(found) + (" ms" if kept == "dense" else "")


def table_of_models() -> str:
    """Whole models: bytes on disk and in memory, and the time of a forward on every machine type."""
    machines = recorded()
    heads = ["", "file", "in memory", "peak", *(f"`{rows[0]['isa']}`" for rows in machines)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, label in MODELS.items():
        for kept, how in HELD.items():
            cells = [f"**{label}**, {how}" if kept == "dense" else how]
            cells += [_megabytes(machines, name, kept, kind) for kind in WHOLE_BYTES]
            cells += [_times(rows, name, kept) for rows in machines]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _names(machines), ""])


def table_of_gradients() -> str:
    """Gradients of one linear layer and one convolution on every machine type."""
    machines = recorded()
    heads = ["gradient", *(f"`{rows[0]['isa']}`" for rows in machines)]
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
    (PAGE, "models", table_of_models),
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
