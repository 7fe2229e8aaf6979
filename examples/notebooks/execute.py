"""Run the notebooks of this folder, and write what they print back into them.

`python examples/notebooks/execute.py` runs all, in a temporary folder, and changes nothing. `--write` puts the new
outputs into the files, without what differs from one run to the next: times, counts, paths. Name notebooks to run some.
It needs the extra `notebooks`.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
NOTEBOOKS = ("first_ticket", "accuracy_against_bytes", "jackpot", "bank_of_masks")  # in the order of reading
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 300  # of one cell, on a machine that is busy with other things
WIDTH = 900  # of a picture, pixels
COLOURS = 64


def read(name: str) -> NotebookNode:
    return nbformat.read(HERE / f"{name}.ipynb", as_version=4)


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in a kernel whose working directory is `folder`; nbclient's CellExecutionError where one fails."""
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        startup_timeout=SECONDS,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": folder}},
    )
    return client.execute()


def clean(notebook: NotebookNode) -> NotebookNode:
    """Leave out what differs from one run or machine to the next, and make pictures small."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        # progress and warnings are of this machine
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = small(data["image/png"])
                data["text/plain"] = "a picture"  # the address of an object, otherwise
    return notebook


def small(picture: str) -> str:
    """A PNG in base64 with fewer pixels and colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    found = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(found, format="PNG", optimize=True)
    return base64.b64encode(found.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NOTEBOOKS)}; all by default")
    parser.add_argument("--write", action="store_true", help="put the new outputs into the files")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NOTEBOOKS]
    if unknown:
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(NOTEBOOKS)}")
    for name in options.names or NOTEBOOKS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            done = clean(execute(read(name), Path(folder)))
        print(f"{name}: {time.perf_counter() - start:.1f} s")
        if options.write:
            nbformat.write(done, HERE / f"{name}.ipynb")


if __name__ == "__main__":
    main()
