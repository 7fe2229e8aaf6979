"""What `auto` picks and why, the measured table behind it, and how a user's own takes its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels.memory import crossover, residency
from frozen_kernels.memory.crossover import Cell, Table
from frozen_kernels.tune import table as tune
from frozen_kernels.tune import tiles as tune_tiles

ROOT = Path(__file__).parents[1]
LEVEL = crossover.active_level()
needs_extension = pytest.mark.skipif(LEVEL is None, reason="the extension is not built")


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    """No table of the user who runs the tests."""
    path = tmp_path / "cache" / "table.json"
    monkeypatch.setenv(crossover.VARIABLE, str(path))
    return path


def use(path: Path, cells: dict[str, list[Cell]], dtype: str = "float32") -> None:
    crossover.write(Table({"machine": "made up"}, {LEVEL: {dtype: cells}}), path)


def frozen(*layers: nn.Module, **settings) -> nn.Sequential:
    model = nn.Sequential(*layers)
    fk.freeze_(model, fk.FreezeConfig(**settings))
    fk.finalize_(model)
    return model


@needs_extension
@pytest.mark.parametrize(
    ("mask", "planes", "picked"),
    [
        (0.9, 0.99, "dense"),
        (1.0, 1.09, "mask"),
        (1.0, 1.11, "planes"),
        (2.0, 1.5, "mask"),
        (0.9, 1.0, "planes"),
        (1.2, 0.8, "mask"),
    ],
)
@pytest.mark.parametrize("code", ["sign", "uniform"])
def test_the_rule(own_table, mask, planes, picked, code):
    use(own_table, {code: [Cell("linear", 64, 32, 1, mask, planes)]})
    model = frozen(nn.Linear(32, 64), code=code)
    found = fk.set_residency(model, "auto")
    assert found == {"0": picked} and model[0].residency == picked
    assert f"mask {mask:.2f}, planes {planes:.2f} times as fast as torch at linear 64 x 32" in found.reasons["0"]
    assert picked in str(found) and found.reasons["0"] in str(found)


@needs_extension
def test_a_constant_code_is_judged_by_the_planes_of_sign(own_table):
    use(own_table, {"sign": [Cell("linear", 64, 32, 1, 0.5, 1.5)]})
    assert fk.set_residency(frozen(nn.Linear(32, 64), code="constant"), "auto") == {"0": "mask"}
    use(own_table, {"sign": [Cell("linear", 64, 32, 1, 1.5, 0.5)]})
    assert fk.set_residency(frozen(nn.Linear(32, 64), code="constant"), "auto") == {"0": "dense"}


@needs_extension
def test_a_layer_is_judged_by_the_cells_nearest_to_it(own_table):
    cells = [Cell("linear", 64, 64, 1, 2, 2), Cell("linear", 2**20, 2**20, 1, 0.5, 0.5)]
    cells += [
        Cell("conv", 64, 27, 784, 0.5, 2),
        Cell("conv", 64, 288, 784, 0.5, 2),
        Cell("conv", 64, 27, 50000, 0.5, 0.5),
    ]
    cells += [Cell("depthwise", 1, 9, 784, 0.5, 0.5), Cell("transposed", 64, 64, 784, 0.5, 3)]
    use(own_table, {"sign": cells})
    model = frozen(
        nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 64, 3, groups=2),
        nn.ConvTranspose2d(64, 8, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 64), nn.Linear(64, 3000),
    )  # fmt: skip
    found = fk.set_residency(model, "auto")
    assert list(found.values()) == ["planes", "dense", "planes", "planes", "mask", "mask"]
    assert "at conv 64 x 27 on 784 pixels" in found.reasons["0"]
    assert "at conv 32 x 288" not in found.reasons["2"] and "conv 64 x 288 on 784" in found.reasons["2"]
    found = fk.set_residency(model, "auto", torch.randn(64, 3, 30, 30))
    assert found["0"] == found["2"] == "dense" and "on 50,000 pixels" in found.reasons["0"]


@needs_extension
def test_near_the_crossover_both_sides_must_be_faster_noise_taken_off(own_table):
    def picked(*cells: Cell, rows: int = 128) -> str:
        use(own_table, {"sign": list(cells)})
        return fk.set_residency(frozen(nn.Linear(128, rows)), "auto")["0"]

    low, high = Cell("linear", 64, 128, 1, 0.9, 0.9), Cell("linear", 256, 128, 1, 9, 9)
    assert picked(low, high) == "dense"  # 2.8 in the middle, but one side is slower
    assert picked(low._replace(mask=1, planes=1), high) == "mask"
    assert picked(low, high, rows=250) == "mask"  # the slower side is far
    near = Cell("linear", 128, 128, 1, 1.05, 1.05)
    assert picked(near) == "mask" and picked(near._replace(noise=0.06)) == "dense"


def test_factors_are_interpolated_over_logarithms():
    cells = [Cell("linear", 64, 128, 1, 1, 4, 0.5), Cell("linear", 256, 128, 1, 4, 1, 2.0)]
    found = crossover.estimate(cells, "linear", 128, 128, 1)
    assert found.factors == pytest.approx({"seed": 1, "mask": 2, "planes": 2})
    assert found.floors == {"seed": 0.5, "mask": 1, "planes": 1} and set(found.cells) == set(cells)
    assert crossover.estimate(cells, "linear", 64, 128, 1).factors == {"seed": 0.5, "mask": 1, "planes": 4}
    far = crossover.estimate(cells, "linear", 2**20, 128, 1)
    assert far.factors == pytest.approx({"seed": 2, "mask": 4, "planes": 1})
    # a residency that some cell does not tell is not judged
    assert set(crossover.estimate([cells[0], cells[1]._replace(seed=None)], "linear", 128, 128, 1).factors) == {
        "mask", "planes",
    }  # fmt: skip
    # where all that was measured is larger, the cost of a call decides, and that is not known
    assert (
        crossover.estimate(cells, "linear", 32, 32, 1) is None and crossover.estimate(cells, "conv", 64, 128, 1) is None
    )


@needs_extension
def test_the_smallest_within_a_factor_of_torch(own_table):
    use(own_table, {"sign": [Cell("linear", 64, 1024, 1, 0.7, 2.0, 0.4)]})
    model = frozen(nn.Linear(1024, 64))
    assert fk.set_residency(model, "auto") == {"0": "planes"}
    assert fk.set_residency(model, "auto", auto="memory") == {"0": "mask"}  # at most 1.5 times torch's time
    assert fk.set_residency(model, "auto", auto="memory", factor=2.5) == {"0": "seed"}
    found = fk.set_residency(model, "auto", auto="memory", factor=1.2)
    assert found == {"0": "planes"} and "seed 0.40, mask 0.70, planes 2.00" in found.reasons["0"]
    use(own_table, {"sign": [Cell("linear", 64, 1024, 1, 0.7, 0.8)]})
    assert fk.set_residency(model, "auto", auto="memory", factor=1.2) == {"0": "dense"}
    assert fk.set_residency(model, "auto", auto="memory", factor=9) == {"0": "mask"}  # of seed nothing is known
    assert fk.set_residency(frozen(nn.Linear(1024, 64), code="constant"), "auto", auto="memory") == {"0": "mask"}


@pytest.mark.parametrize(("given", "named"), [({"auto": "size"}, "auto.*size"), ({"factor": 0.9}, "factor.*0.9")])
def test_wrong_wishes_are_named(given, named):
    with pytest.raises(ValueError, match=named):
        fk.set_residency(frozen(nn.Linear(4, 3)), "auto", **given)


@needs_extension
def test_the_report_tells_bytes_and_where_its_table_was_measured(own_table):
    here = {"machine": crossover.processor(), "threads": torch.get_num_threads()}
    cells = {LEVEL: {"float32": {"sign": [Cell("linear", 64, 32, 1, 2.0, 1.0)]}}}
    model = frozen(nn.Linear(32, 64), nn.Linear(64, 32))
    crossover.write(Table(here, cells), own_table)
    fk.set_residency(model, "dense")
    found = fk.set_residency(model, "auto")
    dense, mask = (fk.tensor.resident_bytes((64, 32), "sign", model[0].free, kind) for kind in ("dense", "mask"))
    assert (found.before["0"], found.after["0"]) == (dense, mask)
    assert (found.total_before, found.total_after) == (sum(found.before.values()), sum(found.after.values()))
    assert f"{found.total_before:,}" in str(found) and f"{found.total_after:,}" in str(found)
    assert found.elsewhere is None and f"by {own_table}, measured on this machine" in str(found)
    for other in ({"machine": "Z80"}, {"threads": 99}):
        crossover.write(Table({**here, **other}, cells), own_table)
        found = fk.set_residency(model, "auto")
        ((key, value),) = other.items()
        assert found.elsewhere == f"{key} {value} (here {here[key]})" and found.elsewhere in str(found)
        assert "bench --tune" in str(found)
    assert fk.set_residency(model, "mask").table is None


def test_a_table_of_version_1_is_read():
    assert Cell("linear", 1, 2, 3, 0.5, 2.0, None, crossover.UNKNOWN_NOISE) == crossover._cell(
        ["linear", 1, 2, 3, 0.5, 2.0], 1
    )


@needs_extension
def test_a_sample_input_runs_once_and_changes_nothing(own_table):
    model = frozen(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)).train()
    before = model[1].running_mean.clone()
    layers = [m for m in model.modules() if isinstance(m, fk.nn.FrozenLayer)]
    pixels = residency.output_pixels(model, (torch.randn(7, 3, 8, 8),))
    assert pixels == {layers[0]: 7 * 36, layers[1]: 7}
    assert residency.output_pixels(nn.Sequential(layers[0]), torch.randn(3, 8, 8)) == {layers[0]: 36}
    assert torch.equal(model[1].running_mean, before) and model.training and not layers[0]._forward_hooks


def test_what_no_table_judges(monkeypatch, own_table):
    embedding = fk.nn.FrozenEmbedding(40, 8)
    monkeypatch.setattr(crossover, "in_use", lambda level: (own_table, Table({}, {})))
    assert residency.auto_residency(embedding)[0] == "planes"
    linear = fk.nn.FrozenLinear(4, 3, code="normal")
    assert residency.auto_residency(linear.to("meta"))[0] == "mask"
    double = fk.nn.FrozenLinear(4, 3, dtype=torch.float64)
    assert residency.auto_residency(double)[0] == "dense"
    monkeypatch.setattr(crossover, "active_level", lambda: None)
    assert residency.auto_residency(fk.nn.FrozenLinear(4, 3)) == (
        "dense",
        "no fused kernels here: the extension is missing",
        False,
    )
    monkeypatch.setattr(crossover, "active_level", lambda: "unknown")
    picked, why, _ = residency.auto_residency(fk.nn.FrozenLinear(4, 3))
    assert picked == "planes" and "not measured for linear layers on unknown" in why


def test_other_residencies_are_as_asked():
    found = fk.set_residency(frozen(nn.Linear(4, 3)), "seed")
    assert found == {"0": "seed"} and found.reasons == {"0": "asked for"}


@needs_extension
def test_bfloat16_has_cells_of_its_own(own_table):
    use(own_table, {"sign": [Cell("linear", 64, 32, 1, 2, 1)]})
    half = frozen(nn.Linear(32, 64)).bfloat16()
    assert fk.set_residency(half, "auto") == {"0": "mask"}  # float32 stands in
    use(own_table, {"sign": [Cell("linear", 64, 32, 1, 0.5, 0.5)]}, "bfloat16")
    assert fk.set_residency(half, "auto") == fk.set_residency(half.half(), "auto") == {"0": "dense"}
    assert "not measured" in fk.set_residency(half.float(), "auto").reasons["0"]


INTEL, AMD = crossover.SHIPPED, *crossover.SHIPPED_OTHERS


@pytest.mark.parametrize(
    ("shipped", "known"), [(INTEL, {"portable", "avx2", "avx512", "vnni", "amx"}), (AMD, {"avx2", "zen4"})]
)
def test_a_shipped_table_has_every_code_and_kind(shipped, known):
    table = crossover.read(shipped)
    assert set(table.levels) == known
    assert {"machine", "torch", "threads", "frozen_kernels"} <= set(table.made)
    for level, dtypes in table.levels.items():
        assert set(dtypes) == ({"float32", "bfloat16"} if level in tune.HALF_LEVELS else {"float32"})
        for codes in dtypes.values():
            # tiles serve no stored weight: the figures of the level below are asked for
            assert set(codes) == {*tune.CODES, *(tune.STORED_CODES if level != "amx" else ())}
            for cells in codes.values():
                assert {cell.kind for cell in cells} >= {"linear", "conv", "depthwise", "transposed"}
    assert f"memory/{shipped.name}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("name", "level", "shipped"),
    [
        ("Intel(R) Xeon(R) Processor", "avx2", INTEL),
        ("Intel(R) Core(TM) Ultra 7", "avx2", INTEL),
        ("AMD EPYC", "zen4", AMD),
        ("AMD Ryzen 7 7840U", "avx2", AMD),
        ("AMD EPYC", "vnni", INTEL),  # measured on the other maker's alone
        ("Intel(R) Xeon(R) Processor", "zen4", AMD),
        ("Neoverse-V1", "neon", INTEL),
        ("", None, INTEL),
    ],
)
def test_the_shipped_table_is_that_of_the_processor_or_of_its_maker(monkeypatch, name, level, shipped):
    monkeypatch.setattr(crossover, "processor", lambda: name)
    path, table = crossover.shipped(level)
    assert path == shipped
    assert bool(table.elsewhere()) == (table.made["machine"] != name or torch.get_num_threads() != 2)


def test_a_written_table_is_read_back_and_replaces_the_old_one(own_table):
    table = crossover.read(crossover.SHIPPED)
    crossover.write(table, own_table)
    assert crossover.read(own_table) == table
    crossover.write(table._replace(levels={}), own_table)
    assert crossover.read(own_table).levels == {} and os.listdir(own_table.parent) == [own_table.name]


def test_a_failed_write_leaves_the_old_table(own_table, monkeypatch):
    crossover.write(Table({}, {}), own_table)
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        crossover.write(Table({"machine": "other"}, {}), own_table)
    assert crossover.read(own_table).made == {} and os.listdir(own_table.parent) == [own_table.name]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 3, "made": {}, "levels": {}}', '{"version": 1, "made": {}, "levels": {"avx2": 3}}',
     '{"version": 2, "made": {}, "levels": {"avx2": {"float32": {"sign": [["linear", 1, 1, 1, 1, 1]]}}}}',
     '{"version": 2, "made": {}, "levels": {"avx2": {"float32": {"sign": [["linear", 1, 1, 1, 1, 1, 1, 1]]}}}}',
     '{"version": 1, "made": {}, "levels": {"avx2": {"float32": {"sign": [["linear", 1, 1, 1, 0, 1]]}}}}'],
)  # fmt: skip
def test_a_broken_table_is_named_and_passed_over(own_table, text):
    own_table.parent.mkdir()
    own_table.write_text(text)
    with pytest.raises(ValueError, match=str(own_table)):
        crossover.read(own_table)
    with pytest.warns(UserWarning, match="shipped table is used"):
        assert crossover.in_use("avx2") == crossover.shipped("avx2")


def test_the_users_table_comes_first_where_it_has_the_instruction_set(own_table):
    assert crossover.in_use("avx2") == crossover.shipped("avx2")
    cells = {"float32": {"sign": [Cell("linear", 1, 1, 1, 1.0, 1.0)]}}
    crossover.write(Table({}, {"avx2": cells}), own_table)
    assert crossover.in_use("avx2") == (own_table, Table({}, {"avx2": cells}))
    assert crossover.in_use("portable") == crossover.shipped("portable")


@pytest.mark.parametrize(
    ("platform", "variable", "path"),
    [
        ("linux", "XDG_CACHE_HOME", "frozen_kernels/residency_table.json"),
        ("win32", "LOCALAPPDATA", "frozen_kernels/residency_table.json"),
        ("darwin", "HOME", "Library/Caches/frozen_kernels/residency_table.json"),
        ("linux", "HOME", ".cache/frozen_kernels/residency_table.json"),
    ],
)
def test_where_the_users_table_lies(monkeypatch, tmp_path, platform, variable, path):
    for name in (crossover.VARIABLE, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert crossover.user_path() == tmp_path / path


SMALL = (
    tune._Layer(lambda: nn.Linear(40, 24), ((1, 40), (3, 40))),
    tune._conv(32, 3, (1, 6), groups=32),
    tune._embedding(40, 16),
)


@needs_extension
def test_measuring_a_level(monkeypatch):
    monkeypatch.setattr(tune, "LAYERS", SMALL)
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    said = []
    found = tune.measure_level("avx512", said.append)
    assert set(found) == {"float32", "bfloat16"} and len(said) == 2
    for codes in found.values():
        for code, cells in codes.items():
            layers = [("linear", 24, 40, 1), ("linear", 24, 40, 3), ("depthwise", 1, 9, 36)]
            if code not in tune.STORED_CODES:
                layers += [("embedding", 40, 16, count) for count in (1, 64, 1024)]
            assert [cell[:4] for cell in cells] == layers
            assert all(min(cell.mask, cell.planes) > 0 and 0 <= cell.noise < 1 for cell in cells)
            for cell in cells:
                # a stored weight has one fused residency
                assert cell.seed is None and cell.mask == cell.planes if code in tune.STORED_CODES else cell.seed > 0
    assert set(tune.measure_level("avx2", said.append)) == {"float32"}


@needs_extension
def test_tune_writes_the_users_table_and_info_names_it(own_table, monkeypatch, capsys, tmp_path):
    ran = []

    def run(command, env, **_):
        ran.append((command[-2:], {n: env.get(n) for n in ("FROZEN_KERNELS_ISA", "ONEDNN_MAX_CPU_ISA")}))
        cells = {"float32": {"sign": [["linear", 24, 40, 1, 1.5, 2.0, 0.5, 0.01]]}}
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(cells))

    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(tune_tiles, "lacking", lambda: "no CUDA device")
    # of this module alone: `info` asks the system for its name
    monkeypatch.setattr(tune, "subprocess", SimpleNamespace(run=run, PIPE=subprocess.PIPE))
    assert cli.main(["bench", "--tune", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert str(own_table) in out and out.endswith("\nGPU tiles and choices: not measured, no CUDA device\n")
    assert ran == [([LEVEL, "1"], {"FROZEN_KERNELS_ISA": LEVEL, "ONEDNN_MAX_CPU_ISA": None})]
    assert cli.main(["info"]) == 0
    assert f"residency table: {own_table}, measured on machine " in capsys.readouterr().out
    ran.clear()
    assert cli.main(["bench", "--tune", "--out", str(tmp_path / "all.json")]) == 0
    levels = list(crossover.read(tmp_path / "all.json").levels)
    assert levels == [command[0] for command, _ in ran] and LEVEL in levels
    assert [env["ONEDNN_MAX_CPU_ISA"] is None for _, env in ran] == [level == levels[-1] for level in levels]


@needs_extension
def test_a_level_that_fails_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tune_tiles, "lacking", lambda: "no CUDA device")
    monkeypatch.setattr(tune.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3, stdout=""))
    assert cli.main(["bench", "--tune"]) == 1
    assert "exit status 3" in capsys.readouterr().err


def test_out_needs_tune(capsys):
    assert cli.main(["bench", "--out", "x.json"]) == 2
    assert "--tune" in capsys.readouterr().err
