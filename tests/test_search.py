"""Edge-popup masks against their definition, at every feasible sparsity and for any scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conftest import live_backends
from helpers import stream_positions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frozen_kernels as fk

RESIDENT = ("seed", "mask", "planes", "dense")


PRUNED, LOCKED = (-1, 0.0), (2, 0.0)


def order(score: float) -> tuple[int, float]:
    """|score|, with NaN above inf; pruned weights lie below all scores and locked ones above."""
    return (1, 0.0) if math.isnan(score) else (0, abs(score))


def defined_masks(layers: list[fk.nn.FrozenLayer], sparsity: float) -> list[list[bool]]:
    """Which free weights, in stream order, the definition keeps: strictly above the floor(n * sparsity)-th smallest."""
    values = []
    for layer in layers:
        part = layer.partition().flatten().tolist()
        values += [PRUNED] * part.count(-1) + [LOCKED] * part.count(1)
        values += [] if layer.scores is None else map(order, layer.scores.tolist())
    rank = math.floor(len(values) * sparsity)
    threshold = sorted(values)[rank - 1] if rank else PRUNED
    return [[] if m.scores is None else [order(s) > threshold for s in m.scores.tolist()] for m in layers]


def stream_bits(layer: fk.nn.FrozenLayer) -> list[bool]:
    packed = layer.packed_supermask().tolist()
    return [bool(packed[i // 8] >> i % 8 & 1) for i in range(layer.counts["free"])]


def searched(scope="global", sparsity=0.5, shapes=((33, 5), (7, 20)), **config) -> nn.ModuleList:
    model = nn.ModuleList([nn.Linear(*shape) for shape in shapes])
    fk.freeze_(model, fk.FreezeConfig(scope=scope, sparsity=sparsity, **config))
    return model


def check(model: nn.ModuleList, sparsity: float, scope: str) -> None:
    groups = [list(model)] if scope == "global" else [[layer] for layer in model]
    for group in groups:
        for layer, mask in zip(group, defined_masks(group, sparsity), strict=True):
            assert stream_bits(layer) == mask
            assert layer.counts["kept"] == layer.counts["locked"] + sum(mask) == int(layer.keep_mask().sum())


KINDS = {
    "normal": lambda n: torch.randn(n),
    "ties": lambda n: torch.randint(-2, 3, (n,)).float(),
    "all equal": lambda n: torch.full((n,), -0.25),
    "zeros": lambda n: torch.zeros(n) * torch.tensor([-1.0, 1.0]).repeat(n)[:n],
    "special": lambda n: torch.tensor([0.0, 1e-40, -3e38, math.inf, -math.inf, math.nan])[torch.randint(6, (n,))],
    "nan": lambda n: torch.full((n,), math.nan),
}


@pytest.mark.parametrize("scope", ["global", "local"])
def test_masks_equal_the_definition_at_every_sparsity(scope):
    for percent in range(0, 101, 5):
        model = searched(scope, percent / 100)
        for backend, kind in itertools.product(live_backends(), KINDS):
            with torch.no_grad():
                for layer in model:
                    if layer.scores is not None:
                        layer.scores.copy_(KINDS[kind](layer.scores.numel()))
            with fk.backends.use(backend):
                fk.EdgePopup(model).step()
                check(model, percent / 100, scope)


@settings(max_examples=30, deadline=None)
@given(
    prune=st.floats(0, 1),
    lock=st.floats(0, 1),
    where=st.floats(0, 1),
    scope=st.sampled_from(["global", "local"]),
    levels=st.integers(1, 50),
    bits=st.sampled_from([1, 8, 16]),
)
def test_masks_equal_the_definition_for_any_ratios(prune, lock, where, scope, levels, bits):
    lock *= 1 - prune
    # both bounds are feasible, and so is everything between
    sparsity = min(max(prune + where * (1 - lock - prune), prune), 1 - lock)
    config = {"prune_ratio": prune, "lock_ratio": lock, "threshold_bits": bits}
    model = searched(scope, sparsity, shapes=((33, 3), (1, 1), (5, 8)), **config)
    scored = [m.scores for m in model if m.scores is not None]
    with torch.no_grad():
        for scores in scored:
            scores.copy_(torch.randint(-levels, levels + 1, scores.shape))
    if scored:
        fk.EdgePopup(model).step()
    check(model, sparsity, scope)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_of_other_dtypes(dtype):
    model = searched(sparsity=0.45).to(dtype)
    with torch.no_grad():
        for layer in model:
            layer.scores.normal_()
    fk.EdgePopup(model).step()
    if dtype == torch.float64:
        # compared as float32, as kernels do
        model.float()
    check(model, 0.45, "global")


@pytest.mark.parametrize("residency", RESIDENT)
def test_step_replaces_the_masks_in_every_residency(residency, backend):
    model = searched()
    fk.set_residency(model, residency)
    with torch.no_grad():
        for layer in model:
            layer.scores.copy_(layer.scores.flip(0) * torch.randn_like(layer.scores))
    x, before = torch.randn(2, 33), model[0](torch.ones(1, 33))
    fk.EdgePopup(model).step()
    check(model, 0.5, "global")
    assert [m.residency for m in model] == [residency] * 2
    assert not torch.equal(model[0](torch.ones(1, 33)), before)
    torch.testing.assert_close(model[0](x), nn.functional.linear(x, model[0].weight, model[0].bias))


def test_masks_after_scores_are_averaged_or_loaded():
    model, other = searched(sparsity=0.4), searched(sparsity=0.4)
    with torch.no_grad():
        for m in other:
            m.scores.uniform_(-1, 1)
        for mine, theirs in zip(model, other, strict=True):
            mine.scores.copy_((mine.scores + theirs.scores) / 2)
    fk.EdgePopup(model).step()
    check(model, 0.4, "global")
    model.load_state_dict(other.state_dict())
    fk.EdgePopup(model).step()
    check(model, 0.4, "global")


def test_pickled_and_copied_layers_still_search_together():
    model = nn.ModuleList([fk.nn.FrozenLinear(9, 5, stream=i, sparsity=0.3) for i in range(3)])
    fk.EdgePopup(model).step()
    check(model, 0.3, "global")


@pytest.mark.parametrize("scaling", ["none", "static", "dynamic"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("code", ["sign", "uniform"])
def test_scaling(scaling, sparsity, code):
    model = searched(sparsity=sparsity, scaling=scaling, code=code)
    for layer in model:
        kept, count = layer.counts["kept"], layer.rows * layer.cols
        density = {"none": 1.0, "static": 1 - sparsity, "dynamic": kept / count}[scaling]
        factor = 1 / math.sqrt(density) if density else 0.0
        sigma = math.sqrt(2 / layer.cols) / {"sign": 1, "uniform": math.sqrt(21845)}[code]
        assert layer.scale == pytest.approx(factor * sigma, rel=1e-7)


# a scaling decides the scale, which is one number of the header in every residency
@pytest.mark.parametrize(
    ("scaling", "residency"), [("static", "seed"), ("none", "mask"), ("dynamic", "planes"), ("dynamic", "dense")]
)
def test_nothing_kept_is_the_bias_and_not_nan(scaling, residency, backend):
    model = searched(sparsity=1.0, scaling=scaling)
    fk.set_residency(model, residency)
    layer = model[0]
    with torch.no_grad():
        layer.bias.copy_(torch.arange(5.0))
    assert layer.counts["kept"] == 0
    x = torch.randn(4, 33, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer.bias.expand(4, 5))
    y.sum().backward()
    assert not x.grad.any() and torch.isfinite(layer.scores.grad).all()
    fk.EdgePopup(model).step()
    assert layer.counts["kept"] == 0


def test_everything_kept():
    model = searched(sparsity=0.0, scaling="dynamic", freeze_ratio=0.4)
    assert all(m.counts["kept"] == m.rows * m.cols for m in model)
    assert all((m.weight != 0).all() for m in model)


@pytest.mark.parametrize(("prune", "lock"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_layers_without_a_free_weight(prune, lock):
    frozen = fk.nn.FrozenLinear(40, 30, prune_ratio=prune, lock_ratio=lock, sparsity=prune, scaling="dynamic")
    assert frozen.counts["free"] == 0 and frozen.scores is None
    x = torch.randn(2, 40, requires_grad=True)
    y = frozen(x)
    torch.testing.assert_close(y, x @ frozen.weight.T + frozen.bias)
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
    free = fk.nn.FrozenLinear(40, 30, stream=1, prune_ratio=0.2, lock_ratio=0.2)
    search = fk.EdgePopup(nn.ModuleList([frozen, free]))
    assert search.parameters() == [free.scores]
    search.step()
    with pytest.raises(ValueError, match="no free weight"):
        fk.EdgePopup(frozen)
    state = frozen.state_dict()
    assert state["supermask"].numel() == 0
    frozen.load_state_dict(state)
    frozen.finalize()
    assert torch.equal(frozen(x), y)


def test_parameters_and_groups():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"model.*it has none"):
        fk.EdgePopup(model)
    fk.freeze_(model, fk.FreezeConfig())
    search = fk.EdgePopup(model)
    assert [id(p) for p in search.parameters()] == [id(model[0].scores), id(model[2].scores)]
    (group,) = search.param_groups(weight_decay=0.1)
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 2
    torch.optim.SGD(search.param_groups(weight_decay=0.1), lr=0.1)


def test_a_step_leaves_finalized_layers_alone():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.2))
    search = fk.EdgePopup(model)
    model[0].finalize()
    before, other = model[0].weight, model[2].weight.detach()
    with torch.no_grad():
        model[2].scores.copy_(torch.randn_like(model[2].scores))
    search.step()
    assert torch.equal(model[0].weight, before) and not torch.equal(model[2].weight, other)
    fk.finalize_(model)
    found = [layer.weight for layer in (model[0], model[2])]
    with pytest.raises(ValueError, match="finalized"):
        search.step()
    assert all(torch.equal(layer.weight, w) for layer, w in zip((model[0], model[2]), found, strict=True))


@pytest.mark.parametrize("init", ["kaiming_normal", "kaiming_uniform", "magnitude"])
def test_initial_scores(init):
    layer = fk.nn.FrozenLinear(150, 40, code="uniform", score_init=init, prune_ratio=0.1, lock_ratio=0.1)
    again = fk.nn.FrozenLinear(150, 40, code="uniform", score_init=init, prune_ratio=0.1, lock_ratio=0.1)
    assert torch.equal(layer.scores, again.scores) and layer.scores.dtype == torch.float32
    positions = stream_positions(layer.partition())
    sigma = math.sqrt(2 / 150)
    if init == "magnitude":
        codes = fk.format.codes(40, 150, seed=0, stream=0, code="uniform")
        expected = [abs(int(codes[p])) for p in positions]
        order = torch.tensor(expected).argsort(stable=True)
        assert (layer.scores[order].diff() >= 0).all() and (layer.scores > 0).all()
    else:
        uniform = fk.format.uniform_scores(40, 150, seed=0, stream=0)
        drawn = torch.stack([uniform[p] for p in positions])
        if init == "kaiming_uniform":
            bound = torch.tensor(math.sqrt(3) * sigma, dtype=torch.float32)
            assert torch.equal(layer.scores, drawn * bound)
        else:
            scores = layer.scores.detach()
            assert float(scores.std()) == pytest.approx(sigma, rel=0.05)
            # a quantile of the same draw read as unsigned; `drawn` holds 24 of its 32 bits
            torch.testing.assert_close(scores, torch.special.ndtri(drawn % 2 / 2) * sigma, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("residency", ["seed", "dense"])
def test_training_lowers_the_loss(scope, residency, backend):
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
    fk.freeze_(model, fk.FreezeConfig(scope=scope, freeze_ratio=0.5))
    fk.set_residency(model, residency)
    x = torch.randn(60, 16)
    target = (x @ torch.randn(16, 3)).argmax(1)
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=0.2, momentum=0.9)
    losses, headers = [], [m.partition() for m in (model[0], model[2])]
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        search.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    zeros = sum(int((m.weight == 0).sum()) for m in (model[0], model[2]))
    assert zeros == math.floor(0.5 * (16 * 64 + 64 * 3))
    assert all(torch.equal(m.partition(), p) for m, p in zip((model[0], model[2]), headers, strict=True))
    fk.finalize_(model)
    assert float(nn.functional.cross_entropy(model(x), target)) < 0.7 * losses[0]


def test_step_between_forward_and_backward_is_an_error_and_not_a_wrong_gradient():
    model = searched()
    loss = model[0](torch.randn(2, 33, requires_grad=True)).sum()
    with torch.no_grad():
        model[0].scores.copy_(torch.randn_like(model[0].scores))
    fk.EdgePopup(model).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
