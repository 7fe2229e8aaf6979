"""The trainer of the examples: the paper's settings end to end on small files, and a run killed and taken up."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from training import loop, processes, settings  # as the script imports them
from training_files import make_arxiv, make_cifar10, make_imagenet

import frozen_kernels as fk
from examples import train

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "examples" / "configs"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_cifar10(root)
    make_imagenet(root / "imagenet")
    make_arxiv(root)
    return root


def small_net(classes: int) -> nn.Module:
    """1,600 weights, for what does not depend on the model."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(128, classes, bias=False),
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(loop, "build", lambda name, classes: small_net(classes))


def arguments(name: str, out: Path, *overrides: str, resume: bool = False) -> list[str]:
    given = [f"out={out}", *overrides]
    return [
        "--config",
        str(CONFIGS / f"{name}.yaml"),
        "--quiet",
        *["--resume"] * resume,
        *(f"--set={o}" for o in given),
    ]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open() as file:
        return list(csv.DictReader(file))


# 5 steps an epoch; the masks of most checkpoints are older than their scores
SMALL_RUN = ("epochs=3", "data.batch=8", "data.validation=0", "checkpoint_every=2")
FROZEN_RUN = (*SMALL_RUN, "refresh_every=3", "freeze.distribution=uniform")


def small_run(out: Path, files: Path, *more: str, resume: bool = False) -> list[str]:
    return arguments("cifar10-conv6-frozen", out, f"data.path={files}", *FROZEN_RUN, *more, resume=resume)


@pytest.fixture(autouse=True, scope="module")
def no_curves():
    """A picture takes a second, and test_the_curves_of_a_log looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda folder: None)
        yield


END_TO_END = {
    "cifar10-conv6-frozen": ("data.batch=16", "epochs=1"),
    "cifar10-resnet18-dense": ("data.batch=40", "epochs=1"),
    "cifar10-resnet18-sparse_source": ("data.batch=40", "epochs=1", "freeze.threshold_bits=8"),
    "ogbn_arxiv-gin": ("model.classes=3", "model.features=5", "epochs=3"),
}


@pytest.mark.parametrize("name", END_TO_END)
def test_the_papers_settings_run_on_small_files(name, files, tmp_path, capsys):
    out = tmp_path / "out"
    assert train.main(arguments(name, out, f"data.path={files}", *END_TO_END[name])) == 0
    log = rows(out)
    chosen = settings.load(CONFIGS / f"{name}.yaml", [f"data.path={files}", *END_TO_END[name]])
    assert [row["epoch"] for row in log] == [str(i + 1) for i in range(chosen.epochs)]
    assert all(np.isfinite(float(row["loss"])) and 0 <= float(row["test_accuracy"]) <= 1 for row in log)
    printed = capsys.readouterr().out
    if chosen.freeze is None:
        assert float(log[-1]["sparsity"]) == 0
        assert load_file(out / "model.safetensors")["0.0.weight"].shape == (64, 3, 3, 3)
    else:
        assert float(log[-1]["sparsity"]) == pytest.approx(0.7, abs=1e-3)
        layers = [m for m in load_ticket(chosen, out).modules() if isinstance(m, fk.nn.FrozenLayer)]
        masks = sum(layer.packed_supermask().numel() for layer in layers)
        assert f"{masks:,} of them masks" in printed
        free, weights = (
            sum(layer.counts[key] for layer in layers for key in keys)
            for keys in (["free"], ["free", "pruned", "locked"])
        )
        assert free / weights == pytest.approx(1 - chosen.freeze.freeze_ratio, abs=0.01)
    assert f"test accuracy {float(log[-1]['test_accuracy']):.2%}" in printed


def load_ticket(chosen: settings.Settings, out: Path) -> nn.Module:
    model = loop.GIN(5, 3) if chosen.model.name == "gin" else loop.build(chosen.model.name, chosen.model.classes)
    return fk.load_ticket(model, out / "ticket.safetensors")


def test_resnet50_runs_on_a_folder_of_images(files, tmp_path):
    """Wide images and grey ones; one step, and the ticket of 23 million weights."""
    overrides = [f"data.path={files / 'imagenet'}", "model.classes=2", "data.batch=4", "epochs=1", "device=cpu"]
    out = tmp_path / "out"
    assert train.main(arguments("imagenet-resnet50", out, *overrides, "data.workers=1", "freeze.threshold_bits=8")) == 0
    (row,) = rows(out)
    assert row["step"] == "1" and float(row["sparsity"]) == pytest.approx(0.7, abs=1e-3)
    assert (out / "ticket.safetensors").stat().st_size > 0.3 * 23_512_000 / 8


@pytest.mark.parametrize("more", [(), ("freeze=null",), ("accumulate=2",), ("clip=1.0",)], ids=str)
def test_an_epoch_is_that_of_a_plain_loop(more, files, tmp_path, small):
    """Loss, order, schedule and accuracies, written once more without the trainer."""
    out = tmp_path / "out"
    run = SMALL_RUN if "freeze=null" in more else FROZEN_RUN
    overrides = [f"data.path={files}", *run, "epochs=2", *more]
    assert train.main(arguments("cifar10-conv6-frozen", out, *overrides)) == 0
    chosen = settings.load(CONFIGS / "cifar10-conv6-frozen.yaml", overrides)
    data = loop.load_data(chosen, torch.device("cpu"))
    model = loop.build_model(chosen, data)
    search = fk.EdgePopup(model, refresh_every=3) if chosen.freeze else None
    parameters = search.parameters() if search else list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = data.train.images, data.train.labels
    assert len(images[0]) == 40
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + np.cos(np.pi * epoch / 2)) / 2
        order = loop.Plan(data.train, 8).train(0, epoch)
        losses, right = [], 0
        for ((x, y),), _ in order:
            losses.append(0.0)
            for part, target in zip(x.split(8 // chosen.accumulate), y.split(8 // chosen.accumulate), strict=True):
                outputs = model(part)
                loss = F.cross_entropy(outputs, target) / chosen.accumulate
                loss.backward()
                losses[-1] += loss.item()
                right += (outputs.argmax(1) == target).sum().item()
            if chosen.clip:
                nn.utils.clip_grad_norm_(parameters, chosen.clip)
            optimizer.step()
            optimizer.zero_grad()
            if search:
                search.step()
        model.eval()
        x, y = data.held_out["test"].batch(np.arange(8), None)
        row = rows(out)[epoch]
        assert float(row["loss"]) == pytest.approx(np.mean(losses), rel=1e-4)
        assert float(row["train_accuracy"]) == right / 40 and row["validation_accuracy"] == ""
        assert float(row["test_accuracy"]) == (model(x).argmax(1) == y).float().mean().item()
        assert float(row["lr"]) == pytest.approx(optimizer.param_groups[0]["lr"])
        model.train()


def test_bfloat16_and_a_validation_part(files, tmp_path, small):
    out = tmp_path / "out"
    assert train.main(small_run(out, files, "amp=bfloat16", "data.validation=0.2")) == 0
    assert [row["step"] for row in rows(out)] == ["4", "8", "12"]  # 32 images in batches of 8
    assert all(float(row["validation_accuracy"]) * 8 % 1 == 0 for row in rows(out))


# Forks a trainer with a net of the tests' for each run, which is killed where told: at a step of the optimizer (before
# masks are new), in the middle of writing the n-th checkpoint, or between the log and the checkpoint of an epoch.
KILLED = """
import json, os, signal, sys
sys.path[:0] = sys.argv[1:4]
import torch
torch.set_num_threads(1)
from test_training import small_net
import train
from training import checkpoint, loop
loop.build = lambda name, classes: small_net(classes)

def run(place, at, *arguments):
    places = {"step": (torch.optim.SGD, "step"), "fsync": (os, "fsync"), "log": (loop.Trainer, "_write_log")}
    owner, name = places[place]
    real, count = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        result = real(*args, **kwargs) if place != "fsync" else None
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result if place != "fsync" else real(*args, **kwargs)

    setattr(owner, name, counted)
    return train.main(list(arguments))

for case in json.loads(sys.argv[4]):
    child = os.fork()
    if child == 0:
        os._exit(run(*case))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

# place, count, and the step that the checkpoint left behind is at (0: there is none); 5 steps an epoch, one checkpoint
# after 2 and 4 of them and one at the end; a file is synced, then its folder
KILLS = [("step", 1, 0), ("step", 8, 7), ("fsync", 7, 4), ("log", 2, 9)]


@pytest.fixture(scope="module")
def killed(files, tmp_path_factory):
    """The folders that the killed runs left, by place and count."""
    outs = {(place, at): tmp_path_factory.mktemp("killed") / "out" for place, at, _ in KILLS}
    cases = [[*kill, *small_run(out, files)] for kill, out in outs.items()]
    folders = [str(ROOT), str(ROOT / "examples"), str(ROOT / "tests")]
    command = [sys.executable, "-c", KILLED, *folders, json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS)
    return outs


def state_of(out: Path) -> dict:
    """The last checkpoint without times, tensors as they are."""
    found = torch.load(out / "checkpoint.pt", weights_only=True)
    found["rows"] = [row[:-1] for row in found["rows"]]
    return {key: value for key, value in found.items() if key not in ("seconds", "settings")}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def unbroken(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", lambda name, classes: small_net(classes))
        assert train.main(small_run(out, files)) == 0
    return out


@pytest.mark.parametrize(("place", "at", "left"), KILLS)
def test_a_killed_run_goes_on_bitwise(place, at, left, files, unbroken, killed, small):
    out = killed[place, at]
    if left:
        found = state_of(out)
        assert found["epoch"] * 5 + found["step"] == left
    else:
        assert not (out / "checkpoint.pt").exists()
    assert train.main(small_run(out, files, resume=True)) == 0
    assert same(state_of(out), state_of(unbroken))
    assert (out / "ticket.safetensors").read_bytes() == (unbroken / "ticket.safetensors").read_bytes()
    logs = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)] for folder in (out, unbroken)]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    assert {path.name for path in out.iterdir()} == {path.name for path in unbroken.iterdir()}


@pytest.mark.parametrize("at", [8, 10])  # 10: after the last step of an epoch, before its end
def test_an_interrupt_leaves_a_run_that_goes_on(at, files, unbroken, tmp_path, small, monkeypatch, capsys):
    out, steps = tmp_path / "out", []
    real = loop.Trainer._train_step

    def interrupted(self, batches, labels):
        steps.append(labels)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, batches, labels)

    monkeypatch.setattr(loop.Trainer, "_train_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert train.main(small_run(out, files)) == 130
    assert f"stopped; --resume goes on from {out}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert (state_of(out)["epoch"], state_of(out)["step"]) == (1, at - 5)
    assert train.main(small_run(out, files, resume=True)) == 0
    assert len(steps) == 15 and same(state_of(out), state_of(unbroken))


def refused(capsys, command: list[str]) -> str:
    assert train.main(command) == 2
    return capsys.readouterr().err


def test_checkpoints_of_other_runs_are_refused(files, unbroken, tmp_path, small, capsys):
    assert "checkpoint.pt is there; --resume goes on with it" in refused(capsys, small_run(unbroken, files))
    for override, message in {
        "optimizer.lr=0.05": "of another run, optimizer.lr was 0.1 and is 0.05 now",
        "freeze.freeze_ratio=0.5": "of another run, freeze.prune_ratio was 0.5",
        "freeze=null": "of another run, freeze was 'a section' and is None now",
        "epochs=4": "epochs was 3 and is 4 now",
        "seed=1": "seed was 0 and is 1 now",
    }.items():
        overrides = SMALL_RUN if override == "freeze=null" else FROZEN_RUN
        command = arguments("cifar10-conv6-frozen", unbroken, f"data.path={files}", *overrides, override, resume=True)
        assert message in refused(capsys, command)
    assert train.main(small_run(unbroken, files, "checkpoint_every=null", "data.workers=1", resume=True)) == 0
    damaged = tmp_path / "checkpoint.pt"
    damaged.write_bytes((unbroken / "checkpoint.pt").read_bytes()[:5000])
    assert "checkpoint.pt: truncated or not a checkpoint" in refused(capsys, small_run(tmp_path, files, resume=True))
    torch.save({"model": {}}, damaged)
    assert "a checkpoint of version 2, got None" in refused(capsys, small_run(tmp_path, files, resume=True))
    torch.save({"version": 2, "settings": {}}, damaged)
    assert "'model' is missing" in refused(capsys, small_run(tmp_path, files, resume=True))


def test_errors_before_training_are_one_line(files, tmp_path, capsys):
    out = tmp_path / "out"
    message = refused(capsys, arguments("cifar10-conv6-dense", out, "data.path=/nowhere"))
    assert message.startswith("error: data.path: /nowhere is no folder; unpack cifar-10-python.tar.gz")
    assert message.count("\n") == 1 and not out.exists()
    assert "epoch: unknown" in refused(capsys, arguments("digits", out, "epoch=3"))
    assert "device: 'nothing' cannot be used" in refused(capsys, arguments("digits", out, "device=nothing"))
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert "File exists" in refused(capsys, arguments("digits", occupied))
    assert "10 digits" in refused(capsys, arguments("digits", out, "model.classes=9"))
    local = ("freeze.scope=local", "freeze.distribution=epl", "freeze.sparsity=0.6", "freeze.freeze_ratio=0.9")
    assert "error: sparsity: 0.6 is above 1 - its lock_ratio" in refused(capsys, arguments("digits", out, *local))


def test_states_are_copies_on_the_cpu():
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = processes.full_state(model, optimizer)
    assert type(state["model"]) is dict and torch.equal(
        state["optimizer"]["state"]["weight"]["momentum_buffer"], torch.ones(2, 3)
    )
    other = nn.Linear(3, 2, bias=False)
    processes.load_full_state(other, torch.optim.SGD(other.parameters(), lr=1, momentum=0.5), state)
    assert torch.equal(other.weight, model.weight)
