"""The benchmarks: what they say of a case is right, a wrong result gets no numbers, and a slower one is seen."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import make_frozen, score_gradient
from torch import nn

import frozen_kernels as fk
from benchmarks import check, counted, machine, model_memory, models, records, registry, run, sides, summary, verify
from benchmarks import whole as whole_models
from frozen_kernels.tune import verdict
from frozen_kernels.tune.measure import MIN_ROUNDS, interleaved, quartiles, speedup

PARAMETERS = {"resnet18": 11_689_512, "resnet50": 25_557_032, "mobilenet_v2": 3_504_872}  # as published


def tiny(op: str = "linear", **fields) -> registry.Case:
    """A case of the registry, made small."""
    like = next(c for c in registry.cases() if c.op == op and (c.code, c.residency) == ("sign", "planes"))
    small = {"shape": (96, 160), "input": (3, 160), "batch": 3, "operations": 3 * 96 * 160, "bytes": 96 * 160 // 4}
    if op.startswith("conv2d"):
        geometry = ((1, 1), (1, 1), (1, 1), 1)
        small |= {"shape": (40, 32, 3, 3), "input": (3, 32, 7, 7), "geometry": geometry, "operations": 3 * 11520 * 49}
    return dataclasses.replace(like, **{"name": f"tiny/{op}", "setting": f"tiny/{op}", **small, **fields})


@pytest.fixture
def small(monkeypatch):
    """A registry of tiny cases, and limits of the machine that take no time to find."""

    def use(*cases: registry.Case) -> None:
        monkeypatch.setattr(run, "cases", lambda: cases)
        # sums of so few terms differ by chance; the kernels have tests of their own
        monkeypatch.setattr(verdict, "ALLOWED", 10.0)
        monkeypatch.setattr(machine, "limits", lambda dtypes: machine.Limits({"float32": 1e9, "bfloat16": 1e9}, 1e9))

    return use


def measured(**fields) -> records.Row:
    row = dict.fromkeys(records.COLUMNS, "")
    ratio = {"ratio": "2.0", "ratio_low": "1.9", "ratio_high": "2.1", "median": "1", "unit": "ms"}
    return row | {"name": "tiny/linear", "status": "ok", "baseline": "torch", "dtype": "float32"} | ratio | fields


@pytest.mark.parametrize("name", models.MODELS)
def test_models_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model, plain = models.MODELS[name](), models.MODELS[name](affine=False)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.weight is None for m in norms)


def test_the_encoder_has_the_layers_of_bert_base():
    """85,054,464 is 12 layers of 768 values and 3072 between, biases and layer norms counted in."""
    with torch.device("meta"):
        model = models.WHOLE["bert_base"].make()
    assert sum(p.numel() for p in model.parameters()) == 85_054_464


@pytest.fixture
def small_model(monkeypatch):
    """The name of a whole model that is a small one here."""
    net = models.Net(lambda: nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 32)), (4, 32))
    monkeypatch.setitem(models.WHOLE, "bert_base", net)
    return "bert_base"


def test_a_whole_model_is_timed_fast_and_small(small_model):
    cases = [c for c in registry.cases() if c.setting == f"model/{small_model}/b16/fp32"]
    assert [case.residency for case in cases] == ["seed", "mask", "auto"]
    cases = [dataclasses.replace(case, input=(2, 4, 32), batch=2) for case in cases]
    with torch.no_grad():
        setup = whole_models.model_setup(cases)
        assert set(setup.calls) == {case.name for case in cases} and list(setup.baselines) == ["torch"]
        assert all(setup.verdict(name).passed for name in setup.calls)
        right, other = setup.baselines["torch"](), setup.calls[cases[0].name]()
    torch.testing.assert_close(other, right, rtol=1e-4, atol=1e-4)
    seed, mask, _ = (setup.held[case.name] for case in cases)
    model = whole_models.frozen_model(small_model)
    assert [seed, mask] == [_resident(model, kept) for kept in ("seed", "mask")] and seed != mask


def _resident(model: nn.Module, kept) -> int:
    fk.set_residency(model, kept)
    return fk.footprint(model).totals()["resident"]["total"]


def test_bytes_of_a_whole_model_come_from_its_file(small_model, tmp_path):
    model = whole_models.frozen_model(small_model)
    fk.save_ticket(model, tmp_path / "ticket.safetensors")
    dense, small = (
        model_memory.measure(small_model, kept, tmp_path / "ticket.safetensors") for kept in ("dense", "seed")
    )
    assert dense["resident"] == 4 * sum(p.numel() for p in whole_models.dense_model(small_model).parameters())
    assert small["resident"] < dense["resident"] / 5
    assert small["resident"] == _resident(model, "seed")


def test_names_are_unique_and_settings_lie_together():
    cases = registry.cases()
    assert len({c.name for c in cases}) == len(cases)
    order = [c.setting for c in cases]
    assert len([s for i, s in enumerate(order) if i == 0 or order[i - 1] != s]) == len(set(order))
    assert all(c.op in counted.COUNTS or c.group in run.BUILDERS for c in cases)


def test_every_target_has_cases_and_every_line_a_target():
    lines = {c.line for c in registry.cases()} - {""}
    assert lines == {t.line for t in registry.TARGETS}
    assert all(t.statistic in ("minimum", "geomean", "maximum") for t in registry.TARGETS)


def test_the_convolutions_are_those_that_the_models_run():
    """Sizes of the inputs told by the output of the layer before, not by the hooks that made the registry."""
    seen = set()
    for name in ("resnet18", "resnet50"):
        with torch.device("meta"):
            model = models.MODELS[name]().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, _, y: seen.add((tuple(m.weight.shape), m.stride, y.shape[-1])))
        model(torch.empty(1, 3, 224, 224, device="meta"))
    found = {(c.shape, c.stride, registry.output_size(c)[0]) for c in registry.resnet_convolutions()}
    assert found == seen
    for batch in (1, 16):
        cases = {c.setting for c in registry.cases() if c.group == "resnet" and c.batch == batch}
        assert len(cases) == len(registry.resnet_convolutions()) == 29
    depthwise = [c for c in registry.mobilenet_convolutions() if c.groups > 1]
    assert depthwise and all(c.shape[1] == 1 and c.groups == c.shape[0] for c in depthwise)


def test_bytes_and_operations_of_a_case():
    (case,) = (c for c in registry.cases() if c.name == "conv2d/256x128x3x3/28/s2/b16/fp32/sign/planes")
    assert case.input == (16, 128, 28, 28) and case.target == 2.0
    assert case.operations == 16 * 256 * 14 * 14 * 128 * 9
    assert case.bytes == 32 + 2 * 256 * 128 * 9 // 8
    # He et al. 2016 count 4.1e9 and 1.8e9
    assert registry.model_operations("resnet50") == 4_089_184_256
    assert registry.model_operations("resnet18") == 1_814_073_344


def test_a_quick_run_writes_a_row_of_every_column(small, tmp_path, capsys):
    cases = [tiny(), tiny("conv2d"), tiny("linear_grad_scores"), tiny("conv2d_grad_input"), tiny("conv2d_grad_scores")]
    bf16 = tiny(dtype="bfloat16", code="uniform", residency="mask", name="tiny/bf16", setting="tiny/bf16")
    small(*cases, bf16)
    path = tmp_path / "here.csv"
    assert run.main(["--quick", "--filter", "tiny", "--threads", "1", "--no-plots", "--out", str(path)]) == 0
    rows = {row["name"]: row for row in records.read_rows(path)}
    assert list(rows) == [c.name for c in (*cases, bf16)]
    assert path.read_text().splitlines()[0] == ",".join(records.COLUMNS)
    row = rows["tiny/linear"]
    assert (row["status"], row["shape"], row["threads"], row["torch"]) == ("ok", "96x160", "1", torch.__version__)
    median = float(row["median"])
    assert float(row["low"]) <= median <= float(row["high"]) and int(row["rounds"]) >= 2
    assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
    assert float(row["ratio"]) == pytest.approx(float(row["baseline_median"]) / median, rel=1e-3)
    assert float(row["gmac_per_s"]) == pytest.approx(3 * 96 * 160 / median / 1e6, rel=1e-3)
    assert 0 <= float(row["error"]) <= 1e-6 < float(rows["tiny/bf16"]["error"])
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["here.csv", "here.md"]
    assert run.main(["--filter", "bf16", "--quick", "--no-plots", "--out", str(path)]) == 0
    assert [row["name"] for row in records.read_rows(path)] == list(rows), "a part replaces its rows only"
    capsys.readouterr()


def test_a_wrong_result_gets_no_numbers(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fk.nn.FrozenLinear, "forward", lambda self, x: x.new_ones(len(x), self.out_features))
    small(tiny(), tiny("conv2d"))
    path = tmp_path / "here.csv"
    assert run.main(["--quick", "--no-plots", "--out", str(path)]) == 1
    red, green = records.read_rows(path)
    assert red["status"] == "refused" and "error" in red["note"] and red["median"] == red["ratio"] == ""
    assert green["status"] == "ok" and green["median"]
    assert "refused tiny/linear" in capsys.readouterr().err
    assert "| 1 refused |" in summary.markdown([red, green])


def test_a_failing_test_file_gives_no_numbers(small):
    small()
    (row,) = run.measure([tiny()], 0.01, red={"linear": "tests/some.py: 1 failed"}, quiet=True)
    assert (row["status"], row["note"], row["median"]) == ("refused", "tests/some.py: 1 failed", "")
    assert all((verify.ROOT / file).exists() for file in verify.TEST_FILES.values())


def test_a_setting_that_breaks_is_told_and_the_next_is_measured(small, monkeypatch):
    def broken(_):
        raise RuntimeError("no memory")

    small()
    monkeypatch.setitem(run.BUILDERS, "resnet", broken)
    first, second = run.measure([tiny("conv2d"), tiny()], 0.01, quiet=True)
    assert (first["status"], first["note"], second["status"]) == ("refused", "RuntimeError: no memory", "ok")


def test_judge_allows_twice_the_error_of_torch():
    exact = torch.linspace(1, 2, 100, dtype=torch.float64)
    torchs = (exact * (1 + 1e-6)).float()
    assert verify.judge((exact * (1 + 1.8e-6)).float(), torchs, exact).passed
    assert not verify.judge((exact * (1 + 2.2e-6)).float(), torchs, exact).passed
    one = exact.float()
    one[3] += 1e-5
    assert not verify.judge(one, torchs, exact).passed
    assert not verify.judge(torchs.half(), torchs, exact).passed
    assert not verify.judge(torch.full_like(torchs, math.nan), torchs, exact).passed


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (3.0, False)])
def test_a_refusal_counts_where_fresh_draws_confirm_it(factor, passed):
    """In the first draw torch is exact by luck; afterwards both err, we by `factor` times as much."""
    draws = iter(range(20))

    def sides(given):
        luck = 0.0 if next(draws) == 0 else 1.0
        noise = torch.randn(200)
        return given + 1e-6 * factor * noise, given + 1e-6 * luck * noise, given.double()

    assert verify.judge_draws(sides, lambda: torch.randn(200)).passed == passed
    assert next(draws) == 1 + verify.FRESH


def test_the_score_gradient_is_the_straight_through_formula():
    frozen, _ = make_frozen((5, 40, 3, 3), "uniform")
    layer = fk.nn.FrozenConv2d(40, 5, 3, code="uniform", state=(frozen.header, frozen.packed()))
    grad = torch.randn(5, 40, 3, 3, dtype=torch.float64)
    right = score_gradient(frozen, grad, frozen.scores)
    assert torch.allclose(sides.score_gradient(layer, grad, frozen.scores), right, rtol=1e-12, atol=0)


def test_footprint_is_counted_on_a_layer():
    found = counted.footprint(tiny(op="linear", residency="mask"))
    assert found.verdict.passed and found.value == pytest.approx(1 / 8 + 32 / (96 * 160))


def test_targets_are_held_against_their_statistic():
    floor, mean = (
        next(t for t in registry.TARGETS if t.line == "conv-planes" and t.statistic == s)
        for s in ("minimum", "geomean")
    )
    assert floor.value([4.0, 1.0]) == 1.0 and mean.value([4.0, 1.0]) == pytest.approx(2.0)
    rows = [
        measured(line="conv-planes", ratio=ratio, best_ratio=best, name=name, group="resnet")
        for name, ratio, best in (("a", "4", "4.5"), ("b", "0.9", "1"))
    ]
    text = summary.markdown(rows)
    assert f"| {mean.text} | at least 2 x | 1.9 x (geometric mean) | 2.12 x (geometric mean) | no |" in text
    assert f"| {floor.text} | at least 1 x | 0.9 x, b | 1 x | no |" in text
    on_avx2 = summary.markdown([row | {"isa": "avx2"} for row in rows])
    assert f"| {mean.text} | at least 1.05 x | 1.9 x (geometric mean) | 2.12 x (geometric mean) | yes |" in on_avx2
    assert f"| {floor.text} |  | 0.9 x, b | 1 x |  |" in on_avx2
    (size,) = (t for t in registry.TARGETS if t.line == "ticket-plain")
    assert size.met(1.2) and not size.met(1.3)


def test_a_regression_is_told_from_noise():
    old = measured()
    assert check.compare(old, measured(ratio="1.85", ratio_low="1.8", ratio_high="1.95")).verdict == ""
    worse = check.compare(old, measured(ratio="1.5", ratio_low="1.45", ratio_high="1.55"))
    assert worse.verdict == "worse" and check.is_regression(worse)
    assert check.compare(old, measured(ratio="1.5", ratio_low="1.0", ratio_high="2.0")).verdict == ""
    assert check.compare(old, measured(ratio="3", ratio_low="2.9", ratio_high="3.1")).verdict == "better"
    assert check.is_regression(check.compare(old, measured(status="refused")))
    assert check.compare(measured(status="refused"), old) is None
    size = measured(ratio="", unit="MB", median="1.20")
    assert check.is_regression(check.compare(size, size | {"median": "1.25"}))
    assert not check.is_regression(check.compare(size, size | {"median": "1.20"}))


def test_only_what_is_worse_twice_is_a_regression():
    case, slow = tiny(), measured(ratio="1", ratio_low="0.99", ratio_high="1.01")
    answers = [[slow], [measured()]]
    (found,) = check.check([measured()], [case], lambda members: answers.pop(0))
    assert not check.is_regression(found) and answers == []
    (found,) = check.check([measured()], [case], lambda members: [slow])
    assert check.is_regression(found)


def test_bench_check_from_record_to_exit_status(small, tmp_path, capsys):
    small(tiny())
    path = tmp_path / "here.csv"
    threads = ["--threads", "1", "--quick"]
    assert check.main([*threads, "--record", str(path)]) == 2 and "no record" in capsys.readouterr().out
    assert run.main([*threads, "--no-plots", "--out", str(path)]) == 0
    (row,) = records.read_rows(path)
    doctored = {k: str(50 * float(row[k])) for k in ("ratio", "ratio_low", "ratio_high")}
    records.write_rows(path, [row | doctored])
    capsys.readouterr()
    assert check.main([*threads, "--record", str(path)]) == 1 and "worse" in capsys.readouterr().out
    records.write_rows(path, [row | {"machine": "another"}])
    assert check.main([*threads, "--record", str(path)]) == 2


def test_plots_are_drawn_of_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    rows = [
        records.row_of(
            c, {"status": "ok", "median": 1.0 + c.batch, "ratio": 1.5, "baseline_median": 2.0 * c.batch + 1}, {}
        )
        for c in registry.cases()
        if c.group in ("linear", "footprint", "resnet")
    ]
    written = plots.draw(rows, tmp_path / "here.csv")
    assert [p.name for p in written] == ["here-latency.png", "here-footprint.png", "here-convolutions.png"]
    assert all(p.stat().st_size > 10_000 for p in written)
    assert plots.draw([r for r in rows if r["group"] == "other"], tmp_path / "none.csv") == []


def test_calls_take_turns():
    seen = []
    times = interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 3, 10.0)
    assert [len(t) for t in times.values()] == [3, 3]
    assert "".join(seen).lstrip("a").startswith("bb") and "".join(seen).count("ab") >= 3
    assert len(interleaved({"a": lambda: None}, 100, 0.0)["a"]) == MIN_ROUNDS
    assert quartiles([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)
    assert speedup([4.0, 4.0, 4.0], [2.0, 2.0, 4.0]).median == 2.0
