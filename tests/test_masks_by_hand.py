"""Masks and scores in the weight's shape, set and read; masks that are older than their scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import RESIDENCIES, matrix_of, stream_positions
from torch import nn

import frozen_kernels as fk

SHAPES = {"linear": lambda **s: fk.nn.FrozenLinear(37, 5, **s), "conv": lambda **s: fk.nn.FrozenConv2d(6, 4, 3, **s)}


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_mask_set_is_the_mask_read(kind, residency):
    layer = SHAPES[kind](scaling="dynamic")
    layer.set_residency(residency)
    part = layer.partition()
    wanted = (part == 1) | ((part == 0) & (torch.rand(part.shape) < 0.3))
    layer.set_keep_mask(wanted)
    assert torch.equal(layer.keep_mask(), wanted)
    weight = layer.weight.detach()
    assert torch.equal(weight != 0, wanted)
    # the dynamic scale is that of the mask set
    expected = (2 / layer.cols) ** 0.5 * (wanted.numel() / int(wanted.sum())) ** 0.5
    torch.testing.assert_close(weight.abs().max(), torch.tensor(expected))
    layer.set_keep_mask(layer.keep_mask())
    assert torch.equal(layer.weight, weight)


def test_masks_that_are_none_are_refused():
    layer = SHAPES["conv"]()
    part, before = layer.partition(), layer.packed_supermask().clone()
    pruned, locked = int((part == -1).sum()), int((part == 1).sum())
    for mask, what in (
        (torch.ones(part.shape, dtype=torch.bool), f"keep: {pruned} pruned weights kept and 0 locked ones dropped"),
        (torch.zeros(part.shape, dtype=torch.bool), f"keep: 0 pruned weights kept and {locked} locked ones dropped"),
        ((part == 1).float(), r"keep: bool \[4, 6, 3, 3\], got torch.float32"),
        ((part == 1).flatten(1), r"keep: bool \[4, 6, 3, 3\], got torch.bool \[4, 54\]"),
    ):
        with pytest.raises(ValueError, match=what):
            layer.set_keep_mask(mask)
    with pytest.raises(ValueError, match="set_keep_mask takes a bool of the weight's shape"):
        layer.set_supermask(part == 1)
    # numpy packs the highest bit first: seen where bits lie after the last free weight
    free = layer.free
    assert free % 8
    wrong = torch.from_numpy(np.packbits(np.ones(free, dtype=bool)))
    with pytest.raises(ValueError, match="bits are set after the last"):
        layer.set_supermask(wrong)
    assert torch.equal(layer.packed_supermask(), before)


@pytest.mark.parametrize("kind", SHAPES)
def test_scores_lie_at_their_weights(kind):
    layer = SHAPES[kind]()
    matrix = matrix_of(layer.scores_as_weight())
    where = stream_positions(matrix_of(layer.partition()))
    assert torch.equal(torch.stack([matrix[p] for p in where]), layer.scores)
    assert int(matrix.isnan().sum()) == matrix.numel() - layer.free
    values = torch.randn(layer.shape)
    layer.set_scores_as_weight(values)
    again = layer.scores_as_weight()
    assert torch.equal(again[~again.isnan()], values[~again.isnan()])
    values[layer.partition() == 0] = torch.nan
    with pytest.raises(ValueError, match=f"values: NaN at {layer.free} of {layer.free} free weights"):
        layer.set_scores_as_weight(values)
    with pytest.raises(ValueError, match="values: floating"):
        layer.set_scores_as_weight(torch.ones(3, 3))
    layer.finalize()
    for call in (layer.scores_as_weight, lambda: layer.set_scores_as_weight(values)):
        with pytest.raises(RuntimeError, match="scores: the layer has none"):
            call()


def test_masks_older_than_their_scores_are_told(tmp_path):
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 4))
    fk.freeze_(model)
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=0.1)
    model(torch.randn(3, 12)).sum().backward()
    assert not any(layer.masks_are_stale for layer in search.layers)
    optimizer.step()
    assert all(layer.masks_are_stale for layer in search.layers)
    with pytest.warns(UserWarning, match=r"scores of 0, 1 changed since .* search.step\(\)"):
        fk.save_ticket(model, tmp_path / "t")
    with pytest.warns(UserWarning, match=r"search.step\(\)"):
        fk.finalize_(model)
    assert not any(layer.masks_are_stale for layer in fk.nn.models.frozen_layers(model).values())


@pytest.mark.filterwarnings("error::UserWarning")
def test_masks_of_their_scores_are_not_told(tmp_path):
    model = nn.Sequential(nn.Linear(12, 8))
    fk.freeze_(model)
    with torch.no_grad():
        model[0].scores.mul_(-1)
    fk.EdgePopup(model).step()
    fk.save_ticket(model.to(torch.bfloat16), tmp_path / "t")  # a cast is no step
    model.load_state_dict(model.state_dict())
    fk.finalize_(model)
