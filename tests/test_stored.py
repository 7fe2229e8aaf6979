"""Stored weights as torch modules: values and gradients, states, copies, dtypes, wrappers of torch, tickets."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from stored_cases import images, in_stream, jackpot, pretrained, stored_layers
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format as fmt

TWINS = {
    "linear": (nn.Linear(37, 5), (3, 37)),
    "conv1d": (nn.Conv1d(4, 6, 5, 2, 3, groups=2), (2, 4, 11)),
    "conv2d": (nn.Conv2d(3, 5, (2, 3), padding="same"), (2, 3, 6, 7)),
    "conv2d-circular": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (2, 3, 6, 7)),
    "conv3d": (nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 3, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(3, 4, 3, 2, output_padding=1), (2, 3, 7)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), (2, 4, 5, 6)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 4, 2)),
}
VALUES = tuple(fmt.VALUE_DTYPES)


def masked(plain: nn.Module, keep: torch.Tensor) -> nn.Module:
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.weight[~keep] = 0
    return twin


def frozen(plain: nn.Module, sparsity: float = 0.7, **settings) -> fk.nn.FrozenLayer:
    config = fk.FreezeConfig(code="stored", sparsity=sparsity, **settings)
    return fk.nn.layers.TWINS[type(plain)].from_module(copy.deepcopy(plain), config)


@pytest.mark.parametrize("name", TWINS)
def test_values_and_gradients_of_torchs_layer(name):
    plain, size = TWINS[name]
    layer, x = frozen(plain), torch.randn(size)
    twin = masked(plain, layer.keep_mask())
    assert layer.counts["kept"] == layer.free - round(0.7 * layer.free)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(a), twin(b)
    assert torch.equal(y, expected)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(a.grad, b.grad)
    straight_through = in_stream(twin.weight.grad * plain.weight.detach())
    torch.testing.assert_close(layer.scores.grad, straight_through)
    # through the op, as wherever something watches
    layer.scores.grad = None
    with torch.autograd.profiler.profile(use_kineto=False):
        layer(x).backward(grad)
    torch.testing.assert_close(layer.scores.grad, straight_through)
    layer.finalize()
    torch.testing.assert_close(layer(x), expected)
    assert layer.residency == "packed" and layer.values.numel() == layer.counts["kept"] and layer.scores is None
    a.grad = None
    layer(a).backward(grad)
    torch.testing.assert_close(a.grad, b.grad)
    for residency in ("dense", "packed"):
        layer.set_residency(residency)
        torch.testing.assert_close(layer(x), expected)
        assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("values", VALUES)
def test_packed_values_are_rounded_once(values):
    layer = frozen(TWINS["conv2d"][0])
    keep, exact = layer.keep_mask(), layer.values.clone()
    layer.finalize(values)
    if values == "int8":
        rows = torch.where(keep, exact, 0.0).flatten(1)
        scale = rows.abs().amax(1) / 127
        expected = ((rows / scale[:, None]).round() * scale[:, None]).view(exact.shape)
        assert torch.equal(layer.row_scale, scale) and layer.values.dtype == torch.int8
    else:
        expected = torch.where(keep, exact.to(fmt.VALUE_DTYPES[values]).float(), 0.0)
        assert layer.row_scale is None
    assert torch.equal(layer.weight, expected) and torch.equal(layer.keep_mask(), keep)
    layer.to(torch.bfloat16)
    assert layer.values.dtype == fmt.VALUE_DTYPES[values]  # not rounded again
    assert layer.row_scale is None or layer.row_scale.dtype == torch.float32
    assert torch.equal(layer.weight, expected.bfloat16())
    layer.to(torch.float32)
    assert torch.equal(layer.weight, expected)


def test_what_cannot_be_packed():
    layer = frozen(nn.Linear(4, 3), 0.0)
    with torch.no_grad():
        layer.values[1, 2] = 1e30
    for values, match in (
        ("float16", "values: 1 of the 12 kept have no float16"),
        ("float64", "values: one of float32, float16, bfloat16, int8, got 'float64'"),
    ):
        with pytest.raises(ValueError, match=match):
            layer.finalize(values)
        assert layer.scores is not None and layer.residency == "dense"
    model = nn.Sequential(frozen(nn.Linear(4, 3)), layer)
    with pytest.raises(ValueError, match=r"^1: values: 1 of the 12"):
        fk.finalize_(model, "float16")
    assert model[0].scores is not None
    with pytest.raises(ValueError, match="got 'float64' for a layer of float64"):
        frozen(nn.Linear(4, 3, dtype=torch.float64)).finalize()
    layer.finalize("int8")
    with pytest.raises(ValueError, match=r"they are torch\.int8 already"):
        layer.finalize("float32")


def test_not_finite_values_are_kept():
    plain = nn.Linear(4, 2)
    with torch.no_grad():
        plain.weight[0] = torch.tensor([torch.nan, torch.inf, 3.0, 0.1])
    layer = frozen(plain, 0.5)
    assert layer.keep_mask()[0, :2].all()
    layer.finalize("float16")
    assert layer.weight[0, 0].isnan() and layer.weight[0, 1] == torch.inf
    with pytest.raises(ValueError, match="kept have no int8"):
        layer.tune_weights()
        layer.finalize("int8")


def test_states():
    plain = TWINS["conv2d"][0]
    searched, packed = frozen(plain), frozen(plain)
    packed.finalize("int8")
    x = torch.randn(2, 3, 6, 7)
    for source in (searched, packed):
        target = frozen(nn.Conv2d(3, 5, (2, 3), padding="same"))
        if source is packed:
            target.finalize("int8")
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        for copied in (target, copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
            assert torch.equal(copied(x), source(x)) and torch.equal(copied.keep_mask(), source.keep_mask())
            assert copied.residency == source.residency
    with pytest.raises(RuntimeError, match=r"values: \[27\] in the state, \[5, 3, 2, 3\] in the layer"):
        searched.load_state_dict({**packed.state_dict(), "scores": searched.scores})
    state = packed.state_dict()
    for change, match in (
        ({"values": state["values"][:-1]}, r"values: \[26\] in the state, \[27\] in the layer"),
        ({"values": state["values"].double()}, "values: torch.float64, one of"),
        ({"row_scale": state["row_scale"][1:]}, r"row_scale: \[4\] for torch.int8 values of 5 rows"),
        ({"values": None}, "values: missing"),
    ):
        before = packed.weight.clone()
        with pytest.raises(RuntimeError, match=match):
            packed.load_state_dict({k: v for k, v in (state | change).items() if v is not None})
        assert torch.equal(packed.weight, before)


def test_what_a_stored_layer_refuses():
    with pytest.raises(ValueError, match=r"weight: a stored layer is made of one \[2, 3\], got None; use from_module"):
        fk.nn.FrozenLinear(3, 2, code="stored")
    layer = frozen(nn.Linear(8, 4))
    with pytest.raises(RuntimeError, match="no seed to draw it from again"):
        layer.reset_parameters()
    with pytest.raises(ValueError, match="residency: one of packed, dense for code 'stored', got 'mask'"):
        layer.set_residency("mask")
    with pytest.raises(ValueError, match="'packed' is for a finalized layer"):
        layer.set_residency("packed")
    layer.finalize()
    with pytest.raises(RuntimeError, match="the values of its 22 dropped weights are gone"):
        layer.set_keep_mask(~layer.keep_mask())
    embedding = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    report = fk.freeze_(embedding, fk.FreezeConfig(code="stored"), lambda module, name: True)
    assert dict(report.skipped)["0"].startswith("embeddings have no stored weights")


def test_compiled_exported_and_cast():
    model, x = pretrained().eval(), images()
    jackpot(model)
    for _ in range(2):  # searched, then packed
        y = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), y)
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), y, rtol=0.05, atol=0.05)
        fk.finalize_(model)


def test_folded_and_dense_again():
    torch.manual_seed(3)
    model, x = pretrained(), images(16)
    model(x)
    model.eval()
    jackpot(model)
    fk.finalize_(model)
    y = model(x)
    dense = fk.to_dense(model)
    torch.testing.assert_close(dense(x), y)
    assert not stored_layers(dense) and type(dense[5]) is nn.ConvTranspose2d
    fk.fold_batch_norm_(model)
    assert model[0].gain is not None
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fk.to_dense(model)(x), y, rtol=1e-4, atol=1e-5)


def test_second_derivatives():
    layer = frozen(nn.Linear(6, 3))
    x = torch.randn(2, 6)

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"scores": scores}, (x,)).square().sum()

    scores = layer.scores.detach()
    (by_hand,) = torch.autograd.grad(loss(layer.scores), layer.scores)
    torch.testing.assert_close(torch.func.grad(loss)(scores), by_hand)
    v = torch.randn_like(scores)
    hv = torch.autograd.functional.hvp(loss, scores, v)[1]
    change = fmt.from_stream(v, 3, 6) * layer.values
    expected = 2 * (x @ change.T).T @ x
    torch.testing.assert_close(hv, in_stream(expected * layer.values))


def ticket_model(values: str) -> nn.Sequential:
    torch.manual_seed(1)
    model = pretrained()
    jackpot(model)
    fk.freeze_(model, fk.FreezeConfig(seed=3), lambda module, name: name == "10")  # drawn and stored in one file
    fk.finalize_(model, values)
    return model


@pytest.mark.parametrize("values", VALUES)
def test_tickets(values, tmp_path):
    model, x, path = ticket_model(values), images(), tmp_path / "t.safetensors"
    model.eval()
    y = model(x)
    fk.save_ticket(model, path)
    ticket = fk.tickets.file.read_ticket(path)
    assert ticket.metadata["frozen_kernels.requires"] == '["stored"]'
    assert [r.values for r in ticket.records] == [values] * 4 + [None]
    fk.tickets.file.verify_ticket(ticket)
    with torch.device("meta"):
        empty = pretrained()
    for target in (pretrained(), ticket_model("float32"), empty):
        fk.load_ticket(target, path)
        target.eval()
        assert torch.equal(target(x), y)
        assert [m.residency for m in stored_layers(target).values()] == ["packed"] * 4 + ["mask"]
        fk.save_ticket(target, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    footprint = fk.footprint(model)
    assert footprint.totals()["disk"]["total"] == path.stat().st_size
    for residency, wanted in (("dense", ["dense"] * 5), ("seed", ["packed"] * 4 + ["seed"])):
        target = fk.load_ticket(pretrained(), path, residency=residency).eval()
        assert [m.residency for m in stored_layers(target).values()] == wanted
        torch.testing.assert_close(target(x), y)


def test_a_ticket_of_a_search_has_the_values_that_it_keeps(tmp_path):
    model = pretrained()
    jackpot(model)
    fk.save_ticket(model, tmp_path / "t")
    layer = stored_layers(model)["0"]
    tensors = fk.tickets.file.read_ticket(tmp_path / "t").tensors
    assert torch.equal(tensors["0.values"], in_stream(layer.values)[in_stream(layer.keep_mask())])
    assert "0.scores" not in tensors and layer.scores is not None


def test_report_and_residencies():
    model = ticket_model("float32")
    report = fk.set_residency(model, "planes")
    assert list(report.values()) == ["packed"] * 4 + ["planes"]
    assert report.reasons["0"] == "stays: code stored has no planes"
    assert list(fk.set_residency(model, "dense").values()) == ["dense"] * 5
    assert fk.set_residency(model, "packed")["0"] == "packed"
    assert "code=stored, kept=" in repr(model)
    drawn = nn.Sequential(nn.Linear(3, 3))
    fk.freeze_(drawn)
    with pytest.raises(ValueError, match="residency: 'packed', which no layer of code sign has"):
        fk.set_residency(drawn, "packed")
    searched = pretrained()
    jackpot(searched)
    with pytest.raises(ValueError, match="'packed' is for finalized layers, and '0' is searched"):
        fk.set_residency(searched, "packed")
    assert set(fk.set_residency(searched, "auto").values()) == {"dense"}
    json.loads(fk.footprint(model).to_json())


def test_resident_bytes_are_values_and_bits():
    layer = frozen(nn.Linear(1024, 64, bias=False), 0.9)
    layer.finalize("float16")
    held = fk.footprint(nn.Sequential(layer)).layers[0]
    count, kept = 64 * 1024, layer.counts["kept"]
    assert held.disk == count // 8 + 2 * kept
    assert held.resident == 32 + count // 8 + 2 * kept + 8 * (64 + 1)


def test_freezing_a_meta_model():
    with torch.device("meta"):
        model = pretrained()
    report = jackpot(model, 0.9, "uniform")
    assert all(c.kept == c.weights - round(0.9 * c.weights) for c in report.converted)


def test_training_of_a_dropped_module_changes_no_stored_value():
    plain = nn.Linear(4, 3)
    layer = frozen(plain)
    before = layer.values.clone()
    with torch.no_grad():
        plain.weight.zero_()
    assert torch.equal(layer.values, before)
    y = layer(torch.ones(2, 4))
    with torch.no_grad():
        layer.scores.neg_()
    layer.swap_(layer.wanted_swaps(layer.counts["kept"], 1.0))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_linear_with_the_ordinary_way(monkeypatch):
    """Functional calls on a record: packed, dense and searched give torch's results."""
    w, keep = torch.randn(5, 37), torch.rand(5, 37) < 0.3
    x = torch.randn(3, 37)
    for residency in ("packed", "dense"):
        record = fk.FrozenTensor.stored(w, keep, residency=residency)
        torch.testing.assert_close(fk.functional.linear(x, record), F.linear(x, w * keep))
    with pytest.raises(ValueError, match=r"keep: bool \[5, 37\], got"):
        fk.FrozenTensor.stored(w, keep[1:])


def test_auto_goes_by_the_table(monkeypatch, tmp_path):
    from frozen_kernels.memory import crossover
    from frozen_kernels.memory.crossover import Cell, Table

    level = crossover.active_level()
    if level is None:
        pytest.skip("no extension")
    table = tmp_path / "table.json"
    monkeypatch.setenv(crossover.VARIABLE, str(table))

    def write(**factors: float) -> None:
        codes = {f"stored {s}": [Cell("linear", 64, 32, 1, f, f, None, 0.0)] for s, f in factors.items()}
        crossover.write(Table({}, {name: {"float32": codes} for name in (level, "vnni")}), table)

    def chosen(sparsity: float, **options) -> tuple[str, str]:
        model = nn.Sequential(frozen(nn.Linear(32, 64), sparsity))
        fk.finalize_(model)
        report = fk.set_residency(model, "auto", **options)
        return report["0"], report.reasons["0"]

    write(**{"0.5": 0.4, "0.8": 0.9, "0.9": 2.0})
    assert chosen(0.9)[0] == chosen(0.95)[0] == "packed" and "packed 2.00 times as fast" in chosen(0.9)[1]
    assert chosen(0.85)[0] == chosen(0.5)[0] == "dense"  # by the next lower sparsity that was measured
    assert chosen(0.85, auto="memory")[0] == "packed" and chosen(0.6, auto="memory")[0] == "dense"
    assert chosen(0.3) == ("dense", "fewer than 50% of its weights are dropped")
    assert chosen(0.3, auto="memory")[0] == "dense"
