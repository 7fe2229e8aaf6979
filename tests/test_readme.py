"""The tables of the pages are those of the code and of the records; tests/test_docs.py runs their blocks."""

import importlib
from pathlib import Path

import pytest
from torch import nn

import frozen_kernels as fk
from benchmarks import machines
from frozen_kernels.ops import SCHEMAS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GRADIENTS = ("_grad_input", "_grad_scores")
MODULES = {
    "reference": "frozen_kernels.backends.reference",
    "cpu": "frozen_kernels.backends.cpu",
    "triton": "frozen_kernels.backends.triton",
}


def rows_of_table(page: str, first_header: str) -> list[list[str]]:
    """Cells of the table whose first column has this header, without its head."""
    lines = (DOCS / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_ci_runs_the_test_commands():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test\nmake test-long")


@pytest.mark.parametrize("row", rows_of_table("concepts/residency.md", "residency"), ids=lambda row: row[0].strip("`"))
@pytest.mark.parametrize("code", ["sign", "uniform"])
def test_bits_per_weight_are_those_of_footprint(row, code):
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False))
    fk.freeze_(model, fk.FreezeConfig(code=code))
    fk.finalize_(model)
    fk.set_residency(model, row[0].strip("`"))
    found = fk.footprint(model)
    claimed = float(row[2 if code == "sign" else 3])
    assert found.bits("resident") == pytest.approx(claimed, abs=2e-3)
    assert found.bits("disk") == pytest.approx(0.300, abs=1e-3)


def test_every_residency_has_a_row():
    assert [row[0].strip("`") for row in rows_of_table("concepts/residency.md", "residency")] == [
        "seed",
        "mask",
        "planes",
        "dense",
    ]


def state_of(module: object, op: str) -> str:
    """yes: the op and all gradients that it has; forward: the op alone; no."""
    if not hasattr(module, op):
        return "no"
    gradients = [op + suffix for suffix in GRADIENTS if op + suffix in SCHEMAS]
    there = [hasattr(module, name) for name in gradients]
    assert all(there) or not any(there), f"{op}: some gradients only, which the table cannot say"
    return "yes" if all(there) else "forward"


def test_the_table_of_ops_is_what_the_backends_hold():
    listed = [op for row in rows_of_table("backends.md", "op") for op in row[0].split(", ")]
    assert sorted(listed) == sorted(op for op in SCHEMAS if not op.endswith(GRADIENTS))
    for row in rows_of_table("backends.md", "op"):
        for name, cell in zip(MODULES, row[1:], strict=True):
            module = importlib.import_module(MODULES[name])
            for op in row[0].split(", "):
                assert state_of(module, op) == cell, f"{op} on {name}"


def test_the_backend_without_a_column_is_told_of():
    """It serves part of what an op may be given, and leaves the rest to the next."""
    assert (
        set(fk.backends.NAMES) - set(MODULES) == {"cuda"}
        and "the backend `cuda` is asked before `triton`" in (DOCS / "backends.md").read_text()
    )


def test_the_table_of_speed_is_that_of_the_records():
    page = machines.PAGE.read_text()
    begin, end = machines.section(page)
    assert page[begin:end] == machines.table()
