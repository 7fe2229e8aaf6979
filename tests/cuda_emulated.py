"""The CUDA extension built for a CPU: the same binding and launchers, with kernels that run on the emulator."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
CUDA = ROOT / "csrc" / "cuda"
EMULATOR = ROOT / "tests" / "cuda" / "emulator.h"
NAME = "_cuda_emulated"


def lacking() -> str:
    """Why it cannot be built here; empty where it can."""
    if not shutil.which("g++"):
        return "g++ is not installed"
    return "" if importlib.util.find_spec("pybind11") else "pybind11 is not installed"


def sources() -> list[Path]:
    return [ROOT / "csrc/binding/cuda.cpp", *sorted(CUDA.glob("*.cu"))]


def digest() -> str:
    """Of all files that the module is made of."""
    found = hashlib.sha256()
    for path in sorted({*CUDA.iterdir(), *(ROOT / "csrc/frozen").iterdir(), *EMULATOR.parent.glob("*.h"), *sources()}):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def build() -> Path:
    """The module's file, in the build folder; made once for each state of the sources."""
    import pybind11

    folder = ROOT / "build" / "emulated" / digest()
    module = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w", f"-I{ROOT / 'csrc'}"]
    options += [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}", f"-DFK_CUDA_MODULE={NAME}"]
    objects = []
    for source in sources():
        objects.append(folder / f"{source.stem}.o")
        kernels = ["-include", str(EMULATOR)] if source.suffix == ".cu" else []
        command = ["g++", *options, *kernels, "-x", "c++", "-c", str(source), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    unfinished = module.with_suffix(f".{os.getpid()}")
    subprocess.run(["g++", "-shared", "-o", str(unfinished), *map(str, objects)], check=True)
    os.replace(unfinished, module)
    return module


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, build())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
