"""Mutated files of banks: a clean error and an untouched model, or the bank that the file says."""

import json
import random

import pytest
from bank_cases import good_bank, small
from test_ticket_mutations import ODD_VALUES, consistent_mutation, raw_mutation, says
from ticket_cases import joined, parts, unchanged

import frozen_kernels as fk


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes by what is in the file: drawn weights, or stored ones of two dtypes."""
    folder = tmp_path_factory.mktemp("good")
    return {
        "drawn": good_bank(folder / "drawn"),
        "int8": good_bank(folder / "int8", "int8"),
        "float16": good_bank(folder / "float16", "float16"),
    }


def bank_mutation(rng: random.Random, data: bytes) -> bytes:
    """A consistent change, half the time of one mask's part of a record or of the name of one task's tensor."""
    if rng.random() < 0.5:
        return consistent_mutation(rng, data)
    metadata, entries, body = parts(data)
    if rng.random() < 0.3:
        name = rng.choice([name for name in sorted(entries) if "task" in name])
        entries[name.replace("task0", "task1") if rng.random() < 0.5 else name.replace(".mask.", ".")] = entries.pop(
            name
        )
        return joined(metadata, entries, body)
    records = json.loads(metadata["frozen_kernels.tensors"])
    record = rng.choice(records)
    of_masks = record[rng.choice(["masks", "kept", "scale", "keep_sha256"])]
    change = rng.randrange(4)
    if change == 0:
        of_masks.reverse()
    elif change == 1:
        of_masks[rng.randrange(2)] = rng.choice(ODD_VALUES)
    elif change == 2:
        del of_masks[rng.randrange(2)]
    else:
        of_masks[0] = of_masks[1]
    metadata["frozen_kernels.tensors"] = json.dumps(records)
    return joined(metadata, entries, body)


@pytest.mark.parametrize(
    ("holds", "mutate", "count"),
    [
        ("drawn", raw_mutation, 100), ("drawn", bank_mutation, 100), ("int8", bank_mutation, 100),
        pytest.param("drawn", raw_mutation, 1500, marks=pytest.mark.long),
        pytest.param("drawn", bank_mutation, 1500, marks=pytest.mark.long),
        pytest.param("int8", bank_mutation, 1500, marks=pytest.mark.long),
        pytest.param("float16", bank_mutation, 1000, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_mutated_banks(tmp_path, good, holds, mutate, count):
    data, rng = good[holds], random.Random(21)
    path, again, first = tmp_path / "t", tmp_path / "again", tmp_path / "first"
    first.write_bytes(data)
    target = small()
    before, modules = {k: v.clone() for k, v in target.state_dict().items()}, [id(m) for m in target.modules()]
    loaded = 0
    for _ in range(count):
        path.write_bytes(mutate(rng, data))
        try:
            bank = fk.MaskBank.load(target, path)
        except fk.TicketError:
            assert unchanged(target, before, modules) and not target._forward_pre_hooks
            continue
        loaded += 1
        bank.save(again)
        assert says(again) == says(path)
        if mutate is raw_mutation:
            assert says(again) == says(first)
        target = small()
        before, modules = {k: v.clone() for k, v in target.state_dict().items()}, [id(m) for m in target.modules()]
    assert loaded < count / 2
    if mutate is bank_mutation:
        assert loaded > count / 50
