"""The compiled CUDA kernels: loaded when a CUDA tensor first needs them, and why they are not live."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from ..errors import Unsupported

DEVICES = ("cuda",)
OLDEST = (8, 0)  # compute capability of the GPUs that kernels are built for


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


@functools.cache
def check_gpu(device: torch.device) -> None:
    """Unsupported where the kernels are not built for a GPU as old as this one."""
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < OLDEST:
        raise Unsupported(f"{device} is an sm_{found[0]}{found[1]}, CUDA C++ kernels need sm_{OLDEST[0]}{OLDEST[1]}")
