"""Writing a ticket is one step: permissions, full disks, and writers killed in the middle."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from subprocess import PIPE

import pytest
from torch import nn

import frozen_kernels as fk
from frozen_kernels.tickets.model import read_ticket


def test_permissions_links_and_leftovers(tmp_path):
    model = nn.Sequential(fk.nn.FrozenLinear(3, 3))
    path = tmp_path / "t.safetensors"
    before = os.umask(0o027)
    try:
        fk.save_ticket(model, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    fk.save_ticket(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    fk.save_ticket(nn.Sequential(fk.nn.FrozenLinear(3, 3, seed=1)), link)
    assert link.is_symlink() and read_ticket(path).records[0].seed == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.safetensors", "t.safetensors"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t"
    fk.save_ticket(nn.Sequential(fk.nn.FrozenLinear(3, 3)), path)
    old = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        fk.save_ticket(nn.Sequential(fk.nn.FrozenLinear(3, 3, seed=1)), path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["t"]


# one process imports torch, and a fork of it dies at each place
KILLED = """
import os, signal, sys
import torch, frozen_kernels as fk
from torch import nn
path = sys.argv[1]
model = nn.Sequential(fk.nn.FrozenLinear(64, 64, seed=1), nn.Linear(64, 30000))
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
for place in ("fsync", "replace"):
    child = os.fork()
    if child == 0:
        setattr(os, place, die)
        fk.save_ticket(model, path)
        os._exit(0)
    print(place, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
sys.stdin.readline()
print("ready", flush=True)
while True:
    fk.save_ticket(model, path)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.safetensors"
    old_model = nn.Sequential(fk.nn.FrozenLinear(64, 64), nn.Linear(64, 30000))
    fk.save_ticket(old_model, path)
    old = path.read_bytes()
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdin=PIPE, stdout=PIPE, text=True) as child:
        try:
            for place in ("fsync", "replace"):
                assert child.stdout.readline() == f"{place} {-signal.SIGKILL}\n" and path.read_bytes() == old
            left = [p.name for p in tmp_path.iterdir() if p != path]
            assert len(left) == 2 and all(n.startswith(".ticket-") and n.endswith(".tmp") for n in left)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.3 + random.random() / 5)
        finally:
            child.kill()
    assert read_ticket(path).records[0].seed in (0, 1)
    fk.save_ticket(old_model, path)
    assert path.read_bytes() == old
