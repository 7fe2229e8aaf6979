"""`fk.importers.ternary_` and tickets of stored signs: exact, whole, and refused where a layer is not ternary."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from signs_cases import LAYERS, plain
from ticket_cases import joined, parts, signs_ticket, small
from torch import nn

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels.importers import ternary_


def one(weight: torch.Tensor, **like) -> nn.Sequential:
    layer = nn.Linear(weight.shape[1], weight.shape[0], **like)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return nn.Sequential(layer)


def signed(*shape: int) -> torch.Tensor:
    """-1, 0 and 1, all of them in each row of three columns and more."""
    found = torch.randint(-1, 2, shape).float()
    found[..., :3] = torch.tensor([-1.0, 0.0, 1.0])[: shape[-1]]
    return found


# what is imported


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_scale_is_exact(dtype):
    scale = torch.tensor(0.1, dtype=dtype if dtype != torch.float64 else torch.float32)
    model = one(signed(4, 9) * scale.to(torch.float64), dtype=dtype)
    before = model[0].weight.detach().clone()
    report = ternary_(model)
    assert report.layers[0].values == f"scale {float(scale):.6g}"
    assert model[0].scale == float(scale) and model[0].row_scale is None
    assert model[0].dtype == dtype and torch.equal(model[0].weight, before)


def test_scales_of_rows_and_rows_of_zeros():
    weight = signed(5, 33) * torch.tensor([0.1, 3.0, 0.0, 1e-30, 0.7])[:, None]
    weight[0, :5] *= -1.0
    model = one(weight)
    assert (weight == 0).any() and (weight.signbit() & (weight == 0)).any()  # -0.0 among them
    ternary_(model)
    assert torch.equal(model[0].weight, weight + 0.0) and torch.equal(
        model[0].row_scale, torch.tensor([0.1, 3.0, 0.0, 1e-30, 0.7])
    )
    zero = one(torch.zeros(3, 4))
    assert ternary_(zero).kept == 0 and torch.equal(zero(torch.ones(1, 4))[0], zero[0].bias)
    same = one(signed(3, 4) * torch.tensor([0.5, 0.0, 0.5])[:, None])
    ternary_(same)
    assert same[0].scale == 0.5 and same[0].row_scale is None


def test_a_large_weight_is_looked_at_in_parts(monkeypatch):
    monkeypatch.setattr("frozen_kernels.importers.ternary._ROWS", 20)
    weight = signed(7, 9) * torch.arange(1.0, 8)[:, None]
    model = one(weight)
    ternary_(model)
    assert torch.equal(model[0].weight, weight)
    weight[5, 2] = 0.25
    with pytest.raises(ValueError, match=r"'0.weight': row 5: "):
        ternary_(one(weight), lambda module, name: True)


def test_what_a_module_has_stays():
    layer, size = plain("conv2d", False)
    model, calls = nn.Sequential(layer).eval(), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    bias = layer.bias
    bias.requires_grad_(False)
    ternary_(model)
    model(torch.ones(1, *size))
    assert model[0].bias is bias and calls == [1] and not model[0].training and not model[0].bias.requires_grad


def test_tied_weights_stay_one():
    first, second = nn.Linear(9, 9), nn.Linear(9, 9)
    second.weight = first.weight
    with torch.no_grad():
        first.weight.copy_(signed(9, 9))
    model = nn.Sequential(first, second)
    ternary_(model)
    assert model[0].identity == model[1].identity
    found = fk.footprint(model)
    assert [layer.shared for layer in found.layers] == [False, True]


# what is passed over


class _Quantised(nn.Linear):
    """As transformers' AutoBitLinear: a linear layer that does more than its weight says."""


class _Unpacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(4, 4, dtype=torch.uint8))


def test_what_is_passed_over_is_told():
    table = nn.Embedding(5, 4)
    head = nn.Linear(4, 5, bias=False)
    head.weight = table.weight
    model = nn.ModuleDict(
        {
            "table": table, "head": head, "quantised": _Quantised(4, 4), "unpacked": _Unpacked(),
            "four": nn.Linear(3, 1), "good": nn.Linear(4, 4),
        }
    )  # fmt: skip
    with torch.no_grad():
        model["good"].weight.copy_(signed(4, 4))
        model["four"].weight.copy_(torch.tensor([[0.5, -0.25, 0.0]]))
    report = ternary_(model)
    why = dict(report.skipped)
    assert [entry.name for entry in report.layers] == ["good"]
    assert why["table"] == "embeddings are not imported" and "shares its weight with 'table'" in why["head"]
    assert "subclass _Quantised" in why["quantised"] and "_Unpacked has no frozen twin" in why["unpacked"]
    assert why["four"] == "weight: row 0: 3 values: -0.25, 0, 0.5; -a, 0 and a expected"
    assert all(name in str(report) for name in model)
    again = ternary_(model)
    assert not again.layers and dict(again.skipped)["good"] == "already frozen"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.5, r"'0.weight': row 2: 4 values: -1, 0, 0.5, 1; -a, 0 and a expected"),
        (float("nan"), r"'0.weight': row 2: nan, finite weights expected"),
        (float("-inf"), r"'0.weight': row 2: -inf, finite weights expected"),
    ],
)
def test_a_layer_that_is_asked_for_must_be_ternary(value, told):
    weight = signed(4, 9)
    weight[2, 8] = value
    model = nn.Sequential(*one(weight), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight.copy_(signed(4, 4))
    layers = list(model)
    with pytest.raises(ValueError, match=told):
        ternary_(model, lambda module, name: True)
    assert list(model) == layers  # unchanged
    report = ternary_(model)
    assert [entry.name for entry in report.layers] == ["1"] and told.split(": ", 1)[1] in dict(report.skipped)["0"]


def test_a_magnitude_that_is_no_float32():
    model = one(signed(2, 3).double() * 0.1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"'0.weight': row 0: 0\.10000000000000001, which is not a float32"):
        ternary_(model, lambda module, name: True)


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: fk.nn.FrozenLinear(3, 3)])
def test_a_bare_layer(make):
    layer = make()
    if isinstance(layer, nn.Linear):
        with pytest.raises(ValueError, match="model: a bare Linear"):
            ternary_(layer)
    else:
        assert ternary_(layer).skipped == [("", "already frozen")]


# encoders


def ternarised(model: nn.Module, by_row: bool) -> nn.Module:
    """The model with the weights of its linear layers rounded as BitNet's are: to -a, 0 and a, a their mean size."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                scale = module.weight.abs().mean(**({"dim": 1, "keepdim": True} if by_row else {}))
                module.weight.copy_((module.weight / scale).round().clamp(-1, 1) * scale)
    return model.eval()


@pytest.mark.parametrize(
    ("layers", "hidden", "by_row"),
    [(2, 96, True), pytest.param(12, 768, False, marks=pytest.mark.long), (1, 96, False)],
)
def test_a_ternary_bert_is_the_dense_one(layers, hidden, by_row):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden, initializer_range=0.1,
    )  # fmt: skip
    model = ternarised(transformers.BertModel(config), by_row)
    tokens = torch.randint(200, (2, 24))
    with torch.no_grad():
        plain = model(tokens).last_hidden_state
        exact = copy.deepcopy(model).double()(tokens).last_hidden_state
        report = ternary_(model)
        assert len(report.layers) == 6 * layers + 1  # with the pooler
        ours = model(tokens).last_hidden_state
    assert fk.footprint(model).bits("resident") <= (2.05 if hidden >= 768 else 3)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_a_bitnet_from_its_config():
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "BitNetForCausalLM"):
        pytest.skip("this release of transformers has no BitNet")
    torch.manual_seed(0)
    config = transformers.BitNetConfig(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.BitNetForCausalLM(config)
    head = model.lm_head.weight.detach().clone()
    ternarised(model, False)
    with torch.no_grad():
        model.lm_head.weight.copy_(head)
        tokens = torch.randint(100, (1, 7))
        before = model(tokens).logits
        report = ternary_(model)
        assert len(report.layers) == 7 and "shares its weight with" in dict(report.skipped)["lm_head"]
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-4)
        told = {"do_sample": False, "max_new_tokens": 4}
        assert model.generate(tokens, **told).shape == (1, 11)


# tickets


@pytest.mark.parametrize("name", LAYERS)
def test_tickets_give_the_same_weight(tmp_path, name):
    layer, size = plain(name, True)
    model, target = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
    x = torch.randn(2, *size)
    ternary_(model)
    fk.save_ticket(model, tmp_path / "a")
    with torch.no_grad():
        target[0].weight.zero_()
    fk.load_ticket(target, tmp_path / "a")
    assert torch.equal(target[0].weight, model[0].weight) and torch.equal(target(x), model(x))
    fk.load_ticket(target, tmp_path / "a", residency="dense")
    assert target[0].residency == "dense" and torch.equal(target[0].weight, model[0].weight)
    fk.save_ticket(target, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_ticket_changes_the_code_of_a_frozen_layer(tmp_path):
    _, model = signs_ticket(tmp_path / "t")
    target = small()
    fk.freeze_(target, fk.FreezeConfig(code="uniform"))
    fk.load_ticket(target, tmp_path / "t")
    assert target[0].residency == "planes" and torch.equal(target[0].weight, model[0].weight)
    assert target[0].scores is None and target[0].identity != target[2].identity
    with torch.device("meta"):
        target = small()
    fk.load_ticket(target, tmp_path / "t")
    assert torch.equal(target[2].weight, model[2].weight)


def test_a_ticket_of_a_search_and_its_size(tmp_path):
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    fk.freeze_(model, fk.FreezeConfig(code="signs", sparsity=0.75, scope="local"))
    fk.save_ticket(model, tmp_path / "t")
    ticket = fk.tickets.file.read_ticket(tmp_path / "t")
    assert {name: t.numel() for name, t in ticket.tensors.items()} == {"0.supermask": 8192, "0.signs": 2048}
    assert ticket.metadata["frozen_kernels.requires"] == '["signs"]'
    fk.tickets.file.verify_ticket(ticket)
    target = nn.Sequential(nn.Linear(256, 256, bias=False))
    fk.load_ticket(target, tmp_path / "t")
    assert torch.equal(target[0].weight, model[0].weight)


def change(file: bytes, name: str, value: bytes | None, record: dict | None = None) -> bytes:
    """A ticket with the bytes of one tensor replaced, or without it, and fields of the first record."""
    metadata, entries, body = parts(file)
    records = json.loads(metadata["frozen_kernels.tensors"])
    records[0].update(record or {})
    metadata["frozen_kernels.tensors"] = json.dumps(records)
    start, end = entries[name]["data_offsets"]
    if value is None:
        del entries[name]
        gone = end - start
        body = body[:start] + body[end:]
        for entry in entries.values():
            if entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [at - gone for at in entry["data_offsets"]]
    else:
        body = body[:start] + value + body[end:]
    return joined(metadata, entries, body)


@pytest.mark.parametrize(
    ("name", "value", "record", "told"),
    [
        ("0.signs", None, None, "'0.signs': missing"),
        ("0.signs", b"\xff" * 6, None, r"'0'.signs: bits are set after the last of \d+ kept weights"),
        ("0.row_scale", b"\xff" * 28, None, "'0'.row_scale: 0 or more and finite"),
        ("0.signs", b"\x00" * 6, {"seed": "3"}, "seed: 0 of a signs weight, got 3"),
        ("0.signs", b"\x00" * 6, {"tau_freeze": 1}, "tau_freeze: 0 of a signs weight, got 1"),
        ("0.signs", b"\x00" * 6, {"code": "sign"}, "seed 0 and stream 0|requires|not in the model"),
    ],
)
def test_tickets_that_are_refused(tmp_path, name, value, record, told):
    file, _ = signs_ticket(tmp_path / "t")
    size = parts(file)[1]["0.signs"]["shape"][0]
    value = value[: size if name == "0.signs" else None] if value is not None else None
    (tmp_path / "bad").write_bytes(change(file, name, value, record))
    target = small()
    with pytest.raises(fk.TicketError, match=told):
        fk.load_ticket(target, tmp_path / "bad")
    assert type(target[0]) is nn.Linear


def test_a_ticket_without_row_scales_is_one_of_the_scale(tmp_path):
    file, model = signs_ticket(tmp_path / "t")
    (tmp_path / "other").write_bytes(change(file, "0.row_scale", None, {"scale": (0.25).hex()}))
    target = small()
    fk.load_ticket(target, tmp_path / "other")
    assert target[0].row_scale is None
    assert torch.equal(target[0].weight, model[0].weight.sign() * 0.25)


def test_attention_and_what_holds_its_weight_turned(monkeypatch):
    torch.manual_seed(1)
    model = nn.ModuleList([nn.Linear(6, 4), nn.MultiheadAttention(6, 2, batch_first=True), nn.MultiheadAttention(6, 2)])
    with torch.no_grad():
        for weight in (model[0].weight, model[1].in_proj_weight, model[1].out_proj.weight):
            weight.copy_(weight.sign() * (weight.abs() > 0.1) * torch.arange(1, 1 + len(weight)).unsqueeze(1))
    x = torch.randn(2, 3, 6)
    right = model[0](x), model[1].eval()(x, x, x)[0]
    report = fk.importers.ternary_(model)
    assert [layer.name for layer in report.layers] == ["0", "1.in_proj", "1.out_proj"]
    assert {name for name, _ in report.skipped} == {"2.in_proj", "2.out_proj"} and type(
        model[2]
    ) is nn.MultiheadAttention
    torch.testing.assert_close((model[0](x), model[1](x, x, x)[0]), right, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a bare MultiheadAttention cannot be replaced"):
        fk.importers.ternary_(nn.MultiheadAttention(6, 2))


def test_conv1d_is_ternary_by_its_outputs():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils", reason="needs transformers, the extra minilm")
    model = nn.Sequential(pytorch_utils.Conv1D(5, 7))
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-1, 2, (7, 5)) * torch.arange(1.0, 6.0))
    x = torch.randn(3, 7)
    right = model(x)
    assert len(fk.importers.ternary_(model).layers) == 1
    torch.testing.assert_close(model(x), right)


def test_the_command_line(tmp_path, capsys):
    signs_ticket(tmp_path / "t")
    for command in ("inspect", "verify", "footprint"):
        assert cli.main([command, str(tmp_path / "t")]) == 0
    printed = capsys.readouterr().out
    assert "signs" in printed and "2 keep planes regenerate as written" in printed and "stored signs" in printed
    planes = next(line.split() for line in printed.splitlines() if line.startswith("planes"))
    model = small()
    fk.load_ticket(model, tmp_path / "t")
    assert int(planes[1].replace(",", "")) == sum(layer.resident for layer in fk.footprint(model).layers)
