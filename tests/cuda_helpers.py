"""Programs of tests/cuda, kernels on the emulator, compiled once for all workers; and a driver that is none."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
PROGRAMS = ROOT / "tests" / "cuda"
FAMILIES = sorted(path.stem for path in PROGRAMS.glob("*.cpp") if path.stem != "emulator")

SANITIZERS = {
    "none": [],
    "memory": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "races": ["-fsanitize=thread"],
}
# Kernels cast pointers to wider types, as nvcc allows.
OPTIONS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
OPTIONS += ["-U_FORTIFY_SOURCE"]
BARRIER = re.compile(r"(?<!::)\b(?:__syncthreads|__syncwarp|wait_for_inputs)\(\)(?=;)")


def lacking() -> str:
    """Why kernels cannot be emulated here; empty where they can."""
    if sys.platform != "linux":
        return "the emulator is made for Linux"
    return "" if shutil.which("g++") else "g++ is not installed"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compiled(name: str, folder: Path, sanitizer: str = "none", csrc: Path = CSRC, options: Iterable[str] = ()) -> Path:
    """The program tests/cuda/NAME.cpp over the kernels of `csrc`, made in the folder by whoever asks for it first."""
    program = folder / f"{name}-{sanitizer}"
    with _locked(program):
        if not program.exists():
            command = ["g++", *OPTIONS, *SANITIZERS[sanitizer], f"-I{csrc}", f"-I{PROGRAMS}", *options]
            command += [str(PROGRAMS / f"{name}.cpp"), "-o", str(program)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    return program


@functools.cache
def _fixed() -> tuple[str, ...]:
    """The thread sanitizer of older compilers takes no address space that is laid out at random."""
    fixed = ("setarch", "-R")
    works = shutil.which("setarch") and not subprocess.run([*fixed, "true"], capture_output=True).returncode
    return fixed if works else ()


def run(program: Path, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Its end, whatever the status; a data race ends it with 66."""
    fixed = _fixed() if program.name.endswith("-races") else ()
    environment = os.environ | {"TSAN_OPTIONS": "history_size=0:halt_on_error=1:exitcode=66"} | settings
    return subprocess.run([*fixed, str(program), *args], capture_output=True, text=True, env=environment, timeout=600)


def with_choices(folder: Path) -> tuple[Path, list[str]]:
    """A copy of csrc in which each barrier and each wait of a kernel can be left out (mutants.h), and their places."""
    csrc, listed = folder / "csrc", folder / "barriers"
    with _locked(csrc):
        if not listed.exists():
            listed.write_text("\n".join(_copy_with_choices(csrc)))
    return csrc, listed.read_text().splitlines()


def _copy_with_choices(csrc: Path) -> list[str]:
    places: list[str] = []
    for part in ("cuda", "frozen"):
        shutil.copytree(CSRC / part, csrc / part)
    for path in sorted((csrc / "cuda").glob("*.h")):
        lines = path.read_text().splitlines()
        for at, line in enumerate(lines):
            for found in BARRIER.findall(line):
                lines[at] = line.replace(found, f"(mutants::keeps({len(places)}) ? {found} : void())")
                places.append(f"{path.name}:{at + 1} {found}")
        path.write_text("\n".join(lines) + "\n")
    return places


def fake_driver(folder: Path, version: int) -> dict[str, str]:
    """The environment of a process that finds an NVIDIA driver of this version (12040 is 12.4) and no GPU."""
    library = folder / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", str(PROGRAMS / "fake_driver.c"), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    paths = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": f"{folder}:{paths}" if paths else str(folder),
        "FAKE_DRIVER_VERSION": str(version),
    }
