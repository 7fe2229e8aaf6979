"""What a record, a state, a gain or a packed mask of several kinds of weights must not lose."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import frozen_kernels as fk
from frozen_kernels.distributed import _digest
from frozen_kernels.nn.models import frozen_layers
from frozen_kernels.tensor import FrozenTensor


def signed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 32))
    fk.freeze_(model, fk.FreezeConfig(code="signs"), lambda module, name: True)
    return model


def test_processes_tell_signs_apart():
    model = signed()
    other = copy.deepcopy(model)
    other[0].adopt_signs(other[0].packed_supermask(), 255 - other[0].packed_signs())
    first, second, again = (_digest(frozen_layers(m)) for m in (model, other, copy.deepcopy(model)))
    assert first == again != second


def test_records_made_from_a_seed_have_a_code_that_is_drawn():
    for code in ("signs", "stored"):
        with pytest.raises(ValueError, match=f"code: one of sign, uniform, normal, constant, got '{code}'"):
            FrozenTensor.create((4, 8), seed=1, code=code)


def test_finalized_layers_on_meta_have_a_repr():
    model = signed()
    fk.finalize_(model)
    assert f"code=signs, kept={model[0].counts['kept']} of 2048, scale=" in repr(model)
    assert "code=signs, meta, residency=planes" in repr(model.to("meta"))


def test_masks_of_several_coats_are_refused():
    model = nn.ModuleDict({"body": nn.Linear(8, 4), "head": nn.Linear(8, 4)})
    fk.freeze_(model, fk.FreezeConfig(seed=1), lambda module, name: True)
    head, packed = model["head"], fk.masks(model)
    head.adopt_counts(torch.full((head.free,), 2, dtype=torch.uint8), coats=3)
    before, coats = head.weight.clone(), head.coats
    for call in (lambda: fk.masks(model), lambda: fk.load_masks(model, packed)):
        with pytest.raises(ValueError, match="model: 'head' has 3 coats, expected 1"):
            call()
    assert torch.equal(head.weight, before) and head.coats is coats


def test_states_of_stored_layers_with_coats_are_refused():
    layer = fk.nn.FrozenLinear.from_module(nn.Linear(8, 4), fk.FreezeConfig(code="stored"))
    state = {**layer.state_dict(), "coats": torch.zeros(2, 4, 1, dtype=torch.int32)}
    with pytest.raises(RuntimeError, match="coats: 1 of a stored weight, got 3"):
        layer.load_state_dict(state)


def test_dense_weights_held_transposed_are_written(tmp_path):
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv(7, 12))
    fk.freeze_(model, fk.FreezeConfig(seed=1), lambda module, name: True)
    for gain in (None, torch.rand(7) + 0.5):
        model[0].gain = gain
        dense = fk.to_dense(model)
        save_file(dense.state_dict(), tmp_path / "dense")
        x = torch.randn(3, 12)
        torch.testing.assert_close(dense(x), model(x))


def test_a_gain_is_loaded_in_place_where_buffers_are(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(16, 8))
    fk.freeze_(model, fk.FreezeConfig(seed=1, gain=(1.0, 2.0)), lambda module, name: True)
    fk.save_ticket(model, tmp_path / "t")
    expected = model[0].gain.clone()
    for in_place in (True, False):  # as on a GPU, and not
        monkeypatch.setattr(fk.nn.FrozenLayer, "in_place", in_place)
        other = copy.deepcopy(model)
        other[0].gain = torch.full((8,), 3.0)
        gain = other[0].gain
        fk.load_ticket(other, tmp_path / "t")
        assert torch.equal(other[0].gain, expected)
        assert (other[0].gain is gain) == in_place and torch.equal(gain, expected) == in_place


def test_processes_tell_gains_apart():
    model = nn.Sequential(nn.Linear(16, 8))
    fk.freeze_(model, fk.FreezeConfig(seed=1, gain=(1.0, 2.0)), lambda module, name: True)
    other = copy.deepcopy(model)
    assert _digest(frozen_layers(model)) == _digest(frozen_layers(other))
    other[0].gain = 2 * other[0].gain
    assert _digest(frozen_layers(model)) != _digest(frozen_layers(other))
