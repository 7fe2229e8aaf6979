"""The notebooks: what they hold in the repository, and (long) that they run and say what is true."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LARGEST = 60 * 1024
# of any machine: a folder of a user, a temporary file, a drive, an object's address
OURS = re.compile(r"/(home|root|tmp|var|opt|usr|Users|work|mnt)/|\b[A-Z]:\\|site-packages|\bat 0x[0-9a-f]+")


@pytest.fixture(scope="module")
def runner():
    """examples/notebooks/execute.py."""
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells_of(name: str, kind: str = "code") -> list[dict]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def pictures(cells: list) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])


def test_every_notebook_is_run(runner):
    assert sorted(runner.NOTEBOOKS) == NAMES and len(NAMES) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_clean(name, runner):
    path = FOLDER / f"{name}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size <= LARGEST and notebook["metadata"] == runner.METADATA
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert not [cell["id"] for cell in notebook["cells"] if cell["metadata"]]
    assert cells_of(name, "markdown")[0]["source"][0].startswith("# ")
    for cell in cells_of(name):
        assert cell["execution_count"] is None, cell["id"]
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "display_data", "execute_result"), cell["id"]
            assert output.get("name") != "stderr" and not output.get("metadata") and not output.get("execution_count")
            said = "".join([*output.get("text", []), *output.get("data", {}).get("text/plain", [])])
            assert not OURS.search(said), f"{cell['id']}: {said}"
        assert not OURS.search("".join(cell["source"])), cell["id"]
    # readers on a page of the repository see results
    assert pictures(cells_of(name)) == 1 and any(output.get("text") for c in cells_of(name) for output in c["outputs"])


def test_cleaning_leaves_out_what_differs(runner):
    found = runner.read(NAMES[0])
    found.metadata.language_info.version = "3.99"
    cell = next(cell for cell in found.cells if cell.cell_type == "code" and cell.outputs)
    cell.execution_count, cell.metadata["execution"] = 7, {"iopub.execute_input": "2020-01-01"}
    cell.outputs.append(type(found)(output_type="stream", name="stderr", text="/home/somebody: slow"))
    again = runner.clean(found)
    expected = runner.read(NAMES[0])
    for one, other in zip(again.cells, expected.cells, strict=True):
        for output in (*one.get("outputs", []), *other.get("outputs", [])):
            output.get("data", {}).pop("image/png", None)  # made smaller again
        assert one == other
    assert again.metadata == expected.metadata


def test_links_between_notebooks_lead_somewhere():
    for name in NAMES:
        text = "".join("".join(cell["source"]) for cell in cells_of(name, "markdown"))
        local = [link for link in re.findall(r"\]\(([^()\s]+)\)", text) if not link.startswith("https://")]
        assert local and all((FOLDER / link).exists() for link in local), (name, local)


# run at the end, in the notebook's own kernel
HOLDS = {
    "first_ticket": """
        assert history[-1] > 0.93 and before < 0.3, history
        assert path.stat().st_size == ticket_bytes == report.totals()["disk"]["total"]
        assert 25 * ticket_bytes < dense_bytes and same
        assert accuracy(fk.load_ticket(build(), path)) == history[-1]
    """,
    "accuracy_against_bytes": """
        found = {(row["kind"], row["setting"]): row for row in results}
        files = sorted(file.stat().st_size for file in FOLDER.iterdir())
        assert len(found) == 9 and files == sorted(row["bytes"] for row in results)
        assert found["dense", "float32"]["accuracy"] > 0.94 and found["dense", "int8"]["accuracy"] > 0.94
        assert found["frozen", "70%"]["accuracy"] > 0.92 and found["frozen", "90%"]["accuracy"] > 0.7
        assert found["jackpot", "90%"]["accuracy"] > 0.93
        sizes = [found["frozen", f"{share}%"]["bytes"] for share in (0, 50, 70, 90)]
        assert sizes == sorted(sizes, reverse=True) and 20 * sizes[2] < found["dense", "float32"]["bytes"]
        for kind, share, setting in (("frozen", 0.7, "70%"), ("jackpot", 0.9, "90%")):
            again = fk.load_ticket(build(), FOLDER / f"{kind}_{share}.safetensors")
            assert accuracy(again) == found[kind, setting]["accuracy"]
    """,
    "jackpot": """
        assert dense_accuracy > 0.97 and same and set(loaded[4].values.tolist()) <= trained
        by = {row["sparsity"]: row for row in rows}
        assert by[0.9]["jackpot"] > 0.95 and by[0.97]["jackpot"] > 0.9
        assert by[0.97]["jackpot"] > by[0.97]["magnitude"] + 0.05
        for row in rows:
            file = Path(f"jackpot_{row['sparsity']}.safetensors")
            assert file.stat().st_size == row["bytes"] < dense_bytes / 7
            assert accuracy(fk.load_ticket(build(), file)) == row["packed"] > row["jackpot"] - 0.02
    """,
    "bank_of_masks": """
        assert min(own) > 0.88, own
        assert max(table[i][j] for i in range(TASKS) for j in range(TASKS) if i != j) < 0.35
        assert right >= TASKS - 1 and all(same) and len(same) == TASKS
        assert path.stat().st_size == bank_bytes < 4 * weights * TASKS / 25
    """,
}


def other_data(notebook) -> list:
    """The cells from the marked one on, with another data set in it."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (first,) = (i for i, cell in enumerate(code) if "YOUR DATA" in cell.source)
    assert code[first].source.count("load_digits(return_X_y=True)") == 1
    changed = code[first].source.replace("load_digits(return_X_y=True)", "load_wine(return_X_y=True)")
    return ["results.clear()\nfrom sklearn.datasets import load_wine", changed, *(c.source for c in code[first + 1 :])]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_its_results_hold(name, runner, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of several tests at once
    notebook = runner.read(name)
    cells = len(notebook.cells)
    probes = ["import inspect\nexec(inspect.cleandoc('''\n" + HOLDS[name] + "'''))"]
    if name == "accuracy_against_bytes":
        probes += [*other_data(notebook), "assert len(results) == 9 and CLASSES == 3 and build()[0].in_features == 13"]
    from nbformat.v4 import new_code_cell

    notebook.cells += [new_code_cell(probe) for probe in probes]
    done = runner.execute(notebook, tmp_path)
    assert pictures([cell for cell in done.cells[:cells] if cell.cell_type == "code"]) == 1
    assert not [o for cell in done.cells if cell.cell_type == "code" for o in cell.outputs if o.get("name") == "stderr"]
