"""The search of a lottery jackpot: rates, swaps and masks by the definition, its state, and search-then-tune."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from stored_cases import (
    from_stream,
    images,
    in_stream,
    jackpot,
    pretrained,
    stored_layers,
    swapped,
    swapped_in_groups,
)
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk

RATES = (1.0, 0.5, 0.07, 1e-9)


def search_of(model: nn.Module, rate: float | None = None, **settings) -> fk.Jackpot:
    restriction = (lambda progress: rate) if rate is not None else None
    return fk.Jackpot(model, **{"epochs": 3, "steps_per_epoch": 2, "restriction": restriction, **settings})


def tied_scores(layer: fk.nn.FrozenLayer) -> None:
    """Scores of which many are equal, some are zeros of either sign, and a few are NaN and infinite."""
    with torch.no_grad():
        layer.scores.copy_(torch.randint(-3, 4, layer.scores.shape) / 4)
        layer.scores[layer.scores == 0] *= -1
        for value in (math.nan, math.inf, -math.inf):
            layer.scores[torch.randint(layer.free, (2,))] = value


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_masks_are_those_of_the_definition(rate, layout):
    model = pretrained().to(memory_format=layout)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    jackpot(model)
    model.to(memory_format=layout)
    search, layers = search_of(model, rate), stored_layers(model)
    kept = {name: layer.counts["kept"] for name, layer in layers.items()}
    for _ in range(4):
        expected, swaps = {}, 0
        for name, layer in layers.items():
            tied_scores(layer)
            before = in_stream(layer.keep_mask()).tolist()
            expected[name] = swapped(layer.scores.tolist(), before, rate)
            swaps += sum(a and not b for a, b in zip(expected[name], before, strict=True))
        assert search.step() == swaps and swaps > 0
        for name, layer in layers.items():
            keep = layer.keep_mask()
            assert in_stream(keep).tolist() == expected[name], name
            assert layer.counts["kept"] == kept[name] == int(keep.sum())
            weight = weights[f"{name}.weight"]
            assert torch.equal(layer.weight, torch.where(keep, weight, 0.0)) and torch.equal(layer.values, weight)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_patterns_hold_at_every_step(rate):
    model = nn.Sequential(nn.Conv2d(4, 5, 3, bias=False), nn.Flatten(), nn.Linear(36, 7), nn.Linear(7, 3))
    report = jackpot(model, 0.75, "uniform", pattern="1:4")
    assert dict(report.skipped)["3"].startswith("its 7 columns do not divide")
    search = search_of(model, rate)
    for layer in stored_layers(model).values():
        groups = fk.format.to_matrix(layer.keep_mask()).view(-1, 4)
        best = fk.format.to_matrix(layer.values.abs()).view(-1, 4).argmax(1)
        assert torch.equal(groups, F.one_hot(best, 4).bool())
    for _ in range(3):
        for layer in stored_layers(model).values():
            tied_scores(layer)
        before = {n: fk.format.to_matrix(m.keep_mask()) for n, m in stored_layers(model).items()}
        swaps = search.step()
        for name, layer in stored_layers(model).items():
            scores = fk.format.to_matrix(layer.scores_as_weight().nan_to_num(nan=9.0, posinf=8.0, neginf=-8.0))
            after = fk.format.to_matrix(layer.keep_mask())
            assert torch.equal(after, swapped_in_groups(scores, before[name], 1, 4, rate))
            swaps -= int((after & ~before[name]).sum())
        assert swaps == 0


def test_pairs_times_rate_is_rounded_up_in_double_precision():
    keep = torch.arange(200) < 100
    bits = fk.format.pack_bits(keep)
    swaps = torch.ops.frozen_kernels.swap((~keep).float(), bits, 100, 0.07)
    assert swaps.shape == (2, 8)  # 100 * 0.07 is 7.000000000000001


def test_the_first_mask_is_that_of_the_largest_magnitudes():
    model = pretrained()
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-3, 4, model[0].weight.shape))  # many are equal
        model[3].weight[0, 0, 0, 0] = math.nan
    weights = [m.weight.detach().clone() for m in model if hasattr(m, "weight") and m.weight.dim() > 1]
    report = jackpot(model, 0.8, "l1")
    layers = list(stored_layers(model).values())
    magnitude = [torch.nan_to_num(in_stream(w).abs(), nan=math.inf) for w in weights[:-1]]
    every = [(-m, i, j) for i, ms in enumerate(magnitude) for j, m in enumerate(ms.tolist())]
    kept = sorted(every)[: len(every) - round(0.8 * len(every))]
    for i, (layer, m) in enumerate(zip(layers, magnitude, strict=True)):
        keep = torch.zeros(m.numel(), dtype=torch.bool)
        keep[[j for _, owner, j in kept if owner == i]] = True
        assert torch.equal(in_stream(layer.keep_mask()), keep)
        assert torch.equal(layer.scores, torch.where(keep, 0.005, -0.005))
    assert f"sparsity {1 - len(kept) / len(every):.2%} over the {len(every):,} weights searched" in str(report)
    assert dict(report.skipped)["10"].startswith("the classifier") and not report.trained


def test_rates_uniform_and_by_name():
    model = pretrained()
    jackpot(model, 0.9, "uniform")
    for layer in stored_layers(model).values():
        assert layer.counts["kept"] == layer.free - round(0.9 * layer.free)
    model = pretrained()
    report = jackpot(model, 0.5, {"0": 1, "10": 0.25})
    layers = stored_layers(model)
    assert set(layers) == {"0", "10"} and dict(report.skipped)["3"] == "rates do not name it"
    assert layers["0"].counts["kept"] == 0 and layers["10"].counts["kept"] == 330 - 82
    assert model(images()).shape == (4, 10) and search_of(model).step() == 0
    model = pretrained()
    fk.freeze_(model, fk.FreezeConfig.preset("jackpot"), lambda module, name: name == "10")
    assert set(stored_layers(model)) == {"10"}


def test_restriction_by_epoch():
    model = pretrained()
    jackpot(model)
    search = fk.Jackpot(model, epochs=4, steps_per_epoch=2, restriction="short")
    rates = []
    for _ in range(10):
        rates.append(search.rate)
        search.step()
    assert rates == [1, 1, 0.75**4, 0.75**4, 0.5**4, 0.5**4, *[0.25**4] * 4]
    assert search_of(model).rate == 1.0
    for rate in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"restriction: a rate in \(0, 1\], got"):
            search_of(model, rate).step()


def train(model: nn.Module, search: fk.Jackpot, opt: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        opt.zero_grad()
        F.cross_entropy(model(images()), torch.randint(10, (4,))).backward()
        opt.step()
        search.step()


def test_a_search_goes_on_where_it_was_saved():
    torch.manual_seed(0)
    model = pretrained()
    jackpot(model)
    search = search_of(model, restriction="short")
    opt = torch.optim.SGD(search.parameters(), lr=1.0, momentum=0.9)
    train(model, search, opt, range(3))
    saved = copy.deepcopy((model.state_dict(), search.state_dict(), opt.state_dict()))
    train(model, search, opt, range(3, 6))
    other = pretrained()
    jackpot(other, rates={name: 1 - m.counts["kept"] / m.free for name, m in stored_layers(model).items()})
    again = search_of(other, restriction="short")
    other_opt = torch.optim.SGD(again.parameters(), lr=1.0, momentum=0.9)
    for part, state in zip((other, again, other_opt), saved, strict=True):
        part.load_state_dict(state)
    assert again.steps == 3
    train(other, again, other_opt, range(3, 6))
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_masks_of_another_search_are_refused():
    model = pretrained()
    jackpot(model)
    search = search_of(model)
    state = search.state_dict()
    before = [layer.keep_mask() for layer in stored_layers(model).values()]
    short, more = state["masks"]["0"][:-1], state["masks"]["0"] | 1 << 7
    for masks, match in (
        ({}, r"masks: of \['0'"),
        ({**state["masks"], "0": short}, r"masks: '0' is torch.uint8 \[26\], expected torch.uint8 \[27\]"),
        ({**state["masks"], "0": more.clone().fill_(255)}, r"masks: '0' keeps 216 weights, the layer \d+"),
    ):
        with pytest.raises(ValueError, match=match):
            search.load_state_dict({"steps": 1, "masks": masks})
    with pytest.raises(ValueError, match="the keys 'masks' and 'steps', got"):
        search.load_state_dict({"steps": 1})
    assert all(torch.equal(a, m.keep_mask()) for a, m in zip(before, stored_layers(model).values(), strict=True))
    layer = stored_layers(model)["0"]
    layer.set_keep_mask(torch.ones(layer.shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"0: supermask: 216 weights kept, expected \d+"):
        search.step()


def test_tied_layers_are_searched_once():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 5))
    model[1].weight = model[0].weight
    jackpot(model, 0.75, "uniform")
    search = search_of(model)
    assert len(search.parameters()) == 1
    tied_scores(model[0])
    assert search.step() > 0 and torch.equal(model[0].keep_mask(), model[1].keep_mask())
    assert model[0].values is model[1].values
    fk.finalize_(model)
    assert model[0].values is model[1].values and fk.footprint(model).layers[1].shared
    tuned = fk.tune_weights_(model)
    assert len(tuned) == 1 == sum(p is tuned[0] for p in model.parameters())


def test_search_then_tune():
    torch.manual_seed(0)
    model = pretrained()
    jackpot(model)
    keeps = [m.keep_mask() for m in stored_layers(model).values()]
    x = images()
    before = model(x)
    tuned = fk.tune_weights_(model)
    assert torch.allclose(model(x), before, atol=1e-5) and not [m for m in stored_layers(model).values() if m.scores]
    plain = fk.to_dense(model)
    y = torch.randint(10, (4,))
    for net, parameters in ((model, tuned), (plain, [plain.get_submodule(n).weight for n in stored_layers(model)])):
        opt = torch.optim.SGD(parameters, lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for p, keep in zip(parameters, keeps, strict=True):
                if p.shape == keep.shape:
                    p.grad *= keep
            opt.step()
    for name, keep in zip(stored_layers(model), keeps, strict=True):
        found = model.get_submodule(name).weight.detach()
        torch.testing.assert_close(torch.Tensor(found), plain.get_submodule(name).weight.detach())
        assert not found[~keep].any()
    copied = copy.deepcopy(model)
    assert all(m.tuned is m.values for m in stored_layers(copied).values())
    fk.finalize_(model, "int8")
    assert all(m.tuned is None and m.values.dtype == torch.int8 for m in stored_layers(model).values())
    with pytest.raises(ValueError, match="can be tuned"):
        fk.tune_weights_(model)


def test_a_search_needs_stored_weights_with_scores():
    drawn = nn.Sequential(nn.Linear(5, 4))
    fk.freeze_(drawn)
    with pytest.raises(ValueError, match=r"it has none of stored weights \(1 of others\)"):
        search_of(drawn)
    model = pretrained()
    jackpot(model)
    with pytest.raises(ValueError, match=r"it has none of drawn weights \(4 of others\)"):
        fk.EdgePopup(model)
    search = search_of(model)
    fk.finalize_(model)
    with pytest.raises(ValueError, match="4 layers of stored weights are finalized"):
        search.step()
    for settings, match in (({"epochs": 0}, "epochs"), ({"steps_per_epoch": 1.5}, "steps_per_epoch")):
        with pytest.raises(ValueError, match=match):
            search_of(pretrained(), **settings)
    with pytest.raises(ValueError, match="restriction: 'short', None or a function of progress, got 'long'"):
        search_of(model, restriction="long")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rates": "l2"}, "rates: one of l1, uniform, got 'l2'"),
        ({"rates": {"0": 1.5}}, r"rates\['0'\]: a number in \[0, 1\], got 1.5"),
        ({"rates": {"0": 0.5, "nine": 0.5}}, "rates: nine, but the layers that can be stored are 0, 3, 5, 8, 10"),
        ({"pattern": "5:4"}, "pattern: 'N:M' with 1 <= N <= M"),
        ({"pattern": "2:4", "sparsity": 0.9}, "sparsity: 0.9, but pattern '2:4' makes it 0.5"),
        ({"pattern": "2:4", "rates": "l1"}, "rates: a pattern gives every layer the same"),
        ({"scaling": "dynamic"}, "scaling: stored weights stay as they are"),
        ({"lock_ratio": 0.5}, "lock_ratio: 0.5, but preset"),
        ({"score_init": "magnitude"}, "score_init: 'centred' with code 'stored'"),
    ],
)
def test_refused_settings(settings, match):
    model = pretrained()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        fk.freeze_(model, fk.FreezeConfig.preset("jackpot", **settings))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not stored_layers(model)


def test_drawn_codes_have_no_rates():
    with pytest.raises(ValueError, match="rates: 'l1', but only code 'stored' has it, not 'sign'"):
        fk.FreezeConfig(rates="l1")
    assert fk.FreezeConfig.preset("jackpot", pattern="1:4").sparsity == 0.75


def test_scores_by_hand_lie_at_their_weights():
    layer = fk.nn.FrozenLinear.from_module(nn.Linear(35, 3), fk.FreezeConfig(code="stored"))
    values = torch.randn(3, 35)
    layer.set_scores_as_weight(values)
    assert torch.equal(layer.scores, in_stream(values)) and torch.equal(layer.scores_as_weight(), values)
    assert torch.equal(from_stream(layer.scores.detach(), (3, 35)), values)


def test_recalibration():
    model = pretrained().eval()
    model[0].train()
    batches = [images(), images(2), (images(3), 0)]
    with torch.no_grad():
        outs = [model[0](b[0] if isinstance(b, tuple) else b) for b in batches]
    assert fk.recalibrate_(model, iter(batches)) == 3
    mean = torch.stack([o.mean((0, 2, 3)) for o in outs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    assert model[0].training and not model[1].training and model[1].momentum == 0.1
    assert fk.recalibrate_(model, batches, 1) == 1
    torch.testing.assert_close(model[1].running_mean, outs[0].mean((0, 2, 3)))
    kept = model[1].running_mean.clone()
    with pytest.raises(ValueError, match="loader: at least one batch, got none"):
        fk.recalibrate_(model, [])
    with pytest.raises(ValueError, match="batches: an integer >= 1, got 0"):
        fk.recalibrate_(model, batches, 0)
    assert torch.equal(model[1].running_mean, kept) and fk.recalibrate_(nn.Linear(2, 2), batches) == 0
