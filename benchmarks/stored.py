"""Packed stored weights: values of their own, nine of ten dropped, against the dense layer with the same weight."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from examples.training.models import build
from frozen_kernels.nn.layers import TWINS

from .registry import Case
from .sides import SEED, Call, Setup, sample, spread
from .verify import Verdict, judge, judge_draws
from .whole import CLASSES, Training

SPARSITY = 0.9


def plain_layer(case: Case) -> nn.Module:
    """Torch's layer of a case, with normal weights."""
    torch.manual_seed(SEED)
    if case.op != "conv2d":
        layer: nn.Module = nn.Linear(case.shape[1], case.shape[0])
    else:
        stride, padding, dilation, groups = case.geometry
        rows, columns, *taps = case.shape
        layer = nn.Conv2d(columns * groups, rows, taps, stride, padding, dilation, groups)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.normal_()  # type: ignore[operator, union-attr]
    return layer


def packed_layer(case: Case) -> fk.nn.FrozenLayer:
    """The same layer with a tenth of its weights, the largest, as the dtype that the case's residency names."""
    plain = plain_layer(case)
    twin: Any = TWINS[type(plain)]
    layer: fk.nn.FrozenLayer = twin.from_module(plain, fk.FreezeConfig(code="stored", sparsity=SPARSITY))
    layer.finalize(case.residency)
    return layer


def resident(case: Case) -> int:
    """Bytes of all tensors that a packed weight holds."""
    return sum(t.nbytes for t in packed_layer(case).buffers())


@torch.no_grad()
def stored_setup(cases: Sequence[Case]) -> Setup:
    """Calls of one layer for each dtype of values, which is the case's residency, against the dense layer."""
    first = cases[0]
    torch.manual_seed(SEED)
    x = spread(first, first.input)
    layers = {case.name: packed_layer(case) for case in cases}
    rows = sample(first, first.batch)

    def dense_of(name: str) -> Any:
        dense = fk.to_dense(nn.Sequential(layers[name]))[0]  # type: ignore[index]
        return dense.to(memory_format=torch.channels_last) if x.dim() == 4 else dense

    def verdict(name: str) -> Verdict:
        dense, exact = dense_of(name), dense_of(name).double()

        def sides(given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return layers[name](given)[rows], dense(given)[rows], exact(given[rows].double())

        return judge_draws(sides, lambda: spread(first, first.input))

    plain = dense_of(first.name)
    calls: dict[str, Call] = {case.name: partial(layers[case.name], x) for case in cases}
    return Setup({"torch": lambda: plain(x)}, calls, verdict)


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
