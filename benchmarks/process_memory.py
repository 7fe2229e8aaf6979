"""Process memory of many layers, by the way to them.

`python -m benchmarks.process_memory WAY LAYERS ROWS COLS FILE`, a fresh process with malloc as the system sets it, for
that is what a user sees in `top`. WAY is freeze (and writes a ticket to FILE), ticket (loads FILE) or search. Prints
JSON: bytes over what the process held when it had served a small model, and digests of results.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from frozen_kernels.memory.footprint import _status, reset_peak, trim
from frozen_kernels.tensor import Residency

BATCH, FORWARDS, STEPS = 64, 10, 3
RESIDENCIES: tuple[Residency, ...] = ("seed", "mask", "planes")
SEED = 7
SMALL = 64  # layers of the model that meets everything that a process pays once


def _stack(layers: int, rows: int, cols: int) -> nn.Sequential:
    """Layers of one shape; of a shape that is not square every other one is transposed, so that they fit together."""
    sizes = [(rows, cols) if i % 2 else (cols, rows) for i in range(layers)]
    return nn.Sequential(*(nn.Linear(inputs, outputs, bias=False) for inputs, outputs in sizes))


def _input(cols: int) -> Tensor:
    return torch.linspace(-1, 1, BATCH * cols).view(BATCH, cols)


@torch.no_grad()
def _forwards(model: nn.Module, cols: int) -> str:
    """Runs the model and says what it gave: equal strings are bitwise equal results."""
    x = _input(cols)
    for _ in range(FORWARDS):
        y = model(x)
    return hashlib.sha256(y.numpy().tobytes()).hexdigest()


def _of_activations(layers: int, cols: int) -> int:
    """What malloc keeps of the activations of as many layers that have no weights; given back in the end."""
    before = _resident()
    _forwards(nn.Sequential(*(nn.ReLU() for _ in range(layers))), cols)
    gc.collect()
    kept = _resident() - before
    trim()
    return kept


def _resident() -> int:
    found = _status("VmRSS")
    if found is None:
        raise RuntimeError("VmRSS: /proc/self/status does not tell")
    return found


def _at_peak(call: Callable[[], object]) -> int | None:
    """The most that the process held during a call; None where the system does not tell."""
    if not reset_peak():
        return None
    call()
    return _status("VmHWM")


def _held(model: nn.Module, cols: int, base: int) -> dict[str, Any]:
    """What stays after forwards in each residency, one after the other."""
    found: dict[str, Any] = {}
    for residency in RESIDENCIES:
        fk.set_residency(model, residency)
        digest = _forwards(model, cols)
        gc.collect()
        found[residency] = {"held": _resident() - base, "digest": digest}
    return found


def freeze(layers: int, rows: int, cols: int, path: Path, base: int) -> dict[str, Any]:
    """`freeze_` and `finalize_`."""
    model = _stack(layers, rows, cols)
    peak = _at_peak(lambda: fk.freeze_(model, fk.FreezeConfig(seed=SEED)))
    fk.finalize_(model)
    found = _held(model, cols, base)
    fk.save_ticket(model, path)
    return found | {"peak": None if peak is None else peak - base}


def ticket(layers: int, rows: int, cols: int, path: Path, base: int) -> dict[str, Any]:
    """`load_ticket` into a model without memory, anew for each residency."""
    found: dict[str, Any] = {}
    for residency in RESIDENCIES:
        with torch.device("meta"):
            model = _stack(layers, rows, cols)
        peak = _at_peak(partial(fk.load_ticket, model, path, residency=residency))
        digest = _forwards(model, cols)
        gc.collect()
        held = _resident() - base
        found[residency] = {"held": held, "digest": digest, "peak": None if peak is None else peak - base}
        del model
    return found


def search(layers: int, rows: int, cols: int, path: Path, base: int) -> dict[str, Any]:
    """Some steps of a search with momentum, then `finalize_`."""
    model = _stack(layers, rows, cols)
    fk.freeze_(model, fk.FreezeConfig(seed=SEED))
    _steps(model, cols)
    fk.finalize_(model)
    return _held(model, cols, base)


def _steps(model: nn.Module, cols: int) -> None:
    rule = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(_input(cols)).square().mean().backward()
        optimizer.step()
        rule.step()


WAYS: dict[str, Callable[[int, int, int, Path, int], dict[str, Any]]] = {
    "freeze": freeze,
    "ticket": ticket,
    "search": search,
}


def measure(way: str, layers: int, rows: int, cols: int, path: Path) -> dict[str, Any]:
    """One way of a fresh process, with the same of a small model before it, which is not counted."""
    small = path.with_name("small.safetensors")
    WAYS["freeze"](2, SMALL, SMALL, small, 0)
    WAYS[way](2, SMALL, SMALL, small, 0)
    trim()
    alone = _of_activations(layers, cols)
    base = _resident()
    return {"weights": layers * rows * cols, "activations": alone, **WAYS[way](layers, rows, cols, path, base)}


if __name__ == "__main__":
    chosen, *sizes, file = sys.argv[1:]
    layers, rows, cols = map(int, sizes)
    print(json.dumps(measure(chosen, layers, rows, cols, Path(file))))
