"""Which kernels the main calls run, for how long, and what each takes of a multiprocessor: `kernels.csv`.

By torch's profiler and by what Triton says of its compiled kernels; `ncu`, where it is on the PATH and may read
counters, adds shares of the limits in `counters.csv`. Clocks are left as they are.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import frozen_kernels as fk

from ..verify import ROOT
from .measure import broken, place, settings
from .registry import GpuCase, cases
from .sides import BUILDERS
from .timing import Call

MAIN = (
    "gpu/linear/8192x8192/b1/bf16/cuda",
    "gpu/linear/8192x8192/b16/bf16/cuda",
    "gpu/linear/8192x8192/b1/bf16",
    "gpu/linear/8192x8192/b4096/bf16",
    "gpu/linear/8192x8192/b4096/fp32",
    "gpu/conv2d/256x256x3x3/14/s1/b64/bf16",
    "gpu/conv2d/64x256x1x1/56/s1/b64/bf16",
    "gpu/linear_grad_scores/4096x4096/b1024/bf16",
    "gpu/select/25.5M",
)
CALLS = 5
COUNTERS = ",".join((
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
))  # fmt: skip
NCU_SECONDS = 40


def main_calls() -> list[tuple[GpuCase, str, Call]]:
    """The main cases, each with both sides' calls; one that cannot be built is left out and named."""
    found: list[tuple[GpuCase, str, Call]] = []
    for name, members in settings(cases()):
        if name not in MAIN:
            continue
        try:
            sides = BUILDERS[members[0].group](members[:1], place()._replace(cache=1))
        except Exception as why:  # the others are profiled all the same
            print(f"{name}: {broken(why)}")
            continue
        case = members[0]
        found.append((case, case.backend, sides.calls[case.name][0]))
        found.append((case, case.baseline, sides.baselines[case.baseline][0]))
    return found


def kernels_of(call: Call) -> list[dict[str, object]]:
    """Name, launches and device time of each kernel that a call runs."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    on_device = [e for e in seen.key_averages() if e.self_device_time_total > 0]
    return [
        {"kernel": e.key[:120], "launches": e.count / CALLS, "us": round(e.self_device_time_total / CALLS, 2)}
        for e in sorted(on_device, key=lambda e: -e.self_device_time_total)
    ]


def compiled() -> dict[str, dict[str, object]]:
    """Registers, spills and shared memory of the Triton kernels of this process, by name; the largest where several."""
    from triton.runtime.jit import JITFunction

    from frozen_kernels.backends.triton import kernels

    found: dict[str, dict[str, object]] = {}
    modules = [m for name, m in sys.modules.items() if name.startswith(kernels.__name__ + ".")]
    functions = {f for m in modules for f in vars(m).values() if isinstance(f, JITFunction)}
    for function in functions:
        for caches in function.device_caches.values():
            for kernel in caches[0].values():
                figures = {"registers": kernel.n_regs, "spills": kernel.n_spills, "shared": kernel.metadata.shared}
                if kernel.n_regs >= found.get(kernel.metadata.name, {"registers": -1})["registers"]:  # type: ignore[operator]
                    found[kernel.metadata.name] = figures
    return found


@torch.no_grad()
def profile(out: Path) -> int:
    """Writes kernels.csv; how many rows."""
    rows: list[dict[str, object]] = []
    for case, side, call in main_calls():
        with fk.backends.use(case.backend):
            try:
                rows += [{"case": case.name, "side": side, **kernel} for kernel in kernels_of(call)]
            except Exception as why:  # as above
                print(f"{case.name}, {side}: {broken(why)}")
    known = compiled()
    columns = ("case", "side", "kernel", "launches", "us", "registers", "spills", "shared")
    with (out / "kernels.csv").open("w", newline="") as lines:
        writer = csv.DictWriter(lines, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **known.get(str(row["kernel"]), {})} for row in rows)
    for row in rows:
        if row["side"] in fk.backends.NAMES:
            print(f"{row['case']!s:52} {row['us']:9} us  {row['launches']} x {str(row['kernel'])[:50]}")
    return len(rows)


@torch.no_grad()
def run_once() -> None:
    """Each of our main calls, warmed, between the marks that ncu profiles."""
    ours = [(side, call) for case, side, call in main_calls() if side == case.backend]

    def run_all() -> None:
        for backend, call in ours:
            with fk.backends.use(backend):
                call()
        torch.cuda.synchronize()

    run_all()
    torch.cuda.profiler.start()
    run_all()
    torch.cuda.profiler.stop()


def count(out: Path) -> str:
    """Writes counters.csv by ncu; what came of it."""
    if not shutil.which("ncu"):
        return "no ncu on the PATH"
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--metrics", COUNTERS]
    command += [sys.executable, "-m", "benchmarks.gpu.profile", "--once"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=NCU_SECONDS)
    except subprocess.TimeoutExpired:
        return "ncu took too long"
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(lines) < 2:
        return f"ncu gave nothing: {' '.join(done.stdout.split())[-120:]}"
    (out / "counters.csv").write_text("\n".join(lines) + "\n")
    return f"{len(lines) - 1} counters by ncu"


def main(arguments: Sequence[str] | None = None) -> int:
    root = argparse.ArgumentParser(prog="python -m benchmarks.gpu.profile", description=__doc__)
    root.add_argument("--out", type=Path, default=Path())
    root.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = root.parse_args(arguments)
    if not torch.cuda.is_available():
        root.error("no GPU here")
    if options.once:
        run_once()
        return 0
    rows = profile(options.out)
    print(f"{rows} kernels profiled; {count(options.out)}")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
