"""Tiles measured by a made-up clock: what is launched, checked and skipped, and that a table so found is used."""

from __future__ import annotations

import math

import pytest
import torch
from common import DEVICE, header, pack_of, small_integers

from frozen_kernels.backends import triton
from frozen_kernels.backends.targets import Table, target
from frozen_kernels.backends.triton import product, tuning
from frozen_kernels.backends.triton.tuning import Entry, Tile
from frozen_kernels.tune import tiles as tune_tiles

SMALL = {
    "linear": tune_tiles._Layout(33, 0, None, True),
    "runs": tune_tiles._Layout(64, 3, torch.channels_last, False),
    "strided": tune_tiles._Layout(5, 3, torch.contiguous_format, False),
    "mixed": tune_tiles._Layout(3, 3, torch.channels_last, False),
}
BITS = "product/linear/half/bits"
TILE = Tile(64, 16, 2, 4, 3)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "tiles.json"))
    monkeypatch.setattr(tune_tiles, "LAYOUTS", SMALL)
    monkeypatch.setattr(tune_tiles, "SIZES", ((5, 4), (3, 25)))
    tuning.in_use.cache_clear()
    yield
    tuning.in_use.cache_clear()


def found_cases(key: str) -> list[tune_tiles.Case]:
    entries = [Entry(None, None, TILE)]
    return tune_tiles.cases(key, entries, entries[0], DEVICE)


@pytest.mark.parametrize(
    "key",
    [
        BITS,
        "product/runs/half/bytes",
        "product/strided/half/bits",
        "product/mixed/float/bytes",
        "product/strided/float/values",
    ],
)
def test_cases_are_those_of_their_key(key, monkeypatch):
    monkeypatch.setattr(tune_tiles, "SIZES", ((3, 4),))
    found, asked = found_cases(key), []
    residencies = 1 if key.endswith("values") else len(tune_tiles.RESIDENCIES)
    assert len(found) == residencies * (2 if SMALL[key.split("/")[1]].back else 1)

    def tile(kernel, device, dtype, code, rows, pixels):
        asked.append((kernel, "float" if dtype == torch.float32 else "half", tuning.KINDS.get(code, "bytes")))
        return TILE

    monkeypatch.setattr(product.tuning, "tile", tile)
    for case in found:
        case.launch(None)
        assert torch.equal(case.y, case.expected) and case.y.any()
    assert {"/".join(parts) for parts in asked} == {key}


def test_the_cost_is_the_geometric_mean_of_all_cases():
    found = found_cases(BITS)
    times = iter(range(1, 9))
    assert len(found) == 8
    cost = tune_tiles.cost(found, TILE, lambda call: float(next(times)))
    assert math.isclose(cost, math.prod(range(1, 9)) ** (1 / 8))


def test_a_wrong_result_is_not_timed():
    found = found_cases(BITS)
    found[5] = found[5]._replace(expected=found[5].expected + 1)
    with pytest.raises(ValueError, match="wrong results"):
        tune_tiles.cost(found, TILE, lambda call: pytest.fail("timed"))


def test_a_tile_that_spills_or_is_not_compiled_is_not_timed():
    from triton.runtime.errors import OutOfResources

    class Built:
        n_spills = 3

    def fails(tile):
        raise OutOfResources(300_000, 232_448, "shared memory")

    case = found_cases(BITS)[0]
    for launch, told in ((lambda tile: Built(), "spills 3"), (fails, "OutOfResources: out of resource: shared memory")):
        with pytest.raises(ValueError, match=told):
            tune_tiles.cost([case._replace(launch=launch)], TILE, lambda call: pytest.fail("timed"))


def test_a_measured_table_is_written_read_and_used(monkeypatch):
    best, said, now = TILE._replace(pixels=32, warps=8), [], iter(range(10_000))
    entries = {BITS: [Entry(16, None, TILE), Entry(None, None, TILE._replace(rows=32))]}
    monkeypatch.setattr(tune_tiles, "CHOICES", {"pixels": (16, 32), "rows": (64, 128), "warps": (4, 8)})
    known = tuning.shipped("default")[1]
    monkeypatch.setattr(tuning, "shipped", lambda target: ("shipped", {**known, **entries}))
    name = target(DEVICE)

    def timer(call):
        call()
        tile = call.args[0]
        if tile.rows == 128:
            raise AssertionError("skipped before it is timed")
        return 1.0 + sum(a != b for a, b in zip(tile, best, strict=True))

    launch = product.fill

    def no_large(*args, tile=None, **named):
        if tile is not None and tile.rows == 128:
            raise RuntimeError("PassManager::run failed\nwhy")
        return launch(*args, tile=tile, **named)

    monkeypatch.setattr(tune_tiles, "fill", no_large)
    with monkeypatch.context() as only:
        only.setattr(tuning, "shipped", lambda target: ("shipped", entries))
        old = Table({"other": "before"}, {"other": entries})
        measured, found = tune_tiles.tuned(old, DEVICE, "made up", 1e6, said.append, timer, lambda: next(now))
    assert [choice.entry for choice in found] == [Entry(16, None, best), Entry(None, None, best)]
    assert [round(choice.faster, 3) for choice in found] == [3.0, 4.0]
    assert sum("skipped 128 x" in text and "RuntimeError: PassManager::run failed" in text for text in said) == 2
    assert measured.made == {"other": "before", name: "made up"} and measured.targets["other"] == entries
    tuning.write(measured, tuning.user_path())
    assert tuning.in_use(name).path == tuning.user_path()
    used = []
    monkeypatch.setattr(product.tuning, "split", lambda programs, steps: used.append(programs) or 1)
    x, pack = small_integers(65, 33, dtype=torch.bfloat16), pack_of(header(), "planes", "sign", (5, 33))
    triton.linear(x, None, None, *pack)
    assert used == [3]  # programs of 32 pixels


def test_no_time_leaves_the_shipped_tiles(monkeypatch):
    entries, said = {BITS: [Entry(None, None, TILE)]}, []
    monkeypatch.setattr(tuning, "shipped", lambda target: ("shipped", entries))
    never = lambda call: pytest.fail("timed")  # noqa: E731
    measured, found = tune_tiles.tuned(Table({}, {}), DEVICE, "made up", 0, said.append, never, lambda: 1.0)
    assert measured.targets == {target(DEVICE): {}} and found[0].tried == 0
    assert said == [f"{BITS} rows any, pixels any: not measured, time is up; the shipped tile stays"]
