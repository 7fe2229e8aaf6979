"""Frozen layers beside their torch twins: outputs, gradients, state, and what torch does to modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import RESIDENCIES, score_gradient
from torch import nn

import frozen_kernels as fk
from frozen_kernels.format import memory_format_of
from frozen_kernels.nn import TWINS
from frozen_kernels.tensor import all_kept

# kind: positional and keyword arguments of the torch layer, and the input's shape
LAYERS = {
    "linear": (nn.Linear, (33, 7), {}, (4, 33)),
    "linear-unbatched": (nn.Linear, (5, 3), {"bias": False}, (5,)),
    "conv1d": (nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 9)),
    "conv1d-circular": (nn.Conv1d, (4, 6, 3), {"padding": 2, "padding_mode": "circular"}, (2, 4, 9)),
    "conv2d": (nn.Conv2d, (3, 5, 3), {"padding": 1, "dilation": 2}, (2, 3, 8, 7)),
    "conv2d-unbatched": (nn.Conv2d, (3, 5, (3, 2)), {"stride": (2, 1), "bias": False}, (3, 8, 7)),
    "conv2d-same": (nn.Conv2d, (3, 5, (4, 3)), {"padding": "same", "dilation": (1, 2)}, (2, 3, 8, 7)),
    "conv2d-valid": (nn.Conv2d, (3, 5, 3), {"padding": "valid"}, (2, 3, 8, 7)),
    "conv2d-reflect": (nn.Conv2d, (3, 5, 3), {"padding": (1, 2), "padding_mode": "reflect"}, (2, 3, 8, 7)),
    "conv2d-replicate": (nn.Conv2d, (3, 6, 3), {"padding": "same", "padding_mode": "replicate"}, (2, 3, 8, 7)),
    "conv2d-depthwise": (nn.Conv2d, (6, 6, 3), {"groups": 6}, (2, 6, 5, 5)),
    "conv3d": (nn.Conv3d, (2, 3, 2), {"stride": (1, 2, 1)}, (1, 2, 3, 4, 5)),
    "transposed1d": (nn.ConvTranspose1d, (4, 6, 3), {"stride": 2, "output_padding": 1, "groups": 2}, (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d, (3, 4, 3), {"stride": 2, "padding": 1, "dilation": 2}, (2, 3, 4, 5)),
    "transposed2d-unbatched": (nn.ConvTranspose2d, (3, 4, 3), {"bias": False}, (3, 4, 5)),
    "transposed3d": (nn.ConvTranspose3d, (2, 3, 2), {"stride": (1, 2, 1)}, (1, 2, 2, 3, 2)),
}
SEARCHED = {"seed": 3, "sparsity": 0.5, "freeze_ratio": 0.6}


def pair(kind: str, **settings) -> tuple[fk.nn.FrozenLayer, nn.Module, torch.Tensor]:
    """A frozen layer, its torch twin with the same effective weight and bias, and an input."""
    twin_type, args, options, x_shape = LAYERS[kind]
    layer = TWINS[twin_type](*args, **options, **{**SEARCHED, **settings})
    twin = twin_type(*args, **options)
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        if twin.bias is not None:
            layer.bias.copy_(twin.bias)
    return layer, twin, torch.randn(x_shape)


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def small(**settings) -> nn.Sequential:
    """A frozen model of three kinds of layers for inputs [B, 3, 6, 6]."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 11))
    fk.freeze_(model, fk.FreezeConfig(**{**SEARCHED, **settings}))
    return model.eval()


X = torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("residency", ["mask", "dense"])
def test_equals_its_torch_twin(kind, residency, backend):
    layer, twin, x = pair(kind)
    layer.set_residency(residency)
    x2 = x.clone().requires_grad_()
    x.requires_grad_()
    y, expected = layer(x), twin(x2)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    close(y, expected)
    close(x.grad, x2.grad)
    close(layer.scores.grad.double(), score_gradient(layer.frozen, twin.weight.grad, layer.scores), 1e-4)
    if twin.bias is not None:
        close(layer.bias.grad, twin.bias.grad)


@pytest.mark.parametrize("kind", LAYERS)
def test_to_dense_gives_the_torch_twin_back(kind):
    layer, twin, x = pair(kind)
    plain = fk.to_dense(nn.Sequential(layer.eval()))[0]
    assert type(plain) is type(twin) and not plain.training and isinstance(layer, fk.nn.FrozenLayer)
    assert plain.extra_repr() == twin.extra_repr() and plain.state_dict().keys() == twin.state_dict().keys()
    assert torch.equal(plain(x), twin(x)) and plain.weight.requires_grad
    if layer.bias is not None:
        assert plain.bias is not layer.bias and torch.equal(plain.bias, layer.bias)


@pytest.mark.parametrize("kind", ["transposed1d", "transposed2d", "transposed2d-unbatched", "transposed3d"])
def test_output_size_of_transposed_convolutions(kind):
    layer, twin, x = pair(kind)
    smallest = twin(x).shape[-len(twin.stride) :]
    for extra in range(min(twin.stride)):
        size = [s - p + extra for s, p in zip(smallest, twin.output_padding, strict=True)]
        close(layer(x, output_size=size), twin(x, output_size=size))
    with pytest.raises(ValueError, match="output size"):
        layer(x, output_size=[s + 40 for s in smallest])


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embedding_layer(padding_idx, backend):
    layer = fk.nn.FrozenEmbedding(9, 4, padding_idx, **SEARCHED)
    twin = nn.Embedding(9, 4, padding_idx)
    assert layer.padding_idx == twin.padding_idx
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
    index = torch.tensor([[0, 2, 8], [8, 8, 1]])
    y, expected = layer(index), twin(index)
    assert torch.equal(y, expected)
    if padding_idx is not None:
        assert not layer.weight[padding_idx].any()
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    close(layer.scores.grad.double(), score_gradient(layer.frozen, twin.weight.grad, layer.scores))
    for option in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}):
        with pytest.raises(ValueError, match=next(iter(option))):
            fk.nn.FrozenEmbedding(9, 4, **option)


def test_weight_passes_its_gradient_to_the_scores(backend):
    layer, _, _ = pair("conv2d")
    grad = torch.randn(layer.shape)
    layer.weight.backward(grad)
    close(layer.scores.grad.double(), score_gradient(layer.frozen, grad, layer.scores))
    part, keep = layer.partition(), layer.keep_mask()
    assert part.shape == keep.shape == layer.shape
    assert torch.equal(keep, layer.weight != 0)
    assert keep[part == 1].all() and not keep[part == -1].any()
    counts = {"pruned": -1, "locked": 1, "free": 0}
    assert {name: int((part == kind).sum()) for name, kind in counts.items()} | {
        "kept": int(keep.sum())
    } == layer.counts


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_apart(copied, residency, finalized):
    model = small()
    fk.set_residency(model, residency)
    if finalized:
        fk.finalize_(model)
    twin, before = copied(model), model(X)
    assert torch.equal(twin(X), before)
    assert [m.residency for m in (twin[0], twin[4])] == [residency] * 2
    assert [type(m) for m in twin] == [type(m) for m in model]
    for layer in (twin[0], twin[4]):
        layer.set_supermask(torch.zeros_like(layer.packed_supermask()))
    assert torch.equal(model(X), before) and not torch.equal(twin(X), before)


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("source", RESIDENCIES)
@pytest.mark.parametrize("target", RESIDENCIES)
def test_state_round_trip(source, target, finalized):
    # another partition has another number of scores: only a finalized model takes any state
    model, other = small(), small(seed=8, sparsity=0.4) if finalized else small(sparsity=0.4)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    fk.EdgePopup(model).step()
    for m, residency in ((model, source), (other, target)):
        if finalized:
            fk.finalize_(m)
        fk.set_residency(m, residency)
    state = model.state_dict()
    assert {k.split(".", 1)[1] for k in state if k[0] == "0"} == {"header", "supermask", "weight_shape", "bias"} | (
        set() if finalized else {"scores"}
    )
    assert str(other.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    assert other[0].residency == target and (other[4].seed, other[4].stream) == (3, 1)
    for a, b in zip((model[0], model[4]), (other[0], other[4]), strict=True):
        assert torch.equal(a.weight, b.weight) and a.counts == b.counts and a.scale == b.scale
    torch.testing.assert_close(other(X), model(X))
    # the state's tensors are copied: what happens to them later is no concern of the layer
    expected = other(X)
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(other(X), expected)


def test_meta_device_then_state():
    model = small()
    with torch.device("meta"):
        empty = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 11))
        fk.freeze_(empty, fk.FreezeConfig(**SEARCHED))
    assert all(t.device.type == "meta" for t in (*empty.parameters(), *empty.buffers()))
    assert empty.eval()(X.to("meta")).shape == (2, 11)
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(assigned(X), model(X))
    assert not [n for n, t in (*assigned.named_parameters(), *assigned.named_buffers()) if t.device.type == "meta"]
    assert torch.equal(assigned.to("cpu")(X), model(X))
    half = copy.deepcopy(model).bfloat16()
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(half.state_dict(), assign=True)
    assert torch.equal(assigned(X.bfloat16()), half(X.bfloat16()))
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    assert torch.equal(filled(X), model(X))
    y = filled.train()(X)
    y.sum().backward()
    fk.EdgePopup(filled).step()
    assert filled[4].scores.grad is not None


def test_meta_layers_reset_after_to_empty():
    layer = fk.nn.FrozenLinear(33, 7, device="meta", **SEARCHED).to_empty(device="cpu")
    layer.reset_parameters()
    same = fk.nn.FrozenLinear(33, 7, **SEARCHED)
    assert torch.equal(layer.weight, same.weight) and torch.equal(layer.scores, same.scores)


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_to_dtype_rounds_nothing_but_the_dense_weight(residency, dtype):
    model = small(code="normal")
    fk.set_residency(model, residency)
    layer, header = model[4], model[4].header.clone()
    exact, supermask = layer.weight.detach().clone(), layer.packed_supermask()
    model.to(dtype)
    assert torch.equal(layer.header, header) and layer.header.dtype == torch.int32
    assert torch.equal(layer.packed_supermask(), supermask)
    assert torch.equal(layer.weight, exact.to(dtype))
    assert model(X.to(dtype)).dtype == layer.dtype == dtype
    with pytest.raises(TypeError, match=r"x.*float32.*(bfloat16|float64)"):
        layer(torch.zeros(1, 80))
    model.float()
    # from the format again, not from what bfloat16 left
    assert torch.equal(layer.weight, exact)


# sizes that are contiguous and channels_last at once are told apart by their strides
LAYOUT_SIZES = [(2, 3, 5, 4), (2, 1, 5, 4), (2, 3, 1, 1), (2, 1, 1, 1), (1, 1, 1, 4), (1, 3, 1, 4), (2, 1, 4, 1)]


@pytest.mark.parametrize("size", LAYOUT_SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_result_is_laid_out_as_its_input(size, layout):
    """As torch's."""
    x = torch.empty(size, memory_format=layout).copy_(torch.randn(size))
    for plain in (nn.Conv2d(size[1], 5, 1), nn.ConvTranspose2d(size[1], 5, 2)):
        layer = TWINS[type(plain)](size[1], 5, plain.kernel_size)
        y = plain(x)
        assert torch.empty(y.shape, memory_format=memory_format_of(x)).stride() == y.stride()
        for residency in ("mask", "dense"):
            layer.set_residency(residency)
            assert layer(x).stride() == y.stride(), (type(plain), residency)
            with torch.no_grad():
                assert layer(x).stride() == y.stride(), (type(plain), residency)


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layer_asked_for_channels_last_gives_it(layout, channels, residency, backend):
    """Whatever its input is, as torch's with such a weight. Of one channel no weight of torch's is."""
    for plain in (nn.Conv2d(channels, 5, 3), nn.ConvTranspose2d(channels, 5, 2)):
        twin = plain.to(memory_format=torch.channels_last)
        layer = TWINS[type(plain)](channels, 5, plain.kernel_size).to(memory_format=torch.channels_last)
        layer.set_residency(residency)
        x = torch.empty(2, channels, 6, 4, memory_format=layout).copy_(torch.randn(2, channels, 6, 4)).requires_grad_()
        y = layer(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert channels == 1 or y.stride() == twin(x).stride()
        with torch.no_grad():
            assert torch.equal(layer(x), y) and layer(x).stride() == y.stride()
        y.sum().backward()
        assert x.grad.shape == x.shape and bool(x.grad.any())


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("kind", ["conv2d", "transposed2d"])
def test_channels_last_is_preserved(kind, residency, backend):
    layer, twin, x = pair(kind)
    layer.set_residency(residency)
    layer.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    close(y, twin(x))
    y.backward(torch.randn_like(y))
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    # as torch's layer whose weight is in this layout
    assert layer(x.detach().contiguous()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "transposed1d"])
def test_autocast(kind, backend):
    layer, twin, x = pair(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = layer(x), twin(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    close(y.float(), expected.float(), 3e-2)
    y.sum().backward()
    assert layer.scores.grad.dtype == torch.float32 and layer.bias.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="int64"):
        layer(x.long())


def test_hooks():
    layer, _, x = pair("linear")
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,)),
        layer.register_forward_hook(lambda m, args, out: out + 1),
        layer.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append(grad_out[0].shape)),
        layer.scores.register_hook(lambda grad: grad * 3),
    ]
    y = layer(x.requires_grad_())
    y.sum().backward()
    hooked = layer.scores.grad.clone()
    for handle in handles:
        handle.remove()
    layer.scores.grad = None
    close(y, layer(2 * x) + 1)
    layer(2 * x).sum().backward()
    close(hooked, layer.scores.grad * 3)
    assert seen == [y.shape]


class Twice(nn.Module):
    """One layer reached by two names, and two layers of one Parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.tied = nn.Linear(12, 12)
        self.tied.weight = self.first.weight

    def forward(self, x):
        return self.tied(self.again(self.first(x)))


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_tied_weights_stay_one_tensor(copied):
    model = Twice()
    report = fk.freeze_(model, fk.FreezeConfig(**SEARCHED))
    assert [(c.name, c.stream) for c in report.converted] == [("first", 0), ("tied", 0)]
    model = copied(model)
    assert model.first is model.again and model.first is not model.tied
    assert model.first.scores is model.tied.scores
    assert len(fk.EdgePopup(model).parameters()) == 1
    model(torch.randn(3, 12)).sum().backward()
    with torch.no_grad():
        model.first.scores.normal_()
    fk.EdgePopup(model).step()
    assert torch.equal(model.first.weight, model.tied.weight)
    other = Twice()
    fk.freeze_(other, fk.FreezeConfig(**SEARCHED))
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 12)
    assert torch.equal(other(x), model(x)) and other.first.scores is other.tied.scores


def changed(state: dict, **entries) -> dict:
    return {**state, **entries}


MISMATCHES = {
    "free weights": (lambda s: changed(s, supermask=s["supermask"][:-1]), "supermask"),
    "uint8": (lambda s: changed(s, supermask=s["supermask"].int()), "int32"),
    "bits are set": (lambda s: changed(s, supermask=s["supermask"] | 0x80), "bits are set"),
    "code": (lambda s: changed(s, header=fk.format.make_header(3, code="normal", tau_freeze=9)), "code normal.*sign"),
    "header": (lambda s: changed(s, header=s["header"][:7]), r"header.*\[7\]"),
    "header dtype": (lambda s: changed(s, header=s["header"].float()), r"header.*float32"),
    "thresholds": (
        lambda s: changed(s, header=s["header"] * torch.tensor([1, 1, 1, 1, 1, -1, 1, 1]).int()),
        "tau_freeze",
    ),
    "partition": (lambda s: changed(s, header=fk.format.make_header(3)), "free"),
    "scores": (lambda s: changed(s, scores=s["scores"][:-1]), "scores"),
    "scores shape": (lambda s: changed(s, scores=s["scores"][:, None]), "scores"),
    "bias": (lambda s: changed(s, bias=s["bias"][:-1]), "bias"),
    "no supermask": (lambda s: {k: v for k, v in s.items() if k != "supermask"}, "header: the state has no supermask"),
    "no header": (lambda s: {k: v for k, v in s.items() if k != "header"}, "supermask: the state has no header"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_states_that_do_not_fit_leave_the_layer_unchanged(what):
    change, named = MISMATCHES[what]
    other = fk.nn.FrozenLinear(33, 7, **SEARCHED)
    with torch.no_grad():
        other.bias.fill_(5.0)
        other.scores.neg_()
        other.header[fk.format.SCALE] = fk.format.float32_bits(0.25)
    assert int(other.packed_supermask()[-1]) & 0x80 == 0
    layer = fk.nn.FrozenLinear(33, 7, **SEARCHED)
    before, x = {k: v.clone() for k, v in layer.state_dict().items()}, torch.randn(2, 33)
    y = layer(x)
    with pytest.raises(RuntimeError, match=f"(?s){named}"):
        layer.load_state_dict(change(other.state_dict()))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    assert torch.equal(layer(x), y)


def test_states_of_another_shape_with_the_same_counts_are_refused():
    pointwise = fk.nn.FrozenConv2d(8, 4, 1, bias=False, **SEARCHED)
    square = fk.nn.FrozenConv2d(2, 4, 2, bias=False, **SEARCHED)
    assert pointwise.counts == square.counts
    with pytest.raises(RuntimeError, match=r"weight_shape: \[4, 8, 1, 1\] in the state, \[4, 2, 2, 2\] in the layer"):
        square.load_state_dict(pointwise.state_dict())


def test_scores_alone_load_where_the_caller_says_so():
    layer, other = (fk.nn.FrozenLinear(33, 7, **SEARCHED) for _ in range(2))
    with torch.no_grad():
        other.scores.neg_()
    result = layer.load_state_dict({"scores": other.scores}, strict=False)
    assert set(result.missing_keys) == {"header", "supermask", "weight_shape", "bias"}
    assert torch.equal(layer.scores, other.scores)


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"seed": -1}, ValueError, "seed.*-1"),
        ({"stream": 2**32}, ValueError, "stream"),
        ({"code": "gauss"}, ValueError, "code.*gauss"),
        ({"code": "stored"}, ValueError, "weight: a stored layer is made of one"),
        ({"distribution": "snip"}, ValueError, "distribution.*igq.*snip"),
        ({"ratio_rule": "both"}, ValueError, "ratio_rule.*both"),
        ({"prune_rate": 0.5}, TypeError, "prune_rate"),
        ({"config": fk.FreezeConfig(), "sparsity": 0.5}, ValueError, "sparsity"),
    ],
)
def test_refused_settings(settings, error, named):
    with pytest.raises(error, match=named):
        fk.nn.FrozenLinear(5, 3, **settings)


def test_forward_refusals_name_the_tensor():
    layer = fk.nn.FrozenLinear(5, 3, **SEARCHED)
    with pytest.raises(ValueError, match=r"\(2, 4\).*5"):
        layer(torch.zeros(2, 4))
    for bias in (True, False):
        finalized = fk.nn.FrozenLinear(5, 3, bias, **SEARCHED)
        finalized.finalize()
        with pytest.raises(TypeError, match=r"x: torch\.float16 does not match the layer's torch\.float32"):
            finalized(torch.zeros(2, 5, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"residency.*sparse"):
        layer.set_residency("sparse")


def test_extra_repr_and_defaults():
    layer = fk.nn.FrozenConv2d(3, 5, 3, padding=1, seed=4, stream=2)
    assert all(part in repr(layer) for part in ("3, 5", "padding=(1, 1)", "seed=4", "stream=2", "sign"))
    assert "in_features=5" in repr(fk.nn.FrozenLinear(5, 3)) and "9, 4" in repr(fk.nn.FrozenEmbedding(9, 4))
    sigma = fk.nn.FrozenLinear(8, 3, sigma=0.25)
    assert sigma.scale == 0.25 and layer.scale == float(torch.tensor((2 / 27) ** 0.5))


@pytest.mark.parametrize("scaling", ["none", "static", "dynamic"])
def test_a_loaded_scale_is_what_later_steps_rescale_from(scaling):
    settings = {**SEARCHED, "scaling": scaling}
    saved = fk.nn.FrozenLinear(33, 7, sigma=0.3, **settings)
    loaded = fk.nn.FrozenLinear(33, 7, **settings)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.scale == saved.scale
    for layer in (saved, loaded):
        layer.set_supermask(all_kept(layer.counts["free"]))
    assert loaded.scale == pytest.approx(saved.scale, rel=1e-6)


def test_a_finalized_layer_has_no_threshold():
    layer = fk.nn.FrozenLinear(33, 7, **SEARCHED)
    layer.finalize()
    kept = layer.counts["kept"]
    with pytest.raises(RuntimeError, match="finalized"):
        layer.mask_above(None)
    assert layer.counts["kept"] == kept
