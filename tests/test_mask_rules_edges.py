"""Rules of `fk.search` at their edges: gains, locked weights, first masks, refusals beside a search that runs, NaN."""

from __future__ import annotations

import pytest
import torch
from test_mask_rules import dense
from test_mask_rules import loss as loss_of
from torch import nn

import frozen_kernels as fk

# blocks


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


def test_attention_of_blocks_is_folded():
    model = nn.Sequential(Attends(), Attends())
    assert fk.search.fold_blocks_(list(model)) == ["attention.in_proj", "attention.out_proj"]
    assert model[0].attention.in_proj_weight is model[1].attention.in_proj_weight
    assert model[0].attention.in_proj_bias is not model[1].attention.in_proj_bias
    fk.freeze_(model, fk.FreezeConfig.preset("hidden_fold"))
    fk.EdgePopup(model).step()
    first, second = (block.attention for block in model)
    assert first.in_proj.scores is second.in_proj.scores and first.out_proj.stream == second.out_proj.stream
    assert model(torch.ones(1, 3, 16)).isfinite().all()


def test_transposed_layers_of_blocks_are_folded():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    blocks = [nn.Sequential(conv1d(12, 16)) for _ in range(2)]
    assert fk.search.fold_blocks_(blocks) == ["0"]
    assert blocks[0][0].weight is blocks[1][0].weight


def test_what_freeze_leaves_and_what_differs_is_not_folded():
    def block(dtype: torch.dtype = torch.float32) -> nn.Module:
        named = {
            "embedding": nn.Embedding(9, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "wide": nn.Linear(4, 4, dtype=dtype),
            "linear": nn.Linear(4, 4),
        }
        return nn.ModuleDict(named)

    blocks = [block(), block(torch.float64)]
    assert fk.search.fold_blocks_(blocks) == ["linear"]
    for name in ("embedding", "wide", "normed"):
        assert blocks[0][name].weight is not blocks[1][name].weight
    assert blocks[1]["wide"].weight.dtype == torch.float64
    with pytest.raises(ValueError, match=r"block 1 has no layer like one of block 0, which has \{'0': "):
        fk.search.fold_blocks_([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4, device="meta"))])


# criteria


def unused() -> nn.Module:
    model = dense()
    model.add_module("unused", nn.Linear(64, 5))
    return model


def without_unused(model: nn.Module) -> torch.Tensor:
    return loss_of(model[:6])


def test_a_layer_that_the_loss_does_not_use_has_the_criterion_0():
    class Chain(nn.Sequential):
        def forward(self, x):
            for layer in list(self)[:6]:
                x = layer(x)
            return x

    used = {criterion: criterion(dense(), loss_of, 0.3) for criterion in (fk.search.snip, fk.search.grasp)}
    for criterion, expected in used.items():
        found = criterion(unused(), without_unused, 0.3)
        assert set(found) == {*expected, "unused"} and found["0"] > 0
    assert fk.search.snip(unused(), without_unused, 0.3)["unused"] == 0
    model = Chain(*unused())
    ratios = fk.search.synflow(model, (1, 6, 6), 0.3, rounds=3)
    assert ratios["6"] == 0 and min(ratios[name] for name in "035") > 0


def test_grasp_of_attention_and_of_a_linear_loss():
    torch.manual_seed(0)
    model, x = nn.Sequential(Attends(), nn.Linear(16, 4)), torch.randn(2, 3, 16)
    ratios = fk.search.grasp(model, lambda m: m(x).square().mean(), 0.5)
    assert set(ratios) == {"0.attention.in_proj", "0.attention.out_proj", "1"}
    with pytest.raises(ValueError, match="criterion: 0 for all 64 weights"):
        fk.search.grasp(model[1:], lambda m: m(x).sum(), 0.5)
    with pytest.raises(ValueError, match="criterion: 0 for all 64 weights"):
        fk.search.snip(model[1:], lambda m: x.sum(), 0.5)


def test_rounds_of_synflow_are_an_integer():
    for rounds in (2.5, "3", True):
        with pytest.raises(ValueError, match="rounds: an integer >= 1, got"):
            fk.search.synflow(dense(), (1, 6, 6), 0.5, rounds=rounds)
