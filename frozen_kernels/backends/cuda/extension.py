"""The compiled CUDA kernels: loaded when a CUDA tensor first needs them, and why they are not live."""

from __future__ import annotations

import functools
import importlib
from typing import Any

DEVICES = ("cuda",)


@functools.cache
def load() -> Any:
    """The module. ImportError where it is not built."""
    return importlib.import_module("frozen_kernels._cuda")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def reasons() -> list[str]:
    """Why this backend is not live; empty where it is."""
    try:
        runtime, driver, devices, error = load().status()
    except ImportError as why:
        return [f"the CUDA extension is not built ({why}): it needs nvcc when the package is installed"]
    if not driver:
        return ["there is no NVIDIA driver"]
    if driver // 1000 < runtime // 1000:
        return [f"the NVIDIA driver serves CUDA {_version(driver)}, the kernels need {_version(runtime)}: {error}"]
    if error or not devices:
        return [f"no GPU can be used: {error}"]
    return []
