"""Packed stored weights: values of their own, nine of ten dropped, against the dense layer with the same weight."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from examples.training.models import build

from .registry import Case
from .sides import SEED, Call, Setup, apply, sample, spread
from .verify import Verdict, judge
from .whole import CLASSES, Training

SPARSITY = 0.9


@lru_cache(maxsize=4)
def packed(shape: tuple[int, ...], values: str) -> fk.FrozenTensor:
    """A weight of normal values whose mask is by chance."""
    chance = torch.Generator().manual_seed(SEED)
    weight = torch.randn(shape, generator=chance)
    return fk.FrozenTensor.stored(weight, torch.rand(shape, generator=chance) >= SPARSITY, values=values)


def resident(frozen: fk.FrozenTensor) -> int:
    """Bytes of all tensors that a packed weight holds."""
    return sum(t.nbytes for t in frozen if isinstance(t, Tensor))


def stored_setup(cases: Sequence[Case]) -> Setup:
    """Forward of one layer for each dtype of values, which is the case's residency, against the dense layer."""
    torch.manual_seed(SEED)
    first = cases[0]
    x, bias = spread(first, first.input), torch.linspace(-1, 1, first.shape[0])
    by_name = {case.name: case for case in cases}
    weights = {case.name: packed(case.shape, case.residency) for case in cases}

    def dense_of(name: str) -> Tensor:
        dense = weights[name].weight()
        return dense.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else dense

    def ours(name: str) -> Tensor:
        if x.dim() == 2:
            return fk.functional.linear(x, weights[name], bias)
        return fk.functional.conv2d(x, weights[name], bias, *first.geometry)

    plain, rows = dense_of(first.name), sample(first, first.batch)

    def verdict(name: str) -> Verdict:
        case, dense = by_name[name], dense_of(name)
        exact = apply(case, x[rows].double(), dense.double(), bias.double())
        return judge(ours(name)[rows], apply(case, x, dense, bias)[rows], exact)

    calls: dict[str, Call] = {case.name: partial(ours, case.name) for case in cases}
    return Setup({"torch": lambda: apply(first, x, plain, bias)}, calls, verdict)


def jackpot_setup(cases: Sequence[Case]) -> Setup:
    """A step of a search that never ends, against a step of the same optimizer on the dense net, both in train mode."""
    (case,) = cases
    torch.manual_seed(SEED)
    plain = build(case.op, CLASSES)
    model = copy.deepcopy(plain)
    fk.freeze_(model, fk.FreezeConfig.preset("jackpot", sparsity=SPARSITY, rates="l1"))
    search = fk.Jackpot(model, epochs=1 << 20, steps_per_epoch=1)
    x, y = torch.randn(case.input), torch.randint(CLASSES, (case.batch,))
    masked = fk.to_dense(model)
    exact = copy.deepcopy(masked).double()

    def outputs(net: nn.Module, given: Tensor) -> Tensor:
        return copy.deepcopy(net)(given)  # running statistics stay as they are

    def verdict(name: str) -> Verdict:
        return judge(outputs(model, x), outputs(masked, x), outputs(exact, x.double()))

    ours = Training(model, x, y, search.parameters(), search.step)
    theirs = Training(plain, x, y, list(plain.parameters()), lambda: None)
    return Setup({"torch": theirs.run_step}, {case.name: ours.run_step}, verdict)
