"""Models of the package transformers, built tiny from their configs: frozen, trained, saved, loaded and generating."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.nn import FrozenLayer, FrozenLinear, FrozenTransposedLinear
from frozen_kernels.ticket import read_ticket

CONFIG = fk.FreezeConfig(seed=21, code="uniform", sparsity=0.4)
SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def hf():
    package = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[minilm]'")
    package.logging.set_verbosity_error()
    return package


def gpt2(hf, **options):
    config = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**config, bos_token_id=1, eos_token_id=2, **options))


def llama(hf, **options):
    config = {"num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **config, tie_word_embeddings=True, **options))


def bert(hf):
    return hf.BertForMaskedLM(hf.BertConfig(**SIZES, vocab_size=50, max_position_embeddings=32))


def vit(hf):
    return hf.ViTForImageClassification(hf.ViTConfig(**SIZES, image_size=16, patch_size=4, num_labels=5))


# how to build a model, its tied embedding and head
MODELS = {
    "gpt2": (gpt2, ("transformer.wte", "lm_head")),
    "llama": (llama, ("model.embed_tokens", "lm_head")),
    "bert": (bert, ("bert.embeddings.word_embeddings", "cls.predictions.decoder")),
    "vit": (vit, None),
}
# the others take long
NAMES = [name if name == "gpt2" else pytest.param(name, marks=pytest.mark.long) for name in MODELS]


def everything(module, name):
    return True


def build(hf, name, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return MODELS[name][0](hf, **options).to(dtype)


def batch(name, dtype=torch.float32):
    torch.manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, dtype=dtype), "labels": torch.tensor([1, 4])}
    ids = torch.randint(3, 50, (2, 9))
    return {"input_ids": ids, "labels": ids}


def generated(model, **options):
    ids = batch("gpt2")["input_ids"]
    return model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_out_in_silence(hf, name):
    model = build(hf, name)
    wide = {id(p): n for n, p in model.named_parameters() if p.dim() > 1}
    holders = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.dim() > 1}
    report = fk.freeze_(model, CONFIG)
    told = {c.name for c in report.converted} | {n for n, _ in report.skipped}
    assert holders <= told
    embeddings = {n for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    skipped = dict(report.skipped)
    assert all("filter_fn" in skipped[n] for n in embeddings)
    if MODELS[name][1]:
        embedding, head = MODELS[name][1]
        assert skipped[head] == f"shares its weight with {embedding!r}, which is not converted"
    left = {id(p) for p in model.parameters() if p.dim() > 1} & set(wide)
    assert {wide[i].rpartition(".")[0] for i in left} <= set(skipped)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_search_a_ticket_and_the_dense_model(hf, name, tmp_path):
    model, given = build(hf, name), batch(name)
    report = fk.freeze_(model, CONFIG, filter_fn=everything)
    assert {n for n, _ in report.skipped} == ({"vit.embeddings"} if name == "vit" else set())
    assert all(p.dim() < 2 or "vit.embeddings" in n for n, p in model.named_parameters())
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=10.0)
    found, before = [], model.eval()(**given).logits
    for checkpointing in (False, True):
        calls, at = [], dict(model.named_modules())[report.converted[-2].name]
        handle = at.register_forward_hook(lambda *call, calls=calls: calls.append(call))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train().zero_grad()
        torch.manual_seed(3)
        loss = model(**given).loss
        loss.backward()
        handle.remove()
        found.append([loss.detach(), *(p.grad.clone() for p in search.parameters())])
        assert all(p.grad.any() for p in search.parameters())
    assert all(map(torch.equal, *found))
    optimizer.step()
    search.step()
    model.gradient_checkpointing_disable()
    model.eval()
    logits = model(**given).logits
    assert not torch.equal(logits, before)
    path = tmp_path / "net.safetensors"
    fk.save_ticket(model, path)
    loaded = fk.load_ticket(build(hf, name).eval(), path)
    assert torch.equal(loaded(**given).logits, logits)
    dense = fk.to_dense(model)
    plain = build(hf, name).state_dict()
    assert {n: p.shape for n, p in dense.state_dict().items()} == {n: p.shape for n, p in plain.items()}
    assert not any(isinstance(m, FrozenLayer) for m in dense.modules())
    torch.testing.assert_close(dense(**given).logits, logits, rtol=1e-4, atol=1e-5)
    if MODELS[name][1]:
        embedding, head = (dict(model.named_modules())[n] for n in MODELS[name][1])
        assert embedding.scores is head.scores and embedding.identity == head.identity
        assert len(read_ticket(path).records) == len(report.converted) - 1
        first, second = (dict(dense.named_modules())[n] for n in MODELS[name][1])
        if first.padding_idx is None:
            assert first.weight is second.weight
        else:  # a frozen embedding's row of padding is zero, the head's is not
            differ = (first.weight != second.weight).any(1).nonzero().flatten()
            assert differ.tolist() == [first.padding_idx] and not first.weight[first.padding_idx].any()
    if name in ("gpt2", "llama"):
        tokens = generated(model)
        assert torch.equal(generated(loaded), tokens) and torch.equal(generated(dense), tokens)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_half_precision(hf, name):
    model, given = build(hf, name, torch.bfloat16), batch(name, torch.bfloat16)
    fk.freeze_(model, fk.FreezeConfig(seed=21, code="uniform", sparsity=0.4, score_dtype="bfloat16"), everything)
    assert model.dtype == torch.bfloat16  # transformers asks the first parameter, which may be scores
    model.train()
    model(**given).loss.backward()
    assert all(m.scores.grad.any() for m in model.modules() if isinstance(m, FrozenLayer))
    model.eval()
    logits = model(**given).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(fk.to_dense(model)(**given).logits, logits, rtol=0.05, atol=0.05)
    if name in ("gpt2", "llama"):
        fk.finalize_(model)
        assert generated(model, cache_implementation="static").shape == (2, 14)


def test_conv1d_is_the_linear_layer_that_it_equals(hf):
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    holder = nn.ModuleDict({"c": Conv1D(12, 12), "d": Conv1D(7, 12)})
    with torch.no_grad():
        holder["d"].bias.normal_()
    wanted, bias = holder["d"].weight, holder["d"].bias
    calls = []
    holder["d"].register_forward_hook(lambda module, args, y: calls.append(module))
    fk.freeze_(holder, CONFIG)
    c, d = holder["c"], holder["d"]
    assert isinstance(d, FrozenTransposedLinear) and d.bias is bias and (d.nf, d.nx, d.shape) == (7, 12, (7, 12))
    like = FrozenLinear(12, 7, config=CONFIG, stream=1)
    like.set_supermask(d.packed_supermask())
    x = torch.randn(3, 2, 12)
    like.bias = bias
    assert torch.equal(d(x), like(x)) and calls == [d]
    assert torch.equal(d.weight, like.weight.T) and d.weight.shape == wanted.shape
    assert torch.equal(d.keep_mask(), like.keep_mask().T) and torch.equal(d.partition(), like.partition().T)
    keep = torch.where(c.partition() == 0, torch.rand(12, 12) < 0.5, c.partition() == 1)
    c.set_keep_mask(keep)
    assert torch.equal(c.keep_mask(), keep) and torch.equal(c.weight != 0, keep & (c.weight != 0))
    scores = torch.randn(12, 12)
    c.set_scores_as_weight(scores)
    free = c.partition() == 0
    assert torch.equal(c.scores_as_weight()[free], scores[free])
    for setter, given in ((d.set_keep_mask, d.keep_mask().T), (d.set_scores_as_weight, torch.zeros(7, 12))):
        with pytest.raises(ValueError, match=r"shape \[12, 7\], as of Conv1D's weight, got \[7, 12\]"):
            setter(given)
    d.gain = torch.rand(7) + 0.5
    dense = fk.to_dense(holder)
    assert type(dense["d"]) is Conv1D and dense["d"].nf == 7
    torch.testing.assert_close(dense["d"](x), d(x))


def test_stored_conv1d_keeps_its_weights(hf, tmp_path):
    model, given = build(hf, "gpt2").eval(), batch("gpt2")
    logits = model(**given).logits
    zero = copy.deepcopy(model)
    report = fk.freeze_(zero, fk.FreezeConfig(code="stored", sparsity=0.0))
    assert len(report.converted) == 7  # the last layer stays, as a classifier
    torch.testing.assert_close(zero(**given).logits, logits)
    fk.freeze_(model, fk.FreezeConfig(code="stored", pattern="2:4", sparsity=0.5))
    c_fc = model.transformer.h[0].mlp.c_fc
    groups = c_fc.keep_mask().T.reshape(128, 8, 4)  # along the inputs
    assert (groups.sum(-1) == 2).all()
    fk.finalize_(model, values="float16")
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(build(hf, "gpt2").eval(), tmp_path / "t")
    assert torch.equal(loaded(**given).logits, model(**given).logits)


def test_a_weight_held_both_ways_is_left(hf):
    from transformers.pytorch_utils import Conv1D

    holder = nn.ModuleDict({"conv": Conv1D(8, 8), "linear": nn.Linear(8, 8), "other": nn.Linear(8, 8)})
    holder["linear"].weight = holder["conv"].weight
    report = fk.freeze_(holder, CONFIG)
    assert [c.name for c in report.converted] == ["other"]
    assert {n for n, why in report.skipped if "transposed" in why} == {"conv", "linear"}


def test_pruned_conv1d_is_imported(hf):
    from torch.nn.utils import prune
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    net = nn.Sequential(Conv1D(6, 5))
    prune.random_unstructured(net[0], "weight", 0.5)
    model = nn.Sequential(Conv1D(6, 5))
    fk.importers.load_(model, net.state_dict())
    x = torch.randn(3, 5)
    assert isinstance(model[0], FrozenTransposedLinear) and torch.equal(model[0].weight, net[0].weight)
    torch.testing.assert_close(model(x), net(x))


@pytest.mark.long
def test_minilm_stored_saved_and_loaded_gives_its_embeddings(tmp_path):
    import minilm_jackpot as example

    for name in ("transformers", "tokenizers", example.PACKAGE):
        pytest.importorskip(name, reason=f"{name} is not installed: {example.INSTALL}")
    folder = example.model_folder()
    dense, batcher = example.pretrained(folder), example.Batcher(folder)
    texts = ["A cat sits on a mat.", "Weights are stored, packed and read again."]
    wanted = example.embed(dense, batcher, texts)
    report = fk.freeze_(dense, fk.FreezeConfig(code="stored", sparsity=0.0), lambda module, name: True)
    assert len(report.converted) == 36 and {c.code for c in report.converted} == {"stored"}
    assert {why for _, why in report.skipped} == {"embeddings have no stored weights: it stays dense"}
    fk.finalize_(dense)
    fk.save_ticket(dense, tmp_path / "minilm")
    loaded = fk.load_ticket(example.build(folder), tmp_path / "minilm", residency="dense")
    assert torch.equal(example.embed(loaded, batcher, texts), wanted)
    fk.set_residency(loaded, "packed")
    torch.testing.assert_close(example.embed(loaded, batcher, texts), wanted, rtol=1e-4, atol=1e-5)


# --- gains --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["none", "static", "dynamic"])
def test_a_gain_is_a_factor_of_the_scale(scaling, tmp_path):
    def config(module, name):
        gain = 2.8 if name.endswith(("query", "key")) else 1.0
        return fk.FreezeConfig(seed=3, scaling=scaling, gain=gain)

    def net():
        return nn.ModuleDict({name: nn.Linear(40, 30, bias=False) for name in ("query", "key", "value")})

    model, plain = net(), net()
    fk.freeze_(model, config)
    fk.freeze_(plain, fk.FreezeConfig(seed=3, scaling=scaling))
    for name, layer in model.items():
        assert torch.equal(layer.keep_mask(), plain[name].keep_mask())
        factor = 2.8 if name != "value" else 1.0
        assert layer.scale == pytest.approx(factor * plain[name].scale, rel=1e-6) and layer.gain is None
    search = fk.EdgePopup(model)
    for scores in search.parameters():
        scores.grad = torch.randn_like(scores)
    torch.optim.SGD(search.parameters(), lr=1.0).step()
    search.step()
    kept = model["query"].counts["kept"]
    exact = 2.8 * (2 / 40) ** 0.5 * {"none": 1.0, "static": 2**0.5, "dynamic": (1200 / kept) ** 0.5}[scaling]
    assert model["query"].scale == pytest.approx(exact, rel=1e-6)
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(net(), tmp_path / "t")
    again = net()
    fk.freeze_(again, config)
    again.load_state_dict(model.state_dict())
    for other in (loaded, again):
        assert all(torch.equal(other[name].weight, layer.weight) for name, layer in model.items())


def test_gains_of_parts_of_a_fused_weight(hf, tmp_path):
    """Query, key and value in one weight: factors on its outputs, in training, tickets and the dense model."""

    def config(module, name):
        fused = name.endswith(("c_attn", "in_proj"))
        return fk.FreezeConfig(seed=3, gain=(2.8, 2.8, 1.0) if fused else 1.0)

    model, given = build(hf, "gpt2").eval(), batch("gpt2")
    fk.freeze_(model, config)
    c_attn = model.transformer.h[1].attn.c_attn
    assert c_attn.gain.tolist() == pytest.approx([2.8] * 64 + [1.0] * 32)
    dense = fk.to_dense(model)
    wanted = dense(**given)
    torch.testing.assert_close(model(**given).logits, wanted.logits, rtol=1e-4, atol=1e-5)
    model(**given).loss.backward()
    wanted.loss.backward()
    inner = dense.transformer.h[1].attn.c_attn.weight.grad * c_attn.gain
    (through,) = torch.autograd.grad(c_attn.weight, c_attn.scores, inner)
    torch.testing.assert_close(c_attn.scores.grad, through, rtol=1e-3, atol=1e-6)
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(build(hf, "gpt2").eval(), tmp_path / "t")
    assert torch.equal(loaded(**given).logits, model(**given).logits)
    c_attn.reset_parameters()
    assert c_attn.gain.tolist() == pytest.approx([2.8] * 64 + [1.0] * 32)


def test_gains_of_an_attention():
    holder = nn.ModuleDict({"a": nn.MultiheadAttention(12, 2, batch_first=True)})
    fk.freeze_(holder, lambda module, name: fk.FreezeConfig(gain=(2.8, 2.8, 1) if "in_proj" in name else 1))
    x = torch.randn(2, 5, 12)
    dense = fk.to_dense(holder)["a"]
    torch.testing.assert_close(holder["a"](x, x, x), dense(x, x, x))
    torch.testing.assert_close(holder["a"].in_proj_weight, dense.in_proj_weight.detach())


def test_gains_that_do_not_fit_are_refused():
    for gain in (0, -1.0, float("nan"), float("inf"), True, "2", (), (1.0, 0.0), None):
        with pytest.raises(ValueError, match="gain: "):
            fk.FreezeConfig(gain=gain)
    with pytest.raises(ValueError, match=r"gain: stored weights stay as they are, 1.0, got 2.0"):
        fk.FreezeConfig(code="stored", gain=2)
    model = nn.Sequential(nn.Embedding(9, 10), nn.Linear(10, 8), nn.Linear(8, 9))
    before = [id(m) for m in model.modules()]
    config = fk.FreezeConfig(gain=(2.8, 2.8, 1.0))
    with pytest.raises(ValueError, match="'1': gain: 3 factors for equal parts of the outputs, of which there are 8"):
        fk.freeze_(model, config)
    with pytest.raises(ValueError, match="'0': gain: one factor for an embedding"):
        fk.freeze_(model, config, filter_fn=everything)
    assert [id(m) for m in model.modules()] == before
    with pytest.raises(ValueError, match="gain: one factor for an embedding"):
        fk.nn.FrozenEmbedding(9, 9, config=config)
    up = fk.nn.FrozenConvTranspose1d(4, 6, 3, groups=2, gain=(2.0, 1.0))
    assert up.gain.tolist() == [2, 2, 2, 1, 1, 1]
