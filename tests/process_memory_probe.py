"""Run in a fresh process by `test_process_memory`: `process_memory_probe.py TICKET RESIDENCY DEVICE LAYERS SIZE`.

Loads a ticket of square linear layers onto a model on DEVICE, runs 10 forwards, and prints bytes over those of the
process before as JSON: at the peak while loading, after it, and after the forwards.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.memory.footprint import _status, reset_peak
from frozen_kernels.process import release_memory

BATCH = 64


def build(layers: int, size: int, device: str) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(size, size, bias=False, device=device) for _ in range(layers)))


def write_ticket(path: Path, layers: int, size: int) -> None:
    model = nn.Sequential()
    for stream in range(layers):
        model.append(fk.nn.FrozenLinear(size, size, bias=False, stream=stream))
    fk.save_ticket(model, path)


def warm_up(residency: str) -> None:
    """What every process holds that has loaded a ticket: torch's and the extension's own state, threads, Python's."""
    with tempfile.TemporaryDirectory() as folder:
        write_ticket(Path(folder) / "t", 2, 64)
        model = fk.load_ticket(build(2, 64, "meta"), Path(folder) / "t", residency=residency)
    model(torch.ones(BATCH, 64))


@torch.no_grad()
def measure(path: str, residency: str, device: str, layers: int, size: int) -> dict[str, int]:
    warm_up(residency)
    gc.collect()
    release_memory()
    if not reset_peak():
        return {}
    before = _status("VmRSS")
    model = build(layers, size, device)
    fk.load_ticket(model, path, residency=residency)
    peak, loaded = _status("VmHWM"), _status("VmRSS")
    x = torch.ones(BATCH, size)
    for _ in range(10):
        model(x)
    return {"peak": peak - before, "loaded": loaded - before, "used": _status("VmRSS") - before}


if __name__ == "__main__":
    torch.set_num_threads(2)
    ticket, how, where, *numbers = sys.argv[1:]
    print(json.dumps(measure(ticket, how, where, *map(int, numbers))))
