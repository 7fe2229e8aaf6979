"""What a training loop does around a search: refreshes, accumulation, clipping, AMP, averages, formats, checkpoints."""

from __future__ import annotations

import pytest
import torch
from test_search import defined_masks, searched, stream_bits
from torch import nn

import frozen_kernels as fk


def shuffle(model: nn.Module) -> None:
    """Other scores, which other masks follow from."""
    with torch.no_grad():
        for layer in fk.search.frozen_layers(model).values():
            layer.scores.copy_(torch.randn_like(layer.scores))


def bits(model: nn.Module) -> list[list[bool]]:
    return [stream_bits(layer) for layer in fk.search.frozen_layers(model).values()]


def wanted(model: nn.Module, sparsity: float = 0.5) -> list[list[bool]]:
    return defined_masks(list(fk.search.frozen_layers(model).values()), sparsity)


@pytest.mark.parametrize("every", [1, 3])
def test_masks_change_at_every_nth_step(every):
    model = searched()
    search = fk.EdgePopup(model, refresh_every=every)
    for step in range(1, 8):
        before = bits(model)
        shuffle(model)
        search.step()
        assert wanted(model) != before
        assert bits(model) == (wanted(model) if step % every == 0 else before)
    shuffle(model)
    search.refresh()
    assert bits(model) == wanted(model) and search.state_dict() == {"steps": 7}


def test_a_resumed_search_refreshes_at_the_same_steps():
    model, resumed = searched(), searched()
    search = fk.EdgePopup(model, refresh_every=4)
    for _ in range(3):
        shuffle(model)
        search.step()
    again = fk.EdgePopup(resumed, refresh_every=4)
    resumed.load_state_dict(model.state_dict())
    again.load_state_dict(search.state_dict())
    # loaded masks are those of the steps before, and stay until the refresh is due
    assert bits(resumed) == bits(model) == wanted(searched()) != wanted(resumed)
    search.step()
    again.step()
    assert bits(resumed) == bits(model) == wanted(model)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_refused_counts_are_named(value):
    model = searched()
    with pytest.raises(ValueError, match=rf"refresh_every: an integer >= 1, got {value!r}"):
        fk.EdgePopup(model, refresh_every=value)
    search = fk.EdgePopup(model)
    if value != 0:
        with pytest.raises(ValueError, match=rf"steps: an integer >= 0, got {value!r}"):
            search.load_state_dict({"steps": value})
    for state in ({}, {"steps": 1, "count": 2}):
        with pytest.raises(ValueError, match="state: the key 'steps'"):
            search.load_state_dict(state)
    assert search.state_dict() == {"steps": 0}
