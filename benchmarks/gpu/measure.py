"""Measures settings one after the other in a process that its parent may have to end."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

import frozen_kernels as fk
from frozen_kernels.tune.measure import quartiles, speedup

from ..records import OK, REFUSED, Row, row_of
from ..verify import ROOT, Verdict
from . import report
from .registry import GpuCase
from .sides import BUILDERS, COMPILED, Place, Sides
from .timing import Budget, Call, Clock, GraphClock, HostClock, host_microseconds

SECONDS = 0.6  # of timing, for each side of a setting
ENOUGH = 8.0  # seconds that a setting may need: none starts with less


def settings(cases: Iterable[GpuCase]) -> Iterator[tuple[str, list[GpuCase]]]:
    """Cases of one setting together, in order."""
    for name, group in itertools.groupby(cases, key=lambda case: case.setting):
        yield name, list(group)


def place() -> Place:
    """The GPU, or the processor for Triton's interpreter."""
    if not torch.cuda.is_available():
        return Place(torch.device("cpu"), 1)
    return Place(torch.device("cuda"), torch.cuda.get_device_properties(0).L2_cache_size)


def refused(why: str) -> dict[str, object]:
    return {"status": REFUSED, "note": why}


def broken(why: BaseException) -> str:
    return f"{type(why).__name__}: {why}".splitlines()[0][:200]


def _figures(case: GpuCase, times: dict[str, list[float]], verdict: Verdict, sides: Sides) -> dict[str, object]:
    taken = times[case.name]
    low, median, high = quartiles(taken)
    found: dict[str, object] = {
        "status": OK, "unit": "ms", "rounds": len(taken), "median": median, "low": low, "high": high,
        "best": min(taken), "error": verdict.error, "torch_error": verdict.torch_error,
        "baseline_median": quartiles(times[case.baseline]).median,
        "best_ratio": min(times[case.baseline]) / min(taken), "note": sides.absent.get(case.other, ""),
    }  # fmt: skip
    for column, baseline in (("ratio", case.baseline), ("other_ratio", case.other)):
        if baseline in times:
            ratio = speedup(times[baseline], taken)
            found |= {f"{column}_low": ratio.low, column: ratio.median, f"{column}_high": ratio.high}
    if case.operations:
        found["gmac_per_s"] = case.operations / (1e6 * median)
    if case.bytes:
        found["weight_gb_per_s"] = case.bytes / (1e6 * median)
    return found


def _times(clock: Clock, calls: dict[str, list[Call]], sides: Sides, seconds: float) -> dict[str, list[float]]:
    """Of all sides, without the compiled one where that cannot be captured; it then leaves `calls`."""
    try:
        return clock.rounds(calls, seconds)
    except Exception as why:  # what a compiler makes need not suit a graph
        if calls.pop(COMPILED, None) is None:
            raise
        sides.absent[COMPILED] = f"{COMPILED}: {broken(why)}"
        return clock.rounds(calls, seconds)


def _judged(sides: Sides, case: GpuCase) -> Verdict:
    try:
        return sides.verdict(case.name)
    except Exception as why:  # whatever a kernel does on a device that it never met, the other cases are measured
        return Verdict(False, why=broken(why))


def measure_setting(members: Sequence[GpuCase], where: Place) -> list[dict[str, object]]:
    """Measured columns of the cases of one setting: refused where wrong, and without figures in the interpreter."""
    sides = BUILDERS[members[0].group](members, where)
    verdicts = {case.name: _judged(sides, case) for case in members}
    right = [case for case in members if verdicts[case.name].passed]
    found = {case.name: refused(verdicts[case.name].why) for case in members}
    if not right:
        return [found[case.name] for case in members]
    clock: Clock = HostClock() if where.interpreted else GraphClock()
    calls = {**sides.baselines, **{case.name: sides.calls[case.name] for case in right}}
    synchronize = torch.cpu.synchronize if where.interpreted else torch.cuda.synchronize
    with fk.backends.use(members[0].backend):
        times = _times(clock, calls, sides, 0.0 if where.interpreted else SECONDS * len(calls))
        hosts = (
            {name: host_microseconds(of, synchronize) for name, of in calls.items()} if not where.interpreted else {}
        )
    mhz = report.clock_mhz()
    for case in right:
        figures = _figures(case, times, verdicts[case.name], sides)
        if where.interpreted:
            kept = ("status", "error", "torch_error", "rounds")
            found[case.name] = {k: figures[k] for k in kept} | {
                "note": "no GPU: interpreted, which says nothing of speed"
            }
        else:
            own = {"host_us": hosts[case.name], "baseline_host_us": hosts[case.baseline], "clock_mhz": mhz}
            found[case.name] = figures | own
    return [found[case.name] for case in members]


def _mend_the_interpreter() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "gpu"))
    import interpreter

    interpreter.mend()


def log(path: Path, **entry: object) -> None:
    with path.open("a") as out:
        out.write(f"\n{json.dumps(entry)}\n")


def read_log(path: Path) -> list[dict]:
    """The entries, but for one that a process did not live to end."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found += [json.loads(line)] if line else []
    return found


def is_sticky() -> bool:
    """Whether the device answers no more calls of this process."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@torch.no_grad()
def work(cases: Sequence[GpuCase], path: Path, seconds: float) -> int:
    """Measures what the log does not name yet; 3 where the device failed for good, so that another process goes on."""
    budget, where, machine = Budget(seconds), place(), report.here()
    if where.interpreted:
        _mend_the_interpreter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # the baseline's best algorithm
    tried = {entry["start"] for entry in read_log(path) if "start" in entry}
    for name, members in settings(cases):
        if name in tried:
            continue
        if budget.left < ENOUGH and not where.interpreted:
            break
        log(path, start=name)
        try:
            measured = measure_setting(members, where)
        except Exception as why:  # as above
            measured = [refused(broken(why)) for _ in members]
        rows: list[Row] = [row_of(c, m, machine, report.COLUMNS) for c, m in zip(members, measured, strict=True)]
        log(path, end=name, rows=rows)
        for row in rows:
            print(report.line_of(row), flush=True)
        if is_sticky():
            return 3
        if not where.interpreted:
            torch.cuda.empty_cache()
    log(path, done=True)
    return 0
