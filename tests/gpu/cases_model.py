"""A mixed model frozen on the CPU, then moved: the same weights, results and gradients as exact as torch's own."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from common import DEVICE, same_bits
from helpers import score_gradient
from torch import Tensor, nn

import frozen_kernels as fk

TOKENS, WIDTH, SIDE = 41, 5, 3


class Mixed(nn.Module):
    """One layer of each kind, in odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.conv = nn.Conv2d(WIDTH, 34, 3, padding=1)
        self.depthwise = nn.Conv2d(34, 34, 3, padding=1, groups=34)
        self.up = nn.ConvTranspose2d(34, 7, 3, stride=2, padding=1)
        self.head = nn.Linear(7 * 25, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        x = self.depthwise(self.conv(x).relu())
        return self.head(self.up(x).tanh().flatten(1))


@functools.cache
def frozen_as(code: str) -> Mixed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mixed()
    config = fk.FreezeConfig(seed=5, sparsity=0.5, freeze_ratio=0.5, code=code)
    report = fk.freeze_(model, config, lambda *_: True)
    assert len(report.converted) == 5, report
    return model


def layers_of(model: nn.Module) -> dict[str, fk.nn.FrozenLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, fk.nn.FrozenLayer)}


def moved(model: Mixed, residency: str) -> Mixed:
    model = copy.deepcopy(model)
    for layer in layers_of(model).values():
        layer.set_residency(residency)
    return model.to(DEVICE)


@pytest.mark.parametrize(("code", "residency"), [("sign", "seed"), ("uniform", "mask"), ("uniform", "planes")])
def test_moving_a_model_keeps_its_weights(code, residency):
    frozen = frozen_as(code)
    there = layers_of(moved(frozen, residency))
    for name, layer in layers_of(frozen).items():
        with torch.no_grad():
            with fk.backends.use("reference"):
                want = layer.frozen.weight(torch.float32)
            with fk.backends.use("triton"):
                found = there[name].frozen.weight(torch.float32)
        assert same_bits(found, want), name


def gradients(model: nn.Module, tokens: Tensor, weight_of_loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradient of each weight of a dense model."""
    y = model(tokens)
    (y * weight_of_loss.to(y.dtype)).sum().backward()
    return y.detach(), {name: m.weight.grad for name, m in model.named_children()}


def worst(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().cpu().double() - exact.detach()).abs().max())


@pytest.mark.parametrize(("code", "residency"), [("uniform", "seed"), ("sign", "planes")])
def test_a_moved_model_computes_as_torch_does(code, residency):
    frozen = frozen_as(code)
    tokens = torch.randint(TOKENS, (2, SIDE * SIDE))
    weight_of_loss = torch.linspace(-1, 1, 22).reshape(2, 11)
    plain = fk.to_dense(frozen).requires_grad_()
    exact_y, exact = gradients(copy.deepcopy(plain).double(), tokens, weight_of_loss)
    torch_y, torchs = gradients(plain, tokens, weight_of_loss)

    model = moved(frozen, residency)
    with fk.backends.use("triton"):
        y = model(tokens.to(DEVICE))
        (y * weight_of_loss.to(DEVICE)).sum().backward()
    assert worst(y, exact_y) <= 2 * worst(torch_y, exact_y)
    for name, layer in layers_of(model).items():
        assert layer.scores is not None and layer.scores.grad is not None, name
        record = layers_of(frozen)[name].frozen
        want, theirs = (score_gradient(record, g[name], record.scores) for g in (exact, torchs))
        assert worst(layer.scores.grad, want) <= 2 * worst(theirs, want), name
