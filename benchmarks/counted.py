"""What is counted and not timed: bytes of tickets and residencies, and process memory in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

import frozen_kernels as fk
from frozen_kernels.tensor import resident_bytes

from .registry import Case
from .sides import layer_of
from .verify import ROOT, Verdict
from .whole import frozen_model


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
        whole = fk.ticket.read_ticket(path)
        fk.ticket.verify_ticket(whole)
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


COUNTS: dict[str, Callable[[Case], Count]] = {"ticket_size": ticket_size, "footprint": footprint, "rest": rest}
COUNTS["training_memory"] = training_memory
COUNTS |= {f"{op} {mode}": peak for op in ("linear", "conv2d") for mode in ("forward", "step")}
