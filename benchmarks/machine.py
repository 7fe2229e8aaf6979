"""Which machine, which versions, and what the hardware can do at most."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import frozen_kernels as fk

from .verify import ROOT

GEMM = 2048
READ_BYTES = 1 << 28  # beyond any cache
REPEATS = 7


def processor() -> str:
    """The model name of the processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def isa() -> str:
    """The instruction set that the kernels run on; none without the extension."""
    try:
        from frozen_kernels import _C  # type: ignore[attr-defined]
    except ImportError:
        return "none"
    return _C.isa()


def slug() -> str:
    """Name of the files of this machine type: processor, threads, instruction set."""
    name = re.sub(r"\((r|tm)\)", "", processor().lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{name} {torch.get_num_threads()} threads {isa()}").strip("-")


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def identity() -> dict[str, str]:
    """The columns that say where and with what a row was measured."""
    return {
        "machine": processor(),
        "threads": str(torch.get_num_threads()),
        "isa": isa(),
        "torch": torch.__version__,
        "package": fk.__version__,
        "commit": _commit(),
    }


class Limits(NamedTuple):
    """Multiply-adds a second of torch's GEMM by dtype, and bytes a second that torch reads from memory."""

    gemm: dict[str, float]
    read: float


def _seconds(call: Callable[[], object]) -> float:
    """The best of a few: a limit is what the machine can do when it is left alone."""
    call()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def limits(dtypes: Iterable[str]) -> Limits:
    """Measured now, with the threads of the cases; bfloat16 takes minutes where torch has no instructions for it."""
    gemm = {}
    for name in dtypes:
        a = torch.ones(GEMM, GEMM, dtype=getattr(torch, name))
        gemm[name] = GEMM**3 / _seconds(partial(torch.mm, a, a))
    block = torch.ones(READ_BYTES // 4)
    return Limits(gemm, READ_BYTES / _seconds(block.sum))
