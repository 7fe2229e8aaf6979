"""The extension for 64-bit ARM: built by a cross compiler, its kernels run in an emulator by the tests of kernels."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent / "aarch64"
FOLDER = ROOT / "build" / "aarch64"
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
JOBS = 2
# Files of tests, which of them, and one in how many: a sample, on the level `portable` a smaller one.
SUITES = {
    # the golden vectors; a program of its own would load the extension of this machine
    "format": (
        ["test_format.py", "test_format_kernels.py", "test_kernel_table.py"],
        "cpu or kernel_table or (format_kernels and neon and not isa_from_the_environment)",
        1,
    ),
    "products": (
        ["test_gemm_kernels.py", "test_gradient_tiles.py"],
        "(gemm and not 260 and not bits_do_not and not linear_is_exact) or (neon and gradient_tiles and bits_do_not)",
        3,
    ),
    "depthwise and epilogues": (
        ["test_depthwise_kernels.py", "test_epilogue.py"],
        "(depthwise and not conv2d_is_exact) or every_instruction_set",
        3,
    ),
    "stored": (["test_stored_kernels.py", "test_stored_ops.py"], "neon and (stored_kernels or swap_of_few)", 3),
}


def lacking() -> str:
    """Why these tests cannot run here; empty where they can."""
    if not shutil.which(COMPILER):
        return f"{COMPILER} is not installed"
    return "" if any(map(shutil.which, EMULATORS)) else f"{' or '.join(EMULATORS)} is not installed"


pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(lacking()), reason=lacking())]


def run(command: list[str], cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def build_extension() -> Path:
    """As setup.py does it, but for the level of optimisation: more would take longer than it saves."""
    command = [sys.executable, "setup.py", "build_ext", f"-j{JOBS}"]
    command += ["--build-temp", str(FOLDER), "--build-lib", str(FOLDER / "lib")]
    options = {"CXX": COMPILER, "CXXFLAGS": "-O1", "FROZEN_KERNELS_CUDA": "0", "SETUPTOOLS_EXT_SUFFIX": ".so"}
    run(command, **options)
    return FOLDER / "lib/frozen_kernels/_C.so"


def build_server() -> Path:
    """The kernels that the extension was linked of, behind bindings that speak to a pipe instead of to Python."""
    built = json.loads(run([sys.executable, "-m", "ninja", "-C", str(FOLDER), "-t", "compdb", "compile"]))
    kernels = [FOLDER / entry["output"] for entry in built if "/binding/" not in entry["file"]]
    bindings = {Path(entry["file"]): shlex.split(entry["command"]) for entry in built if "/binding/" in entry["file"]}
    # all but where headers of Python and of pybind11 are
    used = ("-std", "-f", "-D", "-I", "-W")
    options = [word for word in next(iter(bindings.values())) if word.startswith(used)]
    folder = FOLDER / "served"
    folder.mkdir(exist_ok=True)

    def compiled(source: Path) -> Path:
        out = folder / f"{source.stem}.o"
        run([COMPILER, *options, f"-I{HERE}", "-c", str(source), "-o", str(out)])
        return out

    with ThreadPoolExecutor(JOBS) as pool:
        sources = [path for path in bindings if path.name != "memory.cpp"]
        objects = [*kernels, *pool.map(compiled, [*sources, HERE / "server.cpp"])]
    program = folder / "server"
    run([COMPILER, "-static", "-pthread", "-o", str(program), *map(str, objects)])
    return program


@pytest.fixture(scope="session")
def server() -> str:
    """The command that runs what was built, by one worker for all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        extension, program = build_extension(), build_server()
    assert "AArch64" in run(["aarch64-linux-gnu-readelf", "-h", str(extension)])
    return f"{next(filter(None, map(shutil.which, EMULATORS)))} {program}"


@pytest.mark.parametrize("suite", SUITES)
def test_kernels(server, suite):
    """On both levels of this processor, by tests that do not know of it."""
    files, chosen, every = SUITES[suite]
    path = os.pathsep.join([str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "remote", "-p", "no:cacheprovider", *files]
    command += ["-k", chosen]
    settings = {"EMULATED_EXTENSION": server, "EMULATED_SAMPLE": str(every), "OMP_NUM_THREADS": "1"}
    run(command, ROOT / "tests", PYTHONPATH=path, **settings)
