"""A small ticket and its parts, for tests that edit files."""

import hashlib
import json
import struct
from pathlib import Path

import torch
from torch import nn

import frozen_kernels as fk


def small() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-1, 1)
    return model


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


def good_ticket(path: Path) -> tuple[bytes, nn.Module]:
    """The bytes of a ticket of `small`, and its model."""
    torch.manual_seed(0)
    model = small()
    fk.freeze_(model, fk.FreezeConfig(seed=5, code="uniform"))
    fk.save_ticket(model, path)
    return path.read_bytes(), model


def stored_ticket(path: Path, values: str) -> bytes:
    """The bytes of a ticket of `small` whose weights are stored as `values`."""
    torch.manual_seed(0)
    model = small()
    fk.freeze_(model, fk.FreezeConfig(code="stored"), lambda module, name: True)
    fk.finalize_(model, values)
    fk.save_ticket(model, path)
    return path.read_bytes()


def layered_ticket(path: Path) -> bytes:
    """The bytes of a ticket of `small` whose weights count up to four times, and of which some were drawn again."""
    model = good_ticket(path)[1]
    for layer, coats in ((model[0], 4), (model[2], 2)):
        layer.adopt_counts(torch.randint(0, coats + 1, (layer.free,), dtype=torch.uint8), coats=coats)
    for _ in range(3):
        model[2].redraw(torch.rand(model[2].free) < 0.5)
    fk.save_ticket(model, path)
    return path.read_bytes()


def signs_ticket(path: Path) -> tuple[bytes, nn.Module]:
    """The bytes of a ticket of `small` whose weights are stored signs, with a scale per row and per tensor."""
    torch.manual_seed(0)
    model = small()
    with torch.no_grad():
        for layer, rows in ((model[0], 7), (model[2], 1)):
            layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape) * torch.rand(rows, 1))
    fk.importers.ternary_(model)
    fk.save_ticket(model, path)
    return path.read_bytes(), model


def unchanged(model: nn.Module, before: dict, modules: list) -> bool:
    after = model.state_dict()
    return (
        [id(m) for m in model.modules()] == modules
        and after.keys() == before.keys()
        and all(torch.equal(v, before[k]) for k, v in after.items())
    )


def gain_ticket(path: Path) -> bytes:
    """The bytes of a ticket of `small` with a gain for each output of its first layer."""
    torch.manual_seed(0)
    model = small()
    fk.freeze_(model, lambda module, name: fk.FreezeConfig(gain=(2.5,) * 7 if name == "0" else 0.5))
    fk.save_ticket(model, path)
    return path.read_bytes()
