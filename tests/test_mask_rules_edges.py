"""Rules of `fk.search` at their edges: gains, locked weights, first masks, refusals beside a search that runs, NaN."""

from __future__ import annotations

import math
import sys

import compare_rules as compare
import pytest
import torch
from test_mask_rules import Raw, dense, keep_of, masks, net, signed_net
from test_mask_rules import loss as loss_of
from torch import nn

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.search.rule import _slopes, highest

# scales and counts


@pytest.mark.parametrize("settings", [{"gain": 3.0}, {"sigma": 0.5}, {"sigma": 0.5, "gain": 3.0}])
def test_biprop_keeps_the_gain_and_the_sigma_of_a_layer(settings):
    ratios = {"scope": "local", "prune_ratio": 0.0, "lock_ratio": 0.0}
    plain = nn.Sequential(fk.nn.FrozenLinear(33, 20, bias=False, **ratios))
    model = nn.Sequential(fk.nn.FrozenLinear(33, 20, bias=False, **ratios, **settings))
    fk.search.Biprop(plain).step()
    factor = settings.get("gain", 1.0) * settings.get("sigma", fmt.kaiming_sigma(33)) / fmt.kaiming_sigma(33)
    for _ in range(2):
        # a second search of the model, whose scale is alpha already, finds the same
        fk.search.Biprop(model).step()
        assert model[0].scale == pytest.approx(factor * plain[0].scale, rel=1e-6)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_coats_beside_locked_weights_have_the_densities_that_were_asked(scope):
    ratios = {"prune_ratio": 0.1, "lock_ratio": 0.3, "sparsity": 0.5, "scope": scope}
    model = net((64, 50), (50, 30), **ratios)
    search = fk.search.Multicoated(model, (0.8, 0.95))
    weights = [layer.rows * layer.cols for layer in model]
    found = [layer.coat_kept() for layer in model]
    for coat, sparsity in enumerate((0.5, 0.8, 0.95)):
        kept = [kept[coat] for kept in found]
        if scope == "local":
            assert kept == [n - math.floor(n * sparsity) for n in weights]
        else:
            assert sum(kept) == sum(weights) - math.floor(sum(weights) * sparsity)
    search.step()
    assert [layer.coat_kept() for layer in model] == found
    named = r"sparsities: 0.7 of '0'.* is 960 of 3200 weights, and the first coat keeps 6.. free ones.* at least 0.8"
    if scope == "global":
        named = r"sparsities: 0.7 of '0' and 1 others is 1410 of 4700 weights, and the first coat keeps 9.. free ones"
    with pytest.raises(ValueError, match=named):
        fk.search.Multicoated(model, (0.7, 0.95))
    assert [layer.coat_kept() for layer in model] == found


# first masks


RULES = {
    "sampled": fk.search.Sampled,
    "gem_miner": lambda m: fk.search.GemMiner(m, epochs=4, steps_per_epoch=3, freeze_every=1),
    "ugt": lambda m: fk.search.UGT(m, steps=20),
    "biprop": fk.search.Biprop,
    "multicoated": lambda m: fk.search.Multicoated(m, (0.8, 0.9)),
    "signed": lambda m: fk.search.Signed(m, 0.1),
    "trichromatic": fk.search.Trichromatic,
}


def frozen(preset: str) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(33, 20, bias=False), nn.Linear(20, 7, bias=False))
    fk.freeze_(model, fk.FreezeConfig.preset(preset, seed=4, sparsity=0.6))
    return model


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.detach().clone() for layer in model]


def alike(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_the_first_masks_are_the_rules(name):
    model = frozen(name)
    before = weights_of(model)
    search = RULES[name](model)
    first = weights_of(model)
    assert not alike(before, first)
    search.refresh()
    assert alike(weights_of(model), first)


@pytest.mark.parametrize("name", ["sampled", "gem_miner", "multicoated"])
def test_a_search_of_a_model_without_scores_yet_makes_masks_later(name):
    with torch.device("meta"):
        model = frozen(name)
    search, full = RULES[name](model), frozen(name)
    expected = RULES[name](full)
    if name == "sampled":
        search.load_state_dict({"steps": 3})
        assert search.steps == 3
    model.load_state_dict(full.state_dict(), assign=True)
    search.load_state_dict(expected.state_dict())
    assert alike(weights_of(model), weights_of(full))


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_a_search_that_goes_on_has_the_masks_that_it_had(name, model_first):
    model = frozen(name)
    search = RULES[name](model)
    for step in range(5):
        with torch.no_grad():
            for parameter in search.parameters():
                parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()) + step))
        search.step()
    states = model.state_dict(), search.state_dict()
    again = frozen(name)
    if model_first:
        again.load_state_dict(states[0])
    other = RULES[name](again)
    if not model_first:
        again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert alike(weights_of(again), weights_of(model))


def test_the_first_gradients_of_trichromatic_are_those_of_the_weights_in_use():
    model = signed_net(seed=4, sparsity=0.25)
    layer, search = model[0], fk.search.Trichromatic(model)
    connect, sign, magnitude = (p.detach() for p in search.parameters())
    signs, counts = torch.where(sign < 0, -1.0, 1.0), 1.0 + (magnitude > 0)
    weight = keep_of(layer) * signs * counts * layer.scale
    x = torch.randn(4, 33)
    out = model(x)
    torch.testing.assert_close(out, x @ fmt.from_stream(weight, 20, 33).T, rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    expected = fmt.stream_order(2 * (out.T @ x).detach()) * layer.scale * signs * counts * connect.sign()
    torch.testing.assert_close(layer.scores.grad, expected, rtol=1e-4, atol=1e-4)


def test_trichromatic_refuses_a_step_after_finalize():
    model = signed_net()
    search = fk.search.Trichromatic(model)
    fk.finalize_(model)
    with pytest.raises(ValueError, match="model: a search needs frozen layers with scores, its 1 layers"):
        search.step()
    assert search.steps == 0


# refusals


class Picky(Raw):
    def __init__(self, model):
        super().__init__(model)
        raise ValueError("picky: refuses")


class Nan(Raw):
    def keys(self, name, scores):
        return scores * torch.nan


REFUSED = {
    "signed": fk.search.Signed,
    "trichromatic": fk.search.Trichromatic,
    "multicoated": lambda m: fk.search.Multicoated(m, (0.1,)),
    "biprop": fk.search.Biprop,
    "iterand": lambda m: fk.search.IteRand(m, every=1, rate=0.5),
    "of one's own": Picky,
    "first masks": Nan,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_search_leaves_the_one_that_runs(name):
    model = net((33, 7), sparsity=0.5, code="constant")
    search = Raw(model)
    before, scores = masks(model), model[0].scores
    with pytest.raises(ValueError, match=r"biprop|model: |sparsities: |picky: |keys: "):
        REFUSED[name](model)
    assert alike(masks(model), before)
    assert scores in _slopes and _slopes[scores][1]() is search
    model(torch.ones(1, 33)).sum().backward()
    # straight through, where the kernels' own would have the sign of the score
    expected = torch.full_like(scores, model[0].scale)
    torch.testing.assert_close(scores.grad, expected)
    fk.EdgePopup(model)
    assert scores not in _slopes


def test_iterand_refuses_another_generation_at_once():
    model = nn.Sequential(fk.nn.FrozenLinear(33, 7, code="uniform", generation=2, scope="local"))
    before = masks(model)
    with pytest.raises(ValueError, match="model: '0' has generations: beside generation 0 in the header, got 2"):
        fk.search.IteRand(model, every=1, rate=0.5)
    assert alike(masks(model), before)


class AllAbove(fk.search.MaskRule):
    def keep(self, name, scores):
        return scores > 0


@pytest.mark.parametrize("rule", ["keys", "keep", "sampled", "gem_miner", "trichromatic", "own"])
def test_scores_that_are_nan_are_named_and_change_nothing(rule):
    kinds = {"keys": Raw, "keep": AllAbove, "own": fk.search.Trichromatic}
    model = frozen("trichromatic" if rule == "own" else rule) if rule not in ("keys", "keep") else net(sparsity=0.5)
    search = (kinds.get(rule) or RULES[rule])(model)
    before, alive = weights_of(model), search.state_dict().get("alive")
    with torch.no_grad():
        model[0].scores.neg_()
        (search.own["1"]["sign"] if rule == "own" else model[1].scores)[3:5] = torch.nan
    kind = "sign scores" if rule == "own" else "scores"
    with pytest.raises(ValueError, match=f"{kind}: of layer '1' NaN at 2 of 140, expected none"):
        search.step()
    assert search.steps == 0 and alike(weights_of(model), before)
    if alive:
        assert alike([*search.state_dict()["alive"].values()], [*alive.values()])


# keys and scores of a rule


def test_keys_of_float64_are_ranked_exactly():
    keys = {0: 1 + 1e-12 * torch.arange(100, dtype=torch.float64), 1: torch.ones(20)}
    found = highest(keys, 50)
    assert torch.equal(found[0], torch.arange(100) >= 50) and not found[1].any()
    equal = highest({0: torch.ones(9, dtype=torch.float64)}, 4)[0]
    assert torch.equal(equal, torch.arange(9) < 4)


def test_a_rule_that_works_in_place_changes_no_scores():
    class InPlace(Raw):
        def keys(self, name, scores):
            return scores.neg_()

        def slope(self, name, scores):
            return scores.zero_()

    model = net((33, 7), sparsity=0.5)
    before = model[0].scores.detach().clone()
    InPlace(model).step()
    model(torch.ones(1, 33)).sum().backward()
    assert torch.equal(model[0].scores.detach(), before)


# blocks


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


def test_attention_of_blocks_is_folded():
    model = nn.Sequential(Attends(), Attends())
    assert fk.search.fold_blocks_(list(model)) == ["attention.in_proj", "attention.out_proj"]
    assert model[0].attention.in_proj_weight is model[1].attention.in_proj_weight
    assert model[0].attention.in_proj_bias is not model[1].attention.in_proj_bias
    fk.freeze_(model, fk.FreezeConfig.preset("hidden_fold"))
    fk.EdgePopup(model).step()
    first, second = (block.attention for block in model)
    assert first.in_proj.scores is second.in_proj.scores and first.out_proj.stream == second.out_proj.stream
    assert model(torch.ones(1, 3, 16)).isfinite().all()


def test_transposed_layers_of_blocks_are_folded():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    blocks = [nn.Sequential(conv1d(12, 16)) for _ in range(2)]
    assert fk.search.fold_blocks_(blocks) == ["0"]
    assert blocks[0][0].weight is blocks[1][0].weight


def test_what_freeze_leaves_and_what_differs_is_not_folded():
    def block(dtype: torch.dtype = torch.float32) -> nn.Module:
        named = {
            "embedding": nn.Embedding(9, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "wide": nn.Linear(4, 4, dtype=dtype),
            "linear": nn.Linear(4, 4),
        }
        return nn.ModuleDict(named)

    blocks = [block(), block(torch.float64)]
    assert fk.search.fold_blocks_(blocks) == ["linear"]
    for name in ("embedding", "wide", "normed"):
        assert blocks[0][name].weight is not blocks[1][name].weight
    assert blocks[1]["wide"].weight.dtype == torch.float64
    with pytest.raises(ValueError, match=r"block 1 has no layer like one of block 0, which has \{'0': "):
        fk.search.fold_blocks_([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4, device="meta"))])


# criteria


def unused() -> nn.Module:
    model = dense()
    model.add_module("unused", nn.Linear(64, 5))
    return model


def without_unused(model: nn.Module) -> torch.Tensor:
    return loss_of(model[:6])


def test_a_layer_that_the_loss_does_not_use_has_the_criterion_0():
    class Chain(nn.Sequential):
        def forward(self, x):
            for layer in list(self)[:6]:
                x = layer(x)
            return x

    used = {criterion: criterion(dense(), loss_of, 0.3) for criterion in (fk.search.snip, fk.search.grasp)}
    for criterion, expected in used.items():
        found = criterion(unused(), without_unused, 0.3)
        assert set(found) == {*expected, "unused"} and found["0"] > 0
    assert fk.search.snip(unused(), without_unused, 0.3)["unused"] == 0
    model = Chain(*unused())
    ratios = fk.search.synflow(model, (1, 6, 6), 0.3, rounds=3)
    assert ratios["6"] == 0 and min(ratios[name] for name in "035") > 0


def test_grasp_of_attention_and_of_a_linear_loss():
    torch.manual_seed(0)
    model, x = nn.Sequential(Attends(), nn.Linear(16, 4)), torch.randn(2, 3, 16)
    ratios = fk.search.grasp(model, lambda m: m(x).square().mean(), 0.5)
    assert set(ratios) == {"0.attention.in_proj", "0.attention.out_proj", "1"}
    with pytest.raises(ValueError, match="criterion: 0 for all 64 weights"):
        fk.search.grasp(model[1:], lambda m: m(x).sum(), 0.5)
    with pytest.raises(ValueError, match="criterion: 0 for all 64 weights"):
        fk.search.snip(model[1:], lambda m: x.sum(), 0.5)


def test_rounds_of_synflow_are_an_integer():
    for rounds in (2.5, "3", True):
        with pytest.raises(ValueError, match="rounds: an integer >= 1, got"):
            fk.search.synflow(dense(), (1, 6, 6), 0.5, rounds=rounds)


# the comparison


def test_results_of_other_epochs_are_not_taken_over(tmp_path, monkeypatch):
    trained = []

    def run(name: str, seed: int, epochs: int) -> compare.Run:
        trained.append((name, epochs))
        return compare.Run(name, seed, epochs, epochs / 10, 1, 1, 0.5)

    monkeypatch.setattr(compare, "load_split", lambda: None)
    monkeypatch.setattr(compare, "plot", lambda runs, path: None)
    monkeypatch.setattr(compare, "measure", lambda name, data, epochs, seed, folder: run(name, seed, epochs))
    monkeypatch.setattr(compare, "dense", lambda data, epochs, seed: [run("dense", seed, epochs)])
    names = ["edge_popup", "random", "dense"]
    tables = []
    for epochs in (1, 2, 1):
        arguments = ["--out", str(tmp_path), "--seeds", "1", "--rules", "edge_popup", "--epochs", str(epochs)]
        monkeypatch.setattr(sys, "argv", ["compare_rules.py", *arguments])
        compare.main()
        tables.append((tmp_path / "rules.md").read_text())
    assert trained == [(name, epochs) for epochs in (1, 2) for name in names]
    assert "20.00" in tables[1] and "10.00" not in tables[1] and tables[0] == tables[2]
