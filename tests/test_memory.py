"""Process memory of fused layers, measured in fresh processes: no dense weight may exist at any moment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import frozen_kernels as fk

FUSED = ("seed", "mask", "planes")
AT_REST = {"mask": 25, "seed": 60}  # dense fp32 bytes over resident ones

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="process memory is read from /proc"),
    pytest.mark.skipif(
        fk.backends.report()["cpu"] != "live",
        reason=f"the reference is not fused; cpu backend: {fk.backends.report()['cpu']}",
    ),
]


def probe(*case: str) -> dict:
    # freed blocks go back to the system at once, so that a rise is what is in use and not what malloc keeps
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(root / "tests" / "memory_probe.py"), *case]
    done = subprocess.run(command, env={**os.environ, **malloc, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if "skip" in found:
        pytest.skip(found["skip"])
    return found


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_peak_rises_by_less_than_an_eighth_of_the_dense_weight(op):
    """In one process, which starts slowly; the dense residency, measured last, shows that the probe still sees one."""
    every = probe("peaks", op)
    for case, found in every.items():
        if "skip" in found:
            pytest.skip(found["skip"])
        beyond = (found["rise"] - found["activations"]) / found["dense"]
        assert (beyond > 1 / 8) == (case == "dense step"), f"{case}: {beyond:.3f} of the dense weight, {found}"
    assert {case.split()[0] for case in every} == {*FUSED, "dense"} and len(every) == 3 * len(FUSED) + 1


@pytest.mark.parametrize("residency", AT_REST)
def test_a_layer_at_rest_is_a_fraction_of_the_dense_one(residency):
    found = probe("rest", residency)
    assert found["bytes"] <= found["dense"] / AT_REST[residency], f"{found['dense'] / found['bytes']:.1f}x smaller only"


def test_a_training_step_holds_five_bytes_per_weight():
    """Scores, gradients and momentum of 30 % of the weights, planes, offsets, and what comes and goes within a step."""
    found = probe("training", "resnet18")
    held = sum(found["parts"].values())
    assert held < found["bytes_per_weight"] <= 5, found
    # nothing is kept that the parts do not name, the libraries' own few megabytes apart
    assert found["at_rest"] < held - found["parts"]["gradients"] + 0.4, found
    assert found["backward"] < found["parts"]["gradients"] + 0.2, found
    assert found["optimizer"] < 0.3 and found["search"] < 0.2, found
