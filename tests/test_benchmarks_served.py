"""The benchmarks of small calls, of `auto` and of process memory: a figure is of what it says, or there is none."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

from benchmarks import check, counted, machine, process_memory, records, registry, run, served, summary
from frozen_kernels.memory.footprint import reset_peak

SMALL = (2, 64, 64)  # layers, rows, columns


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    monkeypatch.setattr(machine, "limits", lambda dtypes: machine.Limits({"float32": 1e9, "bfloat16": 1e9}, 1e9))


def case(name: str) -> registry.Case:
    return next(c for c in registry.cases() if c.name == name)


@pytest.mark.parametrize(
    "name",
    [
        "call/linear16/no_grad/b16/t1",
        "call/conv8/inference_mode/b1",
        "call/linear16/dense/b1",
        "call/linear16/train/b1",
        "call/conv8/train/b16/t1",
        "auto/layer/linear/16x16/b1",
        "auto/layer/conv_transpose2d/64x64x4x4/14/s2/b1",
        "auto/net/perceptron/b1",
        "net/digits/b1/planes",
    ],
)
def test_a_case_is_right_and_leaves_the_process_as_it_was(name):
    threads = torch.get_num_threads()
    (row,) = run.measure([case(name)], 0.001, quiet=True)
    assert (row["status"], row["unit"]) == ("ok", "us" if name.startswith("call") else "ms"), row["note"]
    assert float(row["ratio"]) == pytest.approx(float(row["baseline_median"]) / float(row["median"]), rel=1e-4)
    assert torch.get_num_threads() == threads and gc.isenabled()
    assert row["note"].startswith("auto: ") == name.startswith("auto")


def test_a_time_is_that_of_one_call(monkeypatch):
    """As the clock says it: a turn of 8 calls takes 8 ms."""
    monkeypatch.setattr(run, "interleaved", lambda sides, *_: {name: [8.0, 16.0] for name in sides})
    setup = served.Setup({}, {}, lambda name: None, calls_of_a_turn=8)
    assert run._timed(setup, {"torch": lambda: None}, 1.0) == {"torch": [1.0, 2.0]}


def test_wrong_gradients_get_no_numbers(monkeypatch):
    right = served.score_gradient
    monkeypatch.setattr(served, "score_gradient", lambda *given: 1.001 * right(*given))
    (row,) = run.measure([case("call/linear16/train/b1")], 0.001, quiet=True)
    assert row["status"] == "refused" and "error" in row["note"]


def test_a_call_is_held_against_how_much_longer_it_takes():
    (target,) = (t for t in registry.TARGETS if t.line == "call")
    rows = [
        dict.fromkeys(records.COLUMNS, "")
        | {"name": name, "line": "call", "status": "ok", "ratio": ratio, "best_ratio": best}
        for name, ratio, best in (("a", "0.8", "0.8"), ("b", "0.4", "0.5"))
    ]
    found = ("at most 2 x the time", "2.5 x the time, b", "2 x the time", "no")
    assert summary.cells(target, rows)[1:] == found
    assert summary.cells(target, rows[:1])[-1] == "yes"
    assert case("call/linear16/no_grad/b1").target == 0.5  # as a ratio of speeds


@pytest.mark.skipif(not reset_peak(), reason="/proc/self/clear_refs is refused")
def test_a_fresh_process_says_what_stays_and_what_was_the_most():
    held, peak = (dataclasses.replace(case(f"load/ticket/{name}"), shape=SMALL) for name in ("planes", "peak/planes"))
    found = [counted.held(held), counted.process_peak(peak)]
    assert [count.unit for count in found] == ["bits/weight", "of what stays"]
    assert all(count.verdict.passed and count.note.startswith("2 layers") for count in found)


def test_a_quick_run_reads_fewer_layers_and_is_not_compared_with_a_whole_one(monkeypatch):
    read = []
    monkeypatch.setattr(run, "COUNTS", {"held freeze": lambda case: read.append(case.shape) or counted.Count(0.5, "")})
    whole, quick = (run.measure([case("load/freeze/seed")], s, quiet=True)[0] for s in (run.SECONDS, run.QUICK_SECONDS))
    assert read == [registry.HELD_LAYERS, (run.QUICK_LAYERS, *registry.HELD_LAYERS[1:])]
    assert check.compare(whole, quick) is None and check.compare(whole, whole) is not None


def test_results_that_differ_get_no_numbers(monkeypatch):
    said = {kept: {"held": 1, "digest": kept[0]} for kept in ("seed", "mask", "planes")}
    monkeypatch.setattr(counted, "_process", lambda *_: said | {"weights": 8, "activations": 0})
    assert not counted.held(case("load/search/mask")).verdict.passed


def test_a_search_is_measured_in_every_residency(tmp_path):
    found = process_memory.measure("search", *SMALL, tmp_path / "ticket.safetensors")
    assert found["weights"] == 2 * 64 * 64
    assert len({found[kept]["digest"] for kept in ("seed", "mask", "planes")}) == 1
