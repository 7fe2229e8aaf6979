"""The rules of `fk.search` by their definitions, rules of one's own, and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import format_numpy as ref
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.search.rule import by_chance
from frozen_kernels.ticket import read_ticket

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "mask_rule.md"


def net(*shapes, **settings) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(*shape, bias=False) for shape in shapes or ((33, 20), (20, 7))))
    fk.freeze_(model, fk.FreezeConfig(**{"prune_ratio": 0.0, "lock_ratio": 0.0, **settings}))
    return model


def keep_of(layer) -> torch.Tensor:
    return fmt.unpack_bits(layer.packed_supermask(), layer.free)


def masks(model) -> list[torch.Tensor]:
    return [layer.packed_supermask().clone() for layer in model]


class Raw(fk.search.MaskRule):
    """Highest raw scores, straight through."""

    def keys(self, name, scores):
        return scores

    def slope(self, name, scores):
        return torch.ones_like(scores)


# rules of one's own


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("ratios", [{}, {"prune_ratio": 0.2, "lock_ratio": 0.3}])
def test_keys_of_magnitudes_are_edge_popup(scope, ratios):
    class Magnitude(fk.search.MaskRule):
        def keys(self, name, scores):
            return scores.abs()

    for sparsity in (0.2, 0.37, 0.7):
        model = net(scope=scope, sparsity=sparsity, **ratios)
        fk.EdgePopup(model).refresh()
        expected = masks(model)
        for layer in model:
            layer.adopt_supermask(torch.zeros_like(layer.packed_supermask()))
        Magnitude(model).step()
        assert all(torch.equal(*pair) for pair in zip(masks(model), expected, strict=True))


def test_ties_are_kept_from_the_lower_position_and_exactly_as_many():
    class Equal(fk.search.MaskRule):
        def keys(self, name, scores):
            return torch.zeros(len(scores), dtype=torch.float64)

    model = net(sparsity=0.25, scope="local")
    Equal(model).step()
    for layer in model:
        count = layer.free - layer.free // 4
        assert torch.equal(keep_of(layer), torch.arange(layer.free) < count)


def test_a_slope_is_a_factor_on_the_straight_through_gradient(backend):
    class Steep(Raw):
        def slope(self, name, scores):
            return 2 + scores

    model = net((33, 7), code="uniform", prune_ratio=0.2, lock_ratio=0.1, sparsity=0.5)
    layer, x = model[0], torch.randn(5, 33)
    search = Steep(model)
    search.step()
    model(x).square().sum().backward()
    dw = 2 * F.linear(x, layer.weight).T @ x
    code = fmt.codes(7, 33, seed=0, stream=0, code="uniform") * layer.scale
    expected = fmt.stream_order((dw * code).detach())[fmt.stream_order(layer.partition()) == 0]
    expected *= 2 + layer.scores.detach()
    torch.testing.assert_close(layer.scores.grad, expected, rtol=1e-4, atol=1e-4)
    # of the search that was made last the slope counts, and that one has none
    fk.EdgePopup(model)
    layer.scores.grad = None
    model(x).square().sum().backward()
    plain = expected / (2 + layer.scores.detach()) * layer.scores.detach().sign()
    torch.testing.assert_close(layer.scores.grad, plain, rtol=1e-4, atol=1e-4)


def test_a_score_of_zero_gets_a_gradient_where_there_is_a_slope():
    model = net((33, 7), sparsity=0.5)
    with torch.no_grad():
        model[0].scores.zero_()
    Raw(model).step()
    model(torch.ones(1, 33)).sum().backward()
    assert (model[0].scores.grad != 0).all()


class Broken(fk.search.MaskRule):
    answer = None

    def keys(self, name, scores):
        return type(self).answer(scores) if name == "1" else scores


class BrokenKeep(fk.search.MaskRule):
    answer = None

    def keep(self, name, scores):
        return type(self).answer(scores) if name == "1" else scores > 0

    def count(self, name, free):
        return free // 2 if name == "1" else None


def some(count):
    return lambda s: torch.arange(len(s)) < count


@pytest.mark.parametrize(
    ("rule", "answer", "named"),
    [
        (Broken, lambda s: s * torch.nan, "keys: of layer '1' NaN at 140 of 140, expected none"),
        (Broken, lambda s: s[:-1], r"keys: of layer '1' torch.float32 \[139\], expected floating \[140\]"),
        (Broken, lambda s: s > 0, r"keys: of layer '1' torch.bool \[140\], expected floating \[140\]"),
        (Broken, lambda s: s.tolist(), r"keys: of layer '1' list, expected floating \[140\]"),
        (BrokenKeep, lambda s: s, r"keep: of layer '1' torch.float32 \[140\], expected torch.bool \[140\]"),
        (BrokenKeep, some(71), "keep: of layer '1' 71 weights kept, expected 70"),
        (BrokenKeep, some(69), "keep: of layer '1' 69 weights kept, expected 70"),
    ],
)
def test_what_a_rule_gets_wrong_names_the_layer_and_changes_nothing(rule, answer, named, monkeypatch):
    model = net(sparsity=0.5)
    with torch.no_grad():
        model[0].scores.neg_()
        model[0].scores[:100] = 3
    monkeypatch.setattr(rule, "answer", staticmethod(some(70) if rule is BrokenKeep else lambda s: s))
    search, before = rule(model), masks(model)
    monkeypatch.setattr(rule, "answer", staticmethod(answer))
    with pytest.raises(ValueError, match=named):
        rule(model)
    with torch.no_grad():
        model[0].scores.neg_()
    with pytest.raises(ValueError, match=named):
        search.step()
    assert search.steps == 0 and all(torch.equal(*pair) for pair in zip(masks(model), before, strict=True))


def test_other_refusals():
    class Neither(fk.search.MaskRule):
        pass

    class Both(Raw):
        def keep(self, name, scores):
            return scores > 0

    class TooMany(Raw):
        def count(self, name, free):
            return free + 1

    model = net(sparsity=0.5)
    for kind, named in ((Neither, "Neither: .*none"), (Both, "Both: .*keys and keep")):
        with pytest.raises(TypeError, match=named):
            kind(model)
    with pytest.raises(ValueError, match="count: of layer '0' 661, expected 0 to its 660"):
        TooMany(model).step()
    with pytest.raises(ValueError, match="preset: 'ugt' is"):
        fk.config.register_preset("ugt", scope="local")
    with pytest.raises(ValueError, match="state: the key 'steps'"):
        Raw(model).load_state_dict({"steps": 1, "masks": {}})


def test_layers_that_share_scores_get_one_mask():
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    model[1].weight = model[0].weight
    fk.freeze_(model, fk.FreezeConfig(sparsity=0.5, prune_ratio=0.0, lock_ratio=0.0))
    search = Raw(model)
    search.step()
    assert torch.equal(*masks(model)) and int(keep_of(model[0]).sum()) == 200
    with torch.no_grad():
        model[0].scores.neg_()
    search.step()
    assert torch.equal(*masks(model))


def test_adding_a_rule_touches_one_file(tmp_path, monkeypatch):
    """The rule of the page, as a file beside the others: preset, search, ticket."""
    text = next(block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "class " in block)
    (tmp_path / "stand_out.py").write_text(text)
    lines = [line for line in text[text.index("class ") :].splitlines() if line.strip()]
    assert len(lines) <= 10
    monkeypatch.setattr(fk.search, "__path__", [*fk.search.__path__, str(tmp_path)])
    monkeypatch.setattr(fk.config, "PRESETS", dict(fk.config.PRESETS))
    monkeypatch.setattr(fk.search, "StandOut", None, raising=False)
    monkeypatch.setattr(fk.search, "__all__", [*fk.search.__all__])
    fk.search.find_rules()
    try:
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        fk.freeze_(model, fk.FreezeConfig.preset("stand_out", sparsity=0.75))
        search = fk.search.StandOut(model)
        optimizer = torch.optim.SGD(search.parameters(), lr=1.0)
        for _ in range(3):
            F.cross_entropy(model(torch.randn(8, 64)), torch.randint(4, (8,))).backward()
            optimizer.step()
            search.step()
        assert [m.counts["kept"] for m in model if isinstance(m, fk.nn.FrozenLayer)] == [512, 32]
        fk.save_ticket(model, tmp_path / "t.safetensors")
        fresh = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        loaded = fk.load_ticket(fresh, tmp_path / "t.safetensors")
        assert torch.equal(loaded(torch.ones(1, 64)), model(torch.ones(1, 64)))
        again = fk.search.StandOut(model)
        again.load_state_dict(search.state_dict())
        assert again.steps == 3
    finally:
        del sys.modules["frozen_kernels.search.stand_out"]


# the generator's draws of a search


def test_search_draws_are_the_formats(backend):
    model = net((33, 7), seed=5, prune_ratio=0.3, lock_ratio=0.2, sparsity=0.5)
    rows, cols = ref._grid(7, 33, 0, 0)
    free = ref.stream_order(model[0].partition().numpy()) == 0
    for step in (0, 1, 77, (1 << 24) + 3):
        words = ref.philox(cols >> 2, rows, 33 | step % (1 << 24) << 8, 0, 5)
        expected = ref.stream_order(ref._pick(words, cols & 3))[free]
        assert np.array_equal(model[0].search_draws(step).numpy().astype(np.uint32), expected.astype(np.uint32))


def test_by_chance_keeps_as_many_as_the_probability_says():
    draws = net((256, 256))[0].search_draws(3)
    for p in (0.0, 0.1, 0.5, 1.0):
        assert float(by_chance(draws, torch.full(draws.shape, p)).float().mean()) == pytest.approx(p, abs=0.006)


# rules of the literature


def test_sampled_draws_by_the_sigmoid_and_anew_at_each_step():
    model = net(seed=3)
    search = fk.search.Sampled(model)
    seen = []
    for step in (1, 2):
        search.step()
        seen.append(masks(model))
        for layer in model:
            drawn = (layer.search_draws(step).numpy().astype(np.uint32).astype(np.float64) + 0.5) / 2**32
            p = torch.sigmoid(layer.scores.detach().double()).numpy()
            assert np.array_equal(keep_of(layer).numpy(), drawn < p)
    assert not torch.equal(seen[0][0], seen[1][0])
    again = fk.search.Sampled(model)
    again.load_state_dict({"steps": 1})
    again.step()
    assert torch.equal(masks(model)[0], seen[1][0])
    model(torch.ones(1, 33)).sum().backward()
    grad = model[1].scores.grad
    again.settle()
    assert all(torch.equal(keep_of(layer), layer.scores > 0) for layer in model)
    raw, p = net(seed=3), torch.sigmoid(model[1].scores.detach())
    raw.load_state_dict(model.state_dict())
    for mine, theirs in zip(raw, seen[1], strict=True):
        mine.set_supermask(theirs)
    raw(torch.ones(1, 33)).sum().backward()
    slope = p * (1 - p) * model[1].scores.detach().sign()
    torch.testing.assert_close(grad, raw[1].scores.grad * slope)


def gem_miner(**settings):
    model = net(sparsity=0.75, score_init="unit_uniform", **settings)
    return model, fk.search.GemMiner(model, epochs=4, steps_per_epoch=3, freeze_every=2)


def test_gem_miner_keeps_above_one_half_and_drops_for_good():
    model, search = gem_miner()
    scores = torch.cat([layer.scores.detach() for layer in model])
    assert scores.min() > 0 and scores.max() < 1 and abs(float(scores.mean()) - 0.5) < 0.03
    search.refresh()
    assert all(torch.equal(keep_of(layer), layer.scores > 0.5) for layer in model)
    for _ in range(6):
        search.step()
    # half of the search: density^(1/2) = 1/2 of 800 weights are left, the highest
    lowest = scores.sort().values[400]
    for layer in model:
        assert torch.equal(keep_of(layer), (layer.scores >= lowest) & (layer.scores > 0.5))
    dropped = [layer.scores.detach() < lowest for layer in model]
    with torch.no_grad():
        for layer in model:
            layer.scores.fill_(7.0)
    search.step()
    assert all(torch.equal(keep_of(layer), ~d) for layer, d in zip(model, dropped, strict=True))
    assert float(model[0].scores.detach().max()) == 1
    model(torch.ones(1, 33)).sum().backward()
    assert not model[0].scores.grad[dropped[0]].any() and model[0].scores.grad[~dropped[0]].any()
    again = gem_miner()[1]
    again.load_state_dict(search.state_dict())
    alive = search.state_dict()["alive"]
    assert again.steps == 7
    assert all(torch.equal(bits, alive[name]) for name, bits in again.state_dict()["alive"].items())
    for _ in range(5):
        search.step()
    assert sum(int(keep_of(layer).sum()) for layer in model) == 200


def test_gem_miner_refuses_another_state():
    search = gem_miner()[1]
    good = search.state_dict()
    for state, named in (
        ({"steps": 1}, "state: the keys 'steps' and 'alive'"),
        ({"steps": 1, "alive": {"0": good["alive"]["0"]}}, "alive: of"),
        ({"steps": 1, "alive": {**good["alive"], "1": torch.zeros(3, dtype=torch.uint8)}}, r"alive: '1': uint8 \[18\]"),
    ):
        with pytest.raises(ValueError, match=named):
            search.load_state_dict(state)
    with pytest.raises(ValueError, match="freeze_every: 9, but there are 4"):
        fk.search.GemMiner(gem_miner()[0], epochs=4, steps_per_epoch=1, freeze_every=9)


def test_ugt_ramps_over_the_first_half():
    model = net(sparsity=0.8)
    search, dropped = fk.search.UGT(model, steps=20), []
    search.refresh()
    assert all(keep_of(layer).all() for layer in model)
    for _ in range(20):
        search.step()
        dropped.append(sum(int((~keep_of(layer)).sum()) for layer in model))
    assert dropped == [int(800 * (0.8 * min(1, 2 * t / 20))) for t in range(1, 21)]


@pytest.mark.parametrize("ratios", [{}, {"prune_ratio": 0.1, "lock_ratio": 0.2}])
def test_biprop_scales_by_the_mean_magnitude_of_what_is_kept(ratios):
    model = net(scope="local", sparsity=0.4, seed=9, **ratios)
    search = fk.search.Biprop(model)
    search.step()
    for layer in model:
        normal = fmt.codes(*layer.shape, seed=9, stream=layer.stream, code="normal").double().abs()
        sigma = (2 / layer.cols) ** 0.5
        alpha = float(normal[layer.keep_mask()].mean()) * sigma / fmt.RMS["normal"]
        assert layer.scale == pytest.approx(alpha, rel=1e-6)
        signs = fmt.codes(*layer.shape, seed=9, stream=layer.stream, code="sign")
        assert torch.equal(layer.weight.detach(), signs * layer.scale * layer.keep_mask())
    reference = net(scope="local", sparsity=0.4, seed=9, **ratios)
    fk.EdgePopup(reference).step()
    assert all(torch.equal(*pair) for pair in zip(masks(model), masks(reference), strict=True))
    with pytest.raises(ValueError, match=r"biprop needs code 'sign' and scaling 'none', '0' has .*uniform"):
        fk.search.Biprop(net(code="uniform"))


def test_multicoated_counts_the_thresholds_that_a_score_is_above():
    model = net(scope="local", sparsity=0.5)
    fk.search.Multicoated(model, (0.7, 0.9)).step()
    for layer in model:
        size = layer.scores.detach().abs()
        ranked = size.sort().values
        expected = sum((size > ranked[int(layer.free * s) - 1]).int() for s in (0.5, 0.7, 0.9))
        counts = fmt.stream_order(fmt.to_matrix(layer.coat_counts()))
        assert torch.equal(counts.int(), expected)
    for sparsities in ((), (0.4, 0.9), (0.9, 0.7), (0.8, 1.0)):
        with pytest.raises(ValueError, match=r"sparsities: rising, from above the first coat's 0.5"):
            fk.search.Multicoated(model, sparsities)


def signed_net(**settings):
    model = nn.Sequential(nn.Linear(33, 20, bias=False))
    fk.freeze_(model, fk.FreezeConfig(**{"code": "signs", "scope": "local", "sparsity": 0.5, **settings}))
    return model


def test_signed_has_two_thresholds():
    model = signed_net()
    layer, search = model[0], fk.search.Signed(model, 0.1)
    search.step()
    scores = layer.scores.detach()
    expected = (scores > 0.1).float() - (scores < -0.1).float()
    assert torch.equal(fmt.stream_order(layer.weight.detach()), expected * layer.scale)
    x = torch.randn(4, 33)
    model(x).square().sum().backward()
    dw = 2 * F.linear(x, layer.weight).T @ x
    torch.testing.assert_close(layer.scores.grad, fmt.stream_order(dw.detach()) * layer.scale, rtol=1e-4, atol=1e-4)
    for threshold in (0.0, -1, True, float("nan")):
        with pytest.raises(ValueError, match="threshold: a number above 0, got"):
            fk.search.Signed(model, threshold)
    with pytest.raises(ValueError, match="Signed needs code 'signs', '0' has 'sign'"):
        fk.search.Signed(net())


def test_trichromatic_is_three_masks_with_gradients_of_their_own():
    model = signed_net(seed=4, sparsity=0.25)
    layer, search = model[0], fk.search.Trichromatic(model)
    search.step()
    connect, sign, magnitude = (p.detach() for p in search.parameters())
    assert len({p.data_ptr() for p in (connect, sign, magnitude)}) == 3 and not torch.equal(sign, magnitude)
    keep = connect.abs() > connect.abs().sort().values[660 // 4 - 1]
    signs, counts = torch.where(sign < 0, -1.0, 1.0), 1.0 + (magnitude > 0)
    expected_weight = keep * signs * counts * layer.scale
    assert torch.equal(fmt.stream_order(layer.weight.detach()), expected_weight)
    x = torch.randn(4, 33)
    model(x).square().sum().backward()
    dw = fmt.stream_order(2 * (F.linear(x, layer.weight).T @ x).detach()) * layer.scale
    expected = (dw * signs * counts * connect.sign(), dw * keep * counts, dw * keep * signs)
    for parameter, gradient in zip(search.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)
    saved = search.state_dict()
    with torch.no_grad():
        for parameter in search.parameters()[1:]:
            parameter.neg_()
    search.refresh()
    assert not torch.equal(fmt.stream_order(layer.weight.detach()), expected_weight)
    search.load_state_dict(saved)
    search.refresh()
    assert torch.equal(fmt.stream_order(layer.weight.detach()), expected_weight)
    for state, named in (
        ({"steps": 1}, "state: the keys 'steps' and 'sign' and 'magnitude'"),
        ({**saved, "sign": {}}, r"sign: of \['0'\], got \[\]"),
        ({**saved, "sign": {"0": torch.zeros(3)}}, r"sign: of '0' .*3.*expected floating \[660\]"),
    ):
        with pytest.raises(ValueError, match=named):
            search.load_state_dict(state)


def test_iterand_draws_dropped_weights_again_and_no_others():
    def run() -> nn.Module:
        model = net((64, 64), code="uniform", scope="local", sparsity=0.5, seed=2)
        search = fk.search.IteRand(model, every=2, rate=0.25)
        kept = []
        for _ in range(4):
            search.step()
            kept.append(keep_of(model[0]))
        generations = model[0].generations_of()
        ever = sum((~k).int() for k in kept[1::2])
        assert (generations <= ever).all() and 0 < int((generations > 0).sum()) < int((ever > 0).sum())
        return model

    first, second = run(), run()
    assert torch.equal(first[0].generations_of(), second[0].generations_of())
    assert torch.equal(first[0].weight, second[0].weight)
    share = float((first[0].generations_of() > 0).float().mean())
    assert share == pytest.approx(0.5 * (1 - 0.75**2), abs=0.03)
    for settings, named in (({"rate": 0.0}, "rate: .*0.0"), ({"every": 0}, "every: .*0")):
        with pytest.raises(ValueError, match=named):
            fk.search.IteRand(first, **{"every": 1, "rate": 0.5, **settings})
    with pytest.raises(ValueError, match="'0' has code 'constant'"):
        fk.search.IteRand(net(code="constant"), every=1, rate=0.5)


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())


def test_folded_blocks_share_stream_and_mask_and_nothing_else(tmp_path):
    model = nn.Sequential(block(), block(), block(), nn.Linear(16, 4))
    assert fk.search.fold_blocks_(list(model[:3])) == ["0"]
    fk.freeze_(model, fk.FreezeConfig.preset("hidden_fold"))
    fk.EdgePopup(model).step()
    layers = [part[0] for part in model[:3]]
    assert [layer.stream for layer in layers] == [0] * 3 and model[3].stream == 1
    assert all(layer.scores is layers[0].scores for layer in layers)
    assert len({id(layer.bias) for layer in layers}) == 3
    path = tmp_path / "t.safetensors"
    fk.save_ticket(model, path)
    assert [(r.name, r.free) for r in read_ticket(path).records] == [("0.0", 256), ("3", 64)]
    for blocks, named in (
        ([block()], "two or more"),
        ([block(), nn.Sequential(nn.Linear(16, 8))], "block 1 has no layer like one of block 0"),
        (list(model[:2]), "block 0 is frozen"),
    ):
        with pytest.raises(ValueError, match=named):
            fk.search.fold_blocks_(blocks)


# ratios of layers by a criterion


def dense() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))


def loss(model) -> torch.Tensor:
    x = torch.linspace(-1, 1, 4 * 36).view(4, 1, 6, 6)
    return F.cross_entropy(model(x), torch.tensor([0, 1, 2, 1]))


def highest(criteria: dict[str, torch.Tensor], density: float) -> dict[str, float]:
    every = torch.cat([c.flatten() for c in criteria.values()])
    lowest = every.sort(descending=True).values[round(density * len(every)) - 1]
    return {name: float((c >= lowest).double().mean()) for name, c in criteria.items()}


def test_snip_and_grasp_by_their_definitions():
    model = dense()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    held = {name: model[int(name)].weight for name in "035"}
    gradients = torch.autograd.grad(loss(model), list(held.values()), create_graph=True)
    sensitivity = {n: (w * g).abs() for (n, w), g in zip(held.items(), gradients, strict=True)}
    assert fk.search.snip(model, loss, 0.3) == pytest.approx(highest(sensitivity, 0.3))
    # H g by differences along g, in float64
    twin = dense().double()
    weights = {name: twin[int(name)].weight for name in "035"}

    def slopes(shift: float) -> list[torch.Tensor]:
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), gradients, strict=True):
                w.copy_(held[name].double() + shift * g.double())
        return list(torch.autograd.grad(F.cross_entropy(twin(X64), torch.tensor([0, 1, 2, 1])), list(weights.values())))

    X64 = torch.linspace(-1, 1, 4 * 36).view(4, 1, 6, 6).double()
    products = [(a - b) / 2e-5 for a, b in zip(slopes(1e-5), slopes(-1e-5), strict=True)]
    flow = {n: held[n].double() * h for n, h in zip(weights, products, strict=True)}
    expected, found = highest({n: f.detach() for n, f in flow.items()}, 0.2), fk.search.grasp(model, loss, 0.2)
    assert found == pytest.approx(expected, abs=0.02)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_synflow_conserves_and_never_cuts_a_layer_off():
    model = dense()
    ratios = fk.search.synflow(model, (1, 6, 6), 0.05)
    sizes = {name: model[int(name)].weight.numel() for name in ratios}
    assert sum(ratios[n] * sizes[n] for n in ratios) == pytest.approx(0.05 * sum(sizes.values()), abs=1)
    assert min(ratios.values()) > 0
    single = fk.search.synflow(model, (1, 6, 6), 0.5, rounds=1)
    twin = dense().double()
    with torch.no_grad():
        for p in twin.parameters():
            p.abs_()
    held = {name: twin[int(name)].weight for name in "035"}
    gradients = torch.autograd.grad(twin(torch.ones(1, 1, 6, 6).double()).sum(), list(held.values()))
    flow = {n: (w * g).detach() for (n, w), g in zip(held.items(), gradients, strict=True)}
    assert single == pytest.approx(highest(flow, 0.5))


def test_refusals_of_criteria():
    for density in (0, 1.5):
        with pytest.raises(ValueError, match="density: .*" + str(density)):
            fk.search.snip(dense(), loss, density)
    with pytest.raises(ValueError, match="no layer that freeze_ converts"):
        fk.search.snip(nn.ReLU(), loss, 0.5)
    with pytest.raises(ValueError, match="criterion: of '0' not finite"):
        fk.search.snip(dense(), lambda m: loss(m) * torch.inf, 0.5)
    with pytest.raises(ValueError, match="rounds: an integer >= 1, got 0"):
        fk.search.synflow(dense(), (1, 6, 6), 0.5, rounds=0)


def test_a_dict_of_densities_is_a_distribution():
    ratios = {"0": 0.9, "3": 0.25, "5": 0.5}
    model = dense()
    sizes = {name: model[int(name)].weight.numel() for name in ratios}
    density = sum(ratios[n] * sizes[n] for n in ratios) / sum(sizes.values())
    settings = {"distribution": ratios, "lock_ratio": 0.0, "sparsity": 0.9}
    fk.freeze_(model, fk.FreezeConfig(prune_ratio=1 - density, **settings))
    for name, ratio in ratios.items():
        assert abs(model[int(name)].pruned - (1 - ratio) * sizes[name]) <= 1
    half = dense()
    fk.freeze_(half, fk.FreezeConfig(prune_ratio=1 - density / 2, **settings))
    for name, ratio in ratios.items():
        assert abs(half[int(name)].pruned - (1 - ratio / 2) * sizes[name]) <= 1
    assert hash(fk.FreezeConfig(prune_ratio=1 - density, **settings)) is not None
    for given, named in (
        ({"0": 0.5, "3": 0.5}, "distribution: no density of 5"),
        ({**ratios, "4": 0.5}, "distribution: a density of 4"),
        ({"0": 0.0, "3": 0.0, "5": 1.0}, "distribution: layers of a density above 0 have 30 of"),
    ):
        untouched = dense()
        with pytest.raises(ValueError, match=named):
            fk.freeze_(untouched, fk.FreezeConfig(prune_ratio=0.5, **{**settings, "distribution": given}))
        assert type(untouched[0]) is nn.Conv2d
    for given, named in (({"0": 2.0}, r"distribution\['0'\]: .*2.0"), ({"0": 0}, "above 0"), ("snip", "distribution")):
        with pytest.raises(ValueError, match=named):
            fk.FreezeConfig(distribution=given)
