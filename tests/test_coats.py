"""Several coats: weights count * code * scale, as sums of ordinary calls, in layers and in tickets."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from helpers import CODES, gather_free, make_frozen, matrix_of, score_gradient, weight_of
from ticket_cases import joined, layered_ticket, parts, small
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels import coats as coating
from frozen_kernels import format as fmt
from frozen_kernels import functional as FK

RESIDENCIES = ("mask", "planes", "dense")

# weight, input, arguments behind the bias: of torch's function and of ours alike
CASES = {
    "linear": ((7, 70), (3, 2, 70), {}),
    "conv1d": ((6, 3, 5), (2, 6, 11), {"stride": 2, "padding": 3, "groups": 2}),
    "conv2d": ((4, 5, 3, 3), (2, 5, 7, 6), {"padding": 1, "dilation": 2}),
    "conv3d": ((3, 2, 2, 1, 3), (1, 2, 4, 3, 5), {"stride": (2, 1, 1)}),
    "conv_transpose1d": ((4, 3, 4), (2, 4, 5), {"stride": 3, "output_padding": 1}),
    "conv_transpose2d": ((6, 2, 3, 2), (2, 6, 4, 5), {"stride": 2, "padding": 1, "groups": 2}),
    "conv_transpose3d": ((2, 3, 2, 2, 1), (1, 2, 3, 2, 3), {}),
}
MIXED = [(name, CODES[i % 4], RESIDENCIES[i % 3]) for i, name in enumerate(CASES)]
MIXED += [("linear", code, residency) for code in CODES for residency in RESIDENCIES]


def coated(shape, code, residency, coats=3, dtype=torch.float32, **settings):
    """A record in coats with scores, its float64 weight by the definition, and the float64 weight of one coat."""
    record, first = make_frozen(shape, code, "mask", **settings)
    planes, whole, kept = [], first.clone(), first != 0
    for _ in range(coats - 1):
        kept = kept & (torch.rand(kept.shape) < 0.6)
        planes.append(fmt.planes(fmt.to_matrix(kept).contiguous()))
        whole = whole + torch.where(kept, first, 0.0)
    record = record._replace(coats=torch.stack(planes))
    return record.hold(residency, dtype, with_offsets=True)._replace(scores=record.scores), whole


def integers(*shape):
    return torch.randint(-4, 5, shape).to(torch.float32)


@pytest.mark.parametrize(("name", "code", "residency"), MIXED)
def test_products_and_gradients_are_exact(backend, name, code, residency):
    shape, size, settings = CASES[name]
    frozen, weight = coated(shape, code, residency)
    channels = shape[1] * settings.get("groups", 1) if "transpose" in name else shape[0]
    x = integers(*size).requires_grad_()
    bias, gain = integers(channels).requires_grad_(), integers(channels)
    scores = frozen.scores.clone().requires_grad_()
    y = getattr(FK, name)(x, frozen._replace(scores=scores), bias, gain=gain, relu=True, **settings)
    exact = x.detach().double().requires_grad_()
    weight.requires_grad_()
    plain = getattr(F, name)(exact, weight, **settings)
    along = (-1, *[1] * (plain.dim() - 2)) if name != "linear" else (-1,)
    right = (plain * gain.double().view(along) + bias.detach().double().view(along)).relu()
    assert torch.equal(y.double(), right)
    grad = integers(*y.shape)
    y.backward(grad)
    right.backward(grad.double())
    assert torch.equal(x.grad.double(), exact.grad)
    wanted = score_gradient(frozen, weight.grad, scores.detach())  # once, and not once a coat
    torch.testing.assert_close(scores.grad.double(), wanted, rtol=1e-6, atol=0)
    assert torch.equal(bias.grad, ((y > 0) * grad).sum([d for d in range(y.dim()) if y.dim() - d != len(along)]))


@pytest.mark.parametrize("code", CODES)
def test_weight_and_embedding(backend, code):
    """float32(count * code) * scale, rounded once, and rows of it."""
    frozen, weight = coated((9, 40), code, "mask", coats=5, scale=0.3)
    scale = torch.tensor(0.3)
    counts = (weight / fmt.header_fields(frozen.header)["scale"]).round().to(torch.float32)
    assert torch.equal(frozen.weight(), counts * scale)
    assert torch.equal(frozen.weight(torch.bfloat16), (counts * scale).to(torch.bfloat16))
    scores = frozen.scores.clone().requires_grad_()
    indices = torch.tensor([[3, 0, 8], [3, 2, 2]])
    rows = FK.embedding(indices, frozen._replace(scores=scores), padding_idx=2)
    assert torch.equal(rows, F.embedding(indices, (counts * scale).index_fill(0, torch.tensor(2), 0.0)))
    rows.backward(grad := integers(2, 3, 40))
    grad_weight = torch.zeros(9, 40).index_add_(0, indices.flatten(), grad.reshape(6, 40))
    grad_weight[2] = 0
    wanted = score_gradient(frozen, grad_weight, scores.detach())
    torch.testing.assert_close(scores.grad.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_rounded_once(dtype):
    frozen, weight = coated((5, 64), "uniform", "planes", scale=2.0**-8)
    x, bias = integers(4, 64).to(dtype), integers(5).to(dtype)
    exact = (F.linear(x.double(), weight) + bias.double()).to(dtype)
    assert torch.equal(FK.linear(x, frozen, bias), exact)


@pytest.mark.parametrize("code", ["sign", "normal"])
def test_error_is_within_twice_that_of_torch(code):
    frozen, weight = coated((64, 300), code, "mask", coats=4, scale=0.013)
    x = torch.randn(32, 300)
    exact = x.double() @ weight.T
    theirs = (F.linear(x, weight.float()).double() - exact).abs().max()
    assert (FK.linear(x, frozen).double() - exact).abs().max() <= 2 * theirs


def layer(counts_up_to=3, residency="mask", **settings):
    """A layer in coats, and its counts."""
    new = fk.nn.FrozenConv2d(5, 6, 3, padding=1, **{"seed": 3, **settings})
    new.set_residency(residency)
    counts = torch.randint(0, counts_up_to + 1, (new.free,), dtype=torch.uint8)
    new.adopt_counts(counts, coats=counts_up_to)
    return new, counts


@pytest.mark.parametrize("residency", ["seed", *RESIDENCIES])
@pytest.mark.parametrize("code", ["sign", "uniform", "constant"])
def test_counts(code, residency):
    new, counts = layer(4, residency, code=code)
    assert new.residency == ("mask" if residency == "seed" else residency)
    partition, found = new.partition(), new.coat_counts()
    assert torch.equal(gather_free(matrix_of(found), matrix_of(partition)), counts)
    assert (found[partition == 1] == 1).all() and (found[partition == -1] == 0).all()
    assert torch.equal(new.keep_mask(), found > 0)
    assert new.counts["kept"] == int((found > 0).sum())
    assert new.coat_kept() == [int((found >= coat).sum()) for coat in range(1, 5)]
    fields = fmt.header_fields(new.header)
    codes = fmt.codes(6, 45, seed=fields["seed"], stream=fields["stream"], code=code)
    unit = weight_of(codes.float(), new.shape)
    assert torch.equal(new.weight, unit * found * new.scale)
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(new(x), F.conv2d(x, unit * found * new.scale, new.bias, padding=1))


def test_dynamic_scaling_keeps_the_mean_square():
    new, _ = layer(5, scaling="dynamic", code="sign")
    assert (new.weight.detach().double() ** 2).mean().sqrt() == pytest.approx(new.sigma, rel=1e-6)
    again = fk.nn.FrozenConv2d(5, 6, 3, scaling="dynamic", code="sign", sigma=1.0)
    again.load_state_dict(new.state_dict())
    assert again.sigma == pytest.approx(new.sigma, rel=1e-6)


def unchanged(new, before):
    after = new.state_dict()
    return after.keys() == before.keys() and all(torch.equal(v, before[k]) for k, v in after.items())


WRONG = {
    r"counts: 0 to 3 with as many coats, got 4": (lambda n: torch.full((n,), 4, dtype=torch.uint8), 3),
    r"counts: uint8 \[\d+\], got torch.float32 \[\d+\]": (lambda n: torch.full((n,), torch.nan), 3),
    r"counts: uint8 \[\d+\], got torch.uint8 \[\d+\]": (lambda n: torch.zeros(n + 1, dtype=torch.uint8), 3),
    r"coats: an integer from 2 to 255, got 1": (lambda n: torch.zeros(n, dtype=torch.uint8), 1),
    r"coats: an integer from 2 to 255, got 256": (lambda n: torch.zeros(n, dtype=torch.uint8), 256),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_counts(message):
    new, _ = layer()
    before, (counts, coats) = copy.deepcopy(new.state_dict()), WRONG[message]
    with pytest.raises(ValueError, match=message):
        new.adopt_counts(counts(new.free), coats=coats)
    assert unchanged(new, before)


def test_stored_layers_have_no_coats():
    new = fk.nn.FrozenLinear.from_module(nn.Linear(8, 4), fk.FreezeConfig(code="stored"))
    with pytest.raises(ValueError, match="of drawn weights and signs, got those of a stored layer"):
        new.adopt_counts(torch.zeros(32, dtype=torch.uint8), coats=2)


def test_residencies():
    new, _ = layer(code="uniform")
    weight = new.weight.clone()
    for residency in (*RESIDENCIES, *RESIDENCIES[::-1]):
        new.set_residency(residency)
        assert torch.equal(new.weight, weight) and new.coats.shape[0] == 2
    with pytest.raises(ValueError, match=r"residency: one of mask, planes, dense .* in coats, got 'seed'"):
        new.set_residency("seed")
    report = fk.set_residency(nn.Sequential(new, fk.nn.FrozenLinear(4, 3)), "seed")
    assert report["0"] == new.residency == "mask"
    assert report.reasons["0"] == "stays: several coats has no seed" and report["1"] == "seed"
    new.finalize()
    assert torch.equal(new.weight, weight) and new.scores is None
    held = sum(b.nbytes for b in new.buffers())
    assert held == fk.tensor.resident_bytes(new.shape, "uniform", new.free, new.residency, coats=3)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_copies(residency):
    new, _ = layer(residency=residency, scaling="dynamic")
    x = torch.randn(2, 5, 4, 4)
    file = io.BytesIO()
    torch.save(new.state_dict(), file)
    file.seek(0)
    loaded = fk.nn.FrozenConv2d(5, 6, 3, padding=1, seed=8)
    loaded.set_residency("seed")
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(other.weight, new.weight) and torch.equal(other.coats, new.coats)
        torch.testing.assert_close(other(x), new(x))
    plain = fk.nn.FrozenConv2d(5, 6, 3, padding=1)
    loaded.load_state_dict(plain.state_dict())
    assert loaded.coats is None and torch.equal(loaded.weight, plain.weight)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert torch.equal(new.to(dtype).weight, loaded_weight(new).to(dtype))


def loaded_weight(new):
    """The float32 weight of a layer, from its state."""
    other = fk.nn.FrozenConv2d(5, 6, 3, padding=1)
    other.load_state_dict(new.state_dict())
    return other.weight.detach()


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_infinity_goes_where_a_dense_product_carries_it(residency):
    layer = fk.nn.FrozenLinear(70, 40, seed=3, freeze_ratio=0.3, bias=False)
    layer.adopt_counts((torch.arange(layer.free) % 4).to(torch.uint8), coats=3)
    layer.set_residency(residency)
    x = integers(3, 70)
    x[0, 5], x[1, 40], x[2, 9] = torch.inf, -torch.inf, torch.nan
    wanted = F.linear(x, layer.weight.detach())
    assert wanted.isposinf().any() and wanted.isneginf().any() and wanted.isnan().any()
    for given in (layer(x), layer(x.clone().requires_grad_()).detach()):  # prepared, and by the ops
        assert torch.equal(given.nan_to_num(1e30, 2e30, -2e30), wanted.nan_to_num(1e30, 2e30, -2e30))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_prepared_calls_give_the_same(residency, dtype):
    conv, _ = layer(residency=residency)
    linear = fk.nn.FrozenLinear(40, 12)
    linear.set_residency(residency)
    linear.adopt_counts(torch.randint(0, 3, (linear.free,), dtype=torch.uint8), coats=2)
    linear.gain, linear.relu = torch.randn(12), True
    for new, x in ((conv, torch.randn(2, 5, 4, 4)), (conv, torch.randn(5, 3, 4)), (linear, torch.randn(2, 3, 40))):
        new, x = new.to(dtype), x.to(dtype)
        nn.init.normal_(new.bias)
        right = new(x.clone().requires_grad_()).detach()
        with torch.no_grad():
            assert torch.equal(new(x), right)


def test_states_that_do_not_nest():
    new, _ = layer()
    state, other = new.state_dict(), fk.nn.FrozenConv2d(5, 6, 3, padding=1)
    before = copy.deepcopy(other.state_dict())
    for coats, message in (
        (state["coats"].flip(0), r"coats: coat 3 keeps \d+ weights that coat 2 drops, expected 0"),
        (torch.full_like(state["coats"], -1), r"coats: coat 2 keeps \d+ weights that coat 1 drops, expected 0"),
        (state["coats"][:, :-1], r"coats: int32 \[1 to 254, 6, 2\], got torch.int32 \[2, 5, 2\]"),
        (state["coats"].float(), r"coats: int32 \[1 to 254, 6, 2\], got torch.float32 \[2, 6, 2\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict({**state, "coats": coats})
        assert unchanged(other, before)


def test_signs_of_coats_are_those_of_the_scores_and_a_finalized_layer_has_no_others():
    layer = fk.nn.FrozenLinear(33, 7, code="signs", sparsity=0.7, scope="local")
    with torch.no_grad():
        layer.scores.neg_()
    counts = (torch.arange(layer.free) % 3).to(torch.uint8)
    layer.adopt_counts(counts, coats=2)
    found, kept = gather_free(layer.weight.detach(), layer.partition()), counts > 0
    assert torch.equal(found[kept] < 0, layer.scores.detach()[kept] < 0) and not found[~kept].any()
    layer.finalize()
    before = layer.weight.clone()
    with pytest.raises(RuntimeError, match=f"signs of {int((~kept).sum())} dropped weights are gone"):
        layer.adopt_counts(torch.ones_like(counts), coats=2)
    layer.adopt_counts(counts * (counts == 2), coats=2)
    assert torch.equal(layer.weight, torch.where(layer.coat_counts() == 2, before, torch.zeros_like(before)))
    drawn = fk.nn.FrozenLinear(33, 7)
    with pytest.raises(ValueError, match="signs: of code 'signs', the layer has 'sign'"):
        drawn.adopt_counts(torch.zeros(drawn.free, dtype=torch.uint8), coats=2, signs=layer.packed_signs())


def test_a_new_mask_is_one_coat():
    new, _ = layer()
    model = nn.Sequential(new)
    search = fk.EdgePopup(model)
    y = model(torch.randn(1, 5, 4, 4)).sum()
    search.step()
    assert new.coats is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_compiled_and_exported():
    new, _ = layer()
    x = torch.randn(2, 5, 4, 4)
    y = torch.compile(new, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, new(x))
    y.sum().backward()
    found = new.scores.grad.clone()
    new.scores.grad = None
    new(x).sum().backward()
    torch.testing.assert_close(found, new.scores.grad)
    model = nn.Sequential(new).eval()
    fk.finalize_(model)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_tensors_of_streams():
    """What a file holds, against bits one by one."""
    frozen, _ = coated((5, 70), "sign", "mask", coats=4)
    streams = coating.coat_streams(frozen.keep, frozen.coats)
    before = frozen.keep
    for stream, plane in zip(streams, frozen.coats, strict=True):
        bits = [w >> i & 1 for w, b in zip(plane.flatten().tolist(), before.flatten().tolist(), strict=True)
                for i in range(32) if b >> i & 1]  # fmt: skip
        assert fmt.unpack_bits(stream, len(bits)).tolist() == bits and stream.numel() == -(-len(bits) // 8)
        before = plane
    assert torch.equal(coating.coat_planes(frozen.keep, streams), frozen.coats)


def build():
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 9))


@pytest.mark.parametrize(("code", "scaling"), [("sign", "dynamic"), ("normal", "none")])
def test_tickets(tmp_path, capsys, code, scaling):
    model, path = build(), tmp_path / "ticket.safetensors"
    fk.freeze_(model, fk.FreezeConfig(seed=4, code=code, scaling=scaling, freeze_ratio=0.0))
    first = model[0]
    first.adopt_counts(torch.randint(0, 5, (first.free,), dtype=torch.uint8), coats=4)
    fk.save_ticket(model, path)
    ticket = fk.tickets.file.read_ticket(path)
    record, kept = ticket.records[0], first.coat_kept()
    assert (record.coats, record.coat_kept) == (4, tuple(kept)) and ticket.records[1].coats is None
    bits = 1200 + sum(kept[:-1])  # the paper's: n (1 + the density of every coat but the last)
    sizes = [ticket.tensors[name].nbytes for name in record.tensor_names]
    assert 8 * sum(sizes) <= bits + 7 * 4 and fk.footprint(model).layers[0].disk == sum(sizes)
    x = torch.randn(3, 40)
    for residency in ("mask", "planes", "dense", "seed"):
        loaded = fk.load_ticket(build(), path, residency=residency)
        assert loaded[0].residency == ("mask" if residency == "seed" else residency)
        assert torch.equal(loaded[0].weight, first.weight) and loaded[0].config.scaling == scaling
        torch.testing.assert_close(loaded(x), model(x))
        fk.save_ticket(loaded, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert torch.equal(fk.to_dense(model)[0].weight, first.weight)
    for command in ("verify", "inspect", "footprint"):
        assert cli.main([command, str(path)]) == 0
    out = capsys.readouterr().out
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2] for line in out.splitlines() if len(line.split()) > 2}
    assert f"{code}, 4 coats" in out and rows["coats after the first"] == str(sum(sizes[1:]))
    fk.finalize_(model)
    for residency in RESIDENCIES:
        fk.set_residency(model, residency)
        held = sum(b.nbytes for new in (model[0], model[2]) for b in new.buffers())
        assert int(rows[residency].replace(",", "")) == held


def test_layers_of_one_stream_have_the_same_coats(tmp_path):
    model = nn.Sequential(*[fk.nn.FrozenLinear(20, 20, bias=False, seed=1) for _ in range(2)])
    counts = torch.randint(1, 4, (model[0].free,), dtype=torch.uint8)
    for new in model:
        new.adopt_counts(counts, coats=3)
    fk.save_ticket(model, tmp_path / "t")
    model[1].adopt_counts(torch.where(counts == 1, 1, 5 - counts).to(torch.uint8), coats=3)
    with pytest.raises(ValueError, match="both have seed 1 and stream 0"):
        fk.save_ticket(model, tmp_path / "t")


def record_with(**fields):
    """A change of the second record: None removes a field."""

    def edit(metadata, entries, body):
        records = json.loads(metadata["frozen_kernels.tensors"])
        records[1] = {k: v for k, v in {**records[1], **fields}.items() if v is not None}
        return {**metadata, "frozen_kernels.tensors": json.dumps(records)}, entries, body

    return edit


def bit_set(name, at):
    """A change of one bit of a tensor, from the end where negative."""

    def edit(metadata, entries, body):
        start, end = entries[name]["data_offsets"]
        out, at_bit = bytearray(body), at % (8 * (end - start))
        out[start + at_bit // 8] ^= 1 << at_bit % 8
        return metadata, entries, bytes(out)

    return edit


REFUSED = [
    (record_with(coats=None), "coats: with coat_kept or without both, got None and"),
    (record_with(coats=1), "coats: 2 to 255, got 1"),
    (record_with(coats=3), "coat_kept: a list of 3 counts, got"),
    (record_with(coat_kept=[11, 12]), r"coat_kept: counts from kept \d+ on that never rise, got"),
    (record_with(coats=None, coat_kept=None), r"tensors: .* not in the model \['2.coat2'\]"),
    (record_with(generations=None), r"requires: \['coats', 'generations'\], its tensors need \['coats'\]"),
    (record_with(generations=1), "generations: 2 to 256, got 1"),
    (record_with(generations=257), "generations: .* 256.* 257"),
    (record_with(generations=4), "'2.generation': generations is 4, its highest is 2"),
    (record_with(generation=5), "generations: beside generation 0 in the header, got 5"),
    (record_with(code="constant"), "nothing is drawn for code 'constant'"),
    (bit_set("2.coat2", 0), r"'2.coat2': coat_kept says \d+, its bits are \d+"),
    (bit_set("2.coat2", -1), r"'2.coat2': bits are set after the last of \d+"),
    (bit_set("2.generation", -1), r"'2.generation': bits are set after the last of \d+ free weights"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return layered_ticket(tmp_path_factory.mktemp("good") / "ticket")


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused_tickets(tmp_path, good, case):
    edit, message = REFUSED[case]
    (tmp_path / "bad").write_bytes(joined(*edit(*parts(good))))
    target = small()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(fk.TicketError, match=message):
        fk.load_ticket(target, tmp_path / "bad")
    assert target.state_dict().keys() == before.keys() and type(target[2]) is nn.Linear
