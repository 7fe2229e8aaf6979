"""Rows of results: their columns, and files that are whole at any moment."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from frozen_kernels import files

from .registry import Case

CASE = (
    "name", "group", "op", "shape", "input", "geometry", "dtype", "code", "residency", "threshold_bits", "batch",
    "bytes", "operations", "line", "target", "baseline", "other",
)  # fmt: skip
MEASURED = (
    "status", "note", "unit", "rounds", "median", "low", "high", "best", "baseline_median",
    "ratio", "ratio_low", "ratio_high", "best_ratio", "other_ratio", "other_ratio_low", "other_ratio_high",
    "gmac_per_s", "gemm_share", "weight_gb_per_s", "read_share", "error", "torch_error", "preempted_per_s",
    "held",  # MB in memory of the very model that was timed
)  # fmt: skip
MACHINE = ("machine", "threads", "isa", "torch", "package", "commit")
COLUMNS = (*CASE, *MEASURED, *MACHINE)
OK, REFUSED, SKIPPED = "ok", "refused", "skipped"  # skipped: there was no time for it

Row = dict[str, str]


def text(value: object) -> str:
    """A value as a cell: numbers to six digits, tuples joined by x."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        nested = any(isinstance(v, tuple) for v in value)
        return (" " if nested else "x").join(map(text, value))
    return str(value)


def row_of(case: Case, measured: dict[str, object], machine: dict[str, str], columns: Sequence[str] = COLUMNS) -> Row:
    """One row with every column; what was not measured is empty."""
    unknown = (set(measured) | set(machine)) - set(columns)
    if unknown:
        raise KeyError(f"not columns: {', '.join(sorted(unknown))}")
    values = {name: getattr(case, name) for name in CASE} | measured | machine
    return {name: text(values.get(name)) for name in columns}


def write_whole(path: Path, data: str | bytes) -> None:
    """Replace a file in one step, in a folder that is made where it is missing."""
    files.replace(path, data)


def write_rows(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, out.getvalue())


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; columns that it does not know yet are empty."""
    with path.open(newline="") as lines:
        return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(lines)]
