"""Banks where layers were drawn again, loads are refused, threads are interrupted, and biases come with the input."""

from __future__ import annotations

import threading

import pytest
import torch
from bank_cases import bank_of
from torch import nn

import frozen_kernels as fk


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("residency", ["mask", "planes", "dense"])
def test_masks_are_of_the_weights_before_they_were_drawn_again(residency, in_place, monkeypatch):
    if in_place:  # as on a GPU
        monkeypatch.setattr(fk.nn.FrozenLayer, "in_place", True)
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    fk.freeze_(model, fk.FreezeConfig(seed=1, freeze_ratio=0.2))
    fk.set_residency(model, residency)
    bank = fk.MaskBank(model)
    layer, x = model[0], torch.randn(3, 64)
    weights = {}
    for name, first in (("one", 0), ("two", 1)):
        keep = torch.arange(layer.free) % 3 != first
        layer.set_supermask(fk.format.pack_bits(keep))
        bank.add(name)
        weights[name] = layer.weight.clone()
    layer.redraw(torch.ones(layer.free, dtype=torch.bool))
    assert not torch.equal(layer.weight, weights["two"])
    fk.finalize_(model)
    with bank.mix({"one": 1.0}):
        torch.testing.assert_close(model(x), x @ weights["one"].T, rtol=1e-4, atol=1e-5)
    for name in ("one", "two", "one"):
        bank.use(name)
        assert torch.equal(layer.weight, weights[name]) and layer.generations is None
    layer.set_residency("mask")
    assert torch.equal(layer.weight, weights["one"])


def test_masks_of_a_layer_that_became_another_are_refused(tmp_path):
    bank, model = bank_of(2)[0], bank_of(0, seed=8)[0].model
    fk.save_ticket(model, tmp_path / "t")
    fk.finalize_(bank.model)
    fk.load_ticket(bank.model, tmp_path / "t")
    fk.set_residency(bank.model, "planes")  # for which views take draws of the layer
    weight = bank.model[4].weight.clone()
    for call in (lambda: bank.use("task0"), lambda: bank.add("new")):
        with pytest.raises(RuntimeError, match="'0' has become another weight, whose header begins with"):
            call()
    assert torch.equal(bank.model[4].weight, weight)


def with_coats(model: nn.Module) -> None:
    model[4].adopt_counts(torch.full((model[4].free,), 2, dtype=torch.uint8), coats=2)


def with_relu(model: nn.Module) -> None:
    model[4].relu = True


def drawn_again(model: nn.Module) -> None:
    model[4].redraw(torch.ones(model[4].free, dtype=torch.bool))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (with_coats, "'4': coats in the model, none in the bank"),
        (drawn_again, "'4': generations in the model, none in the bank"),
        (with_relu, "'4': a folded ReLU in the model, none in the bank"),
    ],
)
def test_a_file_refused_leaves_the_model(change, what, tmp_path):
    bank_of(2)[0].save(tmp_path / "bank")
    model = bank_of(0)[0].model
    change(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(fk.TicketError, match=what):
        fk.MaskBank.load(model, tmp_path / "bank")
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(t, after[name]) for name, t in before.items())


class Twins(nn.Module):
    """Two layers, whose biases may be one parameter."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)
        if shared:
            self.b.bias = self.a.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


def test_a_tensor_of_each_task_that_others_share_is_refused(tmp_path):
    model = Twins(shared=False)
    fk.freeze_(model, fk.FreezeConfig(seed=1), lambda module, name: True)
    for layer in (model.a, model.b):
        nn.init.zeros_(layer.bias)  # equal ones may be tied
    bank = fk.MaskBank(model, ["a.bias"])
    bank.add("one")
    bank.save(tmp_path / "bank")
    plain = Twins(shared=True)
    nn.init.ones_(plain.a.bias)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with pytest.raises(fk.TicketError, match=r"per_task: 'a\.bias' is one tensor with"):
        fk.MaskBank.load(plain, tmp_path / "bank")
    assert type(plain.a) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_a_mixture_adds_the_bias_of_an_attention_once():
    holder = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)}).eval()
    nn.init.normal_(holder["attention"].in_proj_bias)
    fk.freeze_(holder, fk.FreezeConfig(seed=1, freeze_ratio=0.0), lambda module, name: True)
    layer, bias = holder["attention"].in_proj, holder["attention"].in_proj_bias
    bank = fk.MaskBank(holder)
    bank.add("one")
    layer.set_supermask(255 - layer.packed_supermask())
    bank.add("two")
    x = torch.randn(5, 3, 16)
    with torch.no_grad():
        parts = []
        for name in bank.names:
            bank.use(name)
            parts.append(layer(x))
        expected = 0.5 * parts[0] + 0.25 * parts[1] + bias
        with bank.mix([0.5, 0.25]):
            torch.testing.assert_close(layer(x, bias), expected)
            torch.testing.assert_close(layer(x, bias=bias), expected)
            torch.testing.assert_close(layer(x), expected - bias)
        with bank.mix([0.0, 0.0]):
            torch.testing.assert_close(layer(x, bias), bias.expand(5, 3, -1))


def in_a_thread(run) -> bool:
    """Whether a call in another thread ends within 5 s."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


class Interrupted(nn.Module):
    """A model that calls itself, raises, or does what it is told within its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, within=None) -> torch.Tensor:
        if within is not None:
            within()
        return self.layer(x)


def interruptible() -> tuple[Interrupted, fk.MaskBank, torch.Tensor]:
    model = Interrupted()
    fk.freeze_(model, fk.FreezeConfig(seed=1), lambda module, name: True)
    bank = fk.MaskBank(model)
    bank.add("one")
    return model, bank, torch.randn(2, 16)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_forward_that_was_interrupted_keeps_nobody_waiting():
    model, bank, x = interruptible()

    def twice() -> None:
        with pytest.raises(KeyboardInterrupt):
            model(x, interrupt)

    with pytest.raises(KeyboardInterrupt):
        model(x, interrupt)
    assert in_a_thread(lambda: bank.use("one"))
    model(x, twice)
    model(x)
    assert in_a_thread(lambda: bank.use("one"))


def test_a_change_waits_for_the_outer_of_two_forwards():
    model, bank, x = interruptible()
    order, inner, go_on = [], threading.Event(), threading.Event()

    def within() -> None:
        model(x)
        inner.set()
        go_on.wait(5)
        order.append("forward")

    def change() -> None:
        bank.use("one")
        order.append("change")

    forward = threading.Thread(target=lambda: model(x, within), daemon=True)
    forward.start()
    assert inner.wait(5)
    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    changing.join(0.2)  # longer than a change looks away
    go_on.set()
    for thread in (forward, changing):
        thread.join(5)
    assert order == ["forward", "change"]


def test_of_two_changes_within_forwards_one_is_an_error():
    model, bank, x = interruptible()
    both, results = threading.Barrier(2), []

    def within() -> None:
        both.wait(5)
        bank.use("one")

    def run() -> None:
        try:
            results.append(model(x, within))
        except RuntimeError as why:
            results.append(str(why))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    told = [result for result in results if isinstance(result, str)]
    assert len(results) == 2 and told == [
        "model: another thread changes masks within its forward, and so does this one"
    ]
    model(x, lambda: bank.use("one"))  # alone it may
