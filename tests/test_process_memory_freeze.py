"""What the system sees of a process that freezes, searches and finalizes a model: each case in a fresh process.

Run as a program it measures one case and prints it as JSON.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.memory.footprint import _status, reset_peak, trim

LAYERS, SIZE = 64, 1024
MIB = 1 << 20
SCRATCH = 12 * MIB  # of kernels, which keep it, and pages of code


def _model(layers: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(layers)))


def _search(model: nn.Module) -> None:
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(8, SIZE)).square().mean().backward()
        optimizer.step()
        search.step()


def measure(residency: str, searched: bool) -> dict:
    """Bytes of the dense model, the peak of `freeze_` and what is held at the end, beyond what the process had."""
    warm = _model(1)
    fk.freeze_(warm)
    _search(warm)
    del warm
    gc.collect()
    trim()
    base = _status("VmRSS")
    model = _model(LAYERS)
    if not reset_peak():
        return {"skip": "/proc/self/clear_refs is refused"}
    dense = _status("VmRSS") - base
    fk.freeze_(model)
    peak = _status("VmHWM") - base
    if searched:
        _search(model)
    fk.finalize_(model)
    finalized = _status("VmRSS") - base
    fk.set_residency(model, residency)
    with torch.no_grad():
        for _ in range(10):
            model(torch.ones(64, SIZE))
    held = _status("VmRSS") - base
    said = fk.footprint(model).totals()["resident"]["total"]
    return {"dense": dense, "peak": peak, "finalized": finalized, "held": held, "said": said}


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(("residency", "searched"), [("seed", False), ("planes", True)])
def test_a_process_holds_what_footprint_says(residency, searched):
    command = [sys.executable, __file__, residency, str(int(searched))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if "skip" in found:
        pytest.skip(found["skip"])
    assert found["dense"] > 0.95 * 4 * LAYERS * SIZE**2
    # every weight goes as its twin comes
    assert found["peak"] <= 1.05 * found["dense"], found
    mask = LAYERS * SIZE**2 // 8
    assert found["finalized"] <= mask + SCRATCH, found
    assert found["held"] <= found["said"] + SCRATCH, found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], sys.argv[2] == "1")))
