"""Lottery jackpots of the trainer: search, tuning, a run taken up, weights from files; and their comparison."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from training import loop, settings  # as the script imports them
from training.models import build
from training.weights import load_weights_

import frozen_kernels as fk
from examples import compare_jackpots, train

CONFIG = Path(__file__).parents[1] / "examples" / "configs" / "digits-jackpot.yaml"
SHORT = ("epochs=2", "jackpot.tune_epochs=2", "checkpoint_every=15")  # 22 steps an epoch
STEPS = 22


def arguments(out: Path, *overrides: str, resume: bool = False) -> list[str]:
    given = [f"--set={text}" for text in (f"out={out}", *overrides)]
    return ["--config", str(CONFIG), "--quiet", *given, *["--resume"] * resume]


@pytest.fixture(autouse=True, scope="module")
def no_curves():
    """A picture takes a second, and test_the_curves_of_a_log looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A dense net, as the page on training says it is trained."""
    out = tmp_path_factory.mktemp("weights")
    assert train.main(arguments(out, "freeze=null", "jackpot=null", "epochs=2")) == 0
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def unbroken(weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert train.main(arguments(out, *SHORT, f"jackpot.weights={weights}")) == 0
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def kept_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.keep_mask() for n, m in model.named_modules() if isinstance(m, fk.nn.FrozenLayer)}


def test_search_then_tuning_is_that_of_a_plain_loop(weights, unbroken):
    """Masks exactly; values as far as float16 in the ticket says."""
    chosen = settings.load(CONFIG, [*SHORT, f"jackpot.weights={weights}"])
    data = loop.load_data(chosen, torch.device("cpu"))
    model = build("digits_half", 10)
    model.load_state_dict(load_file(weights))
    fk.freeze_(model, fk.FreezeConfig.preset("jackpot", sparsity=0.98, rates="l1"))
    search = fk.Jackpot(model, epochs=2, steps_per_epoch=STEPS)
    optimizer = torch.optim.SGD(search.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    plan, swaps = loop.Plan(data.train, 64), 0
    for epoch in range(4):
        if epoch == 2:
            optimizer = torch.optim.SGD(fk.tune_weights_(model), lr=0.01, momentum=0.9)
        highest = 0.1 if epoch < 2 else 0.01
        optimizer.param_groups[0]["lr"] = highest * (1 + np.cos(np.pi * (epoch % 2) / 2)) / 2
        for ((x, y),), _ in plan.train(0, epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            swaps += search.step() if epoch < 2 else 0
    ticket = fk.load_ticket(build("digits_half", 10), unbroken / "ticket.safetensors")
    wanted, found = kept_masks(model), kept_masks(ticket)
    assert swaps > 100 and wanted.keys() == found.keys() and len(found) == 5
    for name, mask in wanted.items():
        assert torch.equal(found[name], mask)
        tuned, stored = model.get_submodule(name).values, ticket.get_submodule(name).values
        assert stored.dtype == torch.float16
        torch.testing.assert_close(stored.float(), tuned.detach(), rtol=1e-3, atol=1e-4)
    assert torch.equal(ticket[-1].weight, load_file(weights)["18.weight"])


def test_a_run_tells_each_stage_and_its_ticket_keeps_its_word(weights, tmp_path, capsys):
    """Ticket, log and line agree; the dense weights are at the accuracy of their own statistics made anew."""
    out = tmp_path / "out"
    assert train.main(arguments(out, "epochs=1", "jackpot.tune_epochs=0", f"jackpot.weights={weights}")) == 0
    told, written = capsys.readouterr().out.splitlines()
    stages = dict(text.rsplit(" ", 1) for text in told.partition(": ")[2].split(", "))
    assert list(stages) == ["dense", "magnitude alone", "jackpot", "ticket"]
    test = loop.load_data(settings.load(CONFIG), torch.device("cpu")).held_out["test"]
    model = fk.load_ticket(build("digits_half", 10), out / "ticket.safetensors").eval()
    with torch.no_grad():
        right = (model(test.images).argmax(1) == test.labels).float().mean().item()
    assert stages["ticket"] == f"{right:.2%}" and written.endswith(f"test accuracy {right:.2%}")
    assert float(stages["dense"].rstrip("%")) > 90 > float(stages["magnitude alone"].rstrip("%"))
    (row,) = rows(out / "log.csv")
    assert float(row["sparsity"]) == pytest.approx(0.98, abs=1e-4)


def state_of(out: Path) -> dict:
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


# in the search, at its last step, and in tuning
@pytest.mark.parametrize("at", [STEPS + 3, 2 * STEPS, 2 * STEPS + 5])
def test_an_interrupted_run_goes_on_bitwise(at, weights, unbroken, tmp_path, monkeypatch):
    out, steps = tmp_path / "out", []
    real = loop.Trainer._train_step

    def interrupted(self, batches, labels):
        steps.append(labels)
        if len(steps) == at:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, batches, labels)

    monkeypatch.setattr(loop.Trainer, "_train_step", interrupted)
    assert train.main(arguments(out, *SHORT, f"jackpot.weights={weights}")) == 130
    left = state_of(out)
    assert left["epoch"] * STEPS + left["step"] == at and bool(left["search"]) == (at <= 2 * STEPS)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights.read_bytes())
    assert train.main(arguments(out, *SHORT, f"jackpot.weights={moved}", resume=True)) == 0
    assert len(steps) == 4 * STEPS and same(state_of(out), state_of(unbroken))
    assert (out / "ticket.safetensors").read_bytes() == (unbroken / "ticket.safetensors").read_bytes()


def published(state: dict[str, torch.Tensor]) -> dict:
    """The state as an old script saves it: other names, no counters, and a 1x1 convolution as the classifier."""
    named = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    renamed = {f"module.net{i}": tensor for i, tensor in enumerate(named)}
    *_, last = renamed
    return {"epoch": 3, "state_dict": {**renamed, last: renamed[last][..., None, None]}}


def test_weights_of_other_names_are_taken_in_their_order(tmp_path):
    theirs, ours = build("digits_half", 10), build("digits_half", 10)
    torch.save(published(theirs.state_dict()), tmp_path / "theirs.pth")
    load_weights_(ours, tmp_path / "theirs.pth")
    assert same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert not same(dict(build("digits_half", 10).state_dict()), dict(theirs.state_dict()))


def test_weights_of_other_models_are_named(tmp_path):
    model = build("digits_half", 10)
    state = dict(model.state_dict())
    with pytest.raises(FileNotFoundError, match=r"jackpot\.weights: .*none\.pth is no file"):
        load_weights_(model, tmp_path / "none.pth")
    path = tmp_path / "some.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"some\.pth: not read"):
        load_weights_(model, path)
    torch.save({**state, "18.weight": torch.zeros(9, 112)}, path)
    with pytest.raises(ValueError, match=r"some\.pth: 18\.weight is \[9, 112\], the model's \[10, 112\]"):
        load_weights_(model, path)
    torch.save({name: tensor for name, tensor in state.items() if name != "18.weight"}, path)
    with pytest.raises(ValueError, match=r"15 entries, the model has 16; '18\.weight' is in one of them only"):
        load_weights_(model, path)
    renamed = tmp_path / "renamed.safetensors"
    save_file({f"net.{name}": tensor for name, tensor in state.items()}, renamed)
    with pytest.raises(ValueError, match="in one of them only"):
        load_weights_(model, renamed)
    assert same(dict(model.state_dict()), state)


WRONG = {
    "jackpot=null": "jackpot: a section where freeze.code is stored and nowhere else, got null for stored",
    "freeze=null": "jackpot: a section where .* nowhere else, got a section for None",
    "freeze.preset=frozen": "freeze.rates: 'l1', but only code 'stored'",
    "jackpot.weights=null": "jackpot.weights: text, got None",
    "jackpot.restriction=long": "jackpot.restriction: one of short, None, got 'long'",
    "jackpot.tune_epochs=-1": "jackpot.tune_epochs: at least 0, got -1",
    "jackpot.tune_lr=0": "jackpot.tune_lr: more than 0, got 0.0",
    "jackpot.values=float64": "jackpot.values: one of float32, float16, bfloat16, int8, got 'float64'",
    "jackpot.rates=l1": "jackpot.rates: unknown, known here are weights, restriction",
    "refresh_every=2": "refresh_every: a jackpot has new masks at every step, 1, got 2",
    "parallel=fsdp": "parallel: fsdp .* got jackpot.tune_epochs 5, jackpot.values float16",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_settings_are_named(override):
    with pytest.raises(settings.SettingsError, match=rf"digits-jackpot\.yaml: {WRONG[override]}"):
        settings.load(CONFIG, [override])


def test_the_comparison_writes_what_it_measured(tmp_path, capsys):
    compare_jackpots.main(["--quick", "--out", str(tmp_path)])
    table = rows(tmp_path / "results.csv")
    assert len(table) == 2 * 4 * 3  # rates, kinds, epochs 0 to 2
    by_run = {(r["rates"], r["start"], r["restriction"], r["epoch"]): r for r in table}
    for rates in ("l1", "uniform"):
        for rule in ("short", "none"):
            start, end = (by_run[rates, "magnitude", rule, epoch] for epoch in "02")
            assert float(start["overlap"]) == 1 > float(end["overlap"]) and start["swaps"] == "0" != end["swaps"]
            drawn = by_run[rates, "random", rule, "0"]
            assert float(drawn["overlap"]) < 0.5 and 0 <= float(drawn["accuracy"]) <= 1
        assert (
            by_run[rates, "magnitude", "short", "0"]["accuracy"] == by_run[rates, "magnitude", "none", "0"]["accuracy"]
        )
    assert len({row["dense"] for row in table}) == 1
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("accuracy.png", "swaps.png"))
    assert "Accuracy on held-out digits" in capsys.readouterr().out


def test_epochs_to_dense_are_the_first_within_a_point():
    run = compare_jackpots.Run("l1", 0.9, "random", None, 0, 0.99, [0.99, 0.5, 0.9801, 0.97], [0] * 4, [1.0] * 4)
    assert run.epochs_to_dense == 2
    run.accuracy = [0.99, 0.5, 0.9799, 0.97]
    assert run.epochs_to_dense == 4
