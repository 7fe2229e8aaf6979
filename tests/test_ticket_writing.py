"""Writing a ticket is one step: permissions, links, and writers killed in the middle."""

import os
import random
import signal
import stat
import subprocess
import sys
import time

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


KILLED = """
import os, signal, sys
import torch, frozen_kernels as fk
from torch import nn
path, when = sys.argv[1:]
model = nn.Sequential(fk.nn.FrozenLinear(64, 64, seed=1), nn.Linear(64, 30000))
if when == "loop":
    print("ready", flush=True)
    while True:
        fk.save_ticket(model, path)
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, when, die)
fk.save_ticket(model, path)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.safetensors"
    old_model = nn.Sequential(fk.nn.FrozenLinear(64, 64), nn.Linear(64, 30000))
    fk.save_ticket(old_model, path)
    old = path.read_bytes()
    for when in ("fsync", "replace"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), when], check=False)
        assert done.returncode == -signal.SIGKILL and path.read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2  # the second has removed what the first left
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), "loop"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.3 + random.random() / 5)
    child.kill()
    child.wait()
    child.stdout.close()
    assert read_ticket(path).records[0].seed in (0, 1)
    fk.save_ticket(old_model, path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
