"""The GPU suite and its benchmarks, as far as they are plain Python: order, budgets, refusals, tables, exit status."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import records
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import measure, profile, registry, report, sides, suite, timing
from benchmarks.verify import Verdict
from frozen_kernels.tune.measure import MOST_COPIES, copies_beyond

ROOT = Path(__file__).parent.parent
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def case(name: str = "gpu/linear", **fields) -> registry.GpuCase:
    whole = {"setting": name, "group": "linear", "op": "linear", "shape": (3, 4), "input": (1, 4), "dtype": "bfloat16",
             "code": "sign", "residency": "planes", "batch": 1, "baseline": "cuBLAS", **fields}  # fmt: skip
    return registry.GpuCase(name=name, **whole)


def row(name: str = "gpu/linear", **fields) -> records.Row:
    """As a GPU might give it; the figures are invented."""
    figures = {
        "status": "ok", "median": "0.002", "baseline_median": "0.004", "ratio": "2", "ratio_low": "1.9",
        "ratio_high": "2.1", "best_ratio": "2.2", "host_us": "30", "baseline_host_us": "9", "clock_mhz": "1500",
        "baseline": "cuBLAS", "machine": "Device X 9", "isa": "sm_90", "target": "5", "line": "vector-planes",
    }  # fmt: skip
    return dict.fromkeys(report.COLUMNS, "") | {"name": name} | figures | fields


def test_cases_have_names_of_their_own_and_lie_in_settings():
    cases = registry.cases()
    assert len({c.name for c in cases}) == len(cases)
    order = [name for name, _ in measure.settings(cases)]
    assert len(set(order)) == len(order)
    assert {c.group for c in (*cases, *registry.dry_cases())} <= set(sides.BUILDERS)


def test_every_target_has_cases_and_the_first_come_first():
    lines = [c.line for c in registry.cases() if c.line]
    assert set(lines) == {t.line for t in registry.TARGETS}
    assert lines[0].startswith("vector")
    assert registry.cases()[0].target == 4.5
    assert sum(c.line == "conv" for c in registry.cases()) == 23  # distinct convolutions of ResNet-50
    with pytest.raises(ValueError, match="no case matches"):
        registry.choose("conv4d", dry=False)


def test_copies_exceed_the_cache_and_replays_are_long_enough():
    assert copies_beyond(cache=60, held=8) == 15
    assert copies_beyond(cache=60, held=1000) == 2
    assert copies_beyond(cache=1 << 26, held=1) == MOST_COPIES
    for copies in (2, 7, 40):
        for milliseconds in (0.004, 0.1, 3.0):
            count = timing.launches(copies, milliseconds)
            assert count % copies == 0 and count * milliseconds >= timing.SHORTEST
    assert timing.launches(40, 50.0) == 3  # a slow call needs no copies


def test_a_budget_runs_out():
    now = 100.0
    budget = timing.Budget(5, clock=lambda: now)
    assert budget.left == 5
    now = 103.0
    assert budget.left == 2
    now = 120.0
    assert budget.left == 0


def test_host_time_is_that_of_a_call():
    assert 2000 <= timing.host_microseconds([lambda: time.sleep(0.002)], lambda: None) < 20_000


def test_graphs_time_the_device_and_not_the_host(monkeypatch):
    """The clock on a device that is pretended: a call takes 4 us of it, and 50 us of the host."""
    device = {"now": 0.0, "capturing": None}

    class Event:
        def __init__(self, enable_timing):
            self.at = 0.0

        def record(self):
            self.at = device["now"]

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.at - self.at

    class Graph:
        calls: tuple = ()

        def replay(self):
            device["now"] += 0.004 * len(self.calls)

    @contextlib.contextmanager
    def capture(graph):
        device["capturing"] = graph
        yield
        device["capturing"] = None

    def call(copy: int) -> None:
        if device["capturing"]:
            device["capturing"].calls += (copy,)
        else:
            device["now"] += 0.05

    for name, fake in {"Event": Event, "CUDAGraph": Graph, "graph": capture}.items():
        monkeypatch.setattr(timing.torch.cuda, name, fake)
    clock, calls = timing.GraphClock(), [partial(call, copy) for copy in range(7)]
    graph, count = clock._captured(calls)
    assert count * 0.004 >= timing.SHORTEST and graph.calls == tuple(range(7)) * (count // 7)
    times = clock.rounds({"ours": calls, "theirs": calls[:2]}, 0.0)
    assert all(len(taken) == timing.MIN_ROUNDS for taken in times.values())
    assert all(abs(t - 0.004) < 1e-9 for taken in times.values() for t in taken)


def test_what_is_wrong_or_fails_gets_no_figures(monkeypatch):
    members = [case("a", setting="s"), case("b", setting="s"), case("c", setting="s")]

    def verdict(name: str) -> Verdict:
        if name == "b":
            raise RuntimeError("illegal\naddress")
        return Verdict(name == "c", why="" if name == "c" else "largest error 1")

    calls = {c.name: [lambda: None] for c in members}
    built = sides.Sides({"cuBLAS": [lambda: None]}, calls, verdict)
    monkeypatch.setitem(sides.BUILDERS, "linear", lambda members, place: built)
    monkeypatch.setattr(measure.fk.backends, "use", lambda name: torch.no_grad())
    found = measure.measure_setting(members, sides.Place(torch.device("cpu"), 1))
    assert [f["status"] for f in found] == ["refused", "refused", "ok"]
    assert found[0]["note"] == "largest error 1" and found[1]["note"] == "RuntimeError: illegal"
    assert not any("median" in f for f in found)  # and the interpreter's times are never a record


def test_a_compiled_baseline_that_no_graph_takes_is_left_out():
    class Fails:
        def rounds(self, given, seconds):
            if compiled in given:
                raise RuntimeError("operation not permitted when stream is capturing")
            return {name: [1.0] for name in given}

    compiled = sides.COMPILED
    built = sides.Sides({}, {}, lambda name: Verdict(True))
    calls = {"ours": [], "cuBLAS": [], sides.COMPILED: []}
    assert set(measure._times(Fails(), calls, built, 1.0)) == set(calls) == {"ours", "cuBLAS"}
    assert "not permitted" in built.absent[sides.COMPILED]


@needs_triton
def test_rows_of_what_was_not_reached(tmp_path):
    log = tmp_path / "log"
    measure.log(log, start="a")
    measure.log(log, end="a", rows=[row("a")])
    measure.log(log, start="b")
    with log.open("a") as out:
        out.write('{"end": "b"')  # a process was ended as it wrote
    rows = command.collect([case("a"), case("b"), case("c")], command.close(log, "its process ended"))
    assert [r["status"] for r in rows] == ["ok", "refused", "skipped"]
    assert rows[1]["note"] == "its process ended" and rows[2]["note"] == "no time left"


def test_a_silent_process_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "STALL", 0.3)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert "said nothing" in command._watch(sleeper, tmp_path / "log", timing.Budget(30))
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert "out of time" in command._watch(sleeper, tmp_path / "log", timing.Budget(0))
    quitter = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    assert "status 3" in command._watch(quitter, tmp_path / "log", timing.Budget(30))


def test_records_of_a_device(tmp_path):
    rows = [
        row(),
        row("gpu/slow", ratio="0.5", ratio_low="0.4", ratio_high="0.6", line="", target=""),
        row("gpu/wrong", status="refused", note="error 1"),
    ]
    assert report.write(rows, tmp_path, plots=importlib.util.find_spec("matplotlib") is not None) == []
    written = {path.name for path in tmp_path.iterdir()}
    assert {"device-x-9.csv", "device-x-9.md"} <= written
    text = (tmp_path / "device-x-9.md").read_text()
    assert "| gpu/" not in text and "| linear | 2.0 | 4.0 | 2.00 | 1.90 to 2.10 |" in text
    assert "refused: error 1" in text and "1500 to 1500 MHz" in text
    assert records.read_rows(tmp_path / "device-x-9.csv")[1]["ratio"] == "0.5"
    assert report.verdict(rows) == "2 ok, 1 refused, 0 skipped"


def test_a_target_is_met_only_by_all_of_its_cases():
    def met(*rows: records.Row) -> tuple[str, str]:
        line = next(line for line in report.table(rows) if "`planes`, over cuBLAS bf16" in line).split(" | ")
        return line[2], line[4].strip(" |")

    assert met(row(ratio="6")) == ("6 x", "yes")
    assert met(row(ratio="4")) == ("4 x", "no")
    assert met(row(ratio="6"), row("x", status="refused", ratio="")) == ("1 refused", "no")
    assert met(row(ratio="6"), row("x", status="skipped", ratio="")) == ("1 skipped", "")
    assert met() == ("not measured", "")


def test_lines_say_what_happened():
    assert "2.00x cuBLAS (1.90 to 2.10)" in report.line_of(row())
    assert "refused: why" in report.line_of(row(status="refused", note="why"))
    assert "not timed" in report.line_of(row(median="", ratio=""))


def stage(name: str, run, seconds: float = 10, kept: float = 0, needs_gpu: bool | None = None) -> suite.Stage:
    return suite.Stage(name, run, seconds, kept, needs_gpu)


def fine(out: Path, seconds: float) -> suite.Outcome:
    return suite.Outcome(suite.OK, f"{seconds:.0f} s")


def breaks(out: Path, seconds: float) -> suite.Outcome:
    raise OSError("no space")


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path):
    found = suite.run_stages([stage("a", breaks), stage("b", fine)], True, tmp_path, 60)
    assert [(name, result.status) for name, result, _ in found] == [("a", "failed"), ("b", "ok")]
    assert "OSError: no space" in suite.table(found)


def test_stages_leave_time_for_those_behind_them(tmp_path):
    assert suite.limit(stage("a", fine, seconds=200, kept=100), left=250) == 150
    assert suite.limit(stage("a", fine, seconds=20, kept=100), left=250) == 20
    assert suite.limit(stage("a", fine, seconds=20, kept=100), left=50) == 0
    (found,) = suite.run_stages([stage("a", fine)], True, tmp_path, 0.5)
    assert found[1] == suite.Outcome(suite.FAILED, "no time left")
    with_gpu = [s for s in suite.STAGES if s.needs_gpu is not False]
    assert suite.SECONDS < 540 and with_gpu[1].kept + with_gpu[1].seconds < suite.SECONDS


def test_says_what_it_skipped_without_a_gpu(tmp_path):
    stages = [stage("on", fine, needs_gpu=True), stage("off", fine, needs_gpu=False), stage("both", fine)]
    without = suite.run_stages(stages, False, tmp_path, 60)
    assert [(name, result.status) for name, result, _ in without] == [("on", "skipped"), ("off", "ok"), ("both", "ok")]
    assert "no GPU on this machine" in suite.table(without)
    assert [name for name, _, _ in suite.run_stages(stages, True, tmp_path, 60)] == ["on", "both"]


@pytest.mark.parametrize(("run", "status"), [(fine, 0), (breaks, 1)])
def test_exit_status_and_summary(run, status, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "STAGES", (stage("a", fine, needs_gpu=True), stage("b", run)))
    monkeypatch.setattr(suite, "has_gpu", lambda: False)
    assert suite.main([str(tmp_path / "out")]) == status
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("No GPU: nothing ran on one, and there are no figures.")
    found = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert not found["gpu"] and [s["status"] for s in found["stages"]] == ["skipped", "failed" if status else "ok"]


def test_commands_end_in_time_with_all_that_they_started():
    start = time.monotonic()
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    done = suite.python("-c", inner, seconds=1)
    assert done.code is None and time.monotonic() - start < 20
    assert suite.outcome(done).status == suite.FAILED and "out of time" in suite.outcome(done).note
    said = suite.python("-c", "print('x'); raise SystemExit(2)", seconds=30)
    assert said.code == 2 and suite.outcome(said) == suite.Outcome(suite.FAILED, "exit status 2", "x\n")


def test_counts_of_tests():
    assert suite.counts_of("..F\n3 failed, 10 passed, 2 skipped, 1 error in 3s\n") == {
        "failed": 3, "passed": 10, "skipped": 2, "error": 1,
    }  # fmt: skip
    assert suite.counts_of("killed") == {}
    assert all((ROOT / "tests" / "gpu" / name).exists() for name in suite.FEW)


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(arguments, cwd=ROOT, env={**inherited, **env}, capture_output=True, text=True, timeout=300)


def test_the_command_needs_a_folder():
    done = run("bash", "benchmarks/gpu_suite.sh", PYTHON=sys.executable)
    assert done.returncode and "usage: benchmarks/gpu_suite.sh OUT" in done.stderr


@no_gpu
def test_benchmarks_without_a_gpu_say_so(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for main, arguments, why in (
        (command.main, [], "no GPU here"),
        (command.main, ["--dry"], "TRITON_INTERPRET"),
        (profile.main, [], "no GPU here"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert why in capsys.readouterr().err


@needs_triton
def test_the_benchmarks_run_in_the_interpreter():
    done = run(sys.executable, "-m", "benchmarks.gpu", "--dry", TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right; not timed") == len(registry.dry_cases())
