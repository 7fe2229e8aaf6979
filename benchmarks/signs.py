"""Stored signs, imported from a ternary layer, against drawn ones of the same weight and residency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.nn.layers import TWINS

from .registry import Case
from .sides import SEED, Call, Setup, sample, spread
from .stored import plain_layer
from .verify import Verdict, judge


def drawn_layer(case: Case) -> fk.nn.FrozenLayer:
    """A layer that keeps half of its drawn signs, in its planes."""
    plain = plain_layer(case)
    twin: Any = TWINS[type(plain)]
    layer: fk.nn.FrozenLayer = twin.from_module(plain, fk.FreezeConfig(prune_ratio=0.0, lock_ratio=0.0))
    layer.finalize()
    layer.set_residency("planes")
    return layer


def imported_layer(case: Case) -> fk.nn.FrozenLayer:
    """The layer of the same weight that `ternary_` makes, with a scale for each row where the residency says so."""
    holder = nn.Sequential(fk.to_dense(drawn_layer(case)))
    if case.residency == "rows":
        weight: Any = holder[0].weight
        weight.mul_(torch.linspace(0.5, 1.5, len(weight)).view(-1, *[1] * (weight.dim() - 1)))
    fk.importers.ternary_(holder)
    layer = holder[0]
    assert isinstance(layer, fk.nn.FrozenLayer) and (layer.row_scale is not None) == (case.residency == "rows")
    return layer


@torch.no_grad()
def signs_setup(cases: Sequence[Case]) -> Setup:
    """Calls of a layer of stored signs, with a scale of the tensor or of each row, against drawn planes."""
    first = cases[0]
    torch.manual_seed(SEED)
    x = spread(first, first.input)
    layers, drawn, rows = (
        {case.name: imported_layer(case) for case in cases},
        drawn_layer(first),
        sample(first, first.batch),
    )

    def verdict(name: str) -> Verdict:
        dense = fk.to_dense(layers[name])
        found, torchs = layers[name](x)[rows], dense(x)[rows]
        return judge(found, torchs, dense.double()(x[rows].double()))

    calls: dict[str, Call] = {name: partial(layer, x) for name, layer in layers.items()}
    return Setup({"drawn planes": lambda: drawn(x)}, calls, verdict)
