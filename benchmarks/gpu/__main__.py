"""Measures the Triton kernels on a GPU: `python -m benchmarks.gpu [--seconds N] [--filter REGEX] [--out FOLDER]`.

Every case is first compared with float64; a wrong one gets no figures and the exit status is 1. Without a GPU only
`--dry` runs: tiny cases in Triton's interpreter, which prove this code and give no figures.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..records import OK, REFUSED, SKIPPED, Row, row_of
from ..verify import ROOT
from . import report
from .measure import log, read_log, settings, work
from .registry import GpuCase, choose
from .timing import Budget

SECONDS = 240.0
STALL = 75.0  # seconds without a word after which a process is ended: a kernel may hang
GRACE = 15.0
ATTEMPTS = 6


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    root.add_argument("--seconds", type=float, default=SECONDS, help="of all cases together; the last ones are skipped")
    root.add_argument("--filter", default="", help="only cases whose name contains this regular expression")
    root.add_argument("--out", type=Path, help="folder of the record; by default benchmarks/results")
    root.add_argument("--dry", action="store_true", help="tiny cases in Triton's interpreter, no figures, no record")
    root.add_argument("--no-plots", action="store_true")
    root.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return root


def collect(chosen: Sequence[GpuCase], entries: Sequence[dict]) -> list[Row]:
    """A row for each case: as logged, refused where a process ended in the middle of it, else skipped."""
    rows = {row["name"]: row for entry in entries for row in entry.get("rows", ())}
    died = {entry["end"]: entry["died"] for entry in entries if "died" in entry}
    machine = report.here()
    found = []
    for case in chosen:
        left: dict[str, object] = {"status": SKIPPED, "note": "no time left"}
        if case.setting in died:
            left = {"status": REFUSED, "note": died[case.setting]}
        found.append(rows.get(case.name) or row_of(case, left, machine, report.COLUMNS))
    return found


def close(path: Path, reason: str) -> list[dict]:
    """Logs why a process ended for the setting that it was at; all entries."""
    entries = read_log(path)
    ended = {entry["end"] for entry in entries if "end" in entry}
    for name in [entry["start"] for entry in entries if "start" in entry]:
        if name not in ended:
            log(path, end=name, died=reason)
    return read_log(path)


def _watch(child: subprocess.Popen, path: Path, budget: Budget) -> str:
    """Waits for a process; ends it where it says nothing for long or time is over. Why it ended, if not by itself."""
    size, moved = -1, time.monotonic()
    while child.poll() is None:
        time.sleep(0.1)
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            size, moved = now, time.monotonic()
        late = not budget.left
        if late or time.monotonic() - moved > STALL:
            child.kill()
            child.wait()
            return "ended: out of time" if late else f"ended: said nothing for {STALL:.0f} s"
    return f"its process ended with status {child.returncode}"


def supervise(arguments: Sequence[str], chosen: Sequence[GpuCase], seconds: float) -> list[Row]:
    """Rows of all cases, from as many processes as it takes: a device error ends one, not the others."""
    budget = Budget(seconds + GRACE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for _ in range(ATTEMPTS):
            left = budget.left - GRACE
            if left <= 0:
                break
            command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
            child = subprocess.Popen([*command, "--worker", str(path), "--seconds", str(left)], cwd=ROOT)
            entries = close(path, _watch(child, path, budget))
            tried = {entry["start"] for entry in entries if "start" in entry}
            if any("done" in entry for entry in entries) or tried >= {name for name, _ in settings(chosen)}:
                break
        return collect(chosen, read_log(path))


def main(arguments: Sequence[str] | None = None) -> int:
    root = parser()
    options = root.parse_args(arguments)
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    if options.dry and not interpreting:
        root.error("--dry needs TRITON_INTERPRET=1")
    if not options.dry and (interpreting or not torch.cuda.is_available()):
        root.error("no GPU here (or TRITON_INTERPRET=1): only --dry runs")
    try:
        chosen = choose(options.filter, options.dry)
    except (ValueError, re.error) as why:
        root.error(str(why))
    if options.worker:
        return work(chosen, options.worker, options.seconds)
    passed_on = [*(["--dry"] if options.dry else []), *(["--filter", options.filter] if options.filter else [])]
    rows = supervise(passed_on, chosen, options.seconds)
    if not options.dry:
        for problem in report.write(rows, options.out or ROOT / "benchmarks" / "results", not options.no_plots):
            print(problem)
        print("\n" + "\n".join(report.table(rows)))
    for row in rows:
        if row["status"] == REFUSED:
            print(f"refused {row['name']}: {row['note']}", file=sys.stderr)
    print(report.verdict(rows))
    return 0 if all(row["status"] in (OK, SKIPPED) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
