"""The gain and the ReLU in the epilogue of layers: values, gradients, state and contracts, on every backend."""

from __future__ import annotations

import copy
import io
import itertools
import json
import pickle

import pytest
import torch
from helpers import RESIDENCIES, distinct_levels, make_frozen, score_gradient
from test_ops import CASES, SCALES, channels_last, check_op, close, integers, layer_samples, op_name, outputs
from ticket_cases import joined, parts
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import functional
from frozen_kernels.nn import TWINS
from frozen_kernels.ops import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS
from frozen_kernels.ticket import read_ticket

try:
    from frozen_kernels import _C as extension
except ImportError:
    extension = None

LAYER_OPS = ("linear", *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
PARTS = [(False, True), (True, False), (True, True)]  # gain, relu
GAINS = torch.tensor([1.0, -2.0, 0.5, 0.0, -0.25])  # products of these and small integers are exact


def gains(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return GAINS[torch.randint(len(GAINS), (channels,))].to(dtype)


def by_definition(name: str, x, weight, bias, gain, relu: bool, options: dict) -> torch.Tensor:
    """relu(gain * W x + bias) by torch."""
    y = getattr(F, op_name(name))(x, weight, None, **options)
    later = [1] * (0 if name.startswith("linear") else weight.dim() - 2)
    for_channels = [t if t is None else t.to(y.dtype).view(-1, *later) for t in (gain, bias)]
    y = y if gain is None else y * for_channels[0]
    y = y if bias is None else y + for_channels[1]
    return y.relu() if relu else y


def run_both(name, residency, dtype, with_gain, relu, with_bias=True, strides=lambda x: x):
    x_shape, w_shape, options = CASES[name]
    frozen, weight = make_frozen(w_shape, "sign", residency, dtype, scale=SCALES["sign"])
    channels = outputs(name, w_shape, options)
    x = strides(integers(*x_shape, dtype=dtype)).detach().requires_grad_()
    bias = integers(channels, dtype=dtype).requires_grad_() if with_bias else None
    gain = gains(channels, torch.promote_types(dtype, torch.float32)) if with_gain else None
    scores = frozen.scores.requires_grad_()
    y = getattr(functional, op_name(name))(x, frozen, bias, **options, gain=gain, relu=relu)
    x64, weight.requires_grad = x.detach().double().requires_grad_(), True
    bias64 = bias.detach().double().requires_grad_() if with_bias else None
    y64 = by_definition(name, x64, weight, bias64, gain, relu, options)
    grad = integers(*y.shape, dtype=dtype)
    y.backward(grad)
    y64.backward(grad.double())
    expected = score_gradient(frozen, weight.grad, scores)
    found = [(y, y64), (x.grad, x64.grad), (scores.grad, expected)]
    return found + ([(bias.grad, bias64.grad)] if with_bias else [])


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, backend):
    """Each geometry in every residency and with every part; the two meet in all pairs over three geometries."""
    for place, residency in enumerate(RESIDENCIES, list(CASES).index(name)):
        with_gain, relu = PARTS[place % len(PARTS)]
        for actual, expected in run_both(name, residency, torch.float32, with_gain, relu):
            close(actual, expected)


@pytest.mark.parametrize("name", ["linear", "conv2d-groups", "conv_transpose2d-groups"])
def test_without_a_bias_and_of_any_stride(name, backend):
    for residency, part in zip(RESIDENCIES, 2 * [{"with_bias": False}, {"strides": channels_last}], strict=True):
        for actual, expected in run_both(name, residency, torch.float32, True, True, **part):
            close(actual, expected)


@pytest.mark.parametrize("name", ["linear-deep", "conv2d-strided", "conv_transpose1d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("residency", ["seed", "dense"])
def test_half_precision(name, dtype, residency, backend):
    """The gain stays float32; a result is rounded once, and in the dense residency and the reference once more."""
    for actual, expected in run_both(name, residency, dtype, True, True):
        close(actual, expected, sums=True)


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv_transpose3d"])
def test_float64_takes_a_float64_gain(name):
    with fk.backends.use("reference"):
        for actual, expected in run_both(name, "mask", torch.float64, True, True):
            close(actual, expected)


@pytest.mark.skipif(extension is None, reason="the extension is not built")
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_is_exact_and_keeps_what_is_not_finite(threads, request):
    isa, before = extension.isa(), torch.get_num_threads()
    request.addfinalizer(lambda: (extension.set_isa(isa), torch.set_num_threads(before)))
    torch.set_num_threads(threads)
    cases = [
        ((131, 70), (75, 70), {}),
        ((5, 70), (75, 70), {}),
        ((1, 70), (75, 70), {}),
        ((2, 40, 9, 7), (70, 40, 3, 3), {"padding": 1}),
    ]
    cases += [((2, 6, 9, 7), (6, 1, 3, 3), {"groups": 6}), ((1, 33, 5, 6), (33, 40, 3, 3), {"stride": 2})]
    names = ("linear", "linear", "linear", "conv2d", "conv2d", "conv_transpose2d")
    for name, (x_shape, w_shape, options) in zip(names, cases, strict=True):
        channels = outputs(name, w_shape, options)
        x, bias, gain = (
            integers(*x_shape, dtype=torch.float32),
            integers(channels, dtype=torch.float32),
            gains(channels),
        )
        strange = x.clone()
        strange.view(-1)[::97] = torch.tensor([float("inf"), -float("inf"), float("nan")])[
            torch.arange(-(-x.numel() // 97)) % 3
        ]
        levels = distinct_levels(extension.isa_available())
        for level, residency in itertools.product(levels, ("seed", "mask", "planes")):
            extension.set_isa(level)
            frozen, weight = make_frozen(w_shape, "sign", residency)
            frozen = frozen._replace(scores=None)
            call = getattr(functional, name)
            for values in (x, strange):
                y = call(values, frozen, bias, **options, gain=gain, relu=True)
                expected = by_definition(name, values.double(), weight, bias, gain, True, options).float()
                torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", LAYER_OPS)
def test_opcheck(op, backend):
    for args in layer_samples(op, op):
        gain = torch.randn(len(args[1]))
        check_op(op, (*args, gain, True), backend)


@pytest.mark.parametrize(
    ("name", "geometry"), [("linear", {}), ("conv2d", {"stride": 2, "padding": 1}), ("conv_transpose2d", {"groups": 2})]
)
def test_gradcheck_in_float64(name, geometry):
    shapes = {"linear": (3, 5), "conv2d": (2, 2, 3, 3), "conv_transpose2d": (2, 3, 2, 2)}
    inputs = {"linear": (2, 5), "conv2d": (1, 2, 4, 4), "conv_transpose2d": (1, 2, 3, 2)}
    frozen = make_frozen(shapes[name])[0]._replace(scores=None)
    channels = outputs(name, shapes[name], geometry)
    bias = torch.randn(channels, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(channels, dtype=torch.float64)
    x = torch.randn(inputs[name], dtype=torch.float64, requires_grad=True)

    def call(x, b):
        return getattr(functional, name)(x, frozen, b, **geometry, gain=gain, relu=True)

    with fk.backends.use("reference"):
        assert torch.autograd.gradcheck(call, (x, bias))


def test_relu_passes_gradients_as_torch_does(backend):
    """None where the result is 0, and through a NaN."""
    frozen, weight = make_frozen((4, 3), scale=1.0)
    x = torch.tensor([[0.0, 0.0, 0.0], [float("nan"), 1.0, 1.0], [1.0, 2.0, 3.0]])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    functional.linear(ours, frozen._replace(scores=None), relu=True).sum().backward()
    F.linear(theirs, weight.float()).relu().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)


X = torch.ones(2, 5)


@pytest.mark.parametrize(
    ("gain", "named"),
    [
        (torch.ones(4), r"gain.*\(4,\).*\(3,\)"),
        (torch.ones(3).double(), r"gain.*float64.*float32"),
        (torch.ones(3).bfloat16(), r"gain.*bfloat16.*float32"),
        (torch.ones(3, requires_grad=True), r"gain.*requires_grad.*no gradient"),
    ],
)
def test_refusals(gain, named):
    with pytest.raises((ValueError, TypeError), match=named):
        functional.linear(X, make_frozen((3, 5))[0], gain=gain)


LAYERS = {
    "linear": (nn.Linear, (33, 7), {}, (4, 33)),
    "conv1d": (nn.Conv1d, (4, 6, 3), {"groups": 2}, (2, 4, 9)),
    "conv2d": (nn.Conv2d, (3, 5, 3), {"padding": 1, "padding_mode": "circular"}, (2, 3, 8, 7)),
    "conv2d-unbatched": (nn.Conv2d, (3, 5, 3), {"bias": False}, (3, 8, 7)),
    "transposed2d": (nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 4, 5)),
    "transposed3d": (nn.ConvTranspose3d, (2, 3, 2), {"bias": False}, (1, 2, 2, 3, 2)),
}


def folded(kind: str, relu: bool = True, **settings) -> tuple[fk.nn.FrozenLayer, nn.Module, torch.Tensor]:
    """A finalized layer with a gain, the plain layer of the same weight without it, and an input."""
    twin_type, args, options, x_shape = LAYERS[kind]
    layer, plain = TWINS[twin_type](*args, **options, **settings), twin_type(*args, **options)
    layer.finalize()
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
        if plain.bias is not None:
            layer.bias.copy_(plain.bias)
    layer.gain, layer.relu = torch.randn(plain.bias.numel() if plain.bias is not None else args[1]), relu
    return layer, plain, torch.randn(x_shape)


def expected_of(layer, plain, x):
    later = [1] * (len(plain.weight.shape) - 2)
    bias = 0 if plain.bias is None else plain.bias.view(-1, *later)
    y = (plain(x) - bias) * layer.gain.view(-1, *later) + bias
    return y.relu() if layer.relu else y


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("relu", [False, True])
def test_layers_and_their_dense_copies(kind, relu, backend):
    layer, plain, x = folded(kind, relu)
    for residency in RESIDENCIES:
        layer.set_residency(residency)
        torch.testing.assert_close(layer(x), expected_of(layer, plain, x), rtol=1e-4, atol=1e-5)
        dense = fk.to_dense(nn.Sequential(layer.eval()))[0]
        assert type(dense) is (nn.Sequential if relu else type(plain)) and not dense.training
        torch.testing.assert_close(dense(x), layer(x), rtol=1e-4, atol=1e-5)


def test_state_copies_and_pickles():
    layer, _, x = folded("conv2d")
    expected = layer(x)
    assert "gain" in layer.state_dict() and "gain" not in fk.nn.FrozenLinear(3, 2).state_dict()
    assert "relu=True" in repr(layer) and "relu" not in repr(fk.nn.FrozenLinear(3, 2))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected) and twin.gain is not layer.gain
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other, _, _ = folded("conv2d", seed=9)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(other(x), expected)
    unfolded = fk.nn.FrozenConv2d(3, 5, 3, padding=1, padding_mode="circular")
    unfolded.finalize()
    with pytest.raises(RuntimeError, match=r"[Uu]nexpected.*gain"):
        unfolded.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"gain: \[4\] in the state, \[5\]"):
        other.load_state_dict({**layer.state_dict(), "gain": torch.ones(4)})
    with pytest.raises(RuntimeError, match="gain: finite numbers, got 1 of 5 that are not"):
        other.load_state_dict({**layer.state_dict(), "gain": torch.tensor([1.0, torch.nan, 1, 1, 1])})
    other.reset_parameters()
    assert not other.folded


def test_a_gain_keeps_its_precision_through_dtypes():
    layer, _, x = folded("linear")
    gain = layer.gain.clone()
    half = copy.deepcopy(layer).bfloat16()
    assert half.gain.dtype == torch.float32 and torch.equal(half.gain, gain) and half.bias.dtype == torch.bfloat16
    torch.testing.assert_close(half(x.bfloat16()).float(), layer(x), rtol=0.05, atol=0.05)
    assert half.double().gain.dtype == torch.float64 and half(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    meta = copy.deepcopy(layer).to("meta")
    assert meta.gain.device.type == "meta" and meta.bfloat16().gain.dtype == torch.float32


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_compiles_and_exports_whole(residency):
    torch._dynamo.reset()
    layer, _, x = folded("conv2d")
    layer.set_residency(residency)
    model = nn.Sequential(layer, nn.Flatten())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(compiled(a), model(b))
    compiled(a).square().sum().backward()
    model(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), model(x))


def small_net():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 3, 1), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("at", "part", "what"),
    [
        (0, {"relu": True}, "folded ReLU"),
        (1, {"gain": torch.ones(3)}, "gain for 3 outputs beside 5 rows"),
        (0, {"gain": torch.full((5,), 0.1, dtype=torch.float64)}, "gain beyond float32"),
        (0, {"gain": torch.tensor([1.0, torch.inf, 1, 1, 1])}, "gain that is not finite, .*inf"),
        (1, {"gain": torch.ones(4)}, "gain for 4 outputs beside 4 rows, which are its inputs"),
    ],
    ids=["relu", "transposed", "float64", "infinite", "square"],
)
def test_what_no_ticket_holds_is_refused(at, part, what, tmp_path):
    model = small_net()
    if "4 rows" in what:
        model[1] = nn.ConvTranspose2d(4, 4, 1)
    fk.freeze_(model)
    fk.finalize_(model)
    for name, value in part.items():
        setattr(model[at], name, value)
    with pytest.raises(ValueError, match=rf"'{at}'.*{what}.*before folding"):
        fk.save_ticket(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    found = fk.footprint(model)
    assert found.metadata is None and found.totals()["disk"]["total"] is None and "metadata" in str(found)


def test_a_ticket_holds_gains(tmp_path):
    torch.manual_seed(2)
    model, x = small_net(), torch.randn(2, 3, 5, 5)
    fk.freeze_(model)
    fk.save_ticket(model, tmp_path / "without")
    model[0].gain = torch.tensor([1.5, -0.3, 2.8, 0.0, 1e-30])
    fk.save_ticket(model, tmp_path / "with")
    assert json.loads(read_ticket(tmp_path / "with").metadata["frozen_kernels.requires"]) == ["gain"]
    y, frozen_again = model(x), copy.deepcopy(model)
    frozen_again[0].gain = torch.zeros(5)
    with torch.device("meta"):
        meta = small_net()
    for fresh in (small_net(), meta, frozen_again):
        loaded = fk.load_ticket(fresh, tmp_path / "with")
        assert torch.equal(loaded[0].gain, model[0].gain) and loaded[2].gain is None and torch.equal(loaded(x), y)
        fk.save_ticket(loaded, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "with").read_bytes()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(fk.TicketError, match="'0': no gain in the ticket, one in the model"):
        fk.load_ticket(model, tmp_path / "without")
    model[0].gain = None
    with pytest.raises(fk.TicketError, match="'0': a gain in the ticket, none in the model"):
        fk.load_ticket(model, tmp_path / "with")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    metadata, entries, body = parts((tmp_path / "with").read_bytes())
    for change, said in (
        ({"dtype": "I32"}, r"0\.gain'?: torch.int32 \[5\], expected torch.float32 \[5\]"),
        ({"shape": [1, 5]}, r"0\.gain'?: torch.float32 \[1, 5\], expected torch.float32 \[5\]"),
    ):
        wrong = {**entries, "0.gain": {**entries["0.gain"], **change}}
        (tmp_path / "wrong").write_bytes(joined(metadata, wrong, body))
        with pytest.raises(fk.TicketError, match=said):
            fk.load_ticket(small_net(), tmp_path / "wrong")
    start, end = entries["0.gain"]["data_offsets"]
    infinite = body[:start] + torch.full((5,), torch.inf).numpy().tobytes() + body[end:]
    (tmp_path / "wrong").write_bytes(joined(metadata, entries, infinite))
    with pytest.raises(fk.TicketError, match=r"'0'\.gain: finite numbers, got \[inf"):
        fk.load_ticket(small_net(), tmp_path / "wrong")
