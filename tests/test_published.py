"""Training against edge-popup as published, in plain torch: the same scores and masks, gradients as exact."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import pairwise
from torch import Tensor, nn

import frozen_kernels as fk
from benchmarks.published import PublishedLayer, free_positions, published, sort_step
from frozen_kernels import format as fmt

STEPS = 50
CLASSES = 24


def net(act: type[nn.Module] = nn.ReLU, **settings) -> nn.Sequential:
    """Layers of like sizes: the ratios of every distribution are then within reach of a local sparsity."""
    model = nn.Sequential(
        nn.Conv2d(12, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12, affine=False),
        act(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False),
        act(),
        nn.Conv2d(12, 12, 3, stride=2, bias=False),
        nn.AdaptiveAvgPool2d((1, 3)),
        nn.Flatten(),
        nn.Linear(36, CLASSES, bias=False),
    )
    fk.freeze_(model, fk.FreezeConfig(**settings))
    return model


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 12, 6, 6), torch.randint(CLASSES, (16,))


def optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def layers(model: nn.Module, kind: type) -> list:
    return [m for m in model.modules() if isinstance(m, kind)]


def recorded(model: nn.Module) -> list[Tensor]:
    """Gradients of the dense weights of a published model's layers, filled at each backward."""
    found: list[Tensor] = []
    for layer in layers(model, PublishedLayer):
        plain = layer.product

        def note(x, weight, bias, plain=plain):
            weight.register_hook(found.append)
            return plain(x, weight, bias)

        layer.product = note
    return found


RULES = [
    ("uniform", "sign", "none"),
    ("erk", "uniform", "none"),
    ("epl", "sign", "dynamic"),
    ("igq", "normal", "static"),
]


@pytest.mark.parametrize(("rule", "scope", "freeze_ratio"), pairwise(RULES, ["global", "local"], [0.0, 0.7]))
def test_the_same_gradients_give_the_same_scores_and_masks(rule, scope, freeze_ratio):
    distribution, code, scaling = rule
    run_beside_published(distribution=distribution, scope=scope, freeze_ratio=freeze_ratio, code=code, scaling=scaling)


def test_the_same_on_every_backend(backend):
    run_beside_published(distribution="erk", code="uniform", scaling="dynamic")


def run_beside_published(**settings) -> None:
    ours = net(**settings)
    theirs = published(copy.deepcopy(ours))
    gradients = recorded(theirs)
    search = fk.EdgePopup(ours)
    our_optimizer, their_optimizer = optimizer(search.parameters()), optimizer(theirs.parameters())
    pairs = list(zip(layers(ours, fk.nn.FrozenLayer), layers(theirs, PublishedLayer), strict=True))
    free = [free_positions(layer) for layer, _ in pairs]
    start = [layer.packed_supermask() for layer, _ in pairs]
    for _ in range(STEPS):
        x, y = batch()
        nn.functional.cross_entropy(theirs(x), y).backward()
        for (layer, _), gradient in zip(pairs, reversed(gradients), strict=True):
            layer.weight.backward(gradient)
        gradients.clear()
        for step in (our_optimizer, their_optimizer):
            step.step()
            step.zero_grad()
        search.step()
        sort_step(theirs)
        for (layer, plain), where in zip(pairs, free, strict=True):
            assert torch.equal(layer.keep_mask(), plain.supermask.bool())
            assert torch.equal(layer.scores, fmt.to_matrix(plain.scores).flatten()[where])
            assert torch.equal(layer.weight, plain.masked_weight())
    assert not all(torch.equal(layer.packed_supermask(), s) for (layer, _), s in zip(pairs, start, strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("code", fk.format.CODES)
def test_gradients_from_equal_state_are_within_twice_torchs_error(code, memory_format, backend):
    ours = net(nn.Tanh, code=code, scaling="dynamic")  # a ReLU that rounding turns would weigh more than rounding
    theirs = published(copy.deepcopy(ours))
    exact = copy.deepcopy(theirs).double()
    triples = list(
        zip(layers(ours, fk.nn.FrozenLayer), layers(theirs, PublishedLayer), layers(exact, PublishedLayer), strict=True)
    )
    errors, torchs = [[] for _ in triples], [[] for _ in triples]
    for _ in range(4):  # of few weights the largest error is a matter of luck
        x, y = batch()
        for model, inputs in ((ours, x), (theirs, x), (exact, x.double())):
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs.to(memory_format=memory_format)), y).backward()
        for i, (layer, plain, truth) in enumerate(triples):
            where = free_positions(layer)
            right = fmt.to_matrix(truth.scores.grad).flatten()[where]
            errors[i].append((layer.scores.grad - right).abs())
            torchs[i].append((fmt.to_matrix(plain.scores.grad).flatten()[where] - right).abs())
    for error, torchs_own in zip(map(torch.cat, errors), map(torch.cat, torchs), strict=True):
        assert error.max() <= 2 * torchs_own.max() and error.square().mean() <= 4 * torchs_own.square().mean()
