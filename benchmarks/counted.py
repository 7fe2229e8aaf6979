"""What is counted and not timed: bytes of tickets and residencies, and process memory in fresh processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import nn

import frozen_kernels as fk
from frozen_kernels.tensor import resident_bytes
from frozen_kernels.tickets.file import read_ticket, verify_ticket

from .models import WHOLE
from .registry import WHOLE_BYTES, Case
from .sides import layer_of
from .stored import resident
from .verify import ROOT, Verdict
from .whole import dense_model, frozen_model


class Count(NamedTuple):
    value: float
    unit: str
    verdict: Verdict = Verdict(True)
    note: str = ""


def ticket_size(case: Case) -> Count:
    """Bytes of a ticket of ResNet-50, read back and regenerated."""
    affine = case.name.endswith("affine")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket.safetensors"
        fk.save_ticket(frozen_model("resnet50", affine), path)
        whole = read_ticket(path)
        verify_ticket(whole)
        return Count(path.stat().st_size / 1e6, "MB")


def footprint(case: Case) -> Count:
    """Bytes per weight of a layer as it is held, or on disk."""
    kept = "mask" if case.residency == "disk" else case.residency
    layer = layer_of(replace(case, residency=kept))
    found = fk.footprint(nn.Sequential(layer)).layers[0]
    if case.residency == "disk":
        return Count(found.disk / found.weights, "bytes/weight")
    formula = resident_bytes(layer.shape, layer.code, layer.counts["free"], kept)
    why = "" if found.resident == formula else f"{found.resident} bytes held, {formula} by the formula"
    return Count(found.resident / found.weights, "bytes/weight", Verdict(not why, why=why))


def stored_bytes(case: Case) -> Count:
    """Bytes per weight of a packed stored weight."""
    return Count(resident(case) / math.prod(case.shape), "bytes/weight")


def _probe(*arguments: str) -> dict:
    """One case of the memory probe in a fresh process, where freed blocks go back to the system at once."""
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "memory_probe.py"), *arguments]
    done = subprocess.run(command, env={**os.environ, **malloc}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)
    if "skip" in found:
        raise RuntimeError(found["skip"])
    return found


def rest(case: Case) -> Count:
    """Resident bytes per weight of a layer in a process that does nothing."""
    found = _probe("rest", case.residency)
    return Count(4 * found["bytes"] / found["dense"], "bytes/weight")


def peak(case: Case) -> Count:
    """Rise of process memory during a forward or a training step, beyond activations, over the dense weight."""
    op, mode = case.op.split()
    found = _probe("peak", op, case.residency, mode)
    return Count((found["rise"] - found["activations"]) / found["dense"], "of dense")


def training_memory(case: Case) -> Count:
    """Most bytes per weight during a training step, all but libraries counted in."""
    found = _probe("training", "resnet18", "default", case.residency)
    return Count(found["bytes_per_weight"], "bytes/weight")


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where one process leaves a ticket for another; it goes with this process."""
    return tempfile.TemporaryDirectory()


@cache
def _process(way: str, *shape: int) -> dict[str, Any]:
    """What a fresh process that went this way says, once for all cases; malloc as the system sets it."""
    path = Path(_folder().name) / f"{'-'.join(map(str, shape))}.safetensors"
    if way == "ticket":
        _process("freeze", *shape)  # writes it
    command = [sys.executable, "-m", "benchmarks.process_memory", way, *map(str, shape), str(path)]
    return _json_of(command)


def _json_of(command: list[str]) -> dict[str, Any]:
    """What a fresh process prints, malloc as the system sets it."""
    system = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, cwd=ROOT, env={**system, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def _same_results(case: Case) -> Verdict:
    """All residencies of a way give the same, and a ticket what the model gave that was saved."""
    ways = ("freeze", "ticket") if case.op.endswith("ticket") else (case.op.split()[1],)
    digests = {_process(way, *case.shape)[kept]["digest"] for way in ways for kept in ("seed", "mask", "planes")}
    return Verdict(len(digests) == 1, why="" if len(digests) == 1 else f"{len(digests)} different results")


def held(case: Case) -> Count:
    """Bits per weight that stay in a process after a way to a model, and forwards."""
    found = _process(case.op.split()[1], *case.shape)
    bits = 8 * found[case.residency]["held"] / found["weights"]
    alone = 8 * found["activations"] / found["weights"]
    note = f"{case.shape[0]} layers; activations alone leave {alone:.2f} in a process of torch's"
    return Count(bits, "bits/weight", _same_results(case), note)


def process_peak(case: Case) -> Count:
    """The most that a process held in `freeze_`, of the dense model; or in `load_ticket`, of what stays."""
    way = case.op.split()[1]
    found = _process(way, *case.shape)
    of = found if way == "freeze" else found[case.residency]
    if of["peak"] is None:
        raise RuntimeError("/proc/self/clear_refs is refused")
    whole, unit = (4 * found["weights"], "of dense") if way == "freeze" else (of["held"], "of what stays")
    return Count(of["peak"] / whole, unit, _same_results(case), f"{case.shape[0]} layers")


@cache
def _saved(name: str, dense: bool) -> Path:
    """A whole model as a file, once for all cases: every tensor of the dense one, or a ticket."""
    path = Path(_folder().name) / f"{name}-{'dense' if dense else 'ticket'}.safetensors"
    if dense:
        save_file(dense_model(name).state_dict(), path)
    else:
        fk.save_ticket(frozen_model(name), path)
    return path


@cache
def _served(name: str, kept: str) -> dict[str, int | None]:
    """What a fresh process says that serves a whole model."""
    ticket = _saved(name, dense=False)
    return _json_of([sys.executable, "-m", "benchmarks.model_memory", name, kept, str(ticket)])


def whole_bytes(case: Case) -> Count:
    """Megabytes of a whole model: of its file, of what it keeps in memory, and of that with one forward at batch 1."""
    name, kind = case.op.split()
    if kind == "disk":
        return Count(_saved(name, case.residency == "dense").stat().st_size / 1e6, "MB")
    found = _served(name, case.residency)
    resident, rise = found["resident"], found["rise"]
    if resident is None or rise is None:
        raise RuntimeError("the peak of a process is not told here")
    return Count((resident + (rise if kind == "peak" else 0)) / 1e6, "MB")


COUNTS: dict[str, Callable[[Case], Count]] = {"ticket_size": ticket_size, "footprint": footprint, "rest": rest}
COUNTS |= {"training_memory": training_memory, "stored_bytes": stored_bytes}
COUNTS |= {f"{op} {mode}": peak for op in ("linear", "conv2d") for mode in ("forward", "step")}
COUNTS |= {f"held {way}": held for way in ("freeze", "ticket", "search")}
COUNTS |= {f"peak {way}": process_peak for way in ("freeze", "ticket")}
COUNTS |= {f"{name} {kind}": whole_bytes for name in WHOLE for kind in WHOLE_BYTES}
