"""Backends compared by a made-up clock: what is run, checked and left out, and that a table so found is used."""

from __future__ import annotations

import pytest
import torch
from common import DEVICE

from frozen_kernels.backends import reasons
from frozen_kernels.backends.cuda import choices
from frozen_kernels.backends.cuda.choices import BACKENDS
from frozen_kernels.backends.targets import Table, target
from frozen_kernels.tune import choices as tune_choices

SMALL = {
    "linear": ((5, 64), (24, 40)),
    "linear_grad_input": ((5, 64), (24, 40)),
    "conv2d": ((5, 16, 3, 3),),
    "stem": ((4, 3, 7, 7),),
}
SIZES = {"linear": ((1, 1), (3, 1)), "linear_grad_input": ((2, 1),), "conv2d": ((1, 4),), "stem": ((1, 5),)}
KEYS = [
    "linear/half/bits/planes",
    "linear/float/normal/mask",
    "linear/half/values/packed",
    "linear_grad_input/half/bits/mask",
    "linear_grad_input/float/values/packed",
    "conv2d/half/uniform/planes",
    "stem/float/bits/mask",
]


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv(choices.VARIABLE, str(tmp_path / "choices.json"))
    monkeypatch.setattr(tune_choices, "LAYERS", SMALL)
    monkeypatch.setattr(tune_choices, "SIZES", SIZES)
    choices.forget()
    yield
    choices.forget()


@pytest.mark.parametrize("key", KEYS)
def test_every_backend_is_right_or_left_out_with_its_reason(key):
    said, run = [], []
    found = tune_choices.weights(key, DEVICE)
    assert [w.packs[0].shape for w in found] == list(SMALL[key.split("/")[0]])
    for batch, edge in SIZES[key.split("/")[0]]:
        taken = tune_choices.times(key, found, batch, edge, DEVICE, lambda call: run.append(call()) or 1.0, said.append)
        assert {"triton", "dense"} <= set(taken) <= set(tune_choices.live())
    assert all(f"{key} at " in text and "left out cuda: RuntimeError" in text for text in said)
    assert all(torch.isfinite(y).all() for results in run for y in results)


def test_what_is_wrong_is_left_out(monkeypatch):
    said, key = [], KEYS[0]
    weight = tune_choices.weights(key, DEVICE)[0]
    monkeypatch.setattr(tune_choices, "_ours", lambda op, x, _: tune_choices._dense(op, x + 1, weight.dense[0]))
    taken = tune_choices.times(key, [weight], 1, 1, DEVICE, lambda call: 1.0, said.append)
    assert set(taken) == {"dense"} and f"{key} at 1 pixels: left out triton: wrong results" in said


def test_a_measured_table_is_written_read_and_used(monkeypatch):
    known, name, said = choices.shipped("default"), target(DEVICE), []
    monkeypatch.setattr(choices, "shipped", lambda target: (known[0], {key: known[1][key] for key in KEYS[:1]}))

    def timer(call):
        pixels = call()[0].shape[0]
        return next(slower) if pixels == 1 else 1.0

    slower = iter([2.0, 2.0, 1.0, 1.0] if reasons("cuda") else [3.0, 3.0, 2.0, 2.0, 1.0, 1.0])
    old = Table({"other": "before"}, {"other": known[1]})
    found = tune_choices.tuned(old, DEVICE, "made up", 1e6, said.append, timer)
    assert found.made == {"other": "before", name: "made up"} and list(found.targets[name]) == KEYS[:1]
    choices.write(found, choices.user_path())
    assert choices.in_use(name).path == choices.user_path()

    def chosen(pixels):
        return choices.choose("linear", DEVICE, torch.bfloat16, "sign", "planes", pixels)

    fused = next(backend for backend in BACKENDS if not reasons(backend))
    assert chosen(1).backend == "dense" and chosen(2).backend == chosen(3000).backend == fused
    assert said[-1] == f"{KEYS[0]}: to 1 dense, any {fused}"
