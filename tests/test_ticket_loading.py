"""What loading a ticket costs and gives: one walk over each partition, memory of its own, models on the meta device."""

import json
import struct
import tracemalloc

import pytest
import torch
from helpers import RESIDENCIES
from ticket_cases import good_ticket, joined, parts, small
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.tickets import container, file, regenerate
from frozen_kernels.tickets.file import read_ticket, verify_ticket

# ops that generate a partition, whatever they make of it
WALKS = ("partition", "partition_counts", "offsets", "keep_plane", "pack_plane", "histogram", "free_draws", "draws")


class Walked(TorchDispatchMode):
    """Weights whose place in the partition was generated, by seed and stream."""

    def __init__(self):
        super().__init__()
        self.weights: dict[tuple, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "frozen_kernels" and func._opname in WALKS:
            header = fmt.header_fields(next(a for a in args if isinstance(a, torch.Tensor)))
            rows, cols = [a for a in args if isinstance(a, int)][:2]
            name = header["seed"], header["stream"]
            self.weights[name] = self.weights.get(name, 0) + rows * cols
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """Layers below and above a block of a walk, one with a long row, ordinary tensors, a tied weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 7, 3)
        self.norm = nn.BatchNorm2d(7)
        self.wide = nn.Linear(1100, 40)
        self.a, self.b = nn.Linear(40, 40, bias=False), nn.Linear(40, 40, bias=False)
        self.b.weight = self.a.weight
        self.head, self.tied = nn.Linear(40, 3), nn.Linear(40, 3)
        self.tied.weight, self.tied.bias = self.head.weight, self.head.bias
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        y = self.b(self.a(self.wide(self.norm(self.conv(x)).flatten(1)[:, :1100])))
        return self.head(y) + self.tied(y)


X = torch.arange(5.0 * 2 * 15 * 15).reshape(2, 5, 15, 15).sin()


def frozen_net(device: str = "cpu", **settings) -> nn.Module:
    with torch.device(device):  # which ties on meta, where .to("meta") would not
        model = Net()
    if device == "cpu":
        model(X)
    fk.freeze_(model, fk.FreezeConfig(seed=6, **settings), lambda module, name: name not in ("head", "tied"))
    return model.eval()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(regenerate, "_BLOCK", 1024)  # rows together, one row, and a row in parts


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_partition_is_generated_once_or_for_planes_twice(tmp_path, residency, verify):
    """Once for stream offsets and once for the plane takes a fifth of the time of one partition in bytes."""
    model = frozen_net()
    fk.save_ticket(model, tmp_path / "t")
    with Walked() as seen:
        fk.load_ticket(Net(), tmp_path / "t", verify=verify, residency=residency)
    once = {(6, layer.stream): layer.rows * layer.cols for layer in fk.nn.models.frozen_layers(model).values()}
    loaded = {name: count * (1 if residency == "seed" else 2) for name, count in once.items()}
    assert seen.weights == loaded
    with Walked() as seen:
        fk.load_ticket(frozen_net(), tmp_path / "t", verify=verify, residency=residency)
    frozen_again = {name: count - loaded[name] for name, count in seen.weights.items()}
    with Walked() as seen:
        frozen_net()
    assert frozen_again == seen.weights
    with Walked() as seen:
        verify_ticket(read_ticket(tmp_path / "t"))
    assert seen.weights == once


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("code", ["sign", "uniform", "constant"])
@pytest.mark.parametrize("target", ["plain", "meta", "frozen", "frozen on meta"])
def test_every_model_in_every_residency(tmp_path, residency, code, target):
    model = frozen_net(code=code, scaling="dynamic")
    fk.save_ticket(model, tmp_path / "t")
    with torch.device("meta" if target == "meta" else "cpu"):
        other = Net()
    if target.startswith("frozen"):
        other = frozen_net("meta" if target.endswith("meta") else "cpu", code="normal")
    other.norm.weight.requires_grad_(False)
    other = fk.load_ticket(other, tmp_path / "t", residency=residency).eval()
    assert all(t.device.type == "cpu" for t in other.state_dict().values())
    assert {layer.residency for layer in fk.nn.models.frozen_layers(other).values()} == {residency}
    fk.set_residency(model, residency)
    assert torch.equal(other(X), model(X))
    for name in ("conv", "wide", "a", "b"):
        held, right = (dict(m.get_submodule(name).named_buffers()) for m in (other, model))
        held.pop("offsets", None), right.pop("offsets", None)  # a layer that is searched has them too
        assert held.keys() == right.keys()
        assert all(torch.equal(held[n], right[n]) and held[n].dtype == right[n].dtype for n in held)
    assert not other.norm.weight.requires_grad and other.norm.bias.requires_grad
    assert other.tied.weight is other.head.weight and other.tied.bias is other.head.bias
    fk.save_ticket(other, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "t").read_bytes()
    fk.nn.models.frozen_layers(other)["a"].set_supermask(other.a.packed_supermask() * 0)  # tied layers share no memory
    assert torch.equal(other.b.weight, model.b.weight)


def test_a_frozen_model_keeps_its_residencies(tmp_path):
    fk.save_ticket(frozen_net(), tmp_path / "t")
    other = frozen_net()
    for name, residency in zip(("conv", "wide", "a", "b"), RESIDENCIES, strict=True):
        other.get_submodule(name).set_residency(residency)
    fk.load_ticket(other, tmp_path / "t")
    assert [m.residency for m in fk.nn.models.frozen_layers(other).values()] == list(RESIDENCIES)
    with pytest.raises(ValueError, match="residency: one of seed, mask, planes, packed, dense, got 'auto'"):
        fk.load_ticket(other, tmp_path / "t", residency="auto")


def test_layouts_and_dtypes_of_a_model_on_meta(tmp_path):
    def build() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 4, dtype=torch.bfloat16))
        return model.to(memory_format=torch.channels_last)

    model = build()
    fk.freeze_(model, filter_fn=lambda module, name: name != "1")
    fk.save_ticket(model, tmp_path / "t")
    with torch.device("meta"):
        loaded = fk.load_ticket(build(), tmp_path / "t")
    assert torch.equal(loaded[1].weight, model[1].weight) and loaded[2].dtype == torch.bfloat16
    assert loaded[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_buffers_that_no_ticket_holds_are_named(tmp_path):
    def build() -> nn.Module:
        model = small()
        model[1].register_buffer("cache", torch.ones(3), persistent=False)
        return model

    model = build()
    fk.freeze_(model)
    fk.save_ticket(model, tmp_path / "t")
    other = build().to("meta")
    with pytest.raises(fk.TicketError, match=r"buffers \['1\.cache'\] are on the meta device"):
        fk.load_ticket(other, tmp_path / "t")
    assert all(t.is_meta for t in other.state_dict().values()) and type(other[0]) is nn.Linear
    other[1].cache = torch.ones(3)
    assert torch.equal(fk.load_ticket(other, tmp_path / "t").eval()(torch.ones(2, 9)), model.eval()(torch.ones(2, 9)))


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("harm", ["overwritten", "cut"])
def test_a_loaded_model_owns_its_bytes(tmp_path, residency, harm):
    path = tmp_path / "t"
    fk.save_ticket(frozen_net(), path)
    loaded = fk.load_ticket(frozen_net("meta"), path, residency=residency).eval()
    before = loaded(X)
    with path.open("r+b") as file:
        if harm == "cut":
            file.truncate(0)
        else:
            file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded(X), before)


def test_a_file_that_is_cut_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "t"
    model = nn.Sequential(fk.nn.FrozenLinear(3, 3), nn.Linear(300, 300))  # more than is read at once
    fk.save_ticket(model, path)
    real = container.parse_header

    def cut(text, body):
        with path.open("r+b") as file:
            file.truncate(8 + len(text) + body // 2)
        return real(text, body)

    monkeypatch.setattr(container, "parse_header", cut)
    with pytest.raises(fk.TicketError, match="bytes are missing at its end"):
        read_ticket(path)


def peak_of(call) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(fk.TicketError) as caught:
            call()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def test_a_large_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "t"
    for size in (container.LARGEST_HEADER + 1, 6 << 30):
        with path.open("wb") as file:
            file.write(struct.pack("<Q", size))
            file.truncate(8 + size)
        peak, said = peak_of(lambda: read_ticket(path))
        assert f"a header of {size} bytes; at most 100000000 are read" in said and peak < 1 << 20


@pytest.mark.parametrize("place", ["header", "metadata"])
def test_a_header_of_many_values_is_refused_before_they_are_made(tmp_path, place):
    """Each is a few bytes in the file; those of metadata hide behind escapes from whoever counts in the header."""
    count = container.MOST_VALUES // 2 + 1
    path = tmp_path / "t"
    if place == "header":
        text = b'{"a":[' + b"[]," * count + b"0]}"
    else:
        metadata = parts(good_ticket(path)[0])[0]
        hidden = "[" + "\\u005b\\u005d\\u002c" * count + "0]"
        metadata["frozen_kernels.requires"] = "HERE"
        text = json.dumps({"__metadata__": metadata}).replace("HERE", hidden).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    peak, said = peak_of(lambda: read_ticket(path))
    assert "of the characters { [ , in JSON; at most 1048576 are read" in said
    assert peak < 6 * len(text) and peak < 64 << 20


def crafted(path, *shapes) -> file.Ticket:
    """A ticket whose records say that all of these shapes is locked."""
    data, _ = good_ticket(path)
    metadata, _, _ = parts(data)
    (first, *_) = json.loads(metadata["frozen_kernels.tensors"])
    records = []
    for stream, (rows, cols) in enumerate(shapes):
        counts = {"pruned": 0, "locked": rows * cols, "free": 0, "kept": rows * cols}
        own = {"name": str(stream), "stream": stream, "shape": [rows, cols], "tau_prune": 0, "tau_freeze": 65536}
        records.append(first | own | counts)
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    entries = {f"{record['name']}.supermask": empty for record in records}
    path.write_bytes(joined({**metadata, "frozen_kernels.tensors": json.dumps(records)}, entries, b""))
    return read_ticket(path)


def test_verifying_is_bounded_over_all_records(tmp_path):
    half = (1 << 13, 1 << 19)  # planes of half the bound
    for shapes, largest in (
        ([(1 << 31, 1 << 33)], "'0'"),
        ([half, (1, 1), half, half], "'0'"),
        ([(1 << 30, 1)], "'0'"),
    ):
        with pytest.raises(fk.TicketError, match=rf"keep planes of \d+ bytes, the largest that of {largest}; at most"):
            verify_ticket(crafted(tmp_path / "t", *shapes))


@pytest.mark.parametrize("shape", [(1 << 14, 1), (1, 1 << 20)])
def test_planes_are_hashed_in_blocks(tmp_path, monkeypatch, shape):
    """No tensor, plane or partition, of the size of the matrix is made; the hash is that of the whole plane."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.nbytes) if isinstance(out, torch.Tensor) else largest
            return out

    ticket = crafted(tmp_path / "t", shape)
    with Sizes(), pytest.raises(fk.TicketError, match="keep_sha256") as caught:
        verify_ticket(ticket)
    assert largest <= 4096
    header = ticket.records[0].header()
    whole = fk.FrozenTensor(shape, "uniform", header, torch.empty(0, dtype=torch.uint8)).hold("mask").keep
    assert regenerate.hash_plane(whole) in str(caught.value)
