"""Tickets: round trips, every refusal, ten thousand mutated files, writers killed in the middle."""

import hashlib
import json
import math
import os
import pickle
import random
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import frozen_kernels as fk
from frozen_kernels.tensor import FrozenTensor, resident_bytes
from frozen_kernels.ticket import read_ticket, verify_ticket
from frozen_kernels.ticket_file import check_regenerated, hash_keep_plane

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


def small() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-1, 1)
    return model


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


def parts(data: bytes) -> tuple[dict, dict, bytes]:
    """Metadata, tensor entries and data of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    return header.pop("__metadata__"), header, data[8 + size :]


def joined(metadata: dict, entries: dict, body: bytes, fix: bool = True) -> bytes:
    """A file of these parts; `fix` writes the digest that they have, by the format's own words."""
    if fix:
        others = {k: v for k, v in metadata.items() if k != "frozen_kernels.digest"}
        listed = []
        for name, e in entries.items():
            start, end = e["data_offsets"]
            listed.append([name, e["dtype"], e["shape"], hashlib.sha256(body[start:end]).hexdigest()])
        text = json.dumps([others, sorted(listed)], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        metadata = {**metadata, "frozen_kernels.digest": hashlib.sha256(text.encode()).hexdigest()}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    return struct.pack("<Q", len(header)) + header + body


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[bytes, nn.Module]:
    torch.manual_seed(0)
    model = small()
    fk.freeze_(model, fk.FreezeConfig(seed=5, code="uniform"))
    path = tmp_path_factory.mktemp("good") / "small.safetensors"
    fk.save_ticket(model, path)
    return path.read_bytes(), model


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


@pytest.mark.parametrize("which", ["abc", "ab", "a", "abcde", "de"])
def test_tied_weights(tmp_path, which):
    model = Tied()
    fk.freeze_(model, filter_fn=lambda module, name: name in which)
    fk.save_ticket(model, tmp_path / "t")
    ticket = read_ticket(tmp_path / "t")
    assert len(ticket.records) == len({"a", "d"} & set(which))
    loaded = fk.load_ticket(Tied(), tmp_path / "t")
    assert {n for n, _ in fk.search.frozen_layers(loaded).items()} == set(which)
    x = torch.randn(3, 6)
    assert torch.equal(model(x), loaded(x))
    assert loaded.d.bias is loaded.e.bias and "e.bias" not in ticket.tensors
    again = Tied()
    fk.freeze_(again, fk.FreezeConfig(seed=8), filter_fn=lambda module, name: name in which)
    assert torch.equal(fk.load_ticket(again, tmp_path / "t")(x), model(x))
    with pytest.raises(fk.TicketError, match="not in the ticket"):
        fk.load_ticket(Tied(tie=False), tmp_path / "t")


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
    for name, layer in fk.search.frozen_layers(loaded).items():
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
    own = {n for n in model.state_dict() if not n.endswith(("header", "scores"))}
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
        record = FrozenTensor((rows, cols), case["code"], header, fk.format.pack(keep, partition))
        assert hash_keep_plane(record) == case["keep_words_sha256"]


def unchanged(model: nn.Module, before: dict, modules: list) -> bool:
    after = model.state_dict()
    return (
        [id(m) for m in model.modules()] == modules
        and after.keys() == before.keys()
        and all(torch.equal(v, before[k]) for k, v in after.items())
    )


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
    ({"code": "stored"}, r"'0': code: one of sign, .*'stored'"),
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
    ({"requires": '["coats"]'}, r"requires: \['coats'\], which this release does not know"),
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
    with pytest.raises(fk.TicketError, match="meta device"):
        fk.load_ticket(small().to("meta"), path)
    reader = nn.TransformerEncoderLayer(4, 1, 4)
    outer = nn.Sequential(reader.linear1)
    fk.freeze_(outer)
    outer = nn.ModuleDict({"linear1": outer[0]})
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
    refused(struct.pack("<Q", 4) + b"[1 2", path, "Expecting|delimiter")
    refused(struct.pack("<Q", 3) + b"[1]", path, "no safetensors file")
    refused(struct.pack("<Q", 2) + b"\xff\xfe", path, "decode")
    header = b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'
    refused(struct.pack("<Q", len(header)) + header, path, "no safetensors file")
    header = b'{"__metadata__":{"frozen_kernels.format":"1"},"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    refused(struct.pack("<Q", len(header)) + header + b"0", path, "dtype F4")
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
    with pytest.raises(fk.TicketError, match="a keep plane of"):
        verify_ticket(read_ticket(path))


def test_without_verify_counts_are_still_compared(tmp_path, good):
    path = tmp_path / "t"
    path.write_bytes(edit_record(good[0], 0, keep_sha256="0" * 64))
    fk.load_ticket(small(), path, verify=False)
    path.write_bytes(edit_record(good[0], 0, tau_prune=0))
    with pytest.raises(fk.TicketError, match="the seed gives"):
        fk.load_ticket(small(), path, verify=False)
    ticket = read_ticket(path)
    with pytest.raises(fk.TicketError):
        check_regenerated(ticket, ticket.records[0], verify=False)


def test_save_refuses(tmp_path):
    path = tmp_path / "t"
    for model, match in (
        (nn.Sequential(nn.Linear(2, 2)), "no frozen layers"),
        (fk.nn.FrozenLinear(3, 3), "bare FrozenLinear"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3, device="meta")), "meta device"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3), nn.LazyLinear(3)), "'1.weight' is lazy"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3, sigma=-1.0)), "'0': scale: 0 or more"),
        (nn.Sequential(fk.nn.FrozenLinear(3, 3, sigma=float("nan"))), "'0': scale"),
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


def test_permissions_links_and_leftovers(tmp_path):
    model = nn.Sequential(fk.nn.FrozenLinear(3, 3))
    path = tmp_path / "t.safetensors"
    before = os.umask(0o027)
    try:
        fk.save_ticket(model, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    fk.save_ticket(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    fk.save_ticket(nn.Sequential(fk.nn.FrozenLinear(3, 3, seed=1)), link)
    assert link.is_symlink() and read_ticket(path).records[0].seed == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.safetensors", "t.safetensors"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t"
    fk.save_ticket(nn.Sequential(fk.nn.FrozenLinear(3, 3)), path)
    old = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        fk.save_ticket(nn.Sequential(fk.nn.FrozenLinear(3, 3, seed=1)), path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["t"]


KILLED = """
import os, signal, sys
import torch, frozen_kernels as fk
from torch import nn
path, when = sys.argv[1:]
model = nn.Sequential(fk.nn.FrozenLinear(64, 64, seed=1), nn.Linear(64, 30000))
if when == "loop":
    print("ready", flush=True)
    while True:
        fk.save_ticket(model, path)
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, when, die)
fk.save_ticket(model, path)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.safetensors"
    old_model = nn.Sequential(fk.nn.FrozenLinear(64, 64), nn.Linear(64, 30000))
    fk.save_ticket(old_model, path)
    old = path.read_bytes()
    for when in ("fsync", "replace"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), when], check=False)
        assert done.returncode == -signal.SIGKILL and path.read_bytes() == old
    left = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(left) == 2 and all(n.startswith(".ticket-") and n.endswith(".tmp") for n in left)
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), "loop"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.3 + random.random() / 5)
    child.kill()
    child.wait()
    child.stdout.close()
    assert read_ticket(path).records[0].seed in (0, 1)
    fk.save_ticket(old_model, path)
    assert path.read_bytes() == old


def raw_mutation(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(7)
    out = bytearray(data)
    at = rng.randrange(len(out))
    if kind == 0:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randrange(1, 9)):
            out[rng.randrange(len(out))] = rng.randrange(256)
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        out[at:at] = rng.randbytes(rng.randrange(1, 17))
    elif kind == 4:
        del out[at : at + rng.randrange(1, 17)]
    elif kind == 5:
        out[:8] = struct.pack("<Q", rng.choice([0, 1, rng.randrange(2000), 1 << 63, (1 << 64) - 1, len(data) - 8]))
    else:
        start = rng.randrange(len(out))
        out[at : at + 8] = out[start : start + 8]
    return bytes(out)


ODD_VALUES = [
    None, True, -1, 0, 1, 2, 7, 65536, 65537, 1 << 40, 10**30, 0.5, "", "0", "1", "x", "nan", "0x1p-3", "sign",
    "normal", [], [7, 9], [3, 7], [7, 3, 3], {}, "18446744073709551615", "0" * 64,
]  # fmt: skip


def consistent_mutation(rng: random.Random, data: bytes) -> bytes:
    """A change that comes with the right digest."""
    metadata, entries, body = parts(data)
    kind = rng.randrange(8)
    name = rng.choice(sorted(entries))
    if kind <= 2:
        records = json.loads(metadata["frozen_kernels.tensors"])
        record = rng.choice(records)
        field = rng.choice(sorted(record))
        change = rng.randrange(6)
        if change == 0:
            del record[field]
        elif change == 1 and isinstance(record[field], int):
            record[field] += rng.choice([-1, 1, 8])
        elif change == 2:
            record[field] = rng.choice(records)[field]
        elif change == 3 and isinstance(record[field], str):
            text = list(record[field])
            text[rng.randrange(len(text))] = rng.choice("0123456789abcdefxp.-")
            record[field] = "".join(text)
        elif change == 4:
            records = rng.choice([records[::-1], records[:1], records + records[:1], [records]])
        else:
            record[field] = rng.choice(ODD_VALUES)
        metadata["frozen_kernels.tensors"] = json.dumps(records)
    elif kind == 3:
        text = bytearray(metadata["frozen_kernels.tensors"].encode())
        text[rng.randrange(len(text))] = rng.randrange(32, 127)
        metadata["frozen_kernels.tensors"] = text.decode()
    elif kind == 4:
        key = rng.choice([*metadata, "frozen_kernels.x", "other"])
        metadata[key] = rng.choice(["", "1", "2", "[]", '["x"]', "{}", "null", "[[]]"])
    elif kind == 5:
        out = bytearray(body)
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        body = bytes(out)
    elif kind == 6:
        entries[rng.choice(["y", "0.weight", "0.supermask", name + "x"])] = entries.pop(name)
    else:
        entry = entries[name]
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["dtype"] = rng.choice(["F32", "I32", "U32", "U8", "BOOL", "F16", "I64", "I8"])
        width = {"2": 4, "8": 1, "L": 1, "6": 2, "4": 8}[entry["dtype"][-1]]
        entry["shape"] = rng.choice([[size // width], [1, size // width], [size], entry["shape"]])
    return joined(metadata, entries, body)


def says(path: Path) -> tuple[list, dict]:
    """Records and tensors of a file, by the safetensors library alone."""
    with safe_open(path, "pt") as f:
        records = json.loads(f.metadata()["frozen_kernels.tensors"])
        for record in records:
            record["scale"] = float.fromhex(record["scale"])
        opened = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    tensors = {n: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()) for n, t in opened.items()}
    return sorted(records, key=lambda r: r["stream"]), tensors


@pytest.mark.parametrize(("mutate", "count"), [(raw_mutation, 5500), (consistent_mutation, 4500)])
def test_mutated_files(tmp_path, good, mutate, count):
    """A clean error and an untouched model, or a model that is all that the file says."""
    data, _ = good
    rng = random.Random(20)
    path, again, first = tmp_path / "t", tmp_path / "again", tmp_path / "first"
    first.write_bytes(data)
    target = small()
    before, modules = {k: v.clone() for k, v in target.state_dict().items()}, [id(m) for m in target.modules()]
    loaded = 0
    for _ in range(count):
        mutated = mutate(rng, data)
        path.write_bytes(mutated)
        try:
            fk.load_ticket(target, path)
        except fk.TicketError:
            assert unchanged(target, before, modules)
            continue
        loaded += 1
        fk.save_ticket(target, again)
        assert says(again) == says(path)
        if mutate is raw_mutation:
            assert says(again) == says(first)
        target = small()
        before, modules = {k: v.clone() for k, v in target.state_dict().items()}, [id(m) for m in target.modules()]
    assert loaded < count / 2
    if mutate is consistent_mutation:
        assert loaded > count / 50  # ordinary tensors and scales may well say something else


@pytest.mark.parametrize("code", ["sign", "uniform", "constant"])
@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_resident_bytes(code, residency):
    layer = fk.nn.FrozenConv2d(40, 5, 3, code=code)
    layer.finalize()
    layer.set_residency(residency)
    held = sum(b.nbytes for b in layer.buffers())
    assert held == resident_bytes(layer.shape, code, layer.counts["free"], residency)
