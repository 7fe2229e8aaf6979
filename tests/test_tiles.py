"""The table of GPU tiles: what a file must hold, how a user's own comes first, and what `bench --tune` does with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import check_broken_table, check_table_passed_over

from frozen_kernels import cli
from frozen_kernels.backends.cuda import choices
from frozen_kernels.backends.targets import Table
from frozen_kernels.backends.triton import tuning
from frozen_kernels.backends.triton.tuning import Entry, Tile
from frozen_kernels.tune import choices as tune_choices
from frozen_kernels.tune import tiles as tune_tiles

ROOT = Path(__file__).parents[1]
KEY = "product/linear/half/bits"
TILE = Tile(64, 32, 4, 8, 2)


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    """No table of the user who runs the tests, and none remembered."""
    path = tmp_path / "cache" / "tiles.json"
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    tuning.in_use.cache_clear()
    yield path
    tuning.in_use.cache_clear()


def test_the_shipped_table_is_whole_and_packaged():
    table = tuning.read(tuning.SHIPPED)
    layouts = {key.split("/")[1] for key in table.targets["default"]}
    assert layouts == set(tune_tiles.LAYOUTS) and set(table.made) == set(table.targets)
    name = str(tuning.SHIPPED.relative_to(ROOT / "frozen_kernels"))
    assert name in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("key", tuning.read(tuning.SHIPPED).targets["default"])
def test_every_shipped_entry_is_timed_on_some_sizes(key):
    entries = tuning.shipped("default")[1][key]
    served = [tuning.fitting(entries, rows, pixels) for rows, pixels in tune_tiles.SIZES]
    assert all(any(entry is found for found in served) for entry in entries)


def test_a_written_table_is_read_back(own_table):
    table = tuning.read(tuning.SHIPPED)
    tuning.write(table, own_table)
    assert tuning.read(own_table) == table and os.listdir(own_table.parent) == [own_table.name]
    assert own_table.read_text() == tuning.SHIPPED.read_text()


def test_the_users_entries_come_first_where_it_has_the_target(own_table):
    cpu = torch.device("cpu")
    assert tuning.in_use("default").path == tuning.SHIPPED
    tuning.write(Table({"default": "made up"}, {"default": {KEY: [Entry(None, None, TILE)]}}), own_table)
    tuning.in_use.cache_clear()
    path, made, entries = tuning.in_use("default")
    assert (path, made) == (own_table, "made up")
    assert tuning.tile("product/linear", cpu, torch.bfloat16, "sign", 1000, 1000) == TILE
    # other keys, and other GPUs, keep the shipped ones
    known = tuning.shipped("default")[1]
    assert {key: found for key, found in entries.items() if key != KEY} == {k: e for k, e in known.items() if k != KEY}
    assert tuning.in_use("sm_90") == (tuning.SHIPPED, *tuning.shipped("sm_90"))


def test_where_the_users_table_lies(monkeypatch, tmp_path):
    monkeypatch.delenv(tuning.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert tuning.user_path() == tmp_path / "frozen_kernels" / "gpu_tiles.json"


GOOD = {"rows": 64, "pixels": 16, "words": 8, "warps": 4, "stages": 3}
LAST = [None, None, GOOD]


def file_of(*entries: list, key: str = KEY) -> str:
    return json.dumps({"version": 1, "made": {}, "targets": {"default": {key: list(entries)}}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"version": 2, "made": {}, "targets": {}}', "version 2, this release reads 1"),
        (file_of([None, None, {**GOOD, "rows": 48}]), f"default {KEY} .*rows: a power of two, got 48"),
        (file_of([None, None, {**GOOD, "pixels": 8}]), f"default {KEY} .*pixels: an integer from 16 on, got 8"),
        (file_of([None, None, {**GOOD, "words": 0}]), "words: an integer from 1 on, got 0"),
        (file_of([None, None, {**GOOD, "warps": 3}]), "warps: a power of two, got 3"),
        (file_of([None, None, {**GOOD, "stages": 2.0}]), "stages: an integer from 1 on, got 2.0"),
        (file_of([None, None, {**GOOD, "flush": -1}]), "flush: an integer from 0 on, got -1"),
        (file_of([None, None, {**GOOD, "depth": 2}]), "unknown field 'depth'"),
        (file_of([None, None, {"rows": 64}]), "pixels is missing"),
        (file_of([0, None, GOOD], LAST), "pixels limit: an integer from 1 on, got 0"),
        (file_of([16, "64", GOOD], LAST), "rows limit: an integer from 1 on, got '64'"),
        (file_of(LAST, [None, 64, GOOD]), "the last entry must serve any size, got .*64"),
        (file_of(), "the last entry must serve any size"),
    ],
)
def test_a_broken_table_is_named_and_passed_over(own_table, text, told):
    check_broken_table(tuning, own_table, text, told)


def test_a_key_of_no_kernel_is_named_and_passed_over(own_table):
    text = file_of(LAST, key="product/round/half/bits")
    check_table_passed_over(tuning, own_table, text, "product/round/half/bits is no key.*shipped table is used")


def test_info_names_the_table(own_table, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["info"]) == 0
    assert f"GPU tiles: {tuning.SHIPPED}, for default: chosen by counting" in capsys.readouterr().out


def counted(best: Tile):
    """Prices by the number of fields that are not the best's."""
    return lambda tile: 1.0 + sum(a != b for a, b in zip(tile, best, strict=True))


def test_the_search_varies_one_field_after_the_other():
    best = Tile(256, 128, 1, 8, 4)
    assert tune_tiles.search(TILE, counted(best), lambda: True) == (best, 5.0, 13)


def test_less_than_noise_keeps_the_shipped_tile():
    assert tune_tiles.search(TILE, lambda tile: 1.0 if tile == TILE else 0.98, lambda: True)[:2] == (TILE, 1.0)


def test_what_cannot_run_is_never_chosen():
    assert tune_tiles.search(TILE, lambda tile: float("inf"), lambda: True)[0] == TILE
    faster = tune_tiles.search(TILE, lambda tile: float("inf") if tile == TILE else 1.0, lambda: True)[0]
    assert faster != TILE


def test_no_time_prices_the_shipped_tile_alone():
    assert tune_tiles.search(TILE, counted(Tile(256, 128, 1, 8, 4)), lambda: False) == (TILE, 1.0, 1)


def test_sums_of_tensor_cores_stay_short():
    tile = Tile(64, 16, 8, 4, 3, 4)
    for words in tune_tiles.CHOICES["words"]:
        varied = tune_tiles.varied(tile, "words", words)
        assert varied.words * varied.flush == 32
    assert tune_tiles.varied(tile._replace(words=1), "words", 8).flush == 1
    assert tune_tiles.varied(TILE, "words", 1).flush == 0


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU of the target `default` whose tiles and backends are found at once."""
    asked = []

    def tuned(old, device, made, seconds, say):
        asked.append(("tiles", device.type, made, seconds))
        choice = tune_tiles.Choice(KEY, Entry(None, None, TILE), TILE._replace(rows=128), 1.25, 7)
        return Table({**old.made, "default": made}, {**old.targets, "default": {KEY: [choice.entry]}}), [choice]

    def chosen(old, device, made, seconds, say):
        if asked[-1][0] == "tiles" and tuning.user_path().exists():  # which the products are now timed with
            assert tuning.in_use("default").path == tuning.user_path()
        asked.append(("choices", device.type, made, seconds))
        found = choices.Choice(None, "dense", "made up time")
        return Table({**old.made, "default": made}, {**old.targets, "default": {CHOICES_KEY: [found]}})

    monkeypatch.setenv(choices.VARIABLE, str(tmp_path / "cache" / "choices.json"))
    choices.forget()
    monkeypatch.setattr(tune_tiles, "lacking", lambda: "")
    monkeypatch.setattr(tune_tiles, "machine", lambda device: "made up")
    monkeypatch.setattr(tune_tiles, "tuned", tuned)
    monkeypatch.setattr(tune_choices, "made", lambda device: "made up too")
    monkeypatch.setattr(tune_choices, "tuned", chosen)
    monkeypatch.setattr(cli.tune, "target", lambda device: "default")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    yield asked
    choices.forget()


CHOICES_KEY = "linear/half/bits/planes"


def test_tune_writes_the_users_tables_and_keeps_other_gpus(own_table, gpu, capsys):
    tuning.in_use("default")
    tuning.write(Table({"sm_80": "before"}, {"sm_80": {KEY: [Entry(None, None, TILE)]}}), own_table)
    choices.write(Table({"sm_80": "before"}, {"sm_80": {}}), choices.user_path())
    assert cli.main(["bench", "--tune", "--device", "cuda"]) == 0
    out = capsys.readouterr().out
    assert f"written to {own_table}" in out and "1.25" in out and "128 x 32, 4 words" in out
    assert f"written to {choices.user_path()}" in out and "made up time" in out
    assert gpu == [
        ("tiles", "cuda", "made up", tune_tiles.SECONDS),
        ("choices", "cuda", "made up too", tune_choices.SECONDS),
    ]
    assert tuning.read(own_table).made == {"sm_80": "before", "default": "made up"}
    assert tuning.in_use("default").path == own_table
    assert choices.read(choices.user_path()).made == {"sm_80": "before", "default": "made up too"}
    assert choices.in_use("default").entries[CHOICES_KEY][0].backend == "dense"


def test_tune_takes_a_file_and_a_time(own_table, gpu, tmp_path):
    out = tmp_path / "mine.json"
    assert cli.main(["bench", "--tune", "--device", "cuda", "--out", str(out), "--seconds", "8"]) == 0
    assert list(tuning.read(out).targets) == list(choices.read(tmp_path / "mine_choices.json").targets) == ["default"]
    assert [asked[-1] for asked in gpu] == [6, 2] and not own_table.exists() and not choices.user_path().exists()


def test_tune_measures_both_tables_where_there_is_a_gpu(gpu, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(cli.tune, "tune_cpu", ran.append)
    monkeypatch.setattr(cli.tune.crossover, "active_level", lambda: "avx2")
    assert cli.main(["bench", "--tune"]) == 0 and (len(ran), len(gpu)) == (1, 2)
    monkeypatch.setattr(cli.tune.crossover, "active_level", lambda: None)  # without the extension
    assert cli.main(["bench", "--tune"]) == 0 and (len(ran), len(gpu)) == (1, 4)
    assert cli.main(["bench", "--tune", "--device", "cpu"]) == 0 and (len(ran), len(gpu)) == (2, 4)
    assert cli.main(["bench", "--tune", "--out", "x.json"]) == 1
    assert "choose it by --device" in capsys.readouterr().err


def test_a_device_must_be_there_and_needs_tune(monkeypatch, capsys):
    monkeypatch.setattr(tune_tiles, "lacking", lambda: "no CUDA device")
    assert cli.main(["bench", "--tune", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "error: --device cuda: no CUDA device\n"
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "--tune" in capsys.readouterr().err
