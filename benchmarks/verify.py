"""Is a result right: compared with float64, and with what torch itself makes of it in the same dtype."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = 2.0  # times torch's own error
TINY = 1e-30  # torch may be exact by luck
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


class Verdict(NamedTuple):
    """`error` and `torch_error`: the largest, relative to the largest value; `why` it did not pass."""

    passed: bool
    error: float = 0.0
    torch_error: float = 0.0
    why: str = ""


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root mean square error, each over that of the values."""
    off = found.double() - exact
    return tuple((of(off) / of(exact).clamp_min(TINY)).item() for of in (_largest, _root_mean_square))  # type: ignore[return-value]


def _largest(t: Tensor) -> Tensor:
    return t.abs().max()


def _root_mean_square(t: Tensor) -> Tensor:
    return t.square().mean().sqrt()


def judge(found: Tensor, torchs: Tensor, exact: Tensor) -> Verdict:
    """Passes where shape and dtype are torch's, and both errors against float64 at most twice torch's."""
    if found.shape != torchs.shape or found.dtype != torchs.dtype:
        return Verdict(False, why=f"{found.dtype} {list(found.shape)}, torch {torchs.dtype} {list(torchs.shape)}")
    ours, theirs = _errors(found, exact), _errors(torchs, exact)
    passed = all(mine <= ALLOWED * other + TINY for mine, other in zip(ours, theirs, strict=True))
    kinds = zip(("largest", "rms"), ours, theirs, strict=True)
    why = "" if passed else ", ".join(f"{kind} error {mine:.2e}, torch {other:.2e}" for kind, mine, other in kinds)
    return Verdict(passed, ours[0], theirs[0], why)


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
