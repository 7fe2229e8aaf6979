"""Attention and encoder layers of torch with frozen projections: the results, errors and files of torch's own."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels.nn import FrozenLayer, FrozenMultiheadAttention
from frozen_kernels.ticket import read_ticket

CONFIG = fk.FreezeConfig(seed=11, code="normal", sparsity=0.4)
E, HEADS, N, L, S = 12, 3, 2, 5, 4

# arguments of the attention; the last size of keys and of values
KINDS = {
    "plain": ({}, E, E),
    "batch first": ({"batch_first": True}, E, E),
    "no bias": ({"bias": False, "batch_first": True}, E, E),
    "bias of keys": ({"add_bias_kv": True}, E, E),
    "zeros": ({"add_zero_attn": True, "batch_first": True}, E, E),
    "all": ({"add_bias_kv": True, "add_zero_attn": True, "dropout": 0.3}, E, E),
    "other keys": ({"kdim": 7, "vdim": 8, "batch_first": True}, 7, 8),
    "other values": ({"vdim": 8, "bias": False, "add_bias_kv": True}, E, 8),
}


def attention(**options) -> nn.MultiheadAttention:
    torch.manual_seed(5)
    plain = nn.MultiheadAttention(E, HEADS, **options)
    for name, p in plain.named_parameters():
        if "bias" in name:
            nn.init.normal_(p)
    return plain


def frozen_and_dense(**options):
    holder = nn.ModuleDict({"attention": attention(**options)})
    fk.freeze_(holder, CONFIG)
    return holder["attention"], fk.to_dense(holder)["attention"]


def inputs(options, kdim, vdim, kind):
    torch.manual_seed(1)
    if kind == "unbatched":
        return torch.randn(L, E), torch.randn(S, kdim), torch.randn(S, vdim)
    sizes = [(N, n, d) if options.get("batch_first") else (n, N, d) for n, d in ((L, E), (S, kdim), (S, vdim))]
    q, k, v = (torch.randn(size) for size in sizes)
    if kind == "self" and kdim == vdim == E:
        return q, q, q
    return (q, k, k) if kind == "keys are values" and kdim == vdim else (q, k, v)


def masks(kind, q_length, k_length, batched):
    torch.manual_seed(2)
    padding = torch.rand((N, k_length) if batched else (k_length,)) < 0.4
    padding[..., 0] = False
    causal = torch.ones(q_length, k_length, dtype=torch.bool).triu(1)
    float_causal = torch.zeros(q_length, k_length).masked_fill(causal, -math.inf)
    three = torch.randn((N if batched else 1) * HEADS, q_length, k_length)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "both": {"key_padding_mask": padding, "attn_mask": causal},
        "causal": {"attn_mask": float_causal, "is_causal": True},
        "causal and padding": {"attn_mask": causal, "is_causal": True, "key_padding_mask": padding},
        "three": {"attn_mask": three},
        "floats": {"attn_mask": three, "key_padding_mask": torch.randn(padding.shape)},
    }[kind]


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        if b is None:
            assert a is None
        else:
            assert a.shape == b.shape and a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6, equal_nan=True)


MASKS = ["none", "padding", "both", "causal", "causal and padding", "three", "floats"]
# each kind with one mask, each mask with a kind; the others take long
PAIRS = [*zip(KINDS, [*MASKS, "both"], strict=True)]


@pytest.mark.parametrize(
    ("kind", "mask"),
    [
        pytest.param(kind, mask, marks=[] if (kind, mask) in PAIRS else [pytest.mark.long])
        for kind in KINDS
        for mask in MASKS
    ],
)
def test_results_are_those_of_torchs_attention(kind, mask):
    options, kdim, vdim = KINDS[kind]
    frozen, dense = frozen_and_dense(**options)
    assert isinstance(frozen, FrozenMultiheadAttention) and type(dense) is nn.MultiheadAttention
    for how in ("self", "keys are values", "apart", "unbatched"):
        q, k, v = inputs(options, kdim, vdim, how)
        batched = q.dim() == 3
        at = 1 if batched and options.get("batch_first") else 0
        given = masks(mask, q.shape[at], k.shape[at], batched)
        for training in (True, False):
            frozen.train(training), dense.train(training)
            for weights in ({"need_weights": False}, {}, {"average_attn_weights": False}):
                torch.manual_seed(7)
                wanted = dense(q, k, v, **given, **weights)
                torch.manual_seed(7)
                same(frozen(q, k, v, **given, **weights), wanted)
        with torch.no_grad():  # torch's fused path, where it takes it
            same(frozen(q, k, v, **given, need_weights=False), dense(q, k, v, **given, need_weights=False))


def test_gradients_go_to_inputs_biases_and_scores():
    frozen, dense = frozen_and_dense(add_bias_kv=True, batch_first=True)
    x, y = (torch.randn(N, L, E, requires_grad=True) for _ in range(2))
    z = x.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
    frozen(x, y, y)[0].square().sum().backward()
    dense(z[0], z[1], z[1])[0].square().sum().backward()
    torch.testing.assert_close(x.grad, z[0].grad)
    torch.testing.assert_close(y.grad, z[1].grad)
    for name in ("in_proj_bias", "bias_k", "bias_v"):
        torch.testing.assert_close(getattr(frozen, name).grad, getattr(dense, name).grad)
    torch.testing.assert_close(frozen.out_proj.bias.grad, dense.out_proj.bias.grad)
    for layer, weight in ((frozen.in_proj, dense.in_proj_weight), (frozen.out_proj, dense.out_proj.weight)):
        through = layer.weight  # its gradient goes to the scores by the same rule
        (wanted,) = torch.autograd.grad(through, layer.scores, weight.grad)
        torch.testing.assert_close(layer.scores.grad, wanted)


def test_self_attention_is_one_product_and_weights_are_never_made():
    frozen, _ = frozen_and_dense(batch_first=True)
    made = []
    for layer in (frozen.in_proj, frozen.out_proj):
        layer.register_forward_hook(lambda module, args, y: made.append(module.out_features))
    x = torch.randn(N, L, E)
    with weights_forbidden():
        frozen(x, x, x)
        assert made == [3 * E, E]
        frozen(x, x, x, need_weights=False)


class weights_forbidden:
    """No frozen layer is asked for its dense weight within."""

    def __enter__(self):
        self.before = FrozenLayer._effective

        def refuse(layer):
            raise AssertionError("a dense weight was made")

        FrozenLayer._effective = refuse

    def __exit__(self, *_):
        FrozenLayer._effective = self.before


def test_readers_of_the_weights_find_them():
    frozen, dense = frozen_and_dense()
    for part in ("in_proj_weight", "q_proj_weight"):
        found, wanted = getattr(frozen, part), getattr(dense, part)
        assert (found is None) == (wanted is None) and (found is None or torch.equal(found, wanted))
    frozen, dense = frozen_and_dense(kdim=7)
    for part in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        found, wanted = getattr(frozen, part), getattr(dense, part)
        assert (found is None) == (wanted is None) and (found is None or torch.equal(found, wanted))
    x, k = torch.randn(L, N, E), torch.randn(L, N, 7)
    got = F.multi_head_attention_forward(
        x, k, x, E, HEADS, None, frozen.in_proj_bias, None, None, False, 0.0, frozen.out_proj.weight,
        frozen.out_proj.bias, use_separate_proj_weight=True, q_proj_weight=frozen.q_proj_weight,
        k_proj_weight=frozen.k_proj_weight, v_proj_weight=frozen.v_proj_weight,
    )  # fmt: skip
    same(got, frozen(x, k, x))


def test_shapes_that_do_not_fit_are_refused_by_name():
    frozen, _ = frozen_and_dense(batch_first=True)
    x, y = torch.randn(N, L, E), torch.randn(N, S, E)
    for error, match, call in (
        (ValueError, r"query: .*last of 12.*\(2, 5, 11\)", lambda: frozen(x[..., :-1], x, x)),
        (ValueError, r"query: 2 or 3 dim.*\(1, 2, 5, 12\)", lambda: frozen(x[None], x, x)),
        (ValueError, r"key: 3 dim.*\(4, 12\)", lambda: frozen(x, y[0], y)),
        (ValueError, r"value: shape \(2, 5, 12\) does not match key \(2, 4, 12\)", lambda: frozen(x, y, x)),
        (ValueError, r"key: batch of 1, query has 2", lambda: frozen(x, y[:1], y[:1])),
        (ValueError, r"attn_mask: shape \(5, 4\) or \(6, 5, 4\), got \(4, 5\)",
            lambda: frozen(x, y, y, attn_mask=torch.zeros(S, L))),
        (ValueError, r"key_padding_mask: shape \(2, 4\), got \(2, 5\)",
            lambda: frozen(x, y, y, key_padding_mask=torch.zeros(N, L))),
        (TypeError, r"attn_mask: bool or floating, got torch.int64",
            lambda: frozen(x, y, y, attn_mask=torch.zeros(L, S, dtype=torch.int64))),
        (RuntimeError, "is_causal.*attn_mask", lambda: frozen(x, x, x, is_causal=True)),
        (TypeError, "nested", lambda: frozen(*[torch.nested.nested_tensor([x[0], x[1]])] * 3)),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            call()


def test_the_constructor_is_torchs_and_from_module_takes_all_over():
    direct = FrozenMultiheadAttention(
        E, HEADS, kdim=7, batch_first=True, seed=11, stream=4, code="normal", sparsity=0.4
    )
    streams = {name: m.stream for name, m in direct.named_modules() if isinstance(m, FrozenLayer)}
    assert streams == {"q_proj": 4, "k_proj": 5, "v_proj": 6, "out_proj": 7}
    plain = attention(kdim=7, batch_first=True).eval()
    calls = []
    handle = plain.register_forward_hook(lambda module, args, y: calls.append(module))
    twin = FrozenMultiheadAttention.from_module(plain, CONFIG, stream=4)
    assert torch.equal(twin.k_proj.weight, direct.k_proj.weight) and twin.in_proj_bias is plain.in_proj_bias
    twin(torch.randn(N, L, E), torch.randn(N, S, 7), torch.randn(N, S, E))
    assert calls == [twin] and not twin.training
    handle.remove()
    assert not twin._forward_hooks and isinstance(plain.q_proj_weight, nn.Parameter)
    assert pickle.loads(pickle.dumps(twin)).k_proj.stream == 5
    with pytest.raises(ValueError, match="parameters, got FrozenMultiheadAttention"):
        FrozenMultiheadAttention.from_module(twin, CONFIG)
    with pytest.raises(ValueError, match=r"bare MultiheadAttention .*FrozenMultiheadAttention\.from_module"):
        fk.freeze_(plain, CONFIG)


def test_a_projection_that_stays_is_the_parameter_it_was(tmp_path):
    def build():
        return nn.ModuleDict({"a": attention(batch_first=True), "b": attention(kdim=7)}).eval()

    for chosen in ({"a.out_proj", "b.k_proj"}, {"a.in_proj"}):
        model = build()
        report = fk.freeze_(model, CONFIG, filter_fn=lambda module, name, chosen=chosen: name in chosen)
        assert {c.name for c in report.converted} == chosen
        held = {"a.in_proj", "a.out_proj", "b.q_proj", "b.k_proj", "b.v_proj", "b.out_proj"}
        assert {name for name, why in report.skipped if why == "filter_fn"} == held - chosen
        x, k = torch.randn(L, N, E), torch.randn(L, N, 7)
        dense = fk.to_dense(model)
        assert list(dense.state_dict()) == list(build().state_dict())
        fk.save_ticket(model, tmp_path / "part.safetensors")
        loaded = fk.load_ticket(build(), tmp_path / "part.safetensors")
        for net in (dense, loaded):
            same(net["a"](x, x, x), model["a"](x, x, x))
            if isinstance(model["b"], FrozenMultiheadAttention):
                same(net["b"](x, k, x), model["b"](x, k, x))


def test_what_is_left_of_an_attention_freezes_later(tmp_path):
    torch.manual_seed(2)
    whole = nn.ModuleList([nn.MultiheadAttention(E, 2, batch_first=True).eval()])
    part = copy.deepcopy(whole)
    fk.freeze_(whole, CONFIG)
    fk.save_ticket(whole, tmp_path / "whole")
    fk.freeze_(part, CONFIG, lambda module, name: name.endswith("out_proj"))
    loaded = fk.load_ticket(copy.deepcopy(part), tmp_path / "whole")
    report = fk.freeze_(part, CONFIG)
    assert [c.name for c in report.converted] == ["0.in_proj"] and part[0].in_proj.stream == 1
    assert [why for name, why in report.skipped] == ["already frozen"]
    x = torch.randn(N, L, E)
    assert torch.equal(loaded[0](x, x, x)[0], whole[0](x, x, x)[0])
    same(fk.to_dense(part)[0](x, x, x), part[0](x, x, x))


# --- encoder layers -----------------------------------------------------------------------------------------------


def encoder(nested=True, **options):
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(E, 2, 20, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)


@pytest.mark.filterwarnings("ignore:.*nested tensor", "ignore:enable_nested_tensor")
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}, {"bias": False}])
def test_encoders_agree_with_the_dense_model(options, nested):
    model = encoder(nested, **options)
    before = [(m.activation_relu_or_gelu, model.use_nested_tensor) for m in model.layers]
    report = fk.freeze_(model, CONFIG)
    assert [c.name for c in report.converted[:4]] == [
        f"layers.0.{part}" for part in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
    ] and not report.skipped  # fmt: skip
    dense = fk.to_dense(model)
    assert [(m.activation_relu_or_gelu, dense.use_nested_tensor) for m in dense.layers] == before
    x, padding = torch.randn(N, L, E), torch.zeros(N, L, dtype=torch.bool)
    padding[1, 3:] = True
    causal = nn.Transformer.generate_square_subsequent_mask(L)
    for given in ({}, {"src_key_padding_mask": padding}, {"mask": causal, "is_causal": True}):
        for training, grad in ((True, True), (False, True), (False, False)):
            model.train(training), dense.train(training)
            with torch.set_grad_enabled(grad), weights_forbidden():
                torch.manual_seed(9)
                wanted = dense(x, **given)
                torch.manual_seed(9)
                found = model(x, **given)
            # what torch's nested tensors give at padding is zero, and nothing in its other paths
            here = ~padding if "src_key_padding_mask" in given else torch.ones_like(padding)
            torch.testing.assert_close(found[here], wanted[here], rtol=1e-4, atol=1e-5)


def test_the_fused_path_is_left_and_taken_again():
    model = encoder()
    for chosen in ("layers.0.linear1", "layers.1.self_attn.out_proj"):
        net = copy.deepcopy(model).eval()
        fk.freeze_(net, CONFIG, filter_fn=lambda module, name, chosen=chosen: name == chosen)
        index = int(chosen.split(".")[1])
        assert [m.activation_relu_or_gelu for m in net.layers] == [0 if i == index else 1 for i in range(2)]
        assert net.use_nested_tensor is False
        x, padding = torch.randn(N, L, E), torch.zeros(N, L, dtype=torch.bool)
        padding[0, 2:] = True
        with torch.no_grad(), weights_forbidden():
            y = net(x, src_key_padding_mask=padding)
        dense = fk.to_dense(net)
        assert dense.use_nested_tensor and [m.activation_relu_or_gelu for m in dense.layers] == [1, 1]
        torch.testing.assert_close(y[~padding], dense(x, src_key_padding_mask=padding)[~padding], rtol=1e-4, atol=1e-5)


def test_the_whole_transformer_trains_a_step_saves_and_loads(tmp_path):
    def build():
        torch.manual_seed(4)
        return nn.Transformer(E, 2, 1, 1, 16, batch_first=True, dropout=0.0)

    model = build()
    report = fk.freeze_(model, CONFIG)
    assert len(report.converted) == 4 + 6 and not report.skipped
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=1.0)
    x, y = torch.randn(N, S, E), torch.randn(N, L, E)
    before = model(x, y)
    before[..., 0].sum().backward()  # the norm makes sums over all of them constant
    assert all(p.grad is not None and p.grad.any() for p in search.parameters())
    optimizer.step()
    search.step()
    assert not torch.equal(model(x, y), before)
    path = tmp_path / "t.safetensors"
    fk.save_ticket(model, path)
    names = {record.name for record in read_ticket(path).records}
    assert {"encoder.layers.0.self_attn.in_proj", "decoder.layers.0.multihead_attn.in_proj"} <= names
    model.eval()
    with torch.device("meta"):
        meta = build()
    for fresh in (build(), meta, copy.deepcopy(model)):
        loaded = fk.load_ticket(fresh, path).eval()
        assert torch.equal(loaded(x, y), model(x, y))
        assert loaded.encoder.layers[0].activation_relu_or_gelu == 0 and not loaded.encoder.use_nested_tensor
    torch.testing.assert_close(fk.to_dense(model)(x, y), model(x, y), rtol=1e-4, atol=1e-5)


def test_state_dicts_pickles_and_second_calls():
    model = encoder()
    fk.freeze_(model, CONFIG)
    again = encoder()
    fk.freeze_(again, fk.FreezeConfig(seed=12, code="normal", sparsity=0.4))
    again.load_state_dict(model.state_dict())
    x = torch.randn(N, L, E)
    model.eval(), again.eval()
    assert torch.equal(again(x), model(x)) and torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
    report = fk.freeze_(model, CONFIG)
    assert not report.converted and {why for _, why in report.skipped} == {"already frozen"}


def test_tied_attentions_are_one_weight():
    first, second = attention(), attention()
    second.in_proj_weight = first.in_proj_weight
    model = nn.ModuleList([first, second, first])
    fk.freeze_(model, CONFIG)
    assert model[0].in_proj.identity == model[1].in_proj.identity and model[0] is model[2]
    dense = fk.to_dense(model)
    assert dense[0].in_proj_weight is dense[1].in_proj_weight and dense[0] is dense[2]


def test_stored_weights_are_the_attentions_own():
    model = nn.ModuleDict({"attention": attention(batch_first=True), "head": nn.Linear(E, 3)})
    x = torch.randn(N, L, E)
    wanted = model["attention"](x, x, x)[0]
    report = fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.0))
    assert [c.code for c in report.converted] == ["stored"] * 2
    torch.testing.assert_close(model["attention"](x, x, x)[0], wanted)
    fk.finalize_(model)
    torch.testing.assert_close(model["attention"](x, x, x)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_and_autocast(dtype):
    frozen, _ = frozen_and_dense(batch_first=True)
    x = torch.randn(N, L, E)
    wanted = frozen(x, x, x, need_weights=False)[0]
    half = copy.deepcopy(frozen).to(dtype)
    found = half(*[x.to(dtype)] * 3, need_weights=False, key_padding_mask=torch.zeros(N, L, dtype=torch.bool))[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        mask = torch.zeros(L, L)
        found = frozen(x, x, x, attn_mask=mask)[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


def test_what_is_bound_to_the_old_module_is_left_behind():
    x = torch.randn(2, 3, 8)
    compiled, wrapped = (nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True)]) for _ in range(2))
    compiled[0].compile(backend="eager")
    wrapped[0].forward = wrapped[0].forward
    for model in (compiled, wrapped):
        fk.freeze_(model)
        plain = fk.to_dense(copy.deepcopy(model))
        torch.testing.assert_close(model[0](x, x, x)[0], plain[0](x, x, x)[0])


def test_several_gains_of_the_constructor_are_those_of_in_proj():
    attention = FrozenMultiheadAttention(16, 2, gain=(2.5, 2.5, 1.0))
    assert attention.in_proj.gain.unique().tolist() == [1.0, 2.5] and attention.out_proj.gain is None


def test_a_weight_with_a_gain_is_not_written_either():
    model = nn.ModuleList([nn.MultiheadAttention(8, 2)])
    fk.freeze_(model, fk.FreezeConfig(gain=(2.0, 2.0, 1.0)), lambda module, name: name.endswith("in_proj"))
    with pytest.raises(RuntimeError, match="cannot be written"):
        nn.init.zeros_(model[0].in_proj_weight)


def test_torch_fx_sees_one_call():
    frozen, _ = frozen_and_dense(batch_first=True)

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = frozen

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    graph = torch.fx.symbolic_trace(Holder())
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["attention"]
    x = torch.randn(N, L, E)
    assert torch.equal(graph(x), frozen(x, x, x, need_weights=False)[0])
