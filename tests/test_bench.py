"""`fk.bench`: what it says of a model is right, a wrong result gets no time, and the model stays as it is."""

import json
import os
import sys
import threading

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels import text
from frozen_kernels.memory import footprint
from frozen_kernels.tune import bench as bench_module
from frozen_kernels.tune import outputs, verdict
from frozen_kernels.tune.report import TORCH

RESIDENCIES = ["seed", "mask", "planes", "dense"]


class Net(nn.Module):
    """Two inputs, a dict of outputs, and an embedding, which stays dense."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.inner = nn.Linear(32, 48)
        self.head = nn.Linear(48, 6)

    def forward(self, ids, scale):
        hidden = self.inner(self.table(ids)).relu() * scale
        return {"logits": self.head(hidden), "hidden": [hidden], "length": ids.shape[0]}


@pytest.fixture
def quick(monkeypatch):
    """Memory is not measured: it takes most of the time."""
    monkeypatch.setattr(bench_module, "forward_peak", lambda model, args: footprint.Peak(None, "not measured"))


def convs() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def test_every_residency_beside_dense_torch(quick):
    model = convs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = [torch.randn(1, 3, 6, 6), torch.randn(4, 3, 6, 6)]
    report = fk.bench(model, inputs, fk.FreezeConfig(seed=5), seconds=0)
    assert [(row.input, row.side) for row in report.rows] == [
        (size, side) for size in ("1x3x6x6", "4x3x6x6") for side in (TORCH, *RESIDENCIES, "auto")
    ]
    for row in report.rows:
        assert row.refused == "" and row.rounds >= 5 and 0 < row.low <= row.median <= row.high
        assert row.error <= 2 * max(row.torch_error, torch.finfo(torch.float32).eps)
    frozen = convs()
    fk.freeze_(frozen, fk.FreezeConfig(seed=5))
    fk.finalize_(frozen)
    for residency, row in zip(RESIDENCIES, report.rows[1:5], strict=True):
        fk.set_residency(frozen, residency)
        sizes = fk.footprint(frozen).totals()
        assert (row.resident, row.layers) == (sizes["resident"]["total"], {residency: 2})
        assert abs(row.disk - sizes["disk"]["total"]) < 16  # digits of a scale in the header
    assert report.rows[0].disk == sum(t.nbytes for t in model.state_dict().values())
    assert report.rows[0].speedup == 1
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.long
def test_the_peak_is_that_of_footprint():
    model, config = nn.Sequential(nn.Linear(400, 300)), fk.FreezeConfig(code="stored", sparsity=0.6)
    report = fk.bench(model, torch.randn(2000, 400), config, lambda module, name: True, seconds=0)
    assert [row.side for row in report.rows] == [TORCH, "packed", "dense", "auto"]
    for row in report.rows:
        if row.peak is not None:  # the kernel lets it be measured: a forward makes 2000 x 300 results
            assert row.peak == row.resident + row.forward and row.forward > 2_000_000


def test_several_arguments_outputs_in_a_dict_and_what_stays_dense(quick):
    ids, scale = torch.randint(20, (3, 5)), torch.rand(3, 5, 1)
    report = fk.bench(Net(), (ids, scale), "frozen", seconds=0)
    assert report.frozen == 2 and ("table", "embeddings are converted where filter_fn says so") in report.left
    assert {row.input for row in report.rows} == {"3x5 int64 + 3x5x1"}
    said = str(report)
    assert "left as it is: table (embeddings" in said and "code uniform" in said and "auto" in said
    whole = fk.bench(Net(), (ids, scale), filter_fn=lambda module, name: True, seconds=0)
    assert whole.frozen == 3 and whole.left == []


def test_a_frozen_model_is_taken_as_it_is(quick):
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20), nn.Linear(20, 4))
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.8), lambda module, name: name == "0")
    fk.freeze_(model, fk.FreezeConfig(), lambda module, name: name == "2")
    report = fk.bench(model, torch.randn(2, 40), seconds=0)
    assert report.left == [("3", "dense in the model given")]
    assert [row.side for row in report.rows] == [TORCH, "seed", "mask", "planes", "packed", "dense", "auto"]
    assert report.rows[1].layers == {"packed": 1, "seed": 1} and report.rows[1].label == "seed: 1 packed, 1 seed"
    assert model[0].scores is not None  # still searched
    with pytest.raises(ValueError, match="config: None for a model that is frozen already, got 'frozen'"):
        fk.bench(model, torch.randn(2, 40), "frozen")


def test_a_wrong_side_gets_no_time_and_the_report_says_so(quick, monkeypatch):
    wrong = fk.nn.FrozenLinear.forward

    def forward(self, x):
        return wrong(self, x) * (1.00001 if self.residency == "mask" else 1)

    monkeypatch.setattr(fk.nn.FrozenLinear, "forward", forward)
    report = fk.bench(nn.Sequential(nn.Linear(64, 32), nn.ReLU()), torch.randn(8, 64), seconds=0)
    by_side = {row.side: row for row in report.rows}
    assert by_side["mask"].median is None and by_side["planes"].median is not None
    assert "largest error" in by_side["mask"].refused and "more than twice" in by_side["mask"].refused
    assert "not timed: mask on 8x64: largest error" in str(report)


def test_few_values_are_compared_with_more(quick, monkeypatch):
    seen = []
    judged = outputs.judge
    monkeypatch.setattr(outputs, "judge", lambda *t, **more: seen.append(t[0].numel()) or judged(*t, **more))
    fk.bench(nn.Sequential(nn.Linear(64, 3)), torch.randn(1, 64), seconds=0)
    assert set(seen) == {3 * outputs.MOST_TURNS}


def test_saved_as_table_and_json_without_matplotlib(quick, tmp_path, monkeypatch):
    report = fk.bench(nn.Sequential(nn.Linear(64, 32)), torch.randn(8, 64), seconds=0)
    monkeypatch.setitem(sys.modules, "frozen_kernels.plot.by_residency", None)
    with pytest.warns(UserWarning, match="no picture"):
        assert [p.name for p in report.save(tmp_path / "text")] == ["bench.md", "bench.json"]
    monkeypatch.undo()
    found = json.loads((tmp_path / "text" / "bench.json").read_text())
    assert [row["side"] for row in found["rows"]] == [row.side for row in report.rows]
    assert found["machine"]["threads"] == torch.get_num_threads() and found == json.loads(report.to_json())
    table = [line for line in (tmp_path / "text" / "bench.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(report.rows) and {line.count("|") for line in table} == {9}


@pytest.mark.long
def test_saved_with_pictures(quick, tmp_path):
    pytest.importorskip("matplotlib")
    report = fk.bench(nn.Sequential(nn.Linear(64, 32)), torch.randn(8, 64), seconds=0)
    assert [p.name for p in report.save(tmp_path / "all")] == ["bench.md", "bench.json", "bench.png", "bench.svg"]
    assert sorted(os.listdir(tmp_path / "all")) == ["bench.json", "bench.md", "bench.png", "bench.svg"]
    assert (tmp_path / "all" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_says_what_was_not_timed():
    pytest.importorskip("matplotlib")
    row = bench_module.BenchRow("1x4", TORCH, {}, 900, 1000, None, median=2.0, low=1.0, high=3.0, speedup=1.0)
    other = bench_module.BenchRow("1x4", "mask", {"mask": 1}, 100, 200, 50, refused="wrong")
    left, right = fk.plot.residencies([row, other], title="net").axes
    assert [bar.get_width() for bar in left.patches] == [900, 100, 1000, 200, 0, 250]
    assert [bar.get_width() for bar in right.patches] == [1, 0]
    assert [t.get_text() for t in right.texts] == ["2 ms", "not timed"]
    with pytest.raises(ValueError, match="got none"):
        fk.plot.residencies([])


def test_noisy_times_are_called_so():
    rows = [bench_module.BenchRow("1", TORCH, {}, 1, 1, median=2.0, low=1.8, high=h, speedup=1.0) for h in (2.1, 2.3)]
    machine = {"torch": "2", "device": "cpu", "machine": "one", "threads": 2, "kernels": "avx2", "seconds": 1.0}
    report = fk.BenchReport("Net", "code sign", 1, 8, 10, [], machine, rows)
    assert "1 of 2 times are noisy, their quartiles more than 20% of the median apart" in str(report)
    assert "2 threads" in str(report) and "80.0 % of its 10 B" in str(report)
    report.rows.pop()
    assert "noisy" not in str(report)


def test_progress_is_told_to_the_end(quick):
    told = []
    fk.bench(nn.Sequential(nn.Linear(8, 8)), torch.randn(1, 8), seconds=0, progress=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert (
        {total for _, total, _ in told} == {len(told) - 1} and told[-1][2] == "" and all(what for *_, what in told[:-1])
    )


class Float32Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x) + nn.functional.linear(x, torch.ones(4, 4))


@pytest.mark.parametrize(
    ("model", "x", "error", "words"),
    [
        (
            nn.Sequential(nn.Linear(4, 4)),
            torch.ones(2, 5),
            ValueError,
            r"x: the model refuses 2x5: RuntimeError: .*shape",
        ),
        (nn.Sequential(nn.ReLU()), torch.ones(2), ValueError, "nothing to freeze"),
        (nn.Sequential(nn.Linear(4, 4)), [], ValueError, "x: an input or a list of several, got an empty list"),
        ([1], torch.ones(2), TypeError, "model: a torch.nn.Module, got list"),
        (Float32Alone(), torch.ones(2, 4), ValueError, "model: its forward does not run in float64"),
        (nn.Sequential(nn.Linear(4, 4)), torch.full((2, 4), torch.inf), ValueError, "2x4 are not all finite"),
        (nn.Sequential(nn.Linear(4, 4, device="meta")), torch.ones(2, 4), ValueError, "'0' is on the meta device"),
    ],
)
def test_refusals(model, x, error, words):
    with pytest.raises(error, match=words):
        fk.bench(model, x)


@pytest.mark.parametrize(("settings", "words"), [({"seconds": -1}, "seconds: .*-1"), ({"rounds": 0}, "rounds: .*0")])
def test_refused_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        fk.bench(nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4), **settings)


@pytest.mark.parametrize(("name", "value"), [("seconds", "1"), ("rounds", 1.5)])
def test_settings_of_another_type(name, value):
    with pytest.raises(TypeError, match=f"{name}: .*, got {value!r}"):
        fk.bench(nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4), **{name: value})


class Of(nn.Module):
    """A layer, and what a function makes of the model and its input."""

    def __init__(self, forward):
        super().__init__()
        self.inner, self.run = nn.Linear(32, 32), forward
        self.register_buffer("state", torch.zeros(()))

    def forward(self, *args):
        return self.run(self, *args)


def adds_up(model, x):
    model.state += 1
    return model.inner(x) * model.state


def locked():
    model = nn.Sequential(nn.Linear(32, 32))
    model.lock = threading.Lock()
    return model


def not_converted(model, x):
    if type(model.inner) is not nn.Linear:
        raise TypeError("nn.Linear alone")
    return model.inner(x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Of(adds_up), "dense torch gives other values for 4x32 at a second call"),
        (Of(lambda model, x: model.inner(x) + torch.randn(32)), "at a second call: its forward draws random numbers"),
        (Of(lambda model, x: nn.functional.dropout(model.inner(x))), "at a second call"),
        (Of(lambda model, x: (y := (model.inner(x) * 1e5).half()) - y), "4x32 are not all finite"),
        (Of(lambda model, x: model.inner(x) * 0), "zeros would pass as its output for 4x32"),
        (nn.Sequential(nn.LazyLinear(3)), "model: '0.weight' is lazy and has no size yet; run a batch"),
        (locked(), "model: it cannot be copied by copy.deepcopy: TypeError: "),
        (Of(not_converted), "model: its forward fails, weights as auto: TypeError: nn.Linear alone"),
    ],
)
def test_models_that_cannot_be_compared(quick, model, words):
    before = torch.get_rng_state()
    x = torch.zeros(4, 32) + torch.linspace(-1, 1, 32)
    with pytest.raises(ValueError, match=words):
        fk.bench(model, x, seconds=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_a_side_that_is_not_finite_is_refused_and_json_has_no_infinity(quick, monkeypatch, wrong):
    monkeypatch.setattr(fk.nn.FrozenLinear, "forward", lambda self, x: x.new_full((4, 32), wrong))
    report = fk.bench(Of(lambda model, x: model.inner(x)), torch.randn(4, 32), seconds=0)
    assert [bool(row.refused) for row in report.rows] == [False] + 5 * [True]
    assert not any(word in report.to_json() for word in ("Infinity", "NaN"))
    for row in report.rows:
        row.median, row.refused = None, "not finite"
    assert "every timed side" not in str(report)


def test_not_finite_is_wrong_where_torch_is_not_finite_too():
    exact, bad = torch.ones(3).double(), torch.full((3,), torch.inf)
    assert not verdict.judge(bad, bad, exact).passed and not verdict.judge(torch.ones(3), bad * 0, exact * 0).passed


def test_each_output_is_judged_by_itself(quick, monkeypatch):
    monkeypatch.setattr(fk.nn.FrozenLinear, "forward", lambda self, x: x.new_zeros(4, 32))
    large = Of(lambda model, x: (torch.full((2,), 1e9, dtype=x.dtype), model.inner(x)))
    report = fk.bench(large, torch.randn(4, 32), seconds=0)
    assert all(row.refused.startswith("output 2: largest error") for row in report.rows[1:])


def test_the_input_stays_as_it_is_and_may_be_nested(quick):
    x = torch.ones(4, 32)
    report = fk.bench(Of(lambda model, x: model.inner(x.mul_(2))), x, seconds=0)
    assert torch.equal(x, torch.ones(4, 32)) and not any(row.refused for row in report.rows)
    nested = ([torch.randn(4, 32)], {"x": torch.randn(4, 32)})
    report = fk.bench(Of(lambda model, a, b: model.inner(a[0]) + model.inner(b["x"])), nested, seconds=0)
    assert not any(row.refused for row in report.rows) and report.rows[0].input == "list + dict"


def test_an_input_that_cannot_be_turned_is_measured_alone(quick):
    def forward(model, x, lengths):
        assert lengths.tolist() == [3, 2, 1] and x[0, 0] == 7, "the first is a mark"
        return model.inner(x)[:, :2]

    x = torch.randn(3, 32)
    x[0, 0] = 7
    report = fk.bench(Of(forward), (x, torch.tensor([3, 2, 1])), seconds=0)
    assert not any(row.refused for row in report.rows)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda m: m, lambda m: torch.compile(m, backend="eager")])
def test_a_bare_layer_is_measured_too(quick, wrap):
    report = fk.bench(wrap(nn.Linear(64, 32)), torch.randn(4, 64), seconds=0)
    assert report.frozen == 1 and not any(row.refused for row in report.rows)


def test_a_rise_that_is_noise_gives_no_ratio():
    def cells(forward):
        sides = ((TORCH, 9_000_000, 2_000_000), ("mask", 1_000_000, forward))
        rows = [bench_module.BenchRow("1", side, {}, 1, held, rise) for side, held, rise in sides]
        return fk.BenchReport("Net", "", 1, 8, 10, [], {}, rows)._cells()[1][3:5]

    assert cells(900_000) == ("1 MB, 9x", "1.9 MB") and cells(1_000_000) == ("1 MB, 9x", "2 MB, 5.5x")


def test_sizes_in_text():
    assert [text.bytes_text(n) for n in (950, 999.9, 999_600, 1_500_000, 5e12)] == [
        "950 B", "1 kB", "1 MB", "1.5 MB", "5e+03 GB"
    ]  # fmt: skip
    assert [text.count_text(n) for n in (950, 36_900, 999_900)] == ["950", "36.9 k", "1 M"]


def test_an_output_without_values_is_refused():
    class Nothing(nn.Sequential):
        def forward(self, x):
            return None

    with pytest.raises(ValueError, match="its output holds no floating tensor"):
        fk.bench(Nothing(nn.Linear(4, 4)), torch.ones(1, 4))
