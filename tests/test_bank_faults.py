"""Banks where layers were drawn again, loads are refused, threads are interrupted, and biases come with the input."""

from __future__ import annotations

import pytest
import torch
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
