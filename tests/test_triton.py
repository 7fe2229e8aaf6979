"""The Triton backend without a GPU: right in the interpreter, compiled for real targets, and not imported unasked.

Each check is a process of its own: TRITON_INTERPRET counts when triton is imported, changes what `triton.jit` makes,
and would break torch.compile in the rest of the session.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(*command: str, timeout: int = 900, **env: str) -> str:
    """Output of a Python process that imports the package under test; fails with its last lines."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("PYTEST_")}
    inherited["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # small tensors only: on a busy machine threads that wait for each other cost ten times the work
    env = {**inherited, "OMP_NUM_THREADS": "1", **env}
    full = [sys.executable, *command]
    done = subprocess.run(full, check=False, capture_output=True, text=True, timeout=timeout, cwd=HERE, env=env)
    if done.returncode:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}", pytrace=False)
    return done.stdout


NOT_LIVE = """
import os, sys, torch
torch.cuda.is_available = lambda: False
import frozen_kernels as fk
from frozen_kernels.backends import triton
fk.backends.report()
assert "no CUDA device" in "; ".join(triton.reasons()), triton.reasons()
os.environ["TRITON_INTERPRET"] = "1"
assert "CUDA" not in "; ".join(triton.reasons()), triton.reasons()
assert "triton" not in sys.modules
"""


def test_says_why_it_is_not_live_without_importing_triton():
    run("-c", NOT_LIVE)


def long(*values: str):
    """Values of a parameter whose test takes too long for every run."""
    return pytest.param(*values, marks=pytest.mark.long)


# the longest tests come first: a worker that began one last would leave the others idle
@needs_triton
@pytest.mark.parametrize(
    ("target", "half"), [("sm_90", ""), long("sm_80", "--even"), long("sm_100", "--odd"), long("gfx942", "--even")]
)
def test_compiles_within_budgets(target, half, tmp_path):
    """No spills, tensor cores that run beside the decode, and no more registers and instructions than before.

    One target has all cases, each case one other target at least: all of all take minutes.
    """
    printed = run("gpu/offline.py", target, "--json", *half.split(), TRITON_CACHE_DIR=str(tmp_path))
    rows = [json.loads(line) for line in printed.splitlines()]
    if rows and "skipped" in rows[0]:
        pytest.skip(rows[0]["skipped"])
    wrong = [f"{row['at']}: {fault}" for row in rows for fault in row.get("faults", [])]
    assert not wrong, "\n".join(wrong)
    assert any("registers" in row for row in rows)


@needs_triton
def test_compiler_checks_notice_what_they_should():
    assert " passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "gpu/check_offline.py")


# a process takes as long to start as many a case to run; those of CUDA C++ kernels are run by test_cuda.py
CASES = sorted(path.name for path in (HERE / "gpu").glob("cases_*.py") if path.name != "cases_cuda.py")


@needs_triton
@pytest.mark.parametrize("cases", [CASES[first::4] for first in range(4)], ids=" ".join)
def test_in_the_interpreter(cases):
    pytest_options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", *(f"gpu/{name}" for name in cases)]
    assert " passed" in run("-m", "pytest", *pytest_options, TRITON_INTERPRET="1")


# tests of every backend, and which of them one process runs. What is left out: torch computes in `dense`, opcheck runs
# the kernels of the rest many times over, a residency changes the words alone (`cases_*` run each one in every kernel),
# and the matrices named take programs by the thousand.
BIG = "128x1152 or 64x576 or 10x4096 or 70000x3"
FLAT = "((linear or conv3d) and seed) or (conv1d and mask) or (conv2d and planes)"
BODIES = [
    ("test_ops.py", f"test_values_and_gradients and ({FLAT})"),
    long("test_ops.py", "(test_values and transpose and planes) or test_inputs_of_any_stride or test_other_dtypes"),
    long("test_ops.py", "bitwise or (test_other_codes and linear)"),
    long("test_ops.py", "not (test_values or test_inputs or test_other or bitwise or opcheck)"),
    long("test_format.py", f"not ({BIG})"),
    long("test_signs.py", "triton"),
    long(
        "test_search.py test_layers.py test_epilogue.py",
        "(test_search and (step or nothing)) or (test_epilogue and stride)"
        " or (test_layers and (twin or weight or embedding) and not (circular or reflect or replicate or valid))",
    ),
]


@needs_triton
@pytest.mark.parametrize(("files", "chosen"), BODIES)
def test_the_tests_of_all_backends(files, chosen):
    expression = " and ".join(f"({part})" for part in ("triton", "not dense", chosen))
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", "-k", expression, *files.split()]
    assert " passed" in run("-m", "pytest", *options, TRITON_INTERPRET="1")
