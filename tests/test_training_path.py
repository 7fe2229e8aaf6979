"""What a training loop does around a search: refreshes, accumulation, clipping, AMP, averages, formats, checkpoints."""

from __future__ import annotations

import pytest
import torch
from test_search import defined_masks, searched, stream_bits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import frozen_kernels as fk


def shuffle(model: nn.Module) -> None:
    """Other scores, which other masks follow from."""
    with torch.no_grad():
        for layer in fk.nn.models.frozen_layers(model).values():
            layer.scores.copy_(torch.randn_like(layer.scores))


def bits(model: nn.Module) -> list[list[bool]]:
    return [stream_bits(layer) for layer in fk.nn.models.frozen_layers(model).values()]


def wanted(model: nn.Module, sparsity: float = 0.5) -> list[list[bool]]:
    return defined_masks(list(fk.nn.models.frozen_layers(model).values()), sparsity)


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


class Head(nn.Module):
    """Mean over pixels: the same sums in any memory format."""

    def forward(self, x):
        return x.mean((2, 3))


def network(residency: str = "mask", **settings) -> nn.Sequential:
    """A small frozen network for [B, 3, 8, 8], the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2),
            nn.ReLU(),
            Head(),
            nn.Linear(24, 10, bias=False),
        )
    fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.6, **settings))
    fk.set_residency(model, residency)
    return model


def batch(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, 8, 8), torch.randint(10, (count,))


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    """The gradients of all parameters, which are cleared."""
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    return found


def agree(actual: nn.Module, expected: nn.Module) -> None:
    """Parameters are equal to rounding, and masks are those of the scores."""
    pairs = [[p.detach() for p in model.parameters()] for model in (actual, expected)]
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-6)
    assert bits(actual) == wanted(actual) and bits(expected) == wanted(expected)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv_transpose2d", "embedding"])
def test_bfloat16_scores_in_a_float32_layer(kind, backend):
    make, x = {
        "linear": (lambda **s: fk.nn.FrozenLinear(33, 17, **s), torch.randn(4, 33)),
        "conv2d": (lambda **s: fk.nn.FrozenConv2d(4, 6, 3, **s), torch.randn(2, 4, 8, 8)),
        "conv_transpose2d": (lambda **s: fk.nn.FrozenConvTranspose2d(4, 6, 3, **s), torch.randn(2, 4, 8, 8)),
        "embedding": (lambda **s: fk.nn.FrozenEmbedding(19, 40, **s), torch.arange(12) % 5),
    }[kind]
    narrow, wide = make(score_dtype="bfloat16"), make()
    assert narrow.scores.dtype == torch.bfloat16 and narrow.dtype == torch.float32
    assert torch.equal(narrow.scores, wide.scores.bfloat16())
    with torch.no_grad():
        wide.scores.copy_(narrow.scores)
    for layer in (narrow, wide):
        fk.EdgePopup(layer).step()
        layer(x).square().sum().backward()
    assert bits(narrow) == bits(wide) == wanted(narrow)
    # the sums are float32 in both, and rounded once
    assert torch.equal(narrow.scores.grad, wide.scores.grad.bfloat16())
    narrow.to(torch.float64)
    assert narrow.scores.dtype == torch.float64


def test_the_dtype_of_scores_is_checked_and_goes_to_the_meta_device():
    with pytest.raises(ValueError, match=r"score_dtype: one of float32, bfloat16, got 'float16'"):
        fk.FreezeConfig(score_dtype="float16")
    layer = fk.nn.FrozenLinear(33, 17, device="meta", score_dtype="bfloat16")
    assert layer.scores.dtype == torch.bfloat16 and layer.to_empty(device="cpu").scores.dtype == torch.bfloat16


def test_a_network_of_bfloat16_scores_trains():
    model, (x, y) = network(score_dtype="bfloat16"), batch(16)
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=4.0, momentum=0.9)
    before = loss_of(model, x, y).item()
    for _ in range(20):
        loss_of(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()
        search.step()
    assert loss_of(model, x, y).item() < 0.8 * before and bits(model) == wanted(model)
    assert all(s["momentum_buffer"].dtype == torch.bfloat16 for s in optimizer.state.values())


@pytest.mark.parametrize("residency", ["seed", "dense"])
def test_accumulated_gradients_equal_those_of_one_batch(residency):
    model, (x, y) = network(residency).eval(), batch(12)
    loss_of(model, x, y).backward()
    whole = gradients(model)
    for part in range(4):
        (loss_of(model, x[3 * part : 3 * part + 3], y[3 * part : 3 * part + 3]) / 4).backward()
    torch.testing.assert_close(gradients(model), whole, rtol=1e-4, atol=1e-6)


def test_gradients_accumulate_into_the_tensor_they_have():
    model, (x, y) = network(), batch()
    loss_of(model, x, y).backward()
    held = [layer.scores.grad for layer in fk.nn.models.frozen_layers(model).values()]
    places, once = [g.data_ptr() for g in held], [g.clone() for g in held]
    loss_of(model.eval(), x, y).backward()
    assert [layer.scores.grad.data_ptr() for layer in fk.nn.models.frozen_layers(model).values()] == places
    assert not any(torch.equal(g, o) for g, o in zip(held, once, strict=True))


def test_clipping_by_norm():
    model, (x, y) = network(), batch()
    scores = fk.EdgePopup(model).parameters()
    loss_of(model, x, y).backward()
    before = torch.cat([p.grad for p in scores])
    norm = torch.nn.utils.clip_grad_norm_(scores, float(before.norm()) / 3)
    torch.testing.assert_close(norm, before.norm())
    torch.testing.assert_close(torch.cat([p.grad for p in scores]), before / 3, rtol=1e-4, atol=0)


@pytest.mark.parametrize("score_dtype", ["float32", "bfloat16"])
def test_mixed_precision_with_a_scaled_loss(score_dtype):
    model, plain, (x, y) = network(score_dtype=score_dtype), network(score_dtype=score_dtype), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, x, y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    loss_of(plain, x, y).backward()
    for a, b in zip(search.parameters(), fk.EdgePopup(plain).parameters(), strict=True):
        assert a.grad.dtype == a.dtype == getattr(torch, score_dtype)
        assert nn.functional.cosine_similarity(a.grad.float(), b.grad.float(), 0) > 0.99
        assert 0.95 < a.grad.float().norm() / b.grad.float().norm() < 1.05
    before = [p.detach().clone() for p in search.parameters()]
    scaler.step(optimizer)
    scaler.update()
    search.step()
    assert bits(model) == wanted(model)
    # an overflow skips the step: scores and masks stay
    optimizer.zero_grad()
    held, after = bits(model), [p.detach().clone() for p in search.parameters()]
    scaler.scale(loss_of(model, x * torch.inf, y)).backward()
    scaler.step(optimizer)
    scaler.update()
    search.step()
    assert bits(model) == held and scaler.get_scale() == 2.0**11
    for p, b, a in zip(search.parameters(), before, after, strict=True):
        assert torch.equal(p, a) and not torch.equal(a, b)


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_masks_of_averaged_scores(residency):
    """Buffers of the average are copies of the model's, masks too, until a step makes them from the averaged scores."""
    model, data = network(residency, scaling="dynamic"), batch(16)
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=2.0, momentum=0.9)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = [p.detach().clone() for p in search.parameters()]
    for step in range(4):
        loss_of(model, *data).backward()
        optimizer.step()
        optimizer.zero_grad()
        search.step()
        ema.update_parameters(model)
        rate = 0.5 if step else 1.0  # the first update copies
        expected = [e.lerp(p.detach(), rate) for e, p in zip(expected, search.parameters(), strict=True)]
    averaged = fk.EdgePopup(ema.module)
    averaged.step()
    torch.testing.assert_close([p.detach() for p in averaged.parameters()], expected)
    assert bits(ema.module) == wanted(ema.module) != bits(model)
    for mine, theirs in zip(averaged.layers, search.layers, strict=True):
        assert torch.equal(mine.partition(), theirs.partition())
        assert torch.equal(mine.keep_mask(), mine.weight != 0)
        assert mine.counts["kept"] == int(mine.keep_mask().sum())
    # the average shares nothing with the model
    held = bits(model)
    with torch.no_grad():
        averaged.parameters()[0].zero_()
    averaged.step()
    assert bits(model) == held == wanted(model)


def test_averaged_buffers_are_refused():
    """Means of whole numbers, computed in float32, are other seeds and thresholds."""
    model = network(seed=2**40 + 12345)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(3):
        ema.update_parameters(model)
    with pytest.raises(ValueError, match=r"'0'.*use_buffers=False.*header"):
        fk.EdgePopup(ema.module)
    model[3].offsets[-1] -= 1
    with pytest.raises(ValueError, match=r"'3'.*offsets: \d+ free weights in a layer that has \d+"):
        fk.EdgePopup(model)


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_channels_last_from_end_to_end(residency):
    plain, model, data = network(residency), network(residency).to(memory_format=torch.channels_last), batch()
    for run, x in ((plain, data[0]), (model, data[0].to(memory_format=torch.channels_last))):
        search = fk.EdgePopup(run)
        optimizer = torch.optim.SGD(search.parameters(), lr=0.5, momentum=0.9)
        for _ in range(3):
            loss_of(run, x, data[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
            search.step()
    agree(model, plain)
    pairs = zip(search.layers, fk.EdgePopup(plain).layers, strict=True)
    close = [torch.isclose(a.weight, b.weight).float().mean() for a, b in pairs]
    assert min(close) > 0.999


OPTIMIZERS = {
    "sgd": lambda p, **o: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=1e-2, **o),
    "adam": lambda p, **o: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2, **o),
    "adamw": lambda p, **o: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-2, **o),
}


def trained(model: nn.Module, make, data: tuple, steps: int = 3) -> nn.Module:
    search = fk.EdgePopup(model)
    optimizer = make(search.parameters())
    for _ in range(steps):
        loss_of(model, *data).backward()
        optimizer.step()
        optimizer.zero_grad()
        search.step()
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_in_every_implementation(name):
    data, initial = batch(), [p.detach() for p in fk.EdgePopup(network()).parameters()]
    plain = trained(network(), lambda p: OPTIMIZERS[name](p, foreach=False), data)
    for how in ({"foreach": True}, {"fused": True}):
        other = trained(network(), lambda p, how=how: OPTIMIZERS[name](p, **how), data)
        agree(other, plain)
    moved = [
        float((p.detach() - i).abs().max()) for p, i in zip(fk.EdgePopup(plain).parameters(), initial, strict=True)
    ]
    assert min(moved) > 1e-3 and bits(plain) == wanted(plain) != bits(network())


def test_weight_decay_alone_shrinks_scores_and_keeps_the_masks():
    model = network()
    fk.EdgePopup(model).step()
    before, scores = bits(model), fk.EdgePopup(model).parameters()
    wide = [p.detach().clone() for p in scores]
    optimizer = torch.optim.SGD(fk.EdgePopup(model).param_groups(weight_decay=0.5), lr=1.0)
    for p in scores:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    fk.EdgePopup(model).step()
    torch.testing.assert_close([p.detach() for p in scores], [w / 2 for w in wide])
    assert bits(model) == before


def held_at_once(model: nn.Module, make, data: tuple) -> int:
    """Bytes of the largest single allocation of torch in a whole training step, the first of the optimizer."""
    with torch.profiler.profile(profile_memory=True) as profile:
        trained(model, make, data, steps=1)
    return max(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")


@pytest.mark.parametrize(
    ("residency", "how"),
    [("seed", {"foreach": False}), ("mask", {"foreach": True}), ("planes", {"fused": True})],
    ids=str,
)
def test_no_tensor_of_a_training_step_is_as_large_as_a_weight(residency, how):
    """Scores, gradients and momentum are the largest: 1.2 bytes per weight, where a dense mask alone would take 1."""

    def make(scores):
        return torch.optim.SGD(scores, lr=0.1, momentum=0.9, weight_decay=1e-4, **how)

    data = torch.randn(2, 64, 3, 3), torch.tensor([1, 2])
    model = nn.Sequential(nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 64, 3), nn.Flatten())
    fk.freeze_(model, fk.FreezeConfig(scaling="dynamic"))
    fk.set_residency(model, residency)
    weight, largest = 64 * 96 * 9, max(p.nbytes for p in fk.EdgePopup(model).parameters())
    assert largest < 2 * weight
    for backend in ("cpu", "reference"):
        with fk.backends.use(backend):
            most = held_at_once(model, make, data)
        assert most > 2 * weight if backend == "reference" else most == largest, backend
