"""Measures the cases and writes CSV, a table of targets and plots: `python -m benchmarks.run [--filter REGEX]`.

Every case is first compared with float64; a wrong one gets no numbers and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from frozen_kernels.tune.measure import interleaved, quartiles, speedup

from . import machine, summary
from .counted import COUNTS
from .machine import Limits
from .records import OK, REFUSED, Row, read_rows, row_of, text, write_rows, write_whole
from .registry import Case, cases
from .served import auto_setup, call_setup, net_setup
from .sides import Call, Setup, gradient_setup, layer_setup
from .signs import signs_setup
from .stored import jackpot_setup, stored_setup
from .verify import ROOT, Verdict, run_tests
from .whole import SETUPS

RESULTS = ROOT / "benchmarks" / "results"
SECONDS, QUICK_SECONDS = 0.35, 0.08  # of timing, for each side of a setting
QUICK_LAYERS = 6  # of the stack whose process memory is read
ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, OSError, MemoryError)
BUILDERS = {
    "linear": layer_setup,
    "resnet": layer_setup,
    "mobilenet": layer_setup,
    "gradient": gradient_setup,
    "call": call_setup,
    "auto": auto_setup,
    "net": net_setup,
    "stored": stored_setup,
    "signs": signs_setup,
    "jackpot": jackpot_setup,
    **SETUPS,
}


def _refused(verdict: Verdict) -> dict[str, object]:
    return {"status": REFUSED, "note": verdict.why, "error": verdict.error, "torch_error": verdict.torch_error}


def _preempted() -> int:
    """How often a thread of this process had to give way to another program; 0 where the system does not count it."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _judged(setup: Setup, case: Case) -> Verdict:
    try:
        return setup.verdict(case.name)
    except ERRORS as why:
        return _broken(why)


def _broken(why: BaseException) -> Verdict:
    return Verdict(False, why=f"{type(why).__name__}: {why}".splitlines()[0])


def _figures(case: Case, times: dict[str, list[float]], verdict: Verdict, limits: Limits) -> dict[str, object]:
    """The measured columns of a case that is right."""
    taken = times[case.name]
    low, median, high = quartiles(taken)
    scale, unit = (1e-3, "s") if case.op == "load_ticket" else (1e3, "us") if case.group == "call" else (1.0, "ms")
    found: dict[str, object] = {
        "status": OK, "unit": unit, "rounds": len(taken), "error": verdict.error,
        "torch_error": verdict.torch_error, "median": scale * median, "low": scale * low, "high": scale * high,
        "best": scale * min(taken),
    }  # fmt: skip
    for column, baseline in (("ratio", case.baseline), ("other_ratio", case.other)):
        if baseline:
            ratio = speedup(times[baseline], taken)
            found |= {f"{column}_low": ratio.low, column: ratio.median, f"{column}_high": ratio.high}
    if case.baseline:
        found["baseline_median"] = scale * quartiles(times[case.baseline]).median
        found["best_ratio"] = min(times[case.baseline]) / min(taken)
    if case.operations:
        rate = case.operations / (1e-3 * median)
        found |= {"gmac_per_s": rate / 1e9, "gemm_share": rate / limits.gemm[case.dtype]}
    if case.bytes:
        rate = case.bytes / (1e-3 * median)
        found |= {"weight_gb_per_s": rate / 1e9, "read_share": rate / limits.read}
    return found


def _verdicts(setup: Setup, members: Sequence[Case], red: dict[str, str]) -> dict[str, Verdict]:
    found = {case.name: _judged(setup, case) for case in members}
    for case in members:
        if case.group in red:
            found[case.name] = found[case.name]._replace(passed=False, why=red[case.group])
    return found


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads, those of the run where it is 0."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector: it runs after so many allocations, and those of one call start it in another."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _timed(setup: Setup, sides: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a call of each side in each round."""
    with _no_collection() if setup.calls_of_a_turn > 1 else contextlib.nullcontext():
        times = interleaved(sides, setup.rounds, seconds * len(sides))
    return {name: [t / setup.calls_of_a_turn for t in taken] for name, taken in times.items()}


def time_setting(
    members: Sequence[Case], seconds: float, limits: Limits, red: dict[str, str]
) -> list[dict[str, object]]:
    """Measured columns of the cases of one setting; `red`: groups whose tests failed."""
    with _threads(members[0].threads):
        return _time_setting(members, seconds, limits, red)


def _time_setting(
    members: Sequence[Case], seconds: float, limits: Limits, red: dict[str, str]
) -> list[dict[str, object]]:
    setup = BUILDERS[members[0].group](members)
    verdicts = _verdicts(setup, members, red)
    right = [case for case in members if verdicts[case.name].passed]
    found = {case.name: _refused(verdicts[case.name]) for case in members}
    if right:
        sides = {**setup.baselines, **{case.name: setup.calls[case.name] for case in right}}
        before, start = _preempted(), time.perf_counter()
        times = _timed(setup, sides, seconds)
        preempted = (_preempted() - before) / (time.perf_counter() - start)
        for case in right:
            figures = _figures(case, times, verdicts[case.name], limits)
            found[case.name] = figures | {"note": setup.note, "preempted_per_s": preempted}
            if (held := setup.held.get(case.name)) is not None:
                found[case.name]["held"] = held / 1e6
    return [found[case.name] for case in members]


def _shortened(case: Case) -> Case:
    """The case as a quick run measures it: minutes go into the layers of a process."""
    return replace(case, shape=(QUICK_LAYERS, *case.shape[1:])) if case.group == "load" else case


def count(case: Case) -> dict[str, object]:
    """Measured columns of a case that is counted."""
    found = COUNTS[case.op](case)
    if not found.verdict.passed:
        return _refused(found.verdict)
    return {"status": OK, "unit": found.unit, "median": found.value, "note": found.note}


@torch.no_grad()
def measure(
    chosen: Iterable[Case], seconds: float, red: dict[str, str] | None = None, quiet: bool = False
) -> list[Row]:
    """A row for each case, in the order of the registry."""
    chosen = list(chosen)
    dtypes = dict.fromkeys(case.dtype for case in chosen if case.operations)
    here, limits = machine.identity(), machine.limits(dtypes)
    if not quiet:
        gemm = ", ".join(f"{name} GEMM {rate / 1e9:.0f} GMAC/s" for name, rate in limits.gemm.items())
        print(f"{here['machine']}, {here['threads']} threads, {here['isa']}: {gemm}, read {limits.read / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for _, group in itertools.groupby(chosen, key=lambda case: case.setting):
        members = [_shortened(case) if seconds < SECONDS else case for case in group]
        try:
            if members[0].op in COUNTS:
                found = [count(case) for case in members]
            else:
                found = time_setting(members, seconds, limits, red or {})
        except ERRORS as why:  # the other settings are measured all the same
            found = [_refused(_broken(why)) for _ in members]
        for case, measured in zip(members, found, strict=True):
            rows.append(row_of(case, measured, here))
            if not quiet:
                print(summary.line_of(rows[-1]), flush=True)
    return rows


def registered(rows: Iterable[Row]) -> list[Row]:
    """The last row of each case that there still is, in their order, with the target that it counts towards now."""
    known = {row["name"]: row for row in rows}
    return [
        known[case.name] | {"line": case.line, "target": text(case.target)} for case in cases() if case.name in known
    ]


def merged(path: Path, rows: list[Row]) -> list[Row]:
    """The rows of a file with these in place of those of the same name, in the order of the registry."""
    return registered([*(read_rows(path) if path.exists() else []), *rows])


def choose(pattern: str) -> list[Case]:
    """The cases whose name the pattern is found in; ValueError where there is none."""
    found = [case for case in cases() if re.search(pattern, case.name)]
    if not found:
        raise ValueError(f"filter: no case matches {pattern!r}")
    return found


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that measuring and checking share."""
    root = argparse.ArgumentParser(description=description)
    root.add_argument("--filter", default="", help="only cases whose name contains this regular expression")
    root.add_argument("--quick", action="store_true", help="less time for each case, more noise")
    root.add_argument("--threads", type=int, default=torch.get_num_threads())
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    root = parser(__doc__)
    root.add_argument("--out", type=Path, help="the CSV; by default one for this machine type in benchmarks/results")
    root.add_argument("--tests", action="store_true", help="first run the tests of the ops; red ones get no numbers")
    root.add_argument("--no-plots", action="store_true")
    options = root.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        chosen = choose(options.filter)
    except (ValueError, re.error) as why:
        root.error(str(why))
    start = time.perf_counter()
    red = run_tests(dict.fromkeys(case.group for case in chosen)) if options.tests else {}
    new = measure(chosen, QUICK_SECONDS if options.quick else SECONDS, red)
    path = options.out or RESULTS / f"{machine.slug()}.csv"
    rows = merged(path, new)
    write_rows(path, rows)
    report = summary.markdown(rows)
    write_whole(path.with_suffix(".md"), report)
    if not options.no_plots:
        from . import plots

        plots.draw(rows, path)
    wrong = [row for row in new if row["status"] != OK]
    print(f"\n{report}\n{len(new)} cases in {time.perf_counter() - start:.0f} s, {len(wrong)} refused: {path}")
    for row in wrong:
        print(f"refused {row['name']}: {row['note']}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
