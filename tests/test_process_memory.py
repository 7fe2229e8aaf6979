"""Memory of a process that loads a ticket, with malloc as it comes: what the residency holds, and no dense weight.

glibc keeps large blocks that are freed, until it is asked for them: without that, or with one dense weight on the way,
each of these bounds is far away.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from process_memory_probe import write_ticket

import frozen_kernels as fk

LAYERS, SIZE = 4, 2048
WEIGHTS = LAYERS * SIZE * SIZE
MIB = 1 << 20
# bits a weight that stay, by residency, at a freeze ratio of 0.7: supermask and offsets; keep plane; two planes
BITS = {"seed": 0.3 + 64 / 1024, "mask": 1.0, "planes": 2.0}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="process memory is read from /proc"),
    pytest.mark.skipif(fk.backends.report()["cpu"] != "live", reason="the reference makes dense weights"),
]


@pytest.fixture(scope="module")
def ticket(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory") / "t.safetensors"
    write_ticket(path, LAYERS, SIZE)
    return path


def probed(probe, *args):
    root = Path(__file__).parents[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(root / "tests" / probe), *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("residency", "device"), [*((residency, "meta") for residency in BITS), ("mask", "cpu")])
def test_a_process_holds_what_the_residency_says(ticket, residency, device):
    found = probed("process_memory_probe.py", str(ticket), residency, device, str(LAYERS), str(SIZE))
    if not found:
        pytest.skip("/proc/self/clear_refs is refused")
    stays = WEIGHTS * BITS[residency] / 8
    dense = 4 * WEIGHTS
    assert found["loaded"] < 1.2 * stays + 2 * MIB, found
    # blocks of a walk, and the file's supermasks
    most = dense + 1.5 * stays if device == "cpu" else 1.5 * stays
    assert found["peak"] < most + 8 * MIB, found
    # inputs and results of two layers, and the kernels' own memory
    assert found["used"] < 1.2 * stays + 8 * MIB, found


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="which blocks are found again is the C library's choice")
def test_results_of_layers_find_the_memory_of_those_before():
    """Three are alive at once. In blocks of posix_memalign they take the memory of six to eight."""
    assert probed("results_memory_probe.py") < 4.5
