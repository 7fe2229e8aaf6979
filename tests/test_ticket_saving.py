"""What a ticket is refused for before it is written: `save_ticket` writes nothing that `load_ticket` refuses."""

import warnings

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.tickets import model as tickets

MADE = {"seed": "supermask", "mask": "keep", "planes": "keep", "dense": "supermask"}


def frozen(residency: str = "mask") -> nn.Sequential:
    model = nn.Sequential(nn.Linear(17, 9), nn.BatchNorm1d(9), nn.Linear(9, 5))
    fk.freeze_(model, fk.FreezeConfig(seed=123456789))
    fk.finalize_(model)
    fk.set_residency(model, residency)
    return model


def refused(model: nn.Module, path, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fk.save_ticket(model, path)
    assert not path.exists()


@pytest.mark.parametrize("residency", MADE)
@pytest.mark.parametrize("word", [0, 2, 3, 4, 5, 7])
def test_a_header_that_others_have_changed(tmp_path, residency, word):
    """As an average of integers rounds it, by one; the scale alone may be any."""
    model = frozen(residency)
    model[2].header[word] += 1
    refused(model, tmp_path / "t", "'2' is no longer the layer it was: header")


@pytest.mark.parametrize("residency", ["seed", "dense"])
def test_a_supermask_with_bits_after_its_last(tmp_path, residency):
    model = frozen(residency)
    assert model[2].free % 8
    model[2].supermask[-1] |= 128
    refused(model, tmp_path / "t", "'2' is no longer the layer it was: supermask: bits are set after the last")


@pytest.mark.parametrize("residency", ["mask", "planes"])
def test_a_plane_that_keeps_what_is_pruned(tmp_path, residency):
    model = frozen(residency)
    model[0].keep.fill_(-1)
    refused(model, tmp_path / "t", "'0' is no longer the layer it was: ")


def test_a_name_that_the_container_has_taken(tmp_path):
    model = frozen()
    model.register_parameter("__metadata__", nn.Parameter(torch.ones(1)))
    refused(model, tmp_path / "t", "model: no safetensors file: its metadata are")


def test_a_header_beyond_what_readers_take(tmp_path, monkeypatch):
    monkeypatch.setattr(tickets, "LARGEST_HEADER", 500)
    refused(frozen(), tmp_path / "t", r"a header of \d+ bytes; readers take at most 500")


def test_stale_masks_are_named_in_a_warning(tmp_path, monkeypatch):
    model = frozen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fk.save_ticket(model, tmp_path / "t")
    monkeypatch.setattr(type(model[0]), "masks_are_stale", property(lambda layer: layer is model[2]), raising=False)
    with pytest.warns(UserWarning, match=r"scores of 2 changed since.*search\.step\(\)") as caught:
        fk.save_ticket(model, tmp_path / "stale")
    assert caught[0].filename == __file__
    assert (tmp_path / "stale").read_bytes() == (tmp_path / "t").read_bytes()
