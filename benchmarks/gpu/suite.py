"""Everything that a GPU is needed for, in one command and under nine minutes: `benchmarks/gpu_suite.sh OUT`.

Builds in place, runs the GPU tests on CUDA tensors, measures, profiles, writes at most eight files into OUT and prints
a short table last. Each stage has a limit of its own, and one that fails does not stop the others. Without a GPU it
runs what it can (some tests in Triton's interpreter, the offline compilation, a dry benchmark) and says what it left
out. The exit status is 0 where all that ran was well.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# neither torch nor the package: both may be what does not work
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 520.0
JOBS = 8  # test processes at a time: they compile most of the time
FEW = ("cases_words.py", "cases_contract.py")  # without a GPU; `make test` runs all in the interpreter
OK, FAILED, SKIPPED = "ok", "failed", "skipped"
TAIL = 3000  # characters of what a failed command said


class Outcome(NamedTuple):
    status: str
    note: str = ""
    tail: str = ""


class Finished(NamedTuple):
    """A command that ended; `code` is None where it was ended for want of time."""

    code: int | None
    text: str
    seconds: float


class Stage(NamedTuple):
    """A part of the suite; `seconds`: its limit; `kept`: what must be left for the stages behind it."""

    name: str
    run: Callable[[Path, float], Outcome]
    seconds: float
    kept: float
    needs_gpu: bool | None  # None: with and without


def python(*command: str, seconds: float, **env: str) -> Finished:
    """Runs Python in the repository, as `run` does."""
    return run(sys.executable, *command, seconds=seconds, **env)


def run(*command: str, seconds: float, **env: str) -> Finished:
    """Runs a command in the repository, with what it prints; never longer than `seconds`."""
    start = time.monotonic()
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    places = [str(ROOT), env.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, places))
    process = subprocess.Popen(
        command, cwd=ROOT, env={**inherited, "PYTHONPATH": path, **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=max(1.0, seconds))
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with the processes that it started
        text, code = process.communicate()[0], None
    return Finished(code, text, time.monotonic() - start)


def outcome(done: Finished, note: str = "") -> Outcome:
    """A command is well where it ended with 0."""
    if done.code == 0:
        return Outcome(OK, note)
    why = "out of time" if done.code is None else f"exit status {done.code}"
    return Outcome(FAILED, f"{why}; {note}" if note else why, done.text[-TAIL:])


def build(out: Path, seconds: float) -> Outcome:
    """The CPU extension, in place: it packs the weights that the GPU reads, and the reference alone is slow."""
    done = python("setup.py", "-q", "build_ext", "--inplace", seconds=seconds)
    found = python("-c", "from frozen_kernels import _C; print(_C.isa())", seconds=30)
    return outcome(found._replace(text=done.text + found.text), f"kernels for {found.text.strip()[:20]}")


def counts_of(text: str) -> dict[str, int]:
    """Tests by result, from the last line that pytest prints."""
    lines = [line for line in text.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1]) if lines else []
    return {result: int(count) for count, result in found}


def test_files(
    names: Sequence[str], out: Path, seconds: float, jobs: int, more: Sequence[str] = (), **env: str
) -> Outcome:
    """Runs case files side by side, each in a process; tests.csv says what became of each."""
    end = time.monotonic() + seconds
    options = ["-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-o", "addopts=", *more]

    def run(name: str) -> Finished:
        return python(*options, f"tests/gpu/{name}", seconds=end - time.monotonic(), OMP_NUM_THREADS="1", **env)

    with ThreadPoolExecutor(jobs) as pool:
        finished = list(pool.map(run, names))
    counts = [counts_of(done.text) for done in finished]
    with (out / "tests.csv").open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("file", "exit_status", "seconds", "passed", "failed", "skipped", "errors"))
        for name, done, count in zip(names, finished, counts, strict=True):
            results = [count.get(k, 0) for k in ("passed", "failed", "skipped", "error")]
            writer.writerow((name, "out of time" if done.code is None else done.code, f"{done.seconds:.0f}", *results))
    wrong = [(name, done) for name, done in zip(names, finished, strict=True) if done.code]
    late = [name for name, done in zip(names, finished, strict=True) if done.code is None]
    note = f"{sum(c.get('passed', 0) for c in counts)} passed, {sum(c.get('failed', 0) for c in counts)} failed"
    note += f"; out of time: {', '.join(late)}" if late else ""
    status = FAILED if wrong or late else OK
    return Outcome(status, note, "\n".join(f"== {name}\n{done.text[-TAIL // 2 :]}" for name, done in wrong))


def gpu_tests(out: Path, seconds: float) -> Outcome:
    names = sorted(path.name for path in (ROOT / "tests" / "gpu").glob("cases_*.py"))
    workers = (os.cpu_count() or 1) // JOBS
    spread = ["-n", str(workers)] if workers > 1 and importlib.util.find_spec("xdist") else []
    return test_files(names, out, seconds, JOBS, spread)


def sanitized(out: Path, seconds: float) -> Outcome:
    """A small product of each CUDA C++ kernel under the tools of `compute-sanitizer`."""
    if not shutil.which("compute-sanitizer"):
        return Outcome(SKIPPED, "no compute-sanitizer on the PATH")
    end, said = time.monotonic() + seconds, []
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
        done = run(*command, "tests/gpu/one_of_each.py", seconds=end - time.monotonic(), PYTHONPATH=str(ROOT / "tests"))
        if done.code != 0:
            return outcome(done)
        said.append(f"{tool}: {last_line(done.text)}")
    return Outcome(OK, "; ".join(said))


def interpreter_tests(out: Path, seconds: float) -> Outcome:
    return test_files(FEW, out, seconds, 1, TRITON_INTERPRET="1")


def offline(out: Path, seconds: float) -> Outcome:
    """The test of the compilation for GPUs that are not here."""
    done = python("-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-o", "addopts=",
                  "tests/test_triton.py", "-k", "compiles and sm_90", seconds=seconds)  # fmt: skip
    return outcome(done, f"{counts_of(done.text).get('passed', 0)} compiled for sm_90 as they should be")


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def dry_benchmark(out: Path, seconds: float) -> Outcome:
    done = python("-m", "benchmarks.gpu", "--dry", seconds=seconds, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    return outcome(done, f"cases in the interpreter: {last_line(done.text)}; no figures")


def benchmarks(out: Path, seconds: float) -> Outcome:
    inner = max(10.0, seconds - 25)  # for processes to start and end
    done = python("-m", "benchmarks.gpu", "--out", str(out), "--seconds", str(inner), seconds=seconds)
    print(done.text, flush=True)
    return outcome(done, last_line(done.text))


def profile(out: Path, seconds: float) -> Outcome:
    done = python("-m", "benchmarks.gpu.profile", "--out", str(out), seconds=seconds)
    print(done.text, flush=True)
    return outcome(done, last_line(done.text))


STAGES = (
    Stage("build", build, 120, 0, None),
    Stage("tests on the GPU", gpu_tests, 240, 210, True),
    Stage("benchmarks", benchmarks, 300, 80, True),
    Stage("compute-sanitizer", sanitized, 60, 30, True),
    Stage("profile", profile, 60, 0, True),
    Stage("some tests in the interpreter", interpreter_tests, 150, 0, False),
    Stage("compilation for sm_90", offline, 240, 0, False),
    Stage("dry benchmark", dry_benchmark, 90, 0, False),
)


def has_gpu() -> bool:
    done = python("-c", "import torch; print(torch.cuda.is_available())", seconds=120)
    return last_line(done.text) == "True"


def limit(stage: Stage, left: float) -> float:
    """Seconds that a stage may take of those left, so that the ones behind it can run too."""
    return max(0.0, min(stage.seconds, left - stage.kept))


def run_stages(stages: Sequence[Stage], gpu: bool, out: Path, seconds: float) -> list[tuple[str, Outcome, float]]:
    """Name, outcome and seconds of each stage; those for the other kind of machine are named as skipped."""
    end, found = time.monotonic() + seconds, []
    for stage in stages:
        start = time.monotonic()
        allowed = limit(stage, end - start)
        if stage.needs_gpu and not gpu:
            result = Outcome(SKIPPED, "no GPU on this machine")
        elif stage.needs_gpu is False and gpu:
            continue  # a GPU does all that and more
        elif allowed < 1:
            result = Outcome(FAILED, "no time left")
        else:
            print(f"{stage.name}: at most {allowed:.0f} s", flush=True)
            try:
                result = stage.run(out, allowed)
            except Exception as why:  # the other stages run all the same
                result = Outcome(FAILED, f"{type(why).__name__}: {why}")
        found.append((stage.name, result, time.monotonic() - start))
    return found


def table(found: Sequence[tuple[str, Outcome, float]]) -> str:
    width = max(len(name) for name, _, _ in found)
    lines = [f"{name:{width}}  {result.status:7}  {seconds:4.0f} s  {result.note}" for name, result, seconds in found]
    return "\n".join(lines)


def write_summary(found: Sequence[tuple[str, Outcome, float]], gpu: bool, out: Path) -> None:
    stages = [{"stage": name, "seconds": round(seconds, 1), **result._asdict()} for name, result, seconds in found]
    (out / "suite.json").write_text(json.dumps({"gpu": gpu, "stages": stages}, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    root = argparse.ArgumentParser(prog="benchmarks/gpu_suite.sh", description=__doc__)
    root.add_argument("out", type=Path, help="folder of the results, made where it is not there")
    root.add_argument("--seconds", type=float, default=SECONDS, help="of all stages together")
    options = root.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    gpu = has_gpu()
    found = run_stages(STAGES, gpu, out, options.seconds)
    write_summary(found, gpu, out)
    for name, result, _ in found:
        if result.status == FAILED:
            print(f"\n{name}:\n{result.tail}")
    print(f"\n{table(found)}")
    if not gpu:
        print("No GPU: nothing ran on one, and there are no figures.")
    return 1 if any(result.status == FAILED for _, result, _ in found) else 0


if __name__ == "__main__":
    sys.exit(main())
