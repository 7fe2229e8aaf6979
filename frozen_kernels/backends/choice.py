"""Which implementation runs an op: `report()` says what is live, `use()` forces one.

Without `use` the fastest live backend that serves the arguments runs, and the reference where none does. With it, a
backend that cannot serve raises with its reasons. A tensor in the dense residency is run by torch's own GEMM and
convolutions under any of them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

from .. import calls
from ..ops import NAMESPACE, SCHEMAS, library
from .errors import Unsupported

# fastest first; each module says why it is not live and holds functions named like the ops
_MODULES = {"triton": ".triton", "cpu": ".cpu", "reference": ".reference"}
_FUTURE = {"cuda": "CUDA C++ kernels are not part of this release"}
NAMES = (*_MODULES, *_FUTURE)

_forced: str | None = None  # process-wide: autograd runs a device's backward in a thread of its own


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(_MODULES[name], __package__)


def reasons(name: str) -> list[str]:
    """Why a backend is not live; empty where it is. ValueError for an unknown name."""
    if name in _FUTURE:
        return [_FUTURE[name]]
    if name not in _MODULES:
        raise ValueError(f"backend: one of {', '.join(NAMES)}, got {name!r}")
    return list(_module(name).reasons())


def report() -> dict[str, str]:
    """For each backend "live" or the reasons why it is not."""
    return {name: "; ".join(reasons(name)) or "live" for name in NAMES}


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend, in every thread of the process.

    RuntimeError with the reasons where it is not live, and again at an op or arguments that it does not serve.
    """
    why = reasons(name)
    if why:
        raise RuntimeError(f"backend {name!r} is not live: {'; '.join(why)}")
    global _forced
    before, _forced = _forced, name
    skipped = int(name != "cpu")  # what prepared calls run on
    calls.skip(skipped)
    try:
        yield
    finally:
        _forced = before
        calls.skip(-skipped)


def _device_of(args: tuple) -> torch.device:
    for a in args:
        if isinstance(a, torch.Tensor):
            return a.device
        if isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor):
            return a[0].device
    raise ValueError("an op needs at least one tensor")


@functools.cache
def candidates(op: str, device_type: str) -> tuple[str, ...]:
    """Live backends that hold this op for this device type, fastest first: fixed for a process."""
    found = []
    for name in _MODULES:
        module = _module(name)
        if device_type in module.DEVICES and hasattr(module, op) and not module.reasons():
            found.append(name)
    return tuple(found)


def _run_forced(name: str, op: str, args: tuple, options: dict):
    implementation = getattr(_module(name), op, None)
    if implementation is None:
        raise RuntimeError(f"backend {name!r} has no {op}")
    try:
        return implementation(*args, **options)
    except Unsupported as why:
        raise RuntimeError(f"backend {name!r} cannot run {op}: {why}") from None


def _choose(op: str, args: tuple, options: dict):
    if _forced is not None:
        return _run_forced(_forced, op, args, options)
    for name in candidates(op, _device_of(args).type):
        try:
            return getattr(_module(name), op)(*args, **options)
        except Unsupported:
            continue
    raise RuntimeError(f"{op}: no backend serves these arguments")


def _chooser(op: str) -> Callable:
    schema = getattr(getattr(torch.ops, NAMESPACE), op).default._schema
    arguments = [a.name for a in schema.arguments]
    dense = arguments.index("dense") if "dense" in arguments else None
    plain = sum(not a.has_default_value() for a in schema.arguments)

    def choose(*args):
        options = {}
        if len(args) > plain:  # implementations take what has a default by keyword
            args, options = args[:plain], dict(zip(arguments[plain:], args[plain:], strict=False))
            if op.endswith("_grad_input"):
                options = {}  # scores: read by derivatives alone
        if dense is None or args[dense] is None:
            return _choose(op, args, options)
        if op.endswith("_grad_scores"):  # reads codes and partition, never the weight
            return _choose(op, (*args[:dense], None, *args[dense + 1 :]), options)
        return getattr(_module("reference"), op)(*args, **options)

    choose.__name__ = f"choose_{op}"
    return choose


for _op_name in SCHEMAS:
    library.impl(_op_name, _chooser(_op_name), "CompositeExplicitAutograd")
