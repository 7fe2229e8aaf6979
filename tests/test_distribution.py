"""Prune and lock ratios per layer, by the formulas of the distributions, and the papers' presets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from examples.training.models import MODELS
from frozen_kernels.config import RATIO_RULES
from frozen_kernels.convert.distribution import layer_densities, layer_ratios

DENSITIES = (0.0, 0.01, 0.1, 0.3, 0.65, 0.97, 1.0)
CLASSES = 10


def shapes_of(name: str) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        model = MODELS[name](CLASSES)
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def erk(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """density_l = eps * sum(dims) / prod(dims); the layers that exceed 1 become dense one group at a time."""
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    counts = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        others = [i for i in range(len(shapes)) if i not in dense]
        eps = (density * sum(counts) - sum(counts[i] for i in dense)) / sum(raw[i] * counts[i] for i in others)
        highest = max(raw[i] for i in others)
        if eps * highest < 1:
            return [1.0 if i in dense else eps * raw[i] for i in range(len(shapes))]
        dense |= {i for i in others if raw[i] == highest}
    return [1.0] * len(shapes)


def epl(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """Equal parts to the layers with room, again and again with what overflowed."""
    counts = [math.prod(shape) for shape in shapes]
    kept, left = [0.0] * len(counts), density * sum(counts)
    while left > 1e-9 * sum(counts):
        open_ = [i for i, n in enumerate(counts) if kept[i] < n]
        part, left = left / len(open_), 0.0
        for i in open_:
            left += max(kept[i] + part - counts[i], 0.0)
            kept[i] = min(kept[i] + part, counts[i])
    return [k / n for k, n in zip(kept, counts, strict=True)]


def igq(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """kept_l = N_l / (1 + f * N_l), f by bisection of its logarithm."""
    counts = [math.prod(shape) for shape in shapes]
    if density in (0.0, 1.0):
        return [density] * len(counts)
    low, high = -60.0, 60.0
    for _ in range(200):
        force = math.exp((low + high) / 2)
        kept = sum(n / (1 + force * n) for n in counts)
        low, high = ((low + high) / 2, high) if kept > density * sum(counts) else (low, (low + high) / 2)
    return [1 / (1 + math.exp(low) * n) for n in counts]


FORMULAS = {"uniform": lambda shapes, density: [density] * len(shapes), "erk": erk, "epl": epl, "igq": igq}


@pytest.mark.parametrize("distribution", FORMULAS)
@pytest.mark.parametrize("name", MODELS)
def test_densities_of_the_papers_models(name, distribution):
    shapes = shapes_of(name)
    counts = [math.prod(shape) for shape in shapes]
    for density in DENSITIES:
        found = layer_densities(distribution, shapes, density)
        assert found == pytest.approx(FORMULAS[distribution](shapes, density), rel=1e-6, abs=1e-9)
        total = math.fsum(d * n for d, n in zip(found, counts, strict=True))
        assert total == pytest.approx(density * sum(counts), rel=1e-9) and min(found) >= 0 and max(found) <= 1


@pytest.mark.parametrize("rule", RATIO_RULES)
@pytest.mark.parametrize("distribution", FORMULAS)
def test_rules(distribution, rule):
    shapes = shapes_of("conv6")
    density = FORMULAS[distribution]
    for prune, lock in ((0.0, 0.0), (0.35, 0.35), (0.8, 0.0), (0.0, 0.9), (0.55, 0.15), (0.5, 0.5), (1.0, 0.0)):
        unpruned, free, locked = (density(shapes, d) for d in (1 - prune, 1 - prune - lock, lock))
        if rule == "sparsity_distribution":
            expected = [((1 - u), (1 - f) - (1 - u)) for u, f in zip(unpruned, free, strict=True)]
        else:
            expected = [((1 - u), k) for u, k in zip(unpruned, locked, strict=True)]
        for got, want in zip(layer_ratios(distribution, rule, shapes, prune, lock), expected, strict=True):
            assert got == pytest.approx(want, rel=1e-6, abs=1e-6)
            assert min(got) >= 0 and sum(got) <= 1 + 1e-12


@pytest.mark.parametrize("rule", RATIO_RULES)
@pytest.mark.parametrize("distribution", FORMULAS)
def test_a_converted_model_has_them(distribution, rule):
    shapes = shapes_of("conv6")
    model = MODELS["conv6"](CLASSES)
    config = fk.FreezeConfig(sparsity=0.6, prune_ratio=0.4, lock_ratio=0.2, distribution=distribution, ratio_rule=rule)
    report = fk.freeze_(model, config)
    ratios = layer_ratios(distribution, rule, shapes, 0.4, 0.2)
    assert len(report.converted) == len(shapes)
    for c, (prune, lock) in zip(report.converted, ratios, strict=True):
        count = math.prod(c.shape)
        # thresholds are 16-bit numbers: equal draws of a tensor fall on the same side
        step = 6 + 2 * count / 65536
        assert abs(c.pruned - prune * count) <= step and abs(c.locked - lock * count) <= 2 * step
    assert report.weights - sum(m.counts["kept"] for m in model.modules() if isinstance(m, fk.nn.FrozenLayer)) == (
        math.floor(report.weights * 0.6)
    )
    layer = next(m for m in model.modules() if isinstance(m, fk.nn.FrozenLayer))
    before = layer.partition()
    layer.reset_parameters()
    assert torch.equal(layer.partition(), before)


def pair(**settings) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(200, 100, bias=False), nn.Linear(100, 2, bias=False))
    fk.freeze_(model, fk.FreezeConfig(**settings))
    return model


def test_local_sparsity_out_of_a_layers_reach_is_refused_by_name():
    config = {"scope": "local", "distribution": "epl", "sparsity": 0.5}
    with pytest.raises(ValueError, match=r"sparsity: 0.5 is above 1 - its lock_ratio 1 in layer '1', by .*'epl'"):
        pair(prune_ratio=0.3, lock_ratio=0.3, ratio_rule="density_distribution", **config)
    with pytest.raises(ValueError, match=r"sparsity: 0.1 is below its prune_ratio 0.101 in layer '0'"):
        pair(prune_ratio=0.1, lock_ratio=0.0, **{**config, "sparsity": 0.1, "distribution": "erk"})
    model = pair(prune_ratio=0.3, lock_ratio=0.3, **{**config, "scope": "global"})
    assert model[1].counts["pruned"] == 0
    untouched = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 2))
    with pytest.raises(ValueError, match="layer '1'"):
        fk.freeze_(untouched, fk.FreezeConfig(freeze_ratio=0.9, ratio_rule="density_distribution", **config))
    assert all(type(m) is nn.Linear for m in untouched)


def test_networks_of_other_settings_and_tied_layers_are_solved_apart():
    model = nn.Sequential(*(nn.Linear(40, 40, bias=False) for _ in range(3)), nn.Linear(40, 4, bias=False))
    model[1].weight = model[0].weight
    configs = {"0": 0.6, "1": 0.6, "2": 0.2, "3": 0.6}
    fk.freeze_(
        model,
        lambda module, name: fk.FreezeConfig(prune_ratio=configs[name], lock_ratio=0, distribution="epl", sparsity=0.7),
    )
    # the pair counts once: 1600 and 160 weights share 704 of them, 160 and 544
    assert [m.ratios[0] for m in model] == pytest.approx([1 - 544 / 1600, 1 - 544 / 1600, 0.2, 0.0])


def test_layers_without_weights_have_no_say():
    assert layer_densities("erk", [(0, 5), (10, 10)], 0.3) == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: layer_densities("snip", [(2, 2)], 0.5), "distribution.*snip"),
        (lambda: layer_densities("erk", [(2, 2)], 1.5), r"density.*1\.5"),
        (lambda: layer_ratios("erk", "both", [(2, 2)], 0.5, 0.1), "ratio_rule.*both"),
        (lambda: fk.FreezeConfig.preset("tiny"), "preset.*sparse_source.*tiny"),
        (lambda: fk.FreezeConfig.preset("dense_source", freeze_ratio=0.5), "freeze_ratio: 0.5.*dense_source.*0"),
        (lambda: fk.FreezeConfig.preset("sparse_source", lock_ratio=0.1), "lock_ratio: 0.1.*sparse_source.*0"),
        # two configurations of the published code prune more than the sparsity, and then search nothing
        (lambda: fk.FreezeConfig.preset("frozen", sparsity=0.7, prune_ratio=0.8, lock_ratio=0.0), "0.7.*0.8"),
    ],
)
def test_refusals(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_presets():
    preset = fk.FreezeConfig.preset
    assert preset("dense_source").ratios == (0, 0) and preset("dense_source", freeze_ratio=0).freeze_ratio == 0
    frozen = preset("frozen", seed=3)
    assert (frozen.freeze_ratio, frozen.sparsity, frozen.scope, frozen.seed) == (0.7, 0.5, "global", 3)
    assert frozen.ratios == pytest.approx((0.35, 0.35)) and (frozen.code, frozen.distribution) == ("uniform", "erk")
    sparse = preset("sparse_source", freeze_ratio=0.9)
    assert sparse.ratios == pytest.approx((0.9, 0)) and sparse.sparsity == pytest.approx(0.95)
    assert preset("sparse_source", prune_ratio=0.2, sparsity=0.4).sparsity == 0.4
    imagenet = preset("frozen_imagenet")
    assert (imagenet.code, imagenet.scaling, imagenet.distribution) == ("sign", "dynamic", "epl")
    popup = preset("edge_popup", sparsity=0.7)
    assert (popup.scope, popup.code, popup.freeze_ratio) == ("local", "sign", 0)
