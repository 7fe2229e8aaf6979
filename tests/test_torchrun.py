"""The trainer under torchrun: a run killed and taken up again ends in the same bytes as one left alone."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import train
from training import images
from training.models import build
from training_files import make_cifar10

import frozen_kernels as fk

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "examples" / "configs"
SMALL = ["epochs=1", "data.batch=128", "checkpoint_every=3"]
RUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "examples/train.py"]


def configured(name: str, parallel: str, out: Path, *sets: str) -> list[str]:
    sets = (f"parallel={parallel}", f"out={out}", *sets)
    return ["--config", str(CONFIGS / f"{name}.yaml"), "--quiet", *(w for text in sets for w in ("--set", text))]


def arguments(parallel: str, out: Path, *more: str) -> list[str]:
    return [*configured("digits", parallel, out, *SMALL), *more]


def torchrun(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*RUN, *command],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(run: subprocess.Popen) -> str:
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    return said


def kill_after_a_checkpoint(run: subprocess.Popen, out: Path) -> None:
    until = time.monotonic() + 120
    while not (out / "checkpoint.pt").exists():
        assert run.poll() is None and time.monotonic() < until, run.communicate()[0]
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)  # to torchrun, which ends its processes wherever they are
    said, _ = run.communicate(timeout=120)
    assert run.returncode != 0 and not (out / "ticket.safetensors").exists(), said


def log(out: Path) -> list[list[float]]:
    with (out / "log.csv").open() as file:
        return [[float(value or 0) for value in row[:-1]] for row in list(csv.reader(file))[1:]]


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_killed_and_resumed_under_torchrun(tmp_path, monkeypatch, capsys):
    alone, killed = tmp_path / "ddp", tmp_path / "fsdp"
    said = finish(torchrun(arguments("ddp", alone)))
    run = torchrun(arguments("fsdp", killed))
    kill_after_a_checkpoint(run, killed)
    finish(torchrun(arguments("fsdp", killed, "--resume")))
    ticket = (alone / "ticket.safetensors").read_bytes()
    assert (killed / "ticket.safetensors").read_bytes() == ticket
    assert len(log(alone)) == 1
    for mine, theirs in zip(log(killed), log(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)

    # the ticket loads in one process, with the accuracy that the two measured
    model = fk.load_ticket(build("digits", 10), killed / "ticket.safetensors").eval()
    _, test = images.digits()
    x, y = test.batch(np.arange(len(test)), None)
    right = (model(x).argmax(1) == y).float().mean()
    assert f"test accuracy {float(right):.2%}" in said
    assert right > 0.3

    # and one process takes up the checkpoint of two
    (killed / "ticket.safetensors").unlink()
    assert train.main(arguments("none", killed, "--resume")) == 0
    assert (killed / "ticket.safetensors").read_bytes() == ticket
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(arguments("none", tmp_path / "x")) == 2
    monkeypatch.delenv("WORLD_SIZE")
    assert train.main(arguments("ddp", tmp_path / "x")) == 2
    refused = capsys.readouterr().err
    assert "torchrun started 2 processes" in refused and "'ddp' needs torchrun" in refused


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_agree_with_one_where_no_batch_norm_tells_them_apart(tmp_path):
    make_cifar10(tmp_path / "data")
    small = (f"data.path={tmp_path / 'data'}", "data.batch=16", "data.validation=0", "epochs=1", "optimizer.lr=0.01")
    states = {}
    for parallel in ("none", "ddp", "fsdp"):
        command = configured("cifar10-conv6-frozen", parallel, tmp_path / parallel, *small)
        if parallel == "none":
            assert train.main(command) == 0
        else:
            finish(torchrun(command))
        states[parallel] = torch.load(tmp_path / parallel / "checkpoint.pt", weights_only=True)["model"]
    names = [name for name in states["none"] if name.endswith("scores")]
    assert len(names) == 9
    for name in names:
        assert torch.equal(states["ddp"][name], states["fsdp"][name])
        torch.testing.assert_close(states["ddp"][name], states["none"][name], rtol=1e-4, atol=1e-6)
    assert log(tmp_path / "ddp") == log(tmp_path / "fsdp")
    assert log(tmp_path / "ddp")[0] == pytest.approx(log(tmp_path / "none")[0], rel=1e-4)
