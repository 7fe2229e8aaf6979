"""What went wrong once with stored weights: states that half fit, ties that came apart, gradients that were lost."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from stored_cases import jackpot, pretrained, stored_layers
from torch import nn

import frozen_kernels as fk


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x)))


def two(sparsity: float = 0.5) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=sparsity), lambda module, name: True)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("values", ["int8", "float32"])
def test_a_dense_copy_follows_the_dtype_from_what_is_packed(values, dtype):
    model = two()
    fk.finalize_(model, values)
    exact = [m.weight.double() for m in model]
    fk.set_residency(model, "dense")
    model.to(dtype)
    for layer, weight in zip(model, exact, strict=True):
        assert torch.equal(layer.weight, weight.to(dtype)) and layer.dense.dtype == dtype
    model.to(torch.float32)
    assert all(torch.equal(m.weight, w.float()) for m, w in zip(model, exact, strict=True))


def test_second_derivatives_of_kept_values():
    torch.manual_seed(0)
    model = two().double()
    fk.finalize_(model, "float32")
    x = torch.randn(3, 8, dtype=torch.float64)
    values = [p.detach().double() for p in fk.tune_weights_(model)]

    def loss(v: torch.Tensor) -> torch.Tensor:
        return (x @ model[0].frozen._replace(values=v).weight(torch.float64).T).pow(3).sum()

    assert torch.autograd.gradgradcheck(loss, values[0].requires_grad_(), atol=1e-3, eps=1e-4)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: m.load_state_dict(m.state_dict()) and m])
def test_tuned_values_get_their_gradient_whenever_they_are_asked_for(how):
    model = two()
    fk.tune_weights_(model)
    model.requires_grad_(False)
    model = how(model)
    model.requires_grad_(True)
    model(torch.ones(2, 8)).sum().backward()
    assert all(m.tuned.grad is not None and m.tuned.grad.any() for m in model)
    for m in model:
        m.tuned.data = m.tuned.data * 0
    with torch.no_grad():
        assert torch.equal(model(torch.ones(2, 8))[0], (model[1].weight @ model[0].bias + model[1].bias))


CHANGES = {
    "load": lambda m: m.load_state_dict(m.state_dict()),
    "to": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("packed", [False, True])
def test_tied_layers_stay_one_weight(change, packed, tmp_path):
    model = Tied()
    jackpot(model, 0.5, "uniform")
    if packed:
        fk.finalize_(model)
    found = CHANGES[change](model)
    model = found if isinstance(found, nn.Module) else model
    fk.save_ticket(model, tmp_path / "t")
    assert len(fk.tickets.file.read_ticket(tmp_path / "t").records) == 1
    loaded = fk.load_ticket(Tied(), tmp_path / "t")
    for net in (model, loaded):
        assert fk.footprint(net).layers[1].shared
        (tuned,) = fk.tune_weights_(net)
        assert net.a.tuned is net.b.tuned is tuned
        net(torch.ones(2, 8)).sum().backward()
        with torch.no_grad():
            tuned -= tuned.grad
        assert torch.equal(net.a.weight, net.b.weight)


def test_a_state_that_does_not_fit_a_tuned_layer_changes_nothing():
    packed, fewer = two(), two(0.75)
    fk.finalize_(packed)
    with torch.no_grad():
        packed[0].set_residency("dense")
    fk.tune_weights_(fewer)
    for state, match in (
        (packed.state_dict(), r"0.tuned: None in a state that keeps 32 weights, the layer tunes 32"),
        (fewer.state_dict(), r"0.tuned: \[16\] in a state that keeps 16 weights, the layer tunes 32"),
    ):
        model = two()
        fk.tune_weights_(model)
        before = [(m.weight.clone(), m.keep_mask()) for m in model]
        with pytest.raises(RuntimeError, match=match):
            model.load_state_dict(state)
        for m, (weight, keep) in zip(model, before, strict=True):
            assert torch.equal(m.weight, weight) and torch.equal(m.keep_mask(), keep)
    model = two()
    fk.finalize_(model, "int8")
    for scale in (torch.ones(8, dtype=torch.float16), torch.full((8,), -1.0), torch.full((8,), math.inf)):
        with pytest.raises(RuntimeError, match="row_scale: float32, 0 or more and finite, got"):
            model.load_state_dict({**model.state_dict(), "0.row_scale": scale})


def test_recalibration_leaves_batch_norm_as_it_was_where_a_batch_fails():
    model = pretrained()
    model(torch.randn(4, 3, 7, 7))
    before = {name: t.clone() for name, t in model[1].named_buffers()}
    good = torch.randn(4, 3, 7, 7)
    for bad, error in (({"x": good}, ValueError), (torch.randn(4, 2, 7, 7), RuntimeError), ([], ValueError)):
        with pytest.raises(error):
            fk.recalibrate_(model, [good, bad])
        assert model[1].momentum == 0.1
        assert all(torch.equal(t, before[name]) for name, t in model[1].named_buffers())
    with pytest.raises(ValueError, match="begin with one, got dict"):
        fk.recalibrate_(model, [{"x": good}])


def test_a_weight_that_a_dense_layer_shares_stays_dense():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    report = fk.freeze_(model, fk.FreezeConfig(code="stored"))
    assert dict(report.skipped)["0"] == "shares its weight with '2', which stays dense"
    assert list(stored_layers(model)) == ["1"] and model[2].weight is model[0].weight
    model = Tied()
    with pytest.raises(ValueError, match="rates: 'a' and 'b' are one weight, which would keep 32 and 6 values"):
        jackpot(model, 0.5, {"a": 0.5, "b": 0.9})
    assert not stored_layers(model) and model.a.weight is model.b.weight


def test_half_precision_scores_get_their_gradient():
    model = two().half()
    x = torch.randn(2, 8).half()
    model(x).sum().backward()
    assert all(m.scores.grad is not None and m.scores.dtype == torch.float16 for m in model)


def test_a_search_that_refuses_changes_no_mask():
    model = two()
    model.append(nn.Linear(8, 8))
    model.append(nn.Linear(3, 3))
    fk.freeze_(model, fk.FreezeConfig(code="stored"), lambda module, name: name == "3")
    search = fk.Jackpot(model, epochs=2, steps_per_epoch=2)
    state = search.state_dict()
    moved = state["masks"]["3"].clone()
    moved[1] |= 1 << 7  # after the last of nine weights
    moved[0] &= moved[0] - 1
    before = [m.keep_mask() for m in stored_layers(model).values()]
    with torch.no_grad():
        for m in stored_layers(model).values():
            m.scores.neg_()
    flipped = {name: mask for name, mask in state["masks"].items() if name != "3"}
    for masks, match in (
        ({**flipped, "3": moved}, "masks: '3': bits are set after the last of 9"),
        ({**flipped, "3": None}, "masks: '3' is NoneType, expected a tensor"),
        (None, "masks: a mapping of names to masks, got NoneType"),
    ):
        with pytest.raises(ValueError, match=match):
            search.load_state_dict({"steps": 1, "masks": masks})
    model[3].set_keep_mask(torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="3: supermask: 9 weights kept, expected 5"):
        search.step()
    assert all(torch.equal(a, m.keep_mask()) for a, m in zip(before[:2], model, strict=False)) and search.steps == 0
    for rate in (None, "0.5", True):
        with pytest.raises(ValueError, match=r"restriction: a rate in \(0, 1\], got"):
            fk.Jackpot(model, epochs=1, steps_per_epoch=1, restriction=lambda progress, rate=rate: rate).step()


def test_nothing_changes_where_nothing_is_left_to_finalize():
    model = two()
    fk.finalize_(model)
    fk.set_residency(model, "dense")
    values = [m.values for m in model]
    fk.finalize_(model)
    assert all(m.residency == "dense" and m.values is v for m, v in zip(model, values, strict=True))
    with torch.device("meta"):
        empty = two()
    with pytest.raises(ValueError, match="0: values: the layer is on the meta device"):
        fk.finalize_(empty)
    searched = two()
    with torch.no_grad():
        searched[0].scores.add_(1)
    with pytest.warns(UserWarning, match="the scores of 0 changed"):
        fk.tune_weights_(searched)


def test_empty_layers_are_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 0, 1))
    report = jackpot(model, 0.5, "uniform")
    assert dict(report.skipped)["1"].startswith("the classifier") and list(stored_layers(model)) == ["0"]


def test_imported_embeddings_are_tuned():
    table = nn.Embedding(6, 5, padding_idx=1)
    keep = torch.rand(6, 5) < 0.5
    keep[0], keep[1] = True, False
    model = nn.Sequential(table)
    state = {"0.weight_orig": table.weight.detach().clone(), "0.weight_mask": keep.float()}
    fk.importers.load_(model, state)
    (tuned,) = fk.tune_weights_(model)
    model(torch.tensor([0, 1, 0])).sum().backward()
    grad = torch.zeros(6, 5).masked_scatter(keep, torch.ones(30))
    grad[1:], grad[0] = 0.0, 2.0
    assert torch.equal(tuned.grad, fk.format.stream_order(grad)[fk.format.stream_order(keep)])


def test_importers_refuse_what_never_ends_or_is_larger_than_its_file():
    state: dict = {}
    state["state_dict"] = state
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    with pytest.raises(ValueError, match="a mapping within 9 others, at most 8 are opened"):
        fk.importers.load_(model, state)
    wide = {"0.weight_orig": torch.zeros(1).expand(1 << 45), "0.weight_mask": torch.zeros(1).expand(1 << 45)}
    with pytest.raises(ValueError, match="an expanded tensor"):
        fk.importers.load_(model, wide)
    model[1].weight = nn.Parameter(torch.ones(1, 3).expand(3, 3))
    given = {k: v.clone() for k, v in model.state_dict().items()}
    masked = {"0.weight_orig": given.pop("0.weight"), "0.weight_mask": torch.ones(3, 4)}
    with pytest.raises(ValueError, match=r"'1\.weight' is an expanded or inference tensor"):
        fk.importers.load_(model, {**given, **masked})
    assert type(model[0]) is nn.Linear


def test_imported_layers_of_one_weight_stay_one():
    model = Tied()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    keep = (torch.rand(8, 8) < 0.5).float()
    for name in "ab":
        state |= {f"{name}.weight_orig": state.pop(f"{name}.weight"), f"{name}.weight_mask": keep}
    other = {**state, "b.weight_mask": 1 - keep}
    with pytest.raises(ValueError, match="'a' and 'b': one weight in the model, but not the same in the file"):
        fk.importers.load_(model, other)
    fk.importers.load_(model, state)
    assert model.a.values is model.b.values and len(fk.tune_weights_(model)) == 1
