"""`freeze_`: what it converts, what it leaves alone and says about it, and that a failure changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import frozen_kernels as fk

CONFIG = fk.FreezeConfig(seed=5, sparsity=0.5, freeze_ratio=0.6)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.Flatten()),
        nn.Linear(100, 6),
    )


def snapshot(model: nn.Module) -> list:
    """Every module, parameter and buffer of a model by name and identity."""
    named = (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False))
    return [(name, id(value)) for name, value in (*named, *model.named_buffers(remove_duplicate=False))]


def test_report_and_masks():
    model = net()
    report = fk.freeze_(model, CONFIG)
    assert [(c.name, c.kind, c.shape, c.stream) for c in report.converted] == [
        ("0", "FrozenConv2d", (4, 3, 3, 3), 0),
        ("2.0", "FrozenConvTranspose2d", (4, 4, 2, 2), 1),
        ("3", "FrozenLinear", (6, 100), 2),
    ]
    assert report.skipped == []
    assert report.weights == 108 + 64 + 600
    assert report.free == sum(c.free for c in report.converted) == sum(m.scores.numel() for m in layers(model))
    for c, layer in zip(report.converted, layers(model), strict=True):
        assert (c.pruned, c.locked, c.free) == tuple(layer.counts[k] for k in ("pruned", "locked", "free"))
    assert "3 layers frozen: 772 weights" in str(report) and "FrozenConvTranspose2d[4, 4, 2, 2] stream 1" in str(report)
    # global masks from the initial scores: 386 of all 772 are zero
    assert sum(int((m.weight == 0).sum()) for m in layers(model)) == 386
    masks = [m.packed_supermask() for m in layers(model)]
    fk.EdgePopup(model).step()
    assert all(torch.equal(m.packed_supermask(), mask) for m, mask in zip(layers(model), masks, strict=True))


def layers(model: nn.Module) -> list[fk.nn.FrozenLayer]:
    return [m for m in model.modules() if isinstance(m, fk.nn.FrozenLayer)]


def test_same_seed_same_network_and_streams_differ():
    first, second, other = net(), net(), net()
    for model, seed in ((first, 5), (second, 5), (other, 6)):
        fk.freeze_(model, fk.FreezeConfig(seed=seed))
    a, b, c = (model[3].weight for model in (first, second, other))
    assert torch.equal(a, b) and not torch.equal(a, c)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    fk.freeze_(model, CONFIG)
    assert not torch.equal(model[0].partition(), model[1].partition())


def test_everything_else_of_the_model_stays():
    model = net().to(torch.bfloat16)
    model[0].eval()
    model[3].bias.requires_grad_(False)
    bias, seen = model[3].bias, []
    handle = model[3].register_forward_hook(lambda m, args, out: seen.append(type(m).__name__))
    model[3].register_forward_pre_hook(lambda m, args, kwargs: seen.append("pre"), with_kwargs=True)
    fk.freeze_(model, CONFIG)
    assert model[3].bias is bias and not bias.requires_grad and model[0].bias is None
    assert [m.training for m in model] == [False, True, True, True]
    assert all(m.dtype == torch.bfloat16 and m.device.type == "cpu" for m in layers(model))
    x = torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    assert seen == ["pre", "FrozenLinear"]
    # the caller's handle still removes its hook
    handle.remove()
    model(x)
    assert seen == ["pre", "FrozenLinear", "pre"]


def test_filter_fn_and_embeddings():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9), "last": nn.Linear(9, 2)})
    report = fk.freeze_(model, CONFIG, filter_fn=lambda module, name: name != "last")
    assert [c.name for c in report.converted] == ["table", "head"]
    assert report.skipped == [("last", "filter_fn")] and "last: filter_fn" in str(report)
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    report = fk.freeze_(model, CONFIG)
    assert [c.name for c in report.converted] == ["head"]
    assert [name for name, _ in report.skipped] == ["table"] and "filter_fn" in report.skipped[0][1]


def test_config_of_each_layer():
    asked = []

    def config(module, name):
        asked.append((type(module), name))
        return None if name == "0" else fk.FreezeConfig(seed=len(asked), code="normal", scope="local")

    model = net()
    report = fk.freeze_(model, config)
    assert asked == [(nn.Conv2d, "0"), (nn.ConvTranspose2d, "2.0"), (nn.Linear, "3")]
    assert report.skipped == [("0", "config returned None")] and type(model[0]) is nn.Conv2d
    assert [(m.seed, m.stream, m.code) for m in layers(model)] == [(2, 0, "normal"), (3, 0, "normal")]


class Odd(nn.Linear):
    pass


class OddAttention(nn.MultiheadAttention):
    """Who knows where it reads its weights."""


def lazy() -> nn.Module:
    return nn.LazyLinear(3)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: OddAttention(8, 2), "OddAttention"),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametrized"),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "hook of torch.nn.utils"),
        (lazy, "lazy"),
        (lambda: Odd(4, 4), "subclass Odd"),
    ],
)
def test_skipped_with_a_reason(make, why):
    model = nn.ModuleDict({"odd": make(), "plain": nn.Linear(4, 4)})
    before = snapshot(model["odd"])
    report = fk.freeze_(model, CONFIG)
    assert [c.name for c in report.converted] == ["plain"]
    assert report.skipped and all(name.startswith("odd") and why in reason for name, reason in report.skipped)
    assert snapshot(model["odd"]) == before


def test_readers_of_weights_are_skipped_as_root_too():
    model = OddAttention(8, 2)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"nothing to freeze .*reads its weight"):
        fk.freeze_(model, CONFIG)
    assert snapshot(model) == before


def test_second_call_continues_the_streams():
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    fk.freeze_(model, CONFIG)
    weights = [m.weight for m in model]
    model.extend([nn.Linear(4, 4), nn.Conv1d(2, 2, 1)])
    report = fk.freeze_(model, CONFIG)
    assert [(c.name, c.stream) for c in report.converted] == [("2", 2), ("3", 3)]
    assert report.skipped == [("0", "already frozen"), ("1", "already frozen")]
    assert all(torch.equal(m.weight, w) for m, w in zip(model[:2], weights, strict=True))
    model.append(nn.Linear(4, 4))
    assert fk.freeze_(model, fk.FreezeConfig(seed=6)).converted[0].stream == 0
    assert fk.freeze_(model, CONFIG).converted == []


def test_module_reached_twice_converts_once_everywhere():
    shared = nn.Linear(5, 5)
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(nn.ReLU(), shared), "c": shared})
    report = fk.freeze_(model, CONFIG)
    assert [c.name for c in report.converted] == ["a.0"] and report.weights == 25
    assert model["a"][0] is model["b"][1] is model["c"] and isinstance(model["c"], fk.nn.FrozenLinear)


@pytest.mark.parametrize("filter_fn", [None, lambda module, name: name == "head"])
def test_a_weight_shared_with_a_layer_that_stays_is_not_torn_apart(filter_fn):
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9), "last": nn.Linear(9, 2)})
    model["head"].weight = model["table"].weight
    if filter_fn is None:
        assert [c.name for c in fk.freeze_(model, CONFIG).converted] == ["last"]
    else:
        with pytest.raises(ValueError, match=r"head: shares its weight with 'table', which is not converted"):
            fk.freeze_(model, CONFIG, filter_fn)
    assert model["head"].weight is model["table"].weight


def test_tied_embedding_and_head_are_one_tensor():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9)})
    model["head"].weight = model["table"].weight
    report = fk.freeze_(model, CONFIG, filter_fn=lambda module, name: True)
    assert [c.stream for c in report.converted] == [0, 0]
    assert torch.equal(model["table"].weight, model["head"].weight) and model["table"].scores is model["head"].scores


def test_tied_weights_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    fk.freeze_(model, CONFIG)
    assert model[0].scores is model[1].scores and model[0].stream == model[1].stream == 0


def test_tied_parameters_need_one_config():
    model = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
    model[1].weight = model[0].weight
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"'1' shares its weight"):
        fk.freeze_(model, lambda module, name: fk.FreezeConfig(seed=int(name)))
    assert snapshot(model) == before
    fk.freeze_(model, CONFIG)
    assert model[0].scores is model[1].scores and model[0].stream == model[1].stream


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(2, 3, 1), nn.Embedding(4, 3), Odd(4, 3)])
def test_bare_layer_as_root(layer):
    with pytest.raises(ValueError, match=rf"bare {type(layer).__name__}.*Frozen\w+\.from_module"):
        fk.freeze_(layer, CONFIG)


def test_from_module():
    layer = nn.Linear(4, 3).double().eval()
    frozen = fk.nn.FrozenLinear.from_module(layer, CONFIG, stream=7)
    assert (frozen.seed, frozen.stream, frozen.dtype, frozen.training) == (5, 7, torch.float64, False)
    assert frozen.bias is layer.bias and frozen.weight.shape == layer.weight.shape


@pytest.mark.parametrize("model", [nn.Sequential(), nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)), nn.LSTM(3, 4)])
def test_nothing_to_convert(model):
    before = snapshot(model)
    with pytest.raises(ValueError, match="nothing to freeze"):
        fk.freeze_(model, CONFIG)
    assert snapshot(model) == before


def raising(module, name):
    if isinstance(module, nn.Linear):
        raise KeyError(name)
    return CONFIG


@pytest.mark.parametrize(
    ("config", "error"),
    [(raising, KeyError), (lambda m, n: {"seed": 0} if n == "3" else CONFIG, TypeError), ("sign", TypeError)],
)
def test_a_failure_halfway_leaves_the_model_unchanged(config, error):
    model = net()
    before = snapshot(model)
    with pytest.raises(error):
        fk.freeze_(model, config)
    assert snapshot(model) == before


def test_what_no_later_layer_can_have_is_refused_before_the_first_is_replaced():
    wide = nn.Linear(100, 100)
    model = nn.Sequential(wide, fk.nn.FrozenLinear(100, 4, stream=2**32 - 2), nn.Linear(4, 100))
    before = snapshot(model)
    # the first new layer gets the last stream of seed 0, and the second has none
    with pytest.raises(ValueError, match="'2' would need stream 4294967296 of seed 0"):
        fk.freeze_(model)
    assert snapshot(model) == before
    local = fk.FreezeConfig(scope="local", sparsity=0.5, prune_ratio=0.5, lock_ratio=0.0, distribution="erk")
    model = nn.Sequential(wide, nn.Linear(100, 4))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"sparsity: 0\.5 is below its prune_ratio"):
        fk.freeze_(model, local)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sparsity": 1.5}, "sparsity.*1.5"),
        ({"sparsity": float("nan")}, "sparsity.*nan"),
        ({"freeze_ratio": -0.1}, "freeze_ratio.*-0.1"),
        ({"prune_ratio": True}, "prune_ratio.*True"),
        ({"sparsity": 0.2, "prune_ratio": 0.3}, "sparsity: 0.2 is below prune_ratio 0.3"),
        ({"sparsity": 0.8, "lock_ratio": 0.3}, "sparsity: 0.8 is above 1 - lock_ratio = 0.7"),
        ({"prune_ratio": 0.6, "lock_ratio": 0.6}, "prune_ratio 0.6 and lock_ratio 0.6"),
        ({"prune_ratio": 0.3, "lock_ratio": 0.3, "freeze_ratio": 0.7}, "freeze_ratio: 0.7"),
        ({"prune_ratio": 0.5, "freeze_ratio": 0.3}, "lock_ratio -0.2"),
        ({"scope": "layer"}, "scope.*layer"),
        ({"scaling": "auto"}, "scaling.*auto"),
        ({"score_init": "ones"}, "score_init.*ones"),
        ({"score_init": "magnitude"}, "magnitude.*sign"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_infeasible_settings_name_what_is_wrong(settings, named):
    with pytest.raises(ValueError, match=named):
        fk.FreezeConfig(**settings)


@pytest.mark.parametrize(
    ("given", "ratios"),
    [
        ({}, (0.35, 0.35)),
        ({"freeze_ratio": 0.0}, (0.0, 0.0)),
        ({"freeze_ratio": 1.0, "sparsity": 0.3}, (0.3, 0.7)),
        ({"sparsity": 0.9}, (0.7, 0.0)),
        ({"sparsity": 0.0}, (0.0, 0.7)),
        ({"sparsity": 1.0}, (0.7, 0.0)),
        ({"sparsity": 0.8, "freeze_ratio": 0.5}, (0.5, 0.0)),
        ({"prune_ratio": 0.2}, (0.2, 0.0)),
        ({"lock_ratio": 0.2}, (0.0, 0.2)),
        ({"lock_ratio": 0.2, "freeze_ratio": 0.5}, (0.3, 0.2)),
        ({"prune_ratio": 0.5, "lock_ratio": 0.5}, (0.5, 0.5)),
    ],
)
def test_ratios(given, ratios):
    config = fk.FreezeConfig(**given)
    assert config.ratios == pytest.approx(ratios, abs=1e-12)
    assert config.freeze_ratio == pytest.approx(sum(ratios), abs=1e-12)


def test_finalize_keeps_the_network():
    model = net()
    fk.freeze_(model, CONFIG)
    x = torch.randn(2, 3, 6, 6)
    y = model(x)
    fk.finalize_(model)
    assert torch.equal(model(x), y)
    assert all(m.scores is None for m in layers(model))
    assert [n for n, _ in model.named_parameters()] == ["2.0.bias", "3.bias"]
    with pytest.raises(ValueError, match="3 layers of drawn weights are finalized"):
        fk.EdgePopup(model)
    with pytest.raises(ValueError, match="no frozen layers"):
        fk.finalize_(nn.Linear(3, 3))


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense", "auto"])
def test_residency_of_a_model(residency):
    model = net()
    fk.freeze_(model, lambda m, n: fk.FreezeConfig(code="sign" if n == "0" else "normal"))
    x = torch.randn(2, 3, 6, 6)
    y = model(x)
    chosen = fk.set_residency(model, residency)
    assert set(chosen) == {"0", "2.0", "3"}
    assert {n: m.residency for n, m in model.named_modules() if n in chosen} == chosen
    assert set(chosen.values()) <= ({"planes", "mask", "dense"} if residency == "auto" else {residency})
    torch.testing.assert_close(model(x), y)
    with pytest.raises(ValueError, match=r"residency.*sparse"):
        fk.set_residency(model, "sparse")
    with pytest.raises(ValueError, match="no frozen layers"):
        fk.set_residency(nn.ReLU(), residency)


def test_to_dense_leaves_the_model_and_keeps_hooks_dtype_and_ties():
    embedding = nn.Embedding(9, 6, padding_idx=2)
    model = nn.Sequential(embedding, nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 9))
    model[2].weight, model[3].weight = model[1].weight, model[0].weight
    fk.freeze_(model.bfloat16(), CONFIG, filter_fn=lambda module, name: True)
    seen = []
    model[1].register_forward_hook(lambda module, args, y: seen.append(type(module)))
    before, x = snapshot(model), torch.arange(9)
    dense = fk.to_dense(model)
    assert snapshot(model) == before
    assert [type(m) for m in dense] == [nn.Embedding, nn.Linear, nn.Linear, nn.Linear]
    torch.testing.assert_close(dense(x), model(x), rtol=0.02, atol=0.02)
    assert seen == [nn.Linear, fk.nn.FrozenLinear]
    assert dense[1].weight is dense[2].weight and dense[1].weight.dtype == torch.bfloat16
    # the padding row is zero in the embedding alone, so those two are no longer one tensor
    assert dense[0].weight is not dense[3].weight and not dense[0].weight[2].any()
    assert type(fk.to_dense(fk.nn.FrozenLinear(3, 2))) is nn.Linear
    with pytest.raises(ValueError, match="no frozen layers"):
        fk.to_dense(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="'0' is on the meta device"):
        fk.to_dense(nn.Sequential(fk.nn.FrozenLinear(3, 2, device="meta")))
