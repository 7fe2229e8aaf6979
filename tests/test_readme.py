"""The tables of the pages are those of the code and of the records; tests/test_docs.py runs their blocks."""

import contextlib
import importlib
import io
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from benchmarks import machines
from frozen_kernels.ops import SCHEMAS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
SCREENS, SCREEN_LINES = 3, 45
LETTERS, GAP = 110, 0.7  # of a line of text, and the space between paragraphs in lines
PICTURE_LINES, TABLE_LINES, HEADING_LINES = 18, 1.6, 2.0  # a picture, a row of a table, a title
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


def run_example(page: str, name: str) -> tuple[dict, str, int]:
    """The one Python block of a page: its names after it ran, what it printed, and its lines."""
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), names)
    return names, printed.getvalue(), len([line for line in code.splitlines() if line.strip()])


def test_ten_lines_give_a_ticket_whose_outputs_are_the_same_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, _, lines = run_example(README, "README.md")
    assert lines <= 10
    plain = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    loaded = fk.load_ticket(plain, "net.safetensors")
    assert torch.equal(loaded(names["x"]), names["model"](names["x"]))


def lines_of_block(block: str) -> float:
    """About how many lines of text, each 24 pixels high, GitHub makes of a paragraph, list, table, picture or title."""
    lines = block.splitlines()
    if block.startswith("!["):
        return PICTURE_LINES
    if block.startswith("|"):
        return TABLE_LINES * (len(lines) - 1)
    if block.startswith("#"):
        return HEADING_LINES
    if block.startswith("```"):
        return len(lines)
    said = re.sub(r"\]\([^)]+\)", "]", block).split("\n- ")
    return sum(math.ceil(len(" ".join(part.split())) / LETTERS) for part in said)


def rendered_lines(page: str) -> float:
    blocks = re.split(r"\n{2,}", re.sub(r"<!--.*?-->\n", "", page).strip())
    return sum(lines_of_block(block) + GAP for block in blocks)


def test_the_readme_fits_three_screens_and_the_first_one_has_picture_and_table():
    assert len(README.splitlines()) <= 130
    assert rendered_lines(README) <= SCREENS * SCREEN_LINES
    places = [README.index(mark) for mark in ("![", "<!-- models", "## Install")]
    assert places == sorted(places)
    longest = max(README.splitlines(), key=lambda line: 0 if line.startswith("|") else len(line))
    assert len(longest) <= 140, longest


def test_the_picture_is_small_and_its_command_is_told():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) == 1
    for kind in (".png", ".svg"):
        file = (ROOT / pictures[0]).with_suffix(kind)
        assert 1000 < file.stat().st_size <= 100_000, file
    (command,) = re.findall(r"`python (examples/\w+\.py)[^`]*`", README)
    assert command == "examples/compare_all.py" and (ROOT / command).exists()  # runs in tests/test_compare_all.py


def test_the_commands_exist_and_ci_runs_the_test_command():
    commands = re.findall(r"^make \w+$", README, re.MULTILINE)
    assert commands == ["make demo", "make test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "lint"} <= set(targets)
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


@pytest.mark.parametrize(("page", "name", "table"), machines.TABLES, ids=lambda of: getattr(of, "name", of))
def test_tables_are_those_of_the_records(page, name, table):
    text = page.read_text()
    begin, end = machines.section(text, name)
    assert text[begin:end] == table()
