"""Which implementation runs an op: `report()` says what is live, `use()` forces one.

Without `use` the fastest live backend that serves the arguments runs, and the reference where none does. With it, a
backend that cannot serve raises with its reasons. A tensor in the dense residency is run by torch's own GEMM and
convolutions under any of them. A backend is a folder; a new one is a line in the table of modules below.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from .. import calls
from ..ops import NAMESPACE, SCHEMAS, library
from . import cpu, cuda, forced, reference, triton
from .errors import Unsupported
from .layers import derive

# fastest first; each module says why it is not live and holds functions named like the ops
_MODULES: dict[str, ModuleType] = {"cuda": cuda, "triton": triton, "cpu": cpu, "reference": reference}
for _backend in _MODULES.values():
    derive(_backend)
NAMES = tuple(_MODULES)
"""The backends, in the order in which they are asked: fastest first."""

# a layer of 1024 x 1024 at batch 64 takes 600 to 3000 times as long, one of 64 x 64 30 times, at batch 1 up to 50000
REFERENCE_FACTOR = 1000


def _module(name: str) -> ModuleType:
    return _MODULES[name]


def reasons(name: str) -> list[str]:
    """Why the backend `name` is not live; empty where it is. ValueError for an unknown name."""
    if name not in _MODULES:
        raise ValueError(f"backend: one of {', '.join(NAMES)}, got {name!r}")
    return list(_MODULES[name].reasons())


def report() -> dict[str, str]:
    """For each backend "live" or the reasons why it is not.

    Which kernels and backends serve what, and why, is printed by `python -m frozen_kernels info --kernels`.
    """
    return {name: "; ".join(reasons(name)) or "live" for name in NAMES}


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend, in every thread of the process.

    Args:
        name: one of `NAMES`.

    Raises:
        ValueError: an unknown name.
        RuntimeError: the backend is not live, with the reasons; and again at an op or arguments that it does not serve.
    """
    why = reasons(name)
    if why:
        raise RuntimeError(f"backend {name!r} is not live: {'; '.join(why)}")
    before, forced.name = forced.name, name
    skipped = int(name != "cpu")  # what prepared calls run on
    calls.skip(skipped)
    try:
        yield
    finally:
        forced.name = before
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
    """Live backends that hold `op` for a `device_type` ("cpu", "cuda"), fastest first: fixed for a process."""
    found = []
    for name, module in _MODULES.items():
        if device_type in module.DEVICES and hasattr(module, op) and not module.reasons():
            found.append(name)
    return tuple(found)


@functools.cache
def _warn_of_the_reference() -> None:
    warnings.warn(
        f"frozen layers run on the reference, about {REFERENCE_FACTOR} times slower than the kernels: "
        f"{'; '.join(cpu.reasons())}; `python -m frozen_kernels info` says what is missing",
        stacklevel=2,
    )


@functools.cache
def _implementations(op: str, device_type: str) -> tuple[Callable, ...]:
    """Those of the candidates. Warns once where a layer's kernels are missing on a CPU."""
    names = candidates(op, device_type)
    if device_type == "cpu" and names == ("reference",) and hasattr(cpu, op) and "Tensor? dense" in SCHEMAS[op]:
        _warn_of_the_reference()
    return tuple(getattr(_MODULES[name], op) for name in names)


def _run_forced(name: str, op: str, args: tuple) -> torch.Tensor:
    implementation = getattr(_MODULES[name], op, None)
    if implementation is None:
        raise RuntimeError(f"backend {name!r} has no {op}")
    try:
        return implementation(*args)
    except Unsupported as why:
        raise RuntimeError(f"backend {name!r} cannot run {op}: {why}") from None


def _choose(op: str, args: tuple) -> torch.Tensor:
    if forced.name is not None:
        return _run_forced(forced.name, op, args)
    why = []
    for implementation in _implementations(op, _device_of(args).type):
        try:
            return implementation(*args)
        except Unsupported as reason:
            why.append(str(reason))
    raise RuntimeError(f"{op}: no backend serves these arguments: {'; '.join(dict.fromkeys(why))}")


def _chooser(op: str) -> Callable:
    schema = getattr(getattr(torch.ops, NAMESPACE), op).default._schema
    names = [a.name for a in schema.arguments]
    # scores behind the pack are there for second derivatives alone: no implementation reads them
    taken = len(names) - (op.endswith("_grad_input") and names[-1] == "scores")
    dense = names.index("dense") if "dense" in names else None
    reads_codes = op.endswith("_grad_scores")  # and the partition, never the weight
    by_definition = getattr(reference, op)

    def choose(*args: Any) -> torch.Tensor:
        if len(args) > taken:
            args = args[:taken]
        if dense is None or args[dense] is None:
            return _choose(op, args)
        if reads_codes:  # a stored weight has values in their place
            return _choose(op, (*args[:dense], None, *args[dense + 1 :]))
        return by_definition(*args)

    choose.__name__ = f"choose_{op}"
    return choose


for _op_name in SCHEMAS:
    library.impl(_op_name, _chooser(_op_name), "CompositeExplicitAutograd")
