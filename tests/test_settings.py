"""Settings as numpy gives them, and as literals say them."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels import config, tensor
from frozen_kernels import format as fmt

SETTINGS = {
    "seed": np.uint64(2**64 - 1),
    "sparsity": np.float32(0.5),
    "prune_ratio": np.float64(0.25),
    "lock_ratio": np.float16(0.25),
    "threshold_bits": np.int8(8),
    "code": np.str_("uniform"),
}


def test_numpys_numbers_become_pythons():
    found = fk.FreezeConfig(**SETTINGS)
    plain = fk.FreezeConfig(2**64 - 1, "uniform", 0.5, 0.25, 0.25, threshold_bits=8)
    assert found == plain and repr(found) == repr(plain)
    kinds = {type(getattr(found, f.name)) for f in fields(found) if f.name not in ("rates", "pattern")}
    assert kinds == {int, float, str} and json.dumps(vars(found)) == json.dumps(vars(plain))
    layers = [fk.nn.FrozenLinear(4, 3, stream=kind(1), generation=kind(2), config=found) for kind in (int, np.int64)]
    assert torch.equal(layers[0].header, layers[1].header) and layers[0].extra_repr() == layers[1].extra_repr()
    model = nn.Sequential(fk.nn.FrozenLinear(4, 3))
    search = fk.EdgePopup(model, refresh_every=np.int32(2))
    search.load_state_dict({"steps": np.int64(3)})
    assert json.dumps(search.state_dict()) == '{"steps": 3}' and type(search.refresh_every) is int


@pytest.mark.parametrize(
    "given",
    [{"seed": np.float32(3)}, {"seed": np.int64(-1)}, {"seed": np.bool_(True)}, {"sparsity": np.bool_(True)},
     {"sparsity": np.float32("nan")}, {"threshold_bits": np.int64(17)}, {"scope": np.int64(0)}, {"code": ["sign"]}],
)  # fmt: skip
def test_what_is_no_such_number_is_refused(given):
    (name,) = given
    with pytest.raises(ValueError, match=name):
        fk.FreezeConfig(**given)


def test_integers_stay_integers():
    found = fk.FreezeConfig(sparsity=1, prune_ratio=np.int64(1), lock_ratio=0)
    assert repr(found.sparsity) == "1" and repr(found.ratios) == "(1, 0)"


def test_choices_are_the_literals():
    named = ("code", "distribution", "ratio_rule", "scope", "scaling", "score_init", "score_dtype")
    literals = (
        fmt.Code, config.Distribution, config.RatioRule, config.Scope, config.Scaling, config.ScoreInit,
        config.ScoreDtype,
    )  # fmt: skip
    for name, literal in zip(named, literals, strict=True):
        with pytest.raises(ValueError, match=f"{name}: one of {', '.join(get_args(literal))}, got 'no'"):
            fk.FreezeConfig(**{name: "no"})
    with pytest.raises(ValueError, match=f"rates: one of {', '.join(get_args(config.Rates))}, got 'no'"):
        fk.FreezeConfig(code="stored", rates="no")
    assert set(get_args(tensor.Residency)) == {*tensor.RESIDENCIES, *tensor.STORED_RESIDENCIES}
