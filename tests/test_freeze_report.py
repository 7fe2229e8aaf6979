"""What `freeze_` tells of a model: what it passed over, what share is frozen, whether its weights were trained; and
that it walks a layer's partition no more often than it must."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import init
from torch.utils._python_dispatch import TorchDispatchMode

import frozen_kernels as fk
from frozen_kernels.convert.trained import signs_of_training


class Conv1D(nn.Module):
    """As in transformers' GPT-2: a linear layer with its weight transposed, no torch layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(8, 24)), nn.Parameter(torch.zeros(24))


class Lora(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.gate, self.down = Conv1D(), nn.Linear(8, 2, bias=False)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 8))
        self.c_attn, self.lora = Conv1D(), Lora()
        self.lstm, self.cell = nn.LSTM(8, 8), nn.GRUCell(8, 8)
        self.attention, self.bag = nn.MultiheadAttention(8, 2), nn.EmbeddingBag(10, 4)
        self.bilinear, self.lazy = nn.Bilinear(2, 3, 4), nn.LazyConv1d(3, 3)
        self.half = nn.Linear(4, 4).to(torch.float8_e4m3fn)
        self.norm, self.slope = nn.LayerNorm(8), nn.PReLU()
        self.head = nn.Linear(8, 100)


def test_every_module_with_parameters_is_named():
    model = Everything()
    frozen = {"lora.down", "head", "attention.in_proj", "attention.out_proj"}
    with_parameters = {name for name, m in model.named_modules() if list(m.parameters(recurse=False))}
    report = fk.freeze_(model)
    assert {c.name for c in report.converted} == frozen
    assert set(dict(report.skipped)) | set(dict(report.vectors)) == with_parameters - frozen  # attention: its bias
    why = dict(report.skipped)
    assert why[""] == "Everything has no frozen twin; position [1, 4, 8] stays"
    assert why["c_attn"] == why["lora.gate"] == "Conv1D has no frozen twin; weight [8, 24] stays"
    assert why["lora"] == "subclass Lora of a torch layer"
    assert why["lstm"] == "LSTM has no frozen twin; weight_ih_l0 [32, 8], weight_hh_l0 [32, 8] stay"
    assert why["half"] == "weight of torch.float8_e4m3fn" and "lazy" in why["lazy"]
    assert report.vectors == [("attention", "MultiheadAttention"), ("norm", "LayerNorm"), ("slope", "PReLU")]
    said = str(report)
    assert all(name in said for name in with_parameters) and "1 LayerNorm (norm); 1 PReLU (slope)" in said


def test_the_report_leads_with_the_share_of_bytes():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.LSTM(5, 5, bias=False), nn.BatchNorm1d(4))
    model.append(model[0])  # counted once
    lstm, norm = 4 * 2 * 4 * 25, 4 * 4 * 4 + 8
    report = fk.freeze_(model)
    assert (report.frozen_bytes, report.model_bytes) == (400, 400 + lstm + norm)
    assert report.share == pytest.approx(400 / (400 + lstm + norm))
    assert str(report).splitlines()[0] == f"31.4% of the model's bytes are frozen: 400 of {400 + lstm + norm:,}"
    # frozen before counts too, as the dense weight it was
    model.append(nn.Linear(10, 10, bias=False).bfloat16())
    again = fk.freeze_(model)
    assert again.frozen_bytes == 600 and again.model_bytes == 600 + lstm + norm


def test_a_layer_is_walked_once_for_each_thing_that_is_made():
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "frozen_kernels":
                seen[func._schema.name.partition("::")[2]] += 1
            return func(*args, **(kwargs or {}))

    for scope, selections in (("global", 1), ("local", 3)):
        model = nn.Sequential(nn.Linear(40, 40), nn.Conv2d(8, 8, 3), nn.Linear(40, 40))
        seen: Counter[str] = Counter()
        with Calls():
            fk.freeze_(model, fk.FreezeConfig(scope=scope))
        walks = dict.fromkeys(("histogram", "offsets", "free_draws", "pack_above", "keep_plane"), 3)
        # a report's counts of kept weights would be popcounts
        assert seen - Counter(popcount=3) == Counter(**walks, select=selections)


FRESH = {
    "default": lambda w: None,
    "kaiming": lambda w: init.kaiming_normal_(w),
    "xavier": lambda w: init.xavier_uniform_(w),
    "truncated": lambda w: init.trunc_normal_(w, std=0.02),
    "normal": lambda w: init.normal_(w, std=0.02),
    "orthogonal": lambda w: init.orthogonal_(w),
    "sparse": lambda w: init.sparse_(w.view(w.shape[0], -1), 0.9),
    "constant": lambda w: init.constant_(w, 0.1),
    "signs": lambda w: w.sign_().mul_(0.05),
}


@pytest.mark.parametrize("name", FRESH)
def test_fresh_models_do_not_look_trained(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 64, 3), nn.GroupNorm(8, 64), nn.Flatten(),
        nn.Linear(256, 128), nn.LayerNorm(128), nn.Linear(128, 10),
    )  # fmt: skip
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                FRESH[name](layer.weight)
            if isinstance(layer, nn.BatchNorm2d):
                init.normal_(layer.weight, 1.0, 0.02)  # as GANs have it
        model(torch.randn(4, 3, 6, 6))  # a look at shapes
    model.load_state_dict(model.state_dict())
    report = fk.freeze_(model)
    assert report.trained == [] and "trained" not in str(report)


def fit(model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = torch.randn(64, 32) * torch.linspace(0, 2, 32)  # as in real data, some inputs vary and say more than others
    y = x[:, -2:].sign().add(1).mul(torch.tensor([0.5, 1.0])).sum(1).long()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def test_trained_models_look_trained():
    torch.manual_seed(0)
    plain = fit(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)), 100)
    report = fk.freeze_(plain)
    assert any("written in place" in sign for sign in report.trained)
    assert "its weights look trained; freeze_ replaced them" in str(report).splitlines()[1]
    assert all(sign in str(report) for sign in report.trained)


@pytest.mark.parametrize(
    ("layers", "sign"),
    [
        (lambda: [], "0: rows or columns of its weight differ more than drawn ones"),
        (lambda: [nn.BatchNorm1d(64)], "1: running statistics of 100"),
        (lambda: [nn.LayerNorm(64)], "1: the parameters of a norm vary"),
    ],
)
def test_what_a_checkpoint_brings_looks_trained(layers, sign):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(32, 64), *layers(), nn.ReLU(), nn.Linear(64, 4))

    torch.manual_seed(0)
    trained, loaded = fit(make(), 100), make()
    loaded.load_state_dict(trained.state_dict())
    chosen = {n: m for n, m in loaded.named_modules() if isinstance(m, nn.Linear)}
    found = signs_of_training(loaded, chosen)
    assert any(sign in f for f in found) and not any("written" in f for f in found)


def test_statistics_without_a_count_come_from_a_checkpoint():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].running_mean.fill_(0.5)
    assert fk.freeze_(model).trained == ["1: running statistics"]
    # the norms of a model that has frozen layers tell of the search, not of layers added since
    model.append(nn.Linear(4, 4))
    assert fk.freeze_(model).trained == []


def test_stale_masks_are_named_by_finalize(monkeypatch, recwarn):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fk.freeze_(model)
    monkeypatch.setattr(fk.nn.FrozenLayer, "masks_are_stale", False, raising=False)
    fk.finalize_(model)
    assert not recwarn
    monkeypatch.setattr(fk.nn.FrozenLayer, "masks_are_stale", True, raising=False)
    with pytest.warns(UserWarning, match=r"scores of 0, 1 changed .* search\.step\(\)") as found:
        fk.finalize_(model)
    assert found[0].filename == __file__
