"""The table of GPU choices: what a file must hold, what it decides, and what `info` and `bench --tune` do with it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import check_broken_table, check_table_passed_over
from torch import nn

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels.backends import Unsupported, cuda, targets
from frozen_kernels.backends.cuda import choices, extension, product
from frozen_kernels.backends.cuda.choices import BACKENDS, OPS, Choice
from frozen_kernels.backends.targets import Table
from frozen_kernels.memory import residency
from frozen_kernels.memory.auto import Wish, auto_residency
from frozen_kernels.tune import choices as tune_choices

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
KEY = "linear/half/bits/planes"
RESIDENCIES = {"bits": ("planes", "mask"), "uniform": ("planes", "mask"), "normal": ("planes", "mask"),
               "values": ("packed",)}  # fmt: skip
ANY = [None, "triton", "made up"]


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    """No table of the user who runs the tests, and none remembered."""
    path = tmp_path / "cache" / "choices.json"
    monkeypatch.setenv(choices.VARIABLE, str(path))
    choices.forget()
    yield path
    choices.forget()


def use(path: Path, *found: Choice, key: str = KEY) -> None:
    choices.write(Table({"default": "made up"}, {"default": {key: list(found)}}), path)
    choices.forget()


def chosen(pixels: int, op: str = "linear", dtype=torch.bfloat16, code: str = "sign", residency: str = "planes") -> str:
    return choices.choose(op, CPU, dtype, code, residency, pixels).backend


def test_the_shipped_table_is_whole_and_packaged():
    table = choices.read(choices.SHIPPED)
    keys = [
        f"{op}/{dtype}/{kind}/{residency}"
        for op in OPS
        for dtype in ("half", "float")
        for kind, residencies in RESIDENCIES.items()
        for residency in residencies
    ]
    assert list(table.targets) == list(table.made) == ["default"] and list(table.targets["default"]) == keys
    assert {key.split("/")[2] for key in keys} == set(tune_choices.CODES)
    assert set(tune_choices.LAYERS) == set(tune_choices.SIZES) == set(OPS)
    name = str(choices.SHIPPED.relative_to(ROOT / "frozen_kernels"))
    assert name in (ROOT / "pyproject.toml").read_text()


def test_every_shipped_choice_tells_its_count_and_limits_grow():
    for key, found in choices.shipped("default")[1].items():
        limits = [choice.pixels for choice in found[:-1]]
        assert limits == sorted(set(limits)), key
        for choice in found:
            assert choice.why.startswith(("by count: ", "not counted")), key
            assert choice.backend in ("cuda", "triton"), key


@pytest.mark.parametrize(
    ("product", "limit"),
    [
        ({}, 16),
        ({"residency": "mask"}, 16),
        ({"code": "constant"}, 16),
        ({"dtype": torch.float16}, 16),
        ({"dtype": torch.float32}, 5),
        ({"code": "normal"}, 4),
        ({"code": "uniform", "residency": "mask"}, 4),
        ({"code": "stored", "residency": "packed"}, 8),
        ({"op": "linear_grad_input"}, 8),
        ({"op": "conv2d"}, 1568),
        ({"op": "stem"}, None),
        ({"op": "linear_grad_input", "dtype": torch.float32}, 0),
        ({"op": "conv2d", "code": "normal"}, 0),
    ],
)
def test_where_cuda_is_chosen_without_a_measurement(product, limit):
    assert chosen(1, **product) == ("triton" if limit == 0 else "cuda")
    if limit:
        assert (chosen(limit, **product), chosen(limit + 1, **product)) == ("cuda", "triton")
    assert chosen(10**6, **product) == ("cuda" if limit is None else "triton")


def test_a_written_table_is_read_back(own_table):
    table = choices.read(choices.SHIPPED)
    choices.write(table, own_table)
    assert choices.read(own_table) == table and os.listdir(own_table.parent) == [own_table.name]
    assert own_table.read_text() == choices.SHIPPED.read_text()


def test_the_users_choices_come_first_where_it_has_the_target(own_table):
    assert choices.in_use("default").path == choices.SHIPPED
    use(own_table, Choice(2, "dense", "measured"), Choice(None, "cuda", "measured"))
    path, made, entries = choices.in_use("default")
    assert (path, made) == (own_table, "made up")
    assert [chosen(pixels) for pixels in (1, 2, 3, 10**6)] == ["dense", "dense", "cuda", "cuda"]
    # other keys, and other GPUs, keep the shipped ones
    known = choices.shipped("default")[1]
    assert {key: found for key, found in entries.items() if key != KEY} == {k: e for k, e in known.items() if k != KEY}
    assert choices.in_use("sm_90") == (choices.SHIPPED, *choices.shipped("sm_90"))


def test_where_the_users_table_lies(monkeypatch, tmp_path):
    monkeypatch.delenv(choices.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert choices.user_path() == tmp_path / "frozen_kernels" / "gpu_choices.json"


def file_of(*entries: list, key: str = KEY) -> str:
    return json.dumps({"version": 1, "made": {}, "targets": {"default": {key: list(entries)}}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"version": 2, "made": {}, "targets": {}}', "version 2, this release reads 1"),
        ('{"version": 1, "targets": {}}', "KeyError: 'made'"),
        (file_of([None, "cublas", "x"]), f"default {KEY} .*backend: one of cuda, triton, dense, got 'cublas'"),
        (file_of([-1, "cuda", "x"], ANY), f"default {KEY} .*pixels limit: an integer from 1 on, got -1"),
        (file_of([0, "cuda", "x"], ANY), "pixels limit: an integer from 1 on, got 0"),
        (file_of([1.5, "cuda", "x"], ANY), "pixels limit: an integer from 1 on, got 1.5"),
        (file_of([None, "cuda"]), f"default {KEY} .*not enough values"),
        (file_of([None, "cuda", ""]), "why: text expected, got ''"),
        (file_of([None, "cuda", 3]), "why: text expected, got 3"),
        (file_of([16, "cuda", "x"]), f"default {KEY} .*the last entry must serve any size, got .*16"),
        (file_of(ANY, [16, "cuda", "x"]), "the last entry must serve any size"),
        (file_of(), "the last entry must serve any size"),
    ],
)
def test_a_broken_table_is_named_and_passed_over(own_table, text, told):
    check_broken_table(choices, own_table, text, told)


def test_a_key_of_no_product_is_named_and_passed_over(own_table):
    text = file_of(ANY, key="linear/half/bits/seed")
    check_table_passed_over(choices, own_table, text, "default linear/half/bits/seed is no key.*shipped table is used")


def test_a_product_for_another_backend_is_left_to_it(own_table):
    pack = fk.FrozenTensor.create((16, 64), seed=1, residency="planes").pack()
    for backend in ("triton", "dense"):
        use(own_table, Choice(None, backend, "so fast"), key="linear/float/bits/planes")
        with pytest.raises(Unsupported, match=f"the table of choices names {backend}: so fast"):
            cuda.linear(torch.ones(1, 64), None, None, *pack)


LAYERS = {  # by what they are called in the table
    "linear": lambda: fk.nn.FrozenLinear(64, 32),
    "conv2d": lambda: fk.nn.FrozenConv2d(16, 8, 3, padding=1),
    "stem": lambda: fk.nn.FrozenConv2d(3, 8, 7),
}
UNLISTED = {
    "embedding": lambda: fk.nn.FrozenEmbedding(40, 8),
    "groups": lambda: fk.nn.FrozenConv2d(32, 32, 3, groups=2),
    "transposed": lambda: fk.nn.FrozenConvTranspose2d(16, 8, 2),
    "conv3d": lambda: fk.nn.FrozenConv3d(16, 8, 3),
    "padding": lambda: fk.nn.FrozenConv2d(16, 8, 3, padding="same"),
    "float64": lambda: fk.nn.FrozenLinear(64, 32, dtype=torch.float64),
}


@pytest.fixture
def picked(monkeypatch):
    """`auto_residency` of layers that seem to lie on a GPU of the target `default`, for models too."""
    monkeypatch.setattr(choices, "target", lambda device: "default")

    def auto(*args):
        with pytest.MonkeyPatch.context() as only:
            only.setattr(fk.nn.FrozenLayer, "device", torch.device("cuda", 0))
            return auto_residency(*args)

    monkeypatch.setattr(residency, "auto_residency", auto)
    return auto


@pytest.mark.parametrize("op", LAYERS)
def test_auto_takes_dense_where_the_table_says_so(own_table, picked, op):
    layer = LAYERS[op]().bfloat16()
    assert picked(layer)[0] == "planes"
    found = Choice(100, "dense", "at 100 pixels: dense 1 us"), Choice(None, "cuda", "fast")
    use(own_table, *found, key=f"{op}/half/bits/planes")
    assert picked(layer, 100) == ("dense", "GPU choices name dense, at 100 pixels: dense 1 us", False)
    assert picked(layer, 101) == ("planes", "GPU choices name cuda, fast", False)
    assert picked(layer, 100, Wish("memory"))[0] == "mask"  # whose key says something else


@pytest.mark.parametrize("name", UNLISTED)
def test_auto_knows_nothing_of_other_layers(picked, name):
    assert picked(UNLISTED[name]()) == ("planes", "not measured on cuda", False)


def test_a_model_tells_what_the_choices_say(own_table, picked):
    use(own_table, Choice(None, "dense", "at 1 pixels: dense 1 us"), key="linear/float/bits/planes")
    model = nn.Sequential(fk.nn.FrozenLinear(64, 32))
    fk.finalize_(model)
    found = fk.set_residency(model, "auto")
    assert found == {"0": "dense"} and "dense 1 us" in str(found) and found.table is None


def test_auto_asks_for_the_residency_that_it_would_take(own_table, picked):
    dense = Choice(None, "dense", "fast")
    for code, key, small in (
        ("constant", "linear/float/bits/planes", "mask"),
        ("normal", "linear/float/normal/mask", "mask"),
    ):
        layer = fk.nn.FrozenLinear(64, 32, code=code)
        assert picked(layer, 1)[0] == small
        use(own_table, dense, key=key)
        assert picked(layer, 1)[0] == "dense"
    point = fk.nn.FrozenConv2d(16, 8, 1)
    use(own_table, dense, key="linear/float/bits/planes")
    assert picked(point, 1)[0] == "dense"
    strided = fk.nn.FrozenConv2d(16, 8, 1, stride=2)
    assert picked(strided, 1)[0] == "planes"


def test_stored_weights_are_packed_or_dense(own_table, picked):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.9))
    fk.finalize_(model)
    assert picked(model[0], 1)[0] == "packed"
    use(own_table, Choice(None, "dense", "fast"), key="linear/float/values/packed")
    assert picked(model[0], 1)[0] == "dense"


def test_info_names_the_table(own_table, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["info"]) == 0
    assert f"GPU choices: {choices.SHIPPED}, for default: chosen by counting" in capsys.readouterr().out
    use(own_table, Choice(None, "cuda", "fast"))
    assert cli.main(["info"]) == 0
    assert f"GPU choices: {own_table}, for default: made up" in capsys.readouterr().out


def test_info_prints_the_choices_behind_the_kernels(own_table, capsys, monkeypatch):
    pytest.importorskip("frozen_kernels._C", reason="the extension is not built")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    use(own_table, Choice(3, "dense", "at 3 pixels: dense 1 us"), Choice(None, "cuda", "fast"))
    assert cli.main(["info", "--kernels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == list(tune_choices.HEAD))
    assert str(own_table) in lines[head - 2] and lines[0].startswith("instruction set")
    assert lines[head + 1].split()[:4] == KEY.split("/")
    assert "to 3" in lines[head + 1] and lines[head + 1].endswith("at 3 pixels: dense 1 us")
    assert "any" in lines[head + 2] and lines[head + 2].endswith("fast")
    assert len(lines[head + 1 :]) == sum(map(len, choices.in_use("default").entries.values()))


TIMES = {"cuda": 0.010, "triton": 0.020, "dense": 0.040}


@pytest.mark.parametrize(
    ("taken", "backend"),
    [
        (TIMES, "cuda"),
        ({**TIMES, "triton": 0.0098}, "cuda"),  # within noise
        ({**TIMES, "triton": 0.009}, "triton"),
        ({**TIMES, "dense": 0.005}, "dense"),
        ({"triton": 0.020, "dense": 0.0199}, "triton"),
        ({"dense": 0.1}, "dense"),
    ],
)
def test_the_fastest_is_chosen_and_why_has_all_times(taken, backend):
    choice = tune_choices.fastest(taken, 8)
    assert choice[:2] == (8, backend)
    assert choice.why == "at 8 pixels: " + ", ".join(f"{name} {1000 * t:.3g} us" for name, t in taken.items())


def test_neighbours_of_one_backend_are_one_entry():
    found = [Choice(1, "cuda", "a"), Choice(4, "cuda", "b"), Choice(16, "triton", "c"), Choice(32, "dense", "d")]
    assert tune_choices.joined(found) == [found[1], found[2], found[3]._replace(pixels=None)]
    assert tune_choices.joined(found[:1]) == [Choice(None, "cuda", "a")]


@pytest.fixture
def measured(monkeypatch):
    """Two keys whose products take made-up times; how often weights were made."""
    asked = []
    keys = [KEY, "conv2d/half/bits/mask"]
    known = choices.shipped("default")
    monkeypatch.setattr(choices, "shipped", lambda target: (known[0], {key: known[1][key] for key in keys}))
    monkeypatch.setattr(tune_choices, "weights", lambda key, device: asked.append(key))

    def times(key, found, batch, edge, device, timer, say):
        pixels = batch * edge**2
        return {"cuda": 1.0, "triton": 2.0, "dense": 0.5 if pixels > 5 else 3.0} if pixels != 2 else {}

    monkeypatch.setattr(tune_choices, "times", times)
    return asked


def test_each_key_is_measured_and_other_gpus_stay(measured):
    old, said = Table({"sm_80": "before"}, {"sm_80": {}}), []
    found = tune_choices.tuned(old, CPU, "made up", 10.0, said.append, clock=lambda: 0.0)
    assert found.made == {"sm_80": "before", "default": "made up"} and found.targets["sm_80"] == {}
    assert {key: [c[:2] for c in cs] for key, cs in found.targets["default"].items()} == {
        KEY: [(5, "cuda"), (None, "dense")],
        "conv2d/half/bits/mask": [(None, "dense")],
    }
    assert measured == [KEY, "conv2d/half/bits/mask"]
    assert said[0] == f"{KEY}: to 5 cuda, any dense"


def test_what_time_does_not_reach_stays_as_shipped(measured):
    now, said = iter([0.0, 0.5, 1.5]), []
    found = tune_choices.tuned(Table({}, {}), CPU, "made up", 1.0, said.append, clock=lambda: next(now))
    assert list(found.targets["default"]) == [KEY] == measured
    assert said[-1] == "conv2d/half/bits/mask: not measured, time is up; the shipped choices stay"


def test_a_backend_that_fails_is_left_out(monkeypatch):
    pytest.importorskip("triton")
    weight = tune_choices.Weight([], [torch.ones(3, 4)])

    def ours(op, x, pack):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(tune_choices, "_ours", ours)
    monkeypatch.setattr(tune_choices, "use", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(tune_choices, "reasons", lambda name: [])
    weight.packs.append(fk.FrozenTensor.create((3, 4), seed=1, residency="planes").pack())
    said = []
    found = tune_choices.times("linear/float/bits/planes", [weight], 2, 1, CPU, lambda call: 1.0, said.append)
    assert found == {"dense": 1.0} and len(said) == 2
    assert all(f"linear/float/bits/planes at 2 pixels: left out {name}: RuntimeError: no such kernel" in text
               for name, text in zip(BACKENDS, said, strict=False))  # fmt: skip


class Fake:
    """An extension that gives a result made before, or refuses."""

    def __init__(self, result=None):
        self.result, self.status = result, lambda: (13000, 13000, 1, None)

    def product(self, weight, sizes, wide, narrow, *rest):
        if self.result is None:
            return "layers like this"
        ctypes.memmove(narrow[0], self.result.data_ptr(), self.result.nbytes)
        return None


def test_cuda_is_timed_where_the_table_names_another_backend(own_table, monkeypatch):
    pytest.importorskip("triton")
    key, said = "linear/float/bits/planes", []
    use(own_table, Choice(None, "triton", "made up"), key=key)
    monkeypatch.setitem(tune_choices.LAYERS, "linear", ((16, 64),))
    monkeypatch.setattr(tune_choices, "live", lambda: ["cuda", "dense"])
    layers = tune_choices.weights(key, CPU)
    right = tune_choices._input("linear", (16, 64), 2, 1, torch.float32, CPU) @ layers[0].dense[0].T

    def taken(result):
        fake = Fake(result)
        monkeypatch.setattr(extension, "load", lambda: fake)
        monkeypatch.setattr(product, "load", lambda: fake)
        return tune_choices.times(key, layers, 2, 1, CPU, lambda call: float(len(call())), said.append)

    assert taken(right) == {"cuda": 1.0, "dense": 1.0} and said == []
    assert taken(right + 1) == taken(None) == {"dense": 1.0}
    assert said[0].endswith("left out cuda: wrong results")
    assert "cannot run linear: CUDA C++ kernels do not serve layers like this (weight (16, 64), 2 pixels" in said[1]


def test_where_cuda_is_missing_the_table_tells_so(monkeypatch):
    monkeypatch.setattr(tune_choices, "machine", lambda device: "timed on X")
    monkeypatch.setattr(tune_choices, "reasons", lambda name: [])
    assert tune_choices.made(CPU) == "timed on X"
    monkeypatch.setattr(tune_choices, "reasons", lambda name: [f"no {name}"])
    assert tune_choices.made(CPU) == "timed on X; without cuda: no cuda; without triton: no triton"


def test_a_targets_name_is_that_of_its_architecture(monkeypatch):
    class Properties:
        major, minor, gcnArchName = 9, 0, "gfx942:sramecc+"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    targets.target.cache_clear()
    assert targets.target(torch.device("cuda", 7)) == "sm_90" and targets.target(CPU) == "default"
    targets.target.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6")
    assert targets.target(torch.device("cuda", 7)) == "gfx942"
    targets.target.cache_clear()
