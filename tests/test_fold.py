"""`fold_batch_norm_`: the same outputs in fewer steps, and a reason for every batch norm that stays."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk

CONFIG = fk.FreezeConfig(seed=5, code="normal")


class Residual(nn.Module):
    """torchvision's basic block: one ReLU for both places."""

    def __init__(self, channels: int = 8, stride: int = 2, functional: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = F.relu if functional else nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + self.downsample(x))


def chain(layer: nn.Module, norm: nn.Module, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, norm, *more)


# model and input; and how many batch norms and ReLUs fold
MODELS = {
    "residual": (lambda: Residual(), (2, 8, 7, 6), 3, 0),
    "functional relu": (lambda: Residual(functional=True), (2, 8, 7, 6), 3, 0),
    "residual nested": (lambda: nn.Sequential(nn.Sequential(Residual(stride=1)), Residual()), (2, 8, 7, 6), 6, 0),
    "linear": (lambda: chain(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)), (5, 9), 1, 1),
    "conv1d": (lambda: chain(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU()), (2, 4, 9), 1, 1),
    "conv2d": (lambda: chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), (2, 4, 9, 8), 1, 1),
    "conv3d": (lambda: chain(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 2, 4, 3, 5), 1, 0),
    "grouped": (lambda: chain(nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), nn.ReLU()), (2, 6, 5, 5), 1, 1),
    "depthwise": (lambda: chain(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)), (2, 6, 5, 5), 1, 0),
    "transposed": (lambda: chain(nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.BatchNorm2d(4)), (2, 6, 5, 4), 1, 0),
    "transposed1d": (lambda: chain(nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), (2, 3, 5), 1, 1),
    "circular": (
        lambda: chain(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)),
        (2, 3, 5, 5),
        1,
        0,
    ),
    "no affine": (lambda: chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), (2, 4, 9, 8), 1, 0),
    "eps": (lambda: chain(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5)), (2, 4, 9, 8), 1, 0),
    "identity between": (
        lambda: chain(nn.Linear(9, 8), nn.Identity(), nn.BatchNorm1d(8), nn.Identity(), nn.ReLU()),
        (5, 9),
        1,
        1,
    ),
}


def statistics(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Batch norms as after a training: no statistic or parameter is what it starts as."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, low, high in (
                ("running_mean", -1, 1),
                ("running_var", 0.25, 4),
                ("weight", -2, 2),
                ("bias", -1, 1),
            ):
                tensor = getattr(module, name)
                if tensor is not None:
                    tensor.data = (torch.rand_like(tensor) * (high - low) + low) * scale
    return model


def frozen(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    statistics(model)
    fk.freeze_(model, CONFIG)
    fk.finalize_(model)
    return model.to(dtype).eval()


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("residency", ["seed", "planes", "dense"])
def test_outputs_stay(name, dtype, tolerance, residency):
    make, x_shape, folds, relus = MODELS[name]
    model = frozen(make(), dtype)
    fk.set_residency(model, residency)
    x = torch.randn(x_shape, dtype=dtype)
    expected = model(x).detach()
    before = len([m for m in model.modules() if type(m) is nn.ReLU])
    report = fk.fold_batch_norm_(model)
    assert not norms(model) and len(report.folded) == folds and not report.skipped and report.not_traced is None
    assert sum(f.relu is not None for f in report.folded) == relus
    assert len([m for m in model.modules() if type(m) is nn.ReLU]) == before - relus
    assert not any(m.training for m in model.modules())
    # a few units of the last place of the largest output
    torch.testing.assert_close(model(x), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    torch.testing.assert_close(fk.to_dense(model)(x), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_a_fold_is_as_near_to_the_truth_as_the_model_was():
    """Against float64: statistics of very different sizes, many channels."""
    model = frozen(nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU()))
    model[1].running_var *= 10 ** torch.linspace(-6, 6, 64)
    x = torch.randn(2, 32, 9, 9)
    exact = fk.to_dense(model).double()(x.double())
    plain = (model(x) - exact).abs().amax((0, 2, 3))
    fk.fold_batch_norm_(model)
    assert bool(((model(x) - exact).abs().amax((0, 2, 3)) <= 2 * plain + 1e-6).all())


def test_what_a_layer_holds_afterwards():
    model = frozen(MODELS["conv2d"][0]())
    norm, bias = model[1], model[0].bias.detach().clone()
    report = fk.fold_batch_norm_(model)
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    assert torch.equal(model[0].gain, factor.float()) and model[0].relu
    expected = (bias.double() - norm.running_mean.double()) * factor + norm.bias.double()
    assert torch.equal(model[0].bias, expected.float()) and model[0].bias.requires_grad
    assert [type(m) for m in model[1:]] == [nn.Identity, nn.Identity]
    assert str(report) == "1 batch norms folded\n  1 into 0, with 2"
    assert "gain" in model.state_dict() or "0.gain" in model.state_dict()
    again = fk.fold_batch_norm_(model)
    assert not again.folded and not again.skipped


def test_a_second_batch_norm_folds_in_a_second_call():
    model = frozen(nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.ReLU()))
    x = torch.randn(5, 9)
    expected = model(x)
    first = fk.fold_batch_norm_(model)
    assert [f.norm for f in first.folded] == ["1"] and first.skipped == [("2", "does not follow a frozen layer alone")]
    assert [f.relu for f in fk.fold_batch_norm_(model).folded] == ["3"]
    torch.testing.assert_close(model(x), expected)


def test_half_precision_keeps_a_float32_gain():
    model = frozen(MODELS["conv2d"][0](), torch.bfloat16)
    x = torch.randn(2, 4, 9, 8, dtype=torch.bfloat16)
    expected = model(x)
    fk.fold_batch_norm_(model)
    assert model[0].gain.dtype == torch.float32 and model[0].bias.dtype == torch.bfloat16
    torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.05)


def test_a_state_and_a_ticket_load_into_a_model_folded_alike(tmp_path):
    model, other = frozen(MODELS["residual"][0]()), frozen(MODELS["residual"][0]())
    x = torch.randn(2, 8, 7, 6)
    expected = model(x)
    for m in (model, other):
        fk.fold_batch_norm_(m)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(other(x), expected)
    fk.save_ticket(model, tmp_path / "folded")  # no ReLU was folded
    again = frozen(MODELS["residual"][0]())
    for plain in (frozen(MODELS["residual"][0]()), MODELS["residual"][0]()):
        with pytest.raises(fk.TicketError, match=r"gain in the ticket|not in the ticket"):
            fk.load_ticket(plain, tmp_path / "folded")
    fk.fold_batch_norm_(again)
    assert torch.equal(fk.load_ticket(again, tmp_path / "folded")(x), model(x))


class Shared(nn.Module):
    """One ReLU called behind two batch norms that both fold, and a batch norm called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.na, self.nb = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.relu = nn.ReLU()
        self.c, self.d, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.e, self.ne = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.f, self.nf = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.g, self.ng = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.unused = nn.BatchNorm1d(6)

    def forward(self, x, scale: float = 1.0, flag: bool = False):
        x = self.relu(self.na(self.a(x)))
        x = self.relu(self.nb(self.b(x)))
        x = self.twice(self.c(x)) + self.twice(self.d(x))
        x = self.ne(self.e(self.e(x)))
        kept = self.f(x)
        x = kept + self.nf(kept)
        x = self.ng(self.g(x)) + self.g.bias
        return x if flag else x * scale


def test_what_is_called_or_read_elsewhere_stays():
    model = frozen(Shared())
    x = torch.randn(4, 6)
    expected = model(x)
    report = fk.fold_batch_norm_(model)
    torch.testing.assert_close(model(x), expected)
    assert [(f.layer, f.norm, f.relu) for f in report.folded] == [("a", "na", "relu"), ("b", "nb", "relu")]
    why = dict(report.skipped)
    assert why["twice"] == "called 2 times" and why["unused"] == "called 0 times"
    assert why["ne"] == "follows 'e', which is called 2 times"
    assert why["nf"] == "does not follow a frozen layer alone"
    assert "'g' are read" in why["ng"] and "ng: its parameters" in str(report)
    assert type(model.relu) is nn.Identity and report.not_traced is None


def test_hooks_see_what_they_saw():
    for hooked in ("0", "0.0", "0.1", "1", "1.0"):
        body = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), nn.Sequential(nn.ReLU()))
        body = frozen(nn.Sequential(*body))
        seen = []
        handle = body.get_submodule(hooked).register_forward_hook(lambda m, args, y, seen=seen: seen.append(y.clone()))
        x = torch.randn(3, 6)
        body(x)
        report = fk.fold_batch_norm_(body)
        body(x)
        torch.testing.assert_close(*seen)  # twice, and not while the model was traced
        handle.remove()
        assert len(report.folded) == (0 if hooked in ("0.0", "0.1") else 1) and report.not_traced is None
        assert all(f.relu is None for f in report.folded)
        if not report.folded:
            assert f"a hook on {hooked!r}" in report.skipped[0][1]


def test_a_hook_around_an_identity_sees_what_it_saw():
    model = frozen(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Identity()), nn.BatchNorm1d(6)))
    assert len(fk.fold_batch_norm_(copy.deepcopy(model)).folded) == 1
    model[1].register_forward_hook(lambda m, args, y: y + 1)
    assert not fk.fold_batch_norm_(model).folded


@pytest.mark.parametrize(
    ("layer", "norm", "why"),
    [
        (nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False), "no running statistics"),
        (nn.Conv2d(6, 6, 1), nn.SyncBatchNorm(6), "SyncBatchNorm after FrozenConv2d"),
        (nn.Linear(6, 6), nn.BatchNorm2d(6), "BatchNorm2d after FrozenLinear"),
        (nn.Conv2d(6, 6, 1), nn.BatchNorm2d(5), "5 features after 6 channels"),
        (nn.ReLU(), nn.BatchNorm2d(6), "does not follow a frozen layer"),
    ],
    ids=str,
)
def test_reasons(layer, norm, why):
    model = frozen(nn.Sequential(nn.Linear(1, 1), nn.Tanh(), layer, norm))
    report = fk.fold_batch_norm_(model)
    assert not report.folded and [name for name, _ in report.skipped] == ["3"] and why in report.skipped[0][1]


def test_plain_layers_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    fk.freeze_(model, CONFIG, filter_fn=lambda module, name: name == "2")
    fk.finalize_(model)
    report = fk.fold_batch_norm_(model.eval())
    assert [f.norm for f in report.folded] == ["3"] and [name for name, _ in report.skipped] == ["1"]


class Dynamic(nn.Module):
    """No trace: a branch on values."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        shared = nn.BatchNorm2d(4)
        self.more = nn.Sequential(nn.Conv2d(4, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)

    def forward(self, x):
        x = self.body(x)
        if x.sum() > 0:
            x = self.norm(self.conv(x))
        return self.more(x)


def test_a_model_that_cannot_be_traced_is_folded_inside_sequentials():
    model = frozen(Dynamic())
    x = torch.randn(2, 3, 7, 7)
    expected = model(x)
    report = fk.fold_batch_norm_(model)
    torch.testing.assert_close(model(x), expected)
    assert [(f.layer, f.norm, f.relu) for f in report.folded] == [("body.0", "body.1", "body.2")]
    assert dict(report.skipped) == {"norm": "does not follow a frozen layer alone", "more.1": "called 2 times"}
    assert report.not_traced.startswith("TraceError") and "not traced" in str(report)


class Stateful(nn.Module):
    """A forward that keeps what it saw, and counts."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.register_buffer("count", torch.zeros(()))
        self.last = None

    def forward(self, x):
        self.count.add_(1)
        self.last = self.body(x)
        return self.last


def test_tracing_leaves_no_trace():
    model = frozen(Stateful())
    report = fk.fold_batch_norm_(model)
    assert len(report.folded) == 1 and model.last is None and float(model.count) == 0
    assert model(torch.ones(2, 4)) is model.last


def test_refusals_change_nothing():
    model = frozen(Residual())
    model.bn2.train()
    with pytest.raises(ValueError, match=r"'bn2' is in training mode.*eval"):
        fk.fold_batch_norm_(model)
    model.bn2.eval()
    model.training = True
    with pytest.raises(ValueError, match="training mode"):
        fk.fold_batch_norm_(model)
    with pytest.raises(ValueError, match="no frozen layers"):
        fk.fold_batch_norm_(Residual().eval())
    searched = Residual()
    fk.freeze_(searched, CONFIG)
    searched.conv1.finalize()
    with pytest.raises(ValueError, match=r"'conv2' still has scores; finalize_"):
        fk.fold_batch_norm_(searched.eval())
    for m in (model, searched):
        assert len(norms(m)) == 3 and not any(f.folded for f in m.modules() if isinstance(f, fk.nn.FrozenLayer))


def test_a_folded_model_compiles_whole():
    torch._dynamo.reset()
    model = frozen(Residual())
    x = torch.randn(2, 8, 7, 6)
    expected = model(x)
    fk.fold_batch_norm_(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
