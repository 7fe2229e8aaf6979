"""`bench` and `footprint` on MODULE:CALLABLE: what they print, and that wrong input is one line and status 2."""

import json
import sys

import pytest
from torch import nn

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels.memory import footprint
from frozen_kernels.tune import bench

MODULE = """
import torch
from torch import nn
import frozen_kernels as fk

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))

class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        assert ids.max() > 1 and mask.dtype == torch.bool
        return self.head(self.inner(self.table(ids))) * mask[..., None]

def frozen():
    model = build()
    fk.freeze_(model, fk.FreezeConfig(code="uniform"))
    return model

def nothing():
    return nn.Sequential(nn.ReLU())

def a_list():
    return [1]

def fails():
    raise RuntimeError("no weights\\nat all")

class Acts(nn.Module):
    def __init__(self, act=print):
        super().__init__()
        self.inner, self.act, self.calls = nn.Linear(4, 4), act, 0

    def forward(self, x):
        self.calls += 1
        self.act(self.calls)
        return self.inner(x)

def fail(error):
    raise error

def late():
    seen = []
    return Acts(lambda calls: seen.append(1) or (len(seen) > 30 and fail(KeyError("late"))))

def lines():
    return Acts(lambda calls: fail(RuntimeError("one\\n two\\n\\x1b[31mred")))

def exits():
    return Acts(lambda calls: fail(SystemExit(0)))

class Prop:
    bad = property(lambda self: fail(RuntimeError("prop")))

def locked():
    import threading
    model = build()
    model.lock = threading.Lock()
    return model

def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 4))

def loud():
    print("made")
    return Acts(lambda calls: print("forward"))

model = build()
normed = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
prop = Prop()
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the user's module, that is the current one; memory is not measured."""
    (tmp_path / "my_module.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "exits.py").write_text("raise SystemExit('usage')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_module", "broken", "exits"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(bench, "forward_peak", lambda model, args: footprint.Peak(None, "not measured"))
    yield tmp_path
    sys.modules.pop("my_module", None)


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


QUICK = ("--seconds", 0, "--threads", 1)


def test_bench_prints_a_table_and_saves_it(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "frozen_kernels.plot.by_residency", None)  # a picture takes a second
    inputs = ("--input", "1,3,6,6", "--input", "4,3,6,6")
    status, out, err = run(capsys, "bench", "my_module:build", *inputs, *QUICK, "--output", "out", "--channels-last")
    sides = [line.split()[:2] for line in out.splitlines() if line.lstrip().startswith(("1x3", "4x3"))]
    expected = ["torch,", "seed", "mask", "planes", "dense", "auto:"]
    assert status == 0 and [side for _, side in sides][:5] == expected[:5] and len(sides) == 12
    found = json.loads((folder / "out" / "bench.json").read_text())
    assert {row["input"] for row in found["rows"]} == {"1x3x6x6", "4x3x6x6"}
    assert err.startswith("written: out/bench.md, out/bench.json\nno picture: ") and err.count("\n") == 2
    assert (folder / "out" / "bench.md").read_text().count("1x3x6x6") == 6


def test_bench_prints_json_alone_of_token_ids_and_a_preset(folder, capsys):
    wanted = ("--input", "2,5:int64:20+2,5:bool", "--config", "jackpot", "--sparsity", 0.75, "--seed", 3, "--json")
    status, out, err = run(capsys, "bench", "my_module:Ids", *wanted, *QUICK)
    found = json.loads(out)
    assert (status, err) == (0, "") and found["model"] == "my_module:Ids" and "sparsity 0.75" in found["config"]
    assert [row["side"] for row in found["rows"]] == ["torch, dense", "packed", "dense", "auto"]
    assert found["rows"][0]["input"] == "2x5 int64 + 2x5 bool" and found["left"][0][0] == "table"


def test_bench_takes_a_frozen_model_and_a_model_itself(folder, capsys):
    status, out, _ = run(capsys, "bench", "my_module:frozen", "--input", "1,3,6,6", *QUICK)
    assert status == 0 and "frozen in the model given" in out
    status, out, _ = run(capsys, "bench", "my_module:model", "--input", "1,3,6,6", *QUICK, "--seed", 7)
    assert status == 0 and "seed 7" in out


def test_footprint_is_that_of_the_converted_model(folder, capsys):
    status, out, _ = run(capsys, "footprint", "my_module:build", "--json", "--seed", 2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    fk.freeze_(model, fk.FreezeConfig(seed=2))
    fk.finalize_(model)
    found, expected = json.loads(out), json.loads(fk.footprint(model).to_json())
    assert status == 0 and found["resident"] == expected["resident"] and found["layers"] == expected["layers"]
    status, out, _ = run(capsys, "footprint", "my_module:frozen", "--input", "1,3,6,6")
    assert status == 0 and "FrozenConv2d mask" in out and "no sample_input" not in out


def test_footprint_of_a_ticket_as_json(folder, capsys):
    model = nn.Sequential(nn.Linear(40, 8))
    fk.freeze_(model)
    fk.save_ticket(model, "net:build")  # a file of that name comes before a module
    status, out, _ = run(capsys, "footprint", "net:build", "--json")
    found = json.loads(out)
    assert status == 0 and found["weights"] == 320 and found["masks"] is None
    assert found["disk"]["file"] == (folder / "net:build").stat().st_size
    assert list(found["resident"]) == ["seed", "mask", "planes", "dense"] and found["resident"]["dense"] > 4 * 320


INPUT = ("--input", "1,3,6,6")
WRONG = {
    "my_module": "expected MODULE:CALLABLE, such as my_module:build, got 'my_module'",
    "my_module:": "expected MODULE:CALLABLE",
    "my_module.py:build": "a module and no path: my_module:build",
    "no_such_module:build": "no_such_module does not import: ModuleNotFoundError: No module named 'no_such_module'",
    "broken:build": "broken does not import: ModuleNotFoundError: No module named 'no_such_package'",
    "exits:build": "exits does not import: SystemExit: usage",
    "my_module:nope": "my_module:nope: my_module has no 'nope'",
    "my_module:number": "my_module:number is a int, expected a function that makes a torch.nn.Module",
    "my_module:a_list": "my_module:a_list returned a list, expected a torch.nn.Module",
    "my_module:fails": "my_module:fails() failed: RuntimeError: no weights",
    "my_module:nothing": "model: nothing to freeze",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_model(folder, capsys, text):
    status, out, err = run(capsys, "bench", text, *INPUT)
    assert (status, out) == (2, "") and err.startswith("error: model: ") and err.count("\n") == 1
    assert WRONG[text] in err
    if text.partition(":")[2] and not text.startswith("my_module:nothing"):
        assert run(capsys, "footprint", text) == (2, "", err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "my_module:build"), "--input: sizes of an input of the model, such as --input 16,3,224,224"),
        (("bench", "my_module:build", "--input", "1,x"), "--input 1,x: expected sizes such as 16,3,224,224, got '1,x'"),
        (("bench", "my_module:build", "--input", "1,0"), "--input 1,0: sizes of at least 1, got 0"),
        (("bench", "my_module:build", "--input", "1:int"), "--input: the model refuses 1 int32: "),
        (("bench", "my_module:build", "--input", "1:word"), "expected a dtype such as int64 or bfloat16, got 'word'"),
        (("bench", "my_module:build", "--input", "1:int64:x"), "expected integers below a number"),
        (("bench", "my_module:build", "--input", "1:half:3"), "a largest number is for integers, got half"),
        (("bench", "my_module:build", "--input", "2,3,4"), "--input: the model refuses 2x3x4: "),
        (("footprint", "my_module:build", "--input", "2"), "--input 2: the model refuses it: ValueError: "),
        (("footprint", "my_module:build", *INPUT, *INPUT), "--input: one input, got 2"),
        (("footprint", "my_module.py", *INPUT), "--input: goes with MODULE:CALLABLE, and my_module.py is a file"),
        (("footprint", "my_module:frozen", "--sparsity", "0.5"), "--sparsity 0.5: the model is frozen already"),
        (("bench", "my_module:frozen", *INPUT, "--config", "frozen"), "--config frozen: the model is frozen already"),
        (("bench", "my_module:build", *INPUT, "--config", "none"), "preset: one of "),
        (("bench", "my_module:build", *INPUT, "--sparsity", "2"), "sparsity: a number in [0, 1], got 2.0"),
        (("bench", "my_module:build", *INPUT, "--seconds", "-1"), "seconds: at least 0, got -1.0"),
        (("bench", "my_module:build", *INPUT, "--batch", "2"), "--batch: goes without a model"),
        (("bench", "my_module:build", "--tune"), "--tune: measures this machine, and goes without a model"),
        (("bench", *INPUT), "--input: goes with MODULE:CALLABLE, and there is none"),
        (("bench", "--output", "out"), "--output: goes with MODULE:CALLABLE, and there is none"),
    ],
)
def test_options_that_do_not_fit(folder, capsys, arguments, words):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and words in err


SHORT = ("--input", "2,4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "my_module:exits", *SHORT), "model: its forward failed: SystemExit: 0"),
        (("footprint", "my_module:exits", *SHORT), "--input 2,4: the model refuses it: SystemExit: 0"),
        (("bench", "my_module:late", *SHORT), "model: its forward fails, weights as mask: KeyError: 'late'"),
        (("bench", "my_module:lines", *SHORT), "RuntimeError: one two \\x1b[31mred"),
        (("bench", "my_module:locked", *SHORT), "model: it cannot be copied by copy.deepcopy: TypeError"),
        (("footprint", "my_module:lazy"), "model: '0.weight' is lazy and has no size yet"),
        (("bench", "my_module:prop.bad", *SHORT), "model: my_module:prop.bad cannot be read: RuntimeError: prop"),
        (
            ("bench", "my_module:Acts", "--input", "99999999999999999999,3"),
            "999,3: there is no such tensor",
        ),
        (("bench", "my_module:Acts", "--input", "1000000000000,1000000"), "000: there is no such tensor: RuntimeError"),
        (
            ("bench", "my_module:Acts", "--input", "2,4:quint8"),
            "a dtype such as int64 or bfloat16, got 'quint8'",
        ),
        (("bench", "my_module:Acts", "--input", "2,4:int8:300"), "int8 holds integers up to 127, got below 300"),
        (("bench", "my_module:Acts", *SHORT, "--output", "my_module.py"), "--output my_module.py: expected a folder"),
        (("bench", "/far/mods.py:seq", *SHORT), "a module and no path: in the folder /far it is mods:seq, got"),
    ],
)
def test_what_the_users_code_does_is_one_line(folder, capsys, arguments, words):
    status, out, err = run(capsys, *arguments, *(QUICK if arguments[0] == "bench" else ()))
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_what_the_users_code_prints_is_not_in_the_report(folder, capsys):
    for command in (("bench", *QUICK), ("footprint",)):
        status, out, err = run(capsys, command[0], "my_module:loud", *command[1:], *SHORT, "--json")
        assert status == 0 and json.loads(out) and "made\n" in err and "forward\n" in err


def test_footprint_of_what_is_neither(folder, capsys):
    status, out, err = run(capsys, "footprint", "mods")
    assert (status, out) == (1, "") and "error: mods: no such FILE, and no MODULE:CALLABLE such as my_module:" in err


def test_footprint_shows_how_far_it_is_and_moves_no_statistics(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    status, _, err = run(capsys, "footprint", "my_module:normed", *SHORT)
    steps = ("model made", "converted", "bytes counted", "forward measured")
    assert status == 0 and err == "".join(f"{i} of 4: {what}\n" for i, what in enumerate(steps, 1))
    model = sys.modules["my_module"].normed
    assert model[0].num_batches_tracked == 0 and model.training and model[0].training


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_goes_to_a_terminal_alone(monkeypatch, capsys, tqdm):
    progress = cli.program.bench.bench_model.__globals__["reporter"]
    assert progress() is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    show = progress()
    for step in ((0, 2, "first"), (1, 2, "second"), (2, 2, "")):
        show(*step)
    err = capsys.readouterr().err
    assert "first" in err and "second" in err
    assert tqdm or err == "1 of 2: first\n2 of 2: second\n"
