"""Thirteen thousand mutated tickets: a clean error or the model that the file says, never another exception."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from ticket_cases import good_ticket, joined, layered_ticket, parts, signs_ticket, small, stored_ticket, unchanged

import frozen_kernels as fk


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes by what is in the file: drawn weights, also in coats and of several generations, stored ones, or signs."""
    folder = tmp_path_factory.mktemp("good")
    return {
        "drawn": good_ticket(folder / "drawn")[0],
        "layered": layered_ticket(folder / "layered"),
        "int8": stored_ticket(folder / "int8", "int8"),
        "float16": stored_ticket(folder / "float16", "float16"),
        "signs": signs_ticket(folder / "signs")[0],
    }


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
    "normal", "stored", "signs", "int8", [], [7, 9], [3, 7], [7, 3, 3], {}, "18446744073709551615", "0" * 64,
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
    return sorted(records, key=lambda r: (r["stream"], r["name"])), tensors


@pytest.mark.parametrize(
    ("holds", "mutate", "count"),
    [
        ("drawn", raw_mutation, 7500), ("drawn", consistent_mutation, 2500), ("int8", raw_mutation, 500),
        ("int8", consistent_mutation, 1500), ("float16", consistent_mutation, 1000), ("layered", raw_mutation, 200),
        ("layered", consistent_mutation, 400), ("signs", raw_mutation, 100), ("signs", consistent_mutation, 150),
    ],
)  # fmt: skip
def test_mutated_files(tmp_path, good, holds, mutate, count):
    """A clean error and an untouched model, or a model that is all that the file says."""
    data = good[holds]
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
