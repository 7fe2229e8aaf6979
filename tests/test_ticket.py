"""Tickets: round trips and every refusal."""

import json
import math
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from ticket_cases import good_ticket, joined, parts, small, unchanged
from torch import nn

import frozen_kernels as fk
from frozen_kernels.tickets.file import read_ticket, verify_ticket
from frozen_kernels.tickets.regenerate import regenerate

VECTORS = json.loads((Path(__file__).parent / "vectors/format_v1_vectors.json").read_text())


class Net(nn.Module):
    """A bit of everything that a ticket holds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=2)
        self.conv = nn.Conv1d(8, 6, 3, groups=2, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose1d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("cache", torch.randn(7), persistent=False)

    def forward(self, tokens):
        x = self.norm(self.conv(self.embed(tokens).transpose(1, 2)))
        return self.head(self.up(x).mean(-1))


TOKENS = torch.arange(22).reshape(2, 11) % 11


def frozen_net(seed=0, dtype=torch.float32, embedding=True, **settings):
    model = Net()
    model(TOKENS)
    model.to(dtype)
    filter_fn = (lambda module, name: True) if embedding else None
    fk.freeze_(model, fk.FreezeConfig(seed=seed, **settings), filter_fn)
    return model.eval()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    drop = "scores"
    left = {k: v for k, v in a.state_dict().items() if not k.endswith(drop)}
    right = {k: v for k, v in b.state_dict().items() if not k.endswith(drop)}
    return left.keys() == right.keys() and all(
        torch.equal(v, right[k]) and v.dtype == right[k].dtype for k, v in left.items()
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_ticket(tmp_path_factory.mktemp("good") / "small.safetensors")


def edit_record(data: bytes, index: int, **changes) -> bytes:
    metadata, entries, body = parts(data)
    records = json.loads(metadata["frozen_kernels.tensors"])
    records[index] |= changes
    return joined({**metadata, "frozen_kernels.tensors": json.dumps(records)}, entries, body)


@pytest.mark.parametrize("code", ["sign", "uniform", "normal", "constant"])
@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_round_trip(tmp_path, code, residency):
    path = tmp_path / "net.safetensors"
    model = frozen_net(seed=2**64 - 1, code=code, scaling="dynamic", scope="local")
    fk.set_residency(model, residency)
    fk.save_ticket(model, path)
    loaded = fk.load_ticket(Net(), path).eval()
    fk.set_residency(loaded, residency)
    assert same_state(model, loaded)
    assert torch.equal(model(TOKENS), loaded(TOKENS))
    assert all(layer.scores is None for layer in (loaded.embed, loaded.conv, loaded.up, loaded.head))
    again = tmp_path / "again.safetensors"
    fk.save_ticket(loaded, again)
    assert again.read_bytes() == path.read_bytes()
    verify_ticket(read_ticket(path))


@pytest.mark.parametrize("finalized", [False, True])
def test_load_into_frozen_model(tmp_path, finalized):
    path = tmp_path / "net.safetensors"
    model = frozen_net(seed=4, code="normal", freeze_ratio=0.5)
    fk.save_ticket(model, path)
    other = frozen_net(seed=9, code="sign")
    fk.set_residency(other, "seed")
    if finalized:
        fk.finalize_(other)
    head = other.head
    assert fk.load_ticket(other, path) is other
    assert other.head is head and head.residency == "seed" and head.scores is None
    assert same_state(model, other) and torch.equal(model(TOKENS), other(TOKENS))


def test_searching_model_saves_its_current_mask(tmp_path):
    model = frozen_net()
    search = fk.EdgePopup(model)
    with torch.no_grad():
        for scores in search.parameters():
            scores.copy_(torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)))
    search.step()
    expected = model(TOKENS)
    fk.save_ticket(model, tmp_path / "t")
    assert torch.equal(fk.load_ticket(Net(), tmp_path / "t").eval()(TOKENS), expected)
    assert model.head.scores is not None


def test_bfloat16_and_channels_last(tmp_path):
    model = frozen_net(dtype=torch.bfloat16)
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(Net().to(torch.bfloat16), tmp_path / "t").eval()
    assert loaded.head.dtype == torch.bfloat16 and same_state(model, loaded)
    with pytest.raises(fk.TicketError, match=r"'conv\.bias'.*bfloat16.*float32"):
        fk.load_ticket(Net(), tmp_path / "t")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    fk.freeze_(plain, filter_fn=lambda module, name: name == "0")
    fk.save_ticket(plain, tmp_path / "c")
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last)
    fk.load_ticket(target, tmp_path / "c")
    assert torch.equal(target[1].weight, plain[1].weight)
    assert target[1].weight.is_contiguous(memory_format=torch.channels_last)


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.embed = nn.Embedding(6, 6)
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.d, self.e = nn.Linear(4, 6), nn.Linear(4, 6)
        if tie:
            self.embed.weight = self.b.weight = self.c.weight = self.a.weight
            self.e.weight = self.d.weight
            self.e.bias = self.d.bias

    def forward(self, x):
        return self.c(self.b(self.a(x))) + self.embed(torch.tensor(1)) + self.d(x[:, :4]) + self.e(x[:, 2:])


def freeze_by_hand(model: nn.Module, names: str, seed: int = 0) -> nn.Module:
    """Freeze the layers named by single letters, those of one weight as one tensor, whatever else shares it."""
    streams: dict[int, int] = {}
    for name in names:
        layer = model.get_submodule(name)
        stream = streams.setdefault(id(layer.weight), len(streams))
        config = fk.FreezeConfig(seed=seed, scope="local")
        setattr(model, name, fk.nn.FrozenLinear.from_module(layer, config, stream=stream))
    return model


@pytest.mark.parametrize("which", ["abc", "ab", "a", "abcde", "de"])
def test_tied_weights(tmp_path, which):
    model = freeze_by_hand(Tied(), which)
    fk.save_ticket(model, tmp_path / "t")
    ticket = read_ticket(tmp_path / "t")
    assert len(ticket.records) == len({"a", "d"} & set(which))
    loaded = fk.load_ticket(Tied(), tmp_path / "t")
    assert set(fk.nn.models.frozen_layers(loaded)) == set(which)
    x = torch.randn(3, 6)
    assert torch.equal(model(x), loaded(x))
    assert loaded.d.bias is loaded.e.bias and "e.bias" not in ticket.tensors
    again = freeze_by_hand(Tied(), which, seed=8)
    assert torch.equal(fk.load_ticket(again, tmp_path / "t")(x), model(x))
    with pytest.raises(fk.TicketError, match="not in the ticket"):
        fk.load_ticket(Tied(tie=False), tmp_path / "t")


def test_tied_layers_frozen_by_freeze(tmp_path):
    model = Tied()
    fk.freeze_(model, filter_fn=lambda module, name: True)
    fk.save_ticket(model, tmp_path / "t")
    assert [r.name for r in read_ticket(tmp_path / "t").records] == ["embed", "d"]
    x = torch.randn(3, 6)
    assert torch.equal(fk.load_ticket(Tied(), tmp_path / "t")(x), model(x))


def test_tied_in_the_model_alone(tmp_path):
    plain = Tied(tie=False)
    fk.freeze_(plain, filter_fn=lambda module, name: name == "a")
    fk.save_ticket(plain, tmp_path / "t")
    with pytest.raises(fk.TicketError, match=r"tied to .* in the model, other values in the ticket"):
        fk.load_ticket(Tied(), tmp_path / "t")


def test_one_stream_by_accident_is_refused(tmp_path):
    model = nn.Sequential(fk.nn.FrozenLinear(4, 4), fk.nn.FrozenLinear(4, 4, code="normal"))
    with pytest.raises(ValueError, match=r"'0' and '1' both have seed 0 and stream 0"):
        fk.save_ticket(model, tmp_path / "t")
    assert not list(tmp_path.iterdir())
    shared = nn.Sequential(fk.nn.FrozenLinear(4, 4), fk.nn.FrozenLinear(4, 4))
    fk.save_ticket(shared, tmp_path / "t")
    assert [r.name for r in read_ticket(tmp_path / "t").records] == ["0"]


def test_module_reached_twice(tmp_path):
    def build():
        layer = nn.Linear(5, 5)
        return nn.Sequential(layer, nn.ReLU(), layer)

    model = build()
    fk.freeze_(model)
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(build(), tmp_path / "t")
    assert loaded[0] is loaded[2] and same_state(model, loaded)


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity": 0.0, "freeze_ratio": 0.3},
        {"sparsity": 1.0, "scaling": "dynamic"},
        {"sparsity": 1.0, "prune_ratio": 1.0, "lock_ratio": 0.0},
        {"sparsity": 0.0, "prune_ratio": 0.0, "lock_ratio": 1.0},
        {"sparsity": 0.9, "scaling": "static", "threshold_bits": 8},
        {"sparsity": 0.4, "prune_ratio": 0.25, "lock_ratio": 0.5, "threshold_bits": 2},
    ],
)
def test_restored_settings_give_the_same_tensor(tmp_path, settings):
    model = frozen_net(seed=77, **settings)
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(Net(), tmp_path / "t")
    for name, layer in fk.nn.models.frozen_layers(loaded).items():
        right = model.get_submodule(name)
        assert torch.equal(layer.header, right.header)
        assert layer.counts == right.counts and layer.code == right.code
        scale = layer.scale
        layer.set_supermask(layer.packed_supermask())
        assert layer.scale == scale
        repr(layer)
        layer.reset_parameters()
        assert torch.equal(layer.header[:6], right.header[:6])
    assert fk.freeze_(nn.Sequential(loaded, nn.Linear(3, 3)), fk.FreezeConfig(seed=77)).converted[0].stream == 4


def test_stored_scale_is_used_exactly(tmp_path):
    model = nn.Sequential(fk.nn.FrozenLinear(8, 8, sigma=0.1234567, code="normal"))
    fk.save_ticket(model, tmp_path / "t")
    loaded = fk.load_ticket(nn.Sequential(nn.Linear(8, 8)), tmp_path / "t")
    assert loaded[0].scale == model[0].scale
    assert math.isclose(loaded[0].sigma, 0.1234567, rel_tol=1e-6)
    state = loaded.state_dict()
    assert torch.equal(fk.load_ticket(nn.Sequential(nn.Linear(8, 8)), tmp_path / "t")[0].header, state["0.header"])


def test_file_is_what_the_format_says(tmp_path, good):
    data, model = good
    metadata, entries, body = parts(data)
    assert set(metadata) == {f"frozen_kernels.{k}" for k in ("format", "requires", "tensors", "digest")}
    assert metadata["frozen_kernels.format"] == "1" and metadata["frozen_kernels.requires"] == "[]"
    records = json.loads(metadata["frozen_kernels.tensors"])
    assert [r["name"] for r in records] == ["0", "2"] and [r["stream"] for r in records] == [0, 1]
    words = "name shape seed stream code generation scale tau_prune tau_freeze pruned locked free kept keep_sha256"
    assert " ".join(records[0]) == words
    assert records[0]["seed"] == "5" and float.fromhex(records[0]["scale"]) == model[0].scale
    own = {n for n in model.state_dict() if not n.endswith(("header", "scores", "weight_shape"))}
    assert set(entries) == own and entries["0.supermask"]["dtype"] == "U8"
    written = joined(metadata, entries, body)
    assert parts(written)[0]["frozen_kernels.digest"] == metadata["frozen_kernels.digest"]


def test_golden_keep_planes():
    for case in VECTORS["cases"]:
        rows, cols = case["rows"], case["cols"]
        where = {"seed": int(case["seed"]), "stream": case["stream"]}
        taus = {"tau_prune": case["tau_prune"], "tau_freeze": case["tau_freeze"]}
        partition = fk.format.partition(rows, cols, **where, **taus)
        wanted = (torch.arange(rows * cols) % 3 == 0).reshape(rows, cols)
        keep = (partition == 1) | ((partition == 0) & wanted)
        header = fk.format.make_header(**where, **taus, code=case["code"])
        found = regenerate(header, rows, cols, fk.format.pack(keep, partition))
        assert found.keep_sha256 == case["keep_words_sha256"]


def refused(data: bytes, path: Path, match: str, model: nn.Module | None = None) -> None:
    path.write_bytes(data)
    model = small() if model is None else model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [id(m) for m in model.modules()]
    with pytest.raises(fk.TicketError, match=match) as caught:
        fk.load_ticket(model, path)
    assert path.name in str(caught.value)
    assert unchanged(model, before, modules)


BAD_RECORDS = [
    ({"scale": "nan"}, r"'0': scale: .*'nan'"),
    ({"scale": "inf"}, r"scale: .*'inf'"),
    ({"scale": "-0x1p-3"}, r"scale: 0 or more, got -0x1p-3"),
    ({"scale": "-0x0p+0"}, r"scale: 0 or more"),
    ({"scale": "0x1p+200"}, r"0x1p\+200 does not fit float32"),
    ({"scale": "0x1p+99999"}, r"does not fit float32"),
    ({"scale": "0x1.0000000000001p+0"}, r"is not a float32"),
    ({"scale": 0.5}, r"scale: a C99 hex float, got 0.5"),
    ({"code": "coats"}, r"'0': code: one of sign, .*'coats'"),
    ({"code": "stored"}, r"values: of a stored weight and no other, got None for code stored"),
    ({"code": 3}, r"code: one of"),
    ({"seed": "18446744073709551616"}, r"seed: .*'18446744073709551616'"),
    ({"seed": "-1"}, r"seed: .*'-1'"),
    ({"seed": 5}, r"seed: a decimal string .* got 5"),
    ({"seed": "05"}, r"seed: "),
    ({"seed": "\u0665"}, r"seed: "),
    ({"stream": 1 << 32}, r"stream: .*4294967296"),
    ({"stream": True}, r"stream: .*True"),
    ({"stream": 1.0}, r"stream: .*1.0"),
    ({"stream": 1}, r"'2': seed 5 and stream 1 are those of '0'"),
    ({"generation": 1 << 24}, r"generation: .*16777216"),
    ({"tau_prune": 65537}, r"tau_prune: .*65537"),
    ({"tau_prune": 60000, "tau_freeze": 59999}, r"tau_prune 60000 is above tau_freeze 59999"),
    ({"tau_prune": 0}, r"'0': pruned \d+, locked \d+, free \d+; the seed gives pruned 0, "),
    ({"pruned": 0}, r"'0': counts: pruned 0 .* the shape \[7, 9\] has 63 weights"),
    ({"pruned": -1}, r"pruned: .*-1"),
    ({"kept": 0}, r"kept: 0 is outside locked \d+ to "),
    ({"kept": 41}, r"'0': kept is 41, locked and supermask bits are \d+"),
    ({"keep_sha256": "0" * 64}, r"'0': keep_sha256 is 0+, the regenerated keep plane has [0-9a-f]{64}"),
    ({"keep_sha256": "zz"}, r"keep_sha256: 64 lower-case hex digits, got 'zz'"),
    ({"shape": [63]}, r"shape: a frozen weight needs at least 2 dimensions"),
    ({"shape": [9, 7]}, r"'0': shape \[9, 7\] in the ticket, \[7, 9\] in the model"),
    ({"shape": [1 << 40, 9]}, r"shape: .*1099511627776"),
    ({"shape": "79"}, r"shape: a list"),
    ({"shape": [7] * 100}, r"shape: a list of at most"),
    ({"name": ""}, r"name: a string that is not empty"),
    ({"name": 3}, r"name: .*3"),
    ({"name": "2"}, r"'2': listed twice|'2.supermask'"),
    ({"name": "head"}, r"'head.supermask': missing"),
    ({"name": "\ud800"}, r"missing"),
    ({"extra": 1}, r"fields: missing \[\], unknown \['extra'\]"),
]


@pytest.mark.parametrize(("change", "match"), BAD_RECORDS, ids=[str(c)[:40] for c, _ in BAD_RECORDS])
def test_bad_record(tmp_path, good, change, match):
    refused(edit_record(good[0], 0, **change), tmp_path / "bad.safetensors", match)


BAD_METADATA = [
    ({"format": "2"}, r"format: '2', this release reads '1'"),
    ({"format": None}, r"no ticket: its metadata has no frozen_kernels.format"),
    ({"requires": '["later"]'}, r"requires: \['later'\], which this release does not know"),
    ({"requires": '["gain"]'}, r"requires: \['gain'\], its tensors need \[\]"),
    ({"requires": '["coats"]'}, r"requires: \['coats'\], its tensors need \[\]"),
    ({"requires": "{}"}, r"requires: a list of strings"),
    ({"requires": "[1]"}, r"requires: a list of strings"),
    ({"requires": None}, r"requires: missing"),
    ({"tensors": None}, r"tensors: missing"),
    ({"tensors": "[]"}, r"tensors: a list that is not empty"),
    ({"tensors": "{}"}, r"tensors: a list"),
    ({"tensors": "[1]"}, r"an object for each tensor, got 1"),
    ({"tensors": "[NaN]"}, r"NaN is not JSON"),
    ({"tensors": '[{"a": 1, "a": 2}]'}, r"the key 'a' is there twice"),
    ({"tensors": "[" * 100_000}, r"nested too deeply|Expecting"),
    ({"tensors": "[" + "1" * 10_000 + "]"}, r"limit|object"),
    ({"tensors": "[1e999]"}, r"an object for each tensor, got inf"),
    ({"tensors": "not json"}, r"Expecting value"),
    ({"coats": "2"}, r"unknown keys \['frozen_kernels.coats'\]"),
]


@pytest.mark.parametrize(("change", "match"), BAD_METADATA, ids=[str(c)[:40] for c, _ in BAD_METADATA])
def test_bad_metadata(tmp_path, good, change, match):
    metadata, entries, body = parts(good[0])
    metadata |= {f"frozen_kernels.{k}": v for k, v in change.items()}
    metadata = {k: v for k, v in metadata.items() if v is not None}
    refused(joined(metadata, entries, body), tmp_path / "bad.safetensors", match)


def test_bad_digest_and_duplicate_names(tmp_path, good):
    metadata, entries, body = parts(good[0])
    path = tmp_path / "bad.safetensors"
    wrong = joined({**metadata, "frozen_kernels.digest": "0" * 64}, entries, body, fix=False)
    refused(wrong, path, r"digest: '0+', the contents give '[0-9a-f]{64}'")
    refused(joined(metadata, entries, body[:-1] + bytes([body[-1] ^ 1]), fix=False), path, "digest: ")
    text = json.dumps({"__metadata__": metadata, **entries})
    first = next(iter(entries))
    twice = f'{text[:-1]}, "{first}": {json.dumps(entries[first])}}}'.encode()
    refused(struct.pack("<Q", len(twice)) + twice + body, path, f"the key '{first}' is there twice")


def test_supermask_size_and_trailing_bits(tmp_path, good):
    metadata, entries, body = parts(good[0])
    path = tmp_path / "bad.safetensors"
    records = {r["name"]: r for r in json.loads(metadata["frozen_kernels.tensors"])}
    name = next(n for n, r in records.items() if r["free"] % 8)
    end = entries[f"{name}.supermask"]["data_offsets"][1]
    set_after = body[: end - 1] + bytes([body[end - 1] | 0x80]) + body[end:]
    refused(joined(metadata, entries, set_after), path, rf"'{name}.supermask': bits are set after the last")
    last = max(entries, key=lambda n: entries[n]["data_offsets"][1])
    assert last.endswith("supermask")
    longer = json.loads(json.dumps(entries))
    longer[last]["data_offsets"][1] += 1
    longer[last]["shape"][0] += 1
    refused(
        joined(metadata, longer, body + b"\0"), path, rf"'{last}': uint8 \[\d+\] for \d+ free weights, got .*\[\d+\]"
    )


def test_names_shapes_dtypes_and_architecture(tmp_path, good):
    data, _ = good
    path = tmp_path / "t.bin"  # the name's ending says nothing
    path.write_bytes(data)
    assert isinstance(fk.load_ticket(small(), path)[0], fk.nn.FrozenLinear)
    extra = small()
    extra.append(nn.LayerNorm(3))
    refused(data, path, r"not in the ticket \['3.weight', '3.bias'\], not in the model \[\]", extra)
    refused(data, path, r"not in the model \['0.bias'\]", nn.Sequential(nn.Linear(9, 7, bias=False), *small()[1:]))
    refused(data, path, r"'2': shape \[3, 7\] in the ticket, \[4, 7\] in the model",
            nn.Sequential(*small()[:2], nn.Linear(7, 4)))  # fmt: skip
    refused(data, path, r"'2': frozen in the ticket; the model has no such module", small()[:2])
    refused(data, path, r"'0': frozen in the ticket; the model has a ReLU", nn.Sequential(nn.ReLU(), *small()[1:]))
    refused(data, path, r"'1.weight': torch.float32 .* torch.float64", nn.Sequential(*small()[:1],
            nn.BatchNorm1d(7).double(), small()[2]))  # fmt: skip
    more = nn.Sequential(*small(), fk.nn.FrozenLinear(3, 3, seed=1))
    refused(data, path, r"'3': frozen in the model, not in the ticket", more)
    refused(data, path, r"bare Linear", nn.Linear(9, 7))
    refused(data, path, r"bare FrozenLinear", fk.nn.FrozenLinear(9, 7))
    lazy = nn.Sequential(nn.LazyLinear(7), *small()[1:])
    path.write_bytes(data)
    with pytest.raises(fk.TicketError, match="lazy"):
        fk.load_ticket(lazy, path)
    reader = type("Reader", (nn.MultiheadAttention,), {})(4, 1)
    outer = nn.Sequential(nn.Linear(4, 4))
    fk.freeze_(outer)
    outer = nn.ModuleDict({"out_proj": outer[0]})
    fk.save_ticket(outer, path)
    with pytest.raises(fk.TicketError, match="reads its weight without calling it"):
        fk.load_ticket(reader, path)


def test_expanded_buffer_is_refused_before_anything_changes(tmp_path):
    def build(expanded):
        model = small()
        model.register_buffer("mask", torch.ones(1).expand(4) if expanded else torch.ones(4))
        return model

    model = build(True)
    fk.freeze_(model)
    fk.save_ticket(model, tmp_path / "t")
    fk.load_ticket(build(False), tmp_path / "t")
    refused((tmp_path / "t").read_bytes(), tmp_path / "t", "'mask': an expanded", build(True))


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"0.weight": torch.zeros(7, 9)}, path)
    refused(path.read_bytes(), path, "no ticket")
    save_file({"0.weight": torch.zeros(7, 9)}, path, metadata={"format": "pt"})
    refused(path.read_bytes(), path, "no ticket")
    torch.save(small().state_dict(), path)
    refused(path.read_bytes(), path, "no safetensors file")
    refused(pickle.dumps({"a": 1}), path, "no safetensors file")
    refused(b"", path, "no safetensors file: the header needs 8 bytes, the file has 0")
    refused(b"\xff" * 8, path, "no safetensors file: the header needs")
    refused(struct.pack("<Q", 4) + b"{1 2", path, "Expecting|delimiter")
    refused(struct.pack("<Q", 3) + b"[1]", path, "no safetensors file")
    refused(struct.pack("<Q", 2) + b"{\xff", path, "decode")
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    refused(struct.pack("<Q", len(header)) + header, path, "no safetensors file")
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4,0],"data_offsets":[0,0]}}'
    refused(struct.pack("<Q", len(header)) + header, path, "no safetensors file")
    header = b'{"__metadata__":{"frozen_kernels.format":"1"},"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    refused(struct.pack("<Q", len(header)) + header + b"0", path, "dtype 'F4'")
    with pytest.raises(fk.TicketError, match="not a regular file"):
        fk.load_ticket(small(), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(fk.TicketError, match="not a regular file"):
        fk.load_ticket(small(), tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        fk.load_ticket(small(), tmp_path / "none")


def test_bool_that_is_no_bool(tmp_path):
    model = frozen_net(embedding=False)
    path = tmp_path / "t"
    fk.save_ticket(model, path)
    metadata, entries, body = parts(path.read_bytes())
    start = entries["flags"]["data_offsets"][0]
    refused(joined(metadata, entries, body[:start] + b"\2" + body[start + 1 :]), path, "'flags': a bool", Net())


def test_crafted_shape_allocates_nothing(tmp_path, good):
    """A shape that its counts agree with, all pruned, so that the supermask is empty."""
    rows, cols = 1 << 31, 1 << 33
    huge = {"shape": [rows, cols], "tau_prune": 65536, "tau_freeze": 65536}
    huge |= {"pruned": rows * cols, "locked": 0, "free": 0, "kept": 0}
    metadata, entries, body = parts(edit_record(good[0], 0, **huge))
    begin, end = entries["0.supermask"]["data_offsets"]
    body = body[:begin] + body[end:]
    for e in entries.values():
        e["data_offsets"] = [o - (end - begin if o >= end else 0) for o in e["data_offsets"]]
    entries["0.supermask"]["shape"] = [0]
    path = tmp_path / "t"
    refused(joined(metadata, entries, body), path, r"'0': shape \[2147483648, 8589934592\] in the ticket")
    with pytest.raises(fk.TicketError, match="keep planes of"):
        verify_ticket(read_ticket(path))


def test_without_verify_counts_are_still_compared(tmp_path, good):
    path = tmp_path / "t"
    path.write_bytes(edit_record(good[0], 0, keep_sha256="0" * 64))
    fk.load_ticket(small(), path, verify=False)
    path.write_bytes(edit_record(good[0], 0, tau_prune=0))
    with pytest.raises(fk.TicketError, match="the seed gives"):
        fk.load_ticket(small(), path, verify=False)


def test_save_refuses(tmp_path):
    path = tmp_path / "t"
    for model, match in (
        (nn.Sequential(nn.Linear(2, 2)), "no frozen layers"),
        (fk.nn.FrozenLinear(3, 3), "bare FrozenLinear"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3, device="meta")), "meta device"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3), nn.LazyLinear(3)), "'1.weight' is lazy"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3, sigma=-1.0)), "'0': scale: 0 or more"),
    ):
        with pytest.raises(ValueError, match=match):
            fk.save_ticket(model, path)
    odd = nn.Sequential(fk.nn.FrozenLinear(3, 3))
    odd.register_buffer("z", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"'z' is torch.complex128"):
        fk.save_ticket(odd, path)
    good = nn.Sequential(fk.nn.FrozenLinear(3, 3))
    with pytest.raises(IsADirectoryError):
        fk.save_ticket(good, tmp_path)
    with pytest.raises(FileNotFoundError):
        fk.save_ticket(good, tmp_path / "none" / "t")
    assert not list(tmp_path.iterdir())
