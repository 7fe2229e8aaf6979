"""The pieces of the demo on a tiny net and a few digits."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import frozen_kernels as fk

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

SCRIPT = Path(__file__).parents[1] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits_demo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def tiny(digits, monkeypatch):
    """The demo with a net of 10,000 weights; the digits themselves, 600 of them to train on."""

    def build() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16, affine=False), nn.ReLU(), nn.Flatten(),
            nn.Linear(144, 64, bias=False), nn.ReLU(), nn.Linear(64, 10, bias=False),
        )  # fmt: skip

    monkeypatch.setattr(digits, "build_net", build)
    monkeypatch.setattr(digits, "SWEEP_FREEZE", (0.7,))
    monkeypatch.setattr(digits, "SWEEP_PRUNE", (0.25,))
    whole = digits.load_split()
    return digits, whole._replace(train_x=whole.train_x[:600], train_y=whole.train_y[:600])


def test_the_split_is_fixed_disjoint_and_normalised_by_its_training_part(digits):
    data, again = digits.load_split(), digits.load_split()
    assert all(torch.equal(a, b) for a, b in zip(data, again, strict=True))
    assert len(data.train_y) == 1437 and len(data.test_y) == 360 and data.test_x.shape[1:] == (1, 8, 8)
    assert abs(data.train_x.mean()) < 1e-5 and abs(data.train_x.std() - 1) < 1e-5
    assert data.test_y.bincount().min() >= 33


def test_the_net_has_the_weights_that_the_demo_names(digits):
    model = digits.build_net()
    assert sum(p.numel() for p in model.parameters()) == 389_600
    assert "389,600" in SCRIPT.read_text() and all(p.dim() > 1 for p in model.parameters())


def test_a_ticket_learns_and_its_file_gives_the_same_outputs(tiny, tmp_path):
    digits, data = tiny
    model = digits.train_ticket(data, seed=0, epochs=15, quiet=True, **digits.FROZEN)
    assert digits.accuracy(model, data) > 0.4  # by chance 0.1
    fk.save_ticket(model, tmp_path / "ticket.safetensors")
    loaded = digits.load_net(tmp_path / "ticket.safetensors")
    fk.set_residency(model, "planes")
    with torch.no_grad():
        assert torch.equal(loaded(data.test_x), model(data.test_x))
    assert digits.mask_bytes(loaded) == digits.mask_bytes(model)


def test_the_dense_net_learns_and_comes_back_from_its_file(tiny, tmp_path):
    digits, data = tiny
    model = digits.train_dense(data, seed=0, epochs=4, quiet=True)
    assert digits.accuracy(model, data) > 0.5
    save_file(model.state_dict(), tmp_path / "dense.safetensors")
    assert digits.accuracy(digits.load_net(tmp_path / "dense.safetensors"), data) == digits.accuracy(model, data)


def test_the_check_in_a_new_process_finds_one_changed_bit(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]))
    model, data = digits.build_net(), digits.load_split()
    fk.freeze_(model, fk.FreezeConfig(**digits.FROZEN))
    fk.finalize_(model)
    ticket, outputs = tmp_path / "ticket.safetensors", tmp_path / "outputs.safetensors"
    fk.save_ticket(model, ticket)
    with torch.no_grad():
        expected = digits.load_net(ticket)(data.test_x)
    save_file({"outputs": expected}, outputs)
    assert digits.in_new_process("--check", str(ticket), str(outputs)).strip() == "bitwise equal"
    expected.view(torch.int32)[7, 3] ^= 1
    save_file({"outputs": expected}, outputs)
    with pytest.raises(SystemExit, match="outputs differ"):
        digits.check(ticket, outputs)


def test_the_sweep_compares_sizes_of_files_and_the_plot_is_a_png(tiny, tmp_path):
    digits, data = tiny
    points = digits.sweep(data, tmp_path, seed=0, epochs=1, quiet=True)
    assert [p.source for p in points] == ["dense source", "sparse source", "frozen"]
    assert not list(tmp_path.iterdir())
    dense, sparse, frozen = points
    assert dense.mask_bytes / frozen.mask_bytes == pytest.approx(1 / 0.3, rel=0.02)
    assert dense.ticket_bytes > sparse.ticket_bytes > frozen.ticket_bytes > frozen.mask_bytes
    pytest.importorskip("matplotlib")
    finished = {"dense": {"disk": 12345, "accuracy": 0.9}, "frozen": {"disk": 2345, "accuracy": 0.8}}
    digits.plot(points, finished, tmp_path / "plot.png", epochs=1, seed=0)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_means_ratios_and_what_was_not_measured(digits, capsys):
    pytest.importorskip("rich")
    side = {"accuracy": 0.98, "disk": 2000, "resident": 4000, "peak": None, "latency_1": 1e-3, "latency_64": 2e-3}
    runs = [{"seed": s, "mask_bytes": 100, "dense": side, "frozen": side | {"disk": 1000 + 200 * s}} for s in (0, 1)]
    digits.show(runs, [digits.Point("dense source", 0.0, 1, 333, 0.9)])
    text = capsys.readouterr().out
    for part in ("mean over seeds 0, 1", "98.00%", "1.1 kB", "1.82x", "not measured", "3.33x"):
        assert part in text
