"""Is a result right: what no float64 is needed for, and the tests behind each group of cases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from frozen_kernels.tune.verdict import Verdict, judge

__all__ = ["Verdict", "equal", "judge", "judge_draws", "run_tests"]

ROOT = Path(__file__).resolve().parents[1]
FRESH = 8  # draws that have to confirm a failure: the largest error of one is that of a single result
TEST_FILES = {
    "linear": "tests/test_gemm_kernels.py",
    "resnet": "tests/test_gemm_kernels.py",
    "mobilenet": "tests/test_gemm_kernels.py",
    "gradient": "tests/test_gemm_kernels.py",
    "stored": "tests/test_stored_kernels.py",
    "signs": "tests/test_signs.py",
    "jackpot": "tests/test_jackpot.py",
    "select": "tests/test_search.py",
    "generate": "tests/test_format_kernels.py",
    "ticket": "tests/test_ticket.py",
    "footprint": "tests/test_footprint.py",
}


def judge_draws(sides: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], draw: Callable[[], Tensor]) -> Verdict:
    """`judge` of what `sides` makes of an input: ours, torch's and the exact result. Fresh draws confirm a failure."""
    verdict = judge(*sides(draw()))
    if verdict.passed:
        return verdict
    ours, torchs, exact = zip(*(sides(draw()) for _ in range(FRESH)), strict=True)
    return judge(torch.cat(ours), torch.cat(torchs), torch.cat(exact))


def equal(found: Tensor, right: Tensor) -> Verdict:
    """For integers and bits: passes where all are the same."""
    same = found.shape == right.shape and torch.equal(found, right)
    return Verdict(same, why="" if same else "differs from the definition")


def run_tests(groups: Iterable[str]) -> dict[str, str]:
    """Runs the test file behind each group of cases; what failed by group."""
    files = {group: TEST_FILES[group] for group in groups if group in TEST_FILES}
    failed: dict[str, str] = {}
    for file in dict.fromkeys(files.values()):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", file]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            last = done.stdout.rstrip().splitlines()[-1:]
            failed |= {group: f"{file}: {''.join(last)}" for group, of in files.items() if of == file}
    return failed
