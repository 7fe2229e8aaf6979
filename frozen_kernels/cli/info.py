"""`info`: what is installed and what serves what."""

from __future__ import annotations

import argparse
import importlib
import platform
from importlib.metadata import version
from typing import Any

import torch

from .. import __version__, backends
from ..backends.cuda import choices
from ..backends.targets import target
from ..backends.triton import tuning
from ..memory import crossover
from ..text import table
from ..tune import choices as tune_choices


def info(options: argparse.Namespace) -> None:
    """Versions, live backends, instruction set, threads; with --kernels what each CPU kernel and GPU backend serves."""
    if options.kernels:
        print_kernels()
        print_choices()
        return
    print(f"frozen_kernels {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "safetensors")))
    try:
        _C = importlib.import_module("frozen_kernels._C")
        print(f"extension: {_C.build_info()}; instruction set {_C.isa()} of {', '.join(_C.isa_available())}")
    except ImportError as why:
        print(f"extension: missing ({why}); ops run on the reference, without fused kernels")
    path, measured = crossover.in_use(crossover.active_level())
    print(f"residency table: {path}, measured on {', '.join(f'{k} {v}' for k, v in measured.made.items())}")
    gpu = _gpu()
    for name, found in (("tiles", tuning.in_use(gpu)), ("choices", choices.in_use(gpu))):
        print(f"GPU {name}: {found.path}, for {gpu}: {found.made}")
    print(f"threads: {torch.get_num_threads()}")
    for name, state in backends.report().items():
        print(f"backend {name}: {state}")


def _gpu() -> str:
    """The GPU at hand as tables name it; "default" where there is none."""
    return target(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def print_kernels() -> None:
    """The kernels of the CPU's instruction set in use; the first that serves a call does it."""
    try:
        from .. import _C  # type: ignore[attr-defined]
    except ImportError as why:
        raise RuntimeError(f"--kernels: the extension is missing ({why})") from None
    print(f"instruction set {_C.isa()}\n")
    print(table(("operation", "kernel", "serves"), _C.kernels()))


def print_choices() -> None:
    """The table by which a product on a GPU chooses its backend, for the GPU at hand."""
    path, made, entries = choices.in_use(_gpu())
    rows = [tune_choices.line(key, choice) for key, found in entries.items() for choice in found]
    print(f"\nbackends on a GPU of target {_gpu()}, by {path}: {made}\n")
    print(table(tune_choices.HEAD, rows))


def add(commands: Any) -> None:
    """The command and its options."""
    sub = commands.add_parser("info", help=info.__doc__)
    sub.add_argument(
        "--kernels",
        action="store_true",
        help="the CPU kernels by operation, in the order they are asked; the GPU backends",
    )
    sub.set_defaults(run=info)
