"""Gain, bias and ReLU in the dense residency: in torch's own layer, as torch's folding puts them there."""

from __future__ import annotations

import copy

import pytest
import torch
from signs_cases import imported, plain
from test_calls import ordinary
from torch import nn

import frozen_kernels as fk
from frozen_kernels.backends.reference.product import goes_into_weight
from frozen_kernels.nn import TWINS
from frozen_kernels.tensor import resident_bytes
from frozen_kernels.tune.verdict import judge

# by kind: the torch layer, an input whose result is larger than the weight, and one whose result is smaller
LAYERS = {
    "linear": (lambda: nn.Linear(24, 10), (64, 24), (2, 3, 24)),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding=1, groups=2), (4, 8, 30), (1, 8, 5)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 16, 16), (1, 8, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8, bias=False), (2, 8, 9, 9), (1, 8, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(3, 5, 2), (2, 3, 6, 6, 6), (1, 3, 2, 2, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(6, 4, 3, 2), (3, 6, 20), (1, 6, 2)),
    "transposed2d": (lambda: nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), (2, 6, 9, 9), (1, 6, 2, 2)),
}


def folded(kind: str, relu: bool = True, dtype: torch.dtype = torch.float32) -> fk.nn.FrozenLayer:
    """A finalized layer with gain and bias in `dense`, whose weights are rounded in half precision."""
    torch.manual_seed(0)
    plain = LAYERS[kind][0]()
    layer = TWINS[type(plain)].from_module(plain, fk.FreezeConfig(seed=3, code="uniform")).to(dtype)
    layer.finalize()
    layer.gain, layer.relu = torch.randn(layer.outputs) + 1.5, relu
    layer.set_residency("dense")
    return layer.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_error_is_that_of_torchs_folding(kind, relu, dtype):
    """At most twice that of the torch layer with the gain in its weight; a prepared call is the op bit for bit."""
    layer = folded(kind, relu, dtype)
    plain = fk.to_dense(nn.Sequential(layer))
    exact = copy.deepcopy(layer).double()
    exact.set_residency("mask")
    seen = set()
    for size in LAYERS[kind][1:]:
        x = torch.randn(size).to(dtype)
        seen.add(goes_into_weight(x, layer.dense, layer.gain))
        with torch.no_grad():
            y = layer._call(x) if fk.backends.report()["cpu"] == "live" else layer(x)
            with ordinary():
                by_op, right = layer(x), exact(x.double())
            assert y is not None and torch.equal(y, by_op) and y.stride() == by_op.stride() and y.dtype == dtype
            # of few values torch's may be right by luck, to less than a unit of their rounding
            verdict = judge(y, plain(x), right, least=torch.finfo(dtype).eps)
            assert verdict.passed, verdict
    assert seen == ({False} if dtype is torch.float16 else {True, False})


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_the_dense_copy(kind):
    layer = folded(kind)
    plain = fk.to_dense(nn.Sequential(layer))
    for size in LAYERS[kind][1:]:
        x = torch.randn(size)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        layer(ours).square().sum().backward()
        plain(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed2d"])
def test_torch_is_called_once_and_no_pass_follows_but_relu(kind):
    layer, size = folded(kind), LAYERS[kind][1]
    x = torch.randn(size)
    with torch.no_grad(), torch.profiler.profile(record_shapes=True) as profile:
        y = layer(x)
    events = {e.name: e.input_shapes for e in profile.events()}
    assert not {"aten::addcmul", "aten::add", "aten::relu", "aten::clamp_min"} & set(events)
    assert events["aten::relu_"][0] == list(y.shape)
    multiplied = [e.input_shapes for e in profile.events() if e.name == "aten::mul"]
    assert len(multiplied) == 1 and list(y.shape) not in multiplied[0]
    torchs = "aten::linear" if kind == "linear" else "aten::convolution"
    assert [e.name for e in profile.events()].count(torchs) == 1


def gain_in_place(layer):
    layer.gain.mul_(3.0)


def gain_by_data(layer):
    layer.gain.data.mul_(3.0)


def gain_elsewhere(layer):
    layer.gain.data = 3.0 * layer.gain


def gain_assigned(layer):
    layer.gain = layer.gain * 3.0


def gain_of_a_state(layer):
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    layer.load_state_dict({**state, "gain": 3.0 * state["gain"]})


def gain_as_a_wrapper_swaps_it(layer):
    layer._buffers["gain"] = 3.0 * layer.gain


def bias_in_place(layer):
    with torch.no_grad():
        layer.bias.add_(2.0)


def mask_anew(layer):
    layer.set_keep_mask(layer.partition() == 1)


def relu_off(layer):
    layer.relu = False


CHANGES = (
    gain_in_place,
    gain_by_data,
    gain_elsewhere,
    gain_assigned,
    gain_of_a_state,
    gain_as_a_wrapper_swaps_it,
    bias_in_place,
    mask_anew,
    relu_off,
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("residency", ["mask", "dense"])
def test_a_change_holds_from_the_next_call_on(kind, residency, change):
    layer = folded(kind)
    if change is mask_anew:
        layer = TWINS[type(LAYERS[kind][0]())].from_module(LAYERS[kind][0](), fk.FreezeConfig(freeze_ratio=0.5))
        layer.gain, layer.relu = torch.randn(layer.outputs) + 1.5, True
    layer.set_residency(residency)
    x = torch.randn(LAYERS[kind][1])
    with torch.no_grad():
        before = layer(x)
        change(layer)
        y, right = layer(x), fk.to_dense(nn.Sequential(layer))(x)
    torch.testing.assert_close(y, right, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(y, before)


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_both_factors_of_stored_signs_are_seen_in_place(name):
    """Their factor a row joins the gain, in a tensor of its own."""
    torch_layer, size = plain(name, True)
    layer, x = imported(torch_layer), torch.randn(3, *size)
    layer.set_residency("planes")
    layer.gain = torch.ones(layer.outputs)
    with torch.no_grad():
        for factor in (layer.gain, layer.row_scale):
            before = layer(x)
            factor.mul_(2.0)
            y = layer(x)
            with ordinary():
                assert torch.equal(y, layer(x)) and not torch.allclose(y, before)


@pytest.mark.parametrize("residency", ["mask", "dense"])
def test_a_gain_that_asks_for_gradients_is_an_error_from_then_on(residency):
    layer, x = folded("linear"), torch.randn(4, 24)
    layer.set_residency(residency)
    layer(x)
    layer.gain.requires_grad_()
    with pytest.raises(ValueError, match="gain: requires_grad"):
        layer(x)


def test_small_gains_keep_float16():
    """Weights times a small gain would be subnormal."""
    layer, x = folded("conv2d", False, torch.float16), torch.randn(LAYERS["conv2d"][1]).half()
    layer.gain = torch.full((layer.outputs,), 1e-4)
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        y, right = layer(x).double(), exact(x.double())
    assert (y - right).norm() < 1e-3 * right.norm()


@pytest.mark.parametrize("residency", ["mask", "dense"])
def test_a_gain_for_one_call(residency):
    """torch.func swaps tensors where no assignment is seen."""
    layer, x = folded("linear"), torch.randn(4, 24)
    layer.set_residency(residency)
    with torch.no_grad():
        other = torch.func.functional_call(layer, {"gain": 3.0 * layer.gain}, x)
        right = layer(x)
        layer.gain.mul_(3.0)
        assert torch.equal(other, layer(x)) and not torch.equal(other, right)


@pytest.mark.parametrize("residency", ["mask", "dense"])
@pytest.mark.parametrize(
    ("part", "wrong", "named"),
    [
        ("gain", torch.ones(9), r"gain.*\(9,\).*\(10,\)"),
        ("gain", torch.ones(10).double(), "gain.*float64.*float32"),
        ("bias", nn.Parameter(torch.ones(9)), r"bias.*\(9,\).*\(10,\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_read(residency, part, wrong, named):
    layer = folded("linear")
    layer.set_residency(residency)
    setattr(layer, part, wrong)
    with torch.no_grad(), pytest.raises((TypeError, ValueError), match=named):
        layer(torch.randn(4, 24))


def test_layers_in_coats_refuse_a_gain_that_does_not_fit():
    layer = fk.nn.FrozenLinear(40, 12)
    layer.adopt_counts((torch.arange(layer.free) % 3).to(torch.uint8), coats=2)
    layer.finalize()
    for gain in (torch.ones(1), torch.ones(12).double()):
        layer.gain = gain
        with torch.no_grad(), pytest.raises((TypeError, ValueError), match="gain"):
            layer(torch.randn(2, 40))


def test_a_call_keeps_no_second_weight():
    model = nn.Sequential(folded("conv2d"))
    layer, x = model[0], torch.randn(LAYERS["conv2d"][1])
    held = layer._held
    with torch.no_grad():
        model(x)
    expected = resident_bytes(layer.shape, "uniform", layer.free, "dense")
    assert fk.footprint(model).layers[0].resident == expected and layer._held is held
    tensors = [t for t in vars(held.call).values() if isinstance(t, torch.Tensor)] if held.call else []
    assert all(t is layer.dense or t.numel() == layer.outputs for t in tensors)


def test_a_dense_weight_has_the_layout_that_was_asked_for(tmp_path):
    """Through residencies, dtypes, states, copies and tickets: a convolution would turn it at each call."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 3)).to(memory_format=torch.channels_last)
    stored = copy.deepcopy(model)
    fk.freeze_(stored, fk.FreezeConfig(code="stored"))
    assert all(layer.dense.stride(1) == 1 for layer in stored)
    fk.freeze_(model)
    fk.finalize_(model)
    fk.save_ticket(model, tmp_path / "ticket")

    def check(of: nn.Module) -> None:
        fk.set_residency(of, "mask")
        fk.set_residency(of, "dense")
        assert all(layer.dense.stride(1) == 1 for layer in of), [layer.dense.stride() for layer in of]

    check(model)
    model.load_state_dict(copy.deepcopy(model).state_dict())
    assert model[0].dense.stride(1) == 1
    check(copy.deepcopy(model).bfloat16())
    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 3))
    loaded = fk.load_ticket(plain, tmp_path / "ticket")
    fk.set_residency(loaded, "dense")
    assert loaded[0].dense.is_contiguous()
    check(loaded.to(memory_format=torch.channels_last))
