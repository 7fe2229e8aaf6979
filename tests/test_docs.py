"""README and pages: every block of code runs as a reader would run it, every link leads somewhere, the site builds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pages
import pytest
import torch

ROOT, DOCS = pages.ROOT, pages.DOCS
MOST_NOT_RUN = 6
# pages and folders of seconds, beside pages that run examples
SLOW = (
    "docs/start.md",
    "docs/guides/sweep.md",
    "docs/methods/",
    "docs/guides/share.md",
    "docs/guides/benchmark.md",
    "docs/guides/deploy.md",
)
OPTIONAL = ("transformers", "huggingface_hub", "sklearn", "matplotlib")  # extras that a page may need


def parameters() -> list:
    found = []
    for page in pages.pages():
        blocks = pages.blocks_of(page)
        name = page.relative_to(ROOT).as_posix()
        slow = name.startswith(SLOW) or any(map(pages.is_run, blocks))
        if blocks:
            found.append(pytest.param(page, id=name, marks=[pytest.mark.long] if slow else []))
    return found


@pytest.mark.parametrize("page", parameters())
def test_every_block_runs(page, tmp_path):
    threads = torch.get_num_threads()
    with pages.Reader(tmp_path) as reader:
        for block in pages.blocks_of(page):
            try:
                reader.take(block)
            except ModuleNotFoundError as error:
                if error.name not in OPTIONAL:
                    raise
                pytest.skip(f"{error.name} is not installed")
            except Exception as error:
                raise AssertionError(f"{block.place}: {type(error).__name__}: {error}") from error
    torch.set_num_threads(threads)


def test_every_block_says_its_language_and_few_are_left_out():
    blocks = [block for page in pages.pages() for block in pages.blocks_of(page)]
    wrong = [f"{block.place}: {block.language!r}" for block in blocks if block.language not in pages.LANGUAGES]
    assert not wrong, f"languages are {', '.join(pages.LANGUAGES)}; {'; '.join(wrong)}"
    left_out = [block for block in blocks if block.how == "not run"]
    for block in left_out:
        print(f"{block.place}: not run: {block.reason}")
    assert len(left_out) <= MOST_NOT_RUN, [block.place for block in left_out]
    # an output that follows nothing would be compared with nothing
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.title == pages.OUTPUT:
            assert before and before.page == block.page and before.how == "run", f"{block.place}: output of nothing"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("```shell\nmake nothing_of_it\n```\n", "no target nothing_of_it"),
        ("```shell\npip install '.[nothing]'\n```\n", "no extra nothing"),
        ("```shell\npython examples/none.py\n```\n", "no file examples/none.py"),
        ("<!-- check only: long -->\n```shell\npython examples/digits.py --sedes 3\n```\n", "has no --sedes"),
        ("```shell\npython -m frozen_kernels inspect none.safetensors\n```\n", "exit status"),
        ("```shell\nrm -r here\n```\n", "nobody knows how to check 'rm'"),
        ('```python\nprint(1)\n```\n```text title="output"\n2\n```\n', "printed was\n1"),
    ],
)
def test_a_block_that_fails_is_named(text, why, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    blocks = pages.blocks_of(page)
    monkeypatch.setattr(pages, "ROOT", ROOT)
    (tmp_path / "reader").mkdir()
    monkeypatch.setattr(pages.Block, "place", "page.md:1")
    with pages.Reader(tmp_path / "reader") as reader, pytest.raises(AssertionError) as error:
        for block in blocks:
            reader.take(block)
    assert why in f"{type(error.value).__name__}: {error.value}"


# links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them of plain titles."""
    text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+?)\s*$", text, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def links(page: Path) -> list[str]:
    text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^()\s]+)\)", text)


@pytest.mark.parametrize(
    "page",
    [*pages.pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert DOCS not in page.parents or DOCS in target.parents, f"{link}: the site holds docs/ alone"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_drawings_are_read_and_say_what_they_show():
    shown = {(page.parent / link).resolve() for page in pages.pages() for link in links(page)}
    drawn = [path for path in sorted((DOCS / "images").glob("*.svg")) if not path.with_suffix(".png").exists()]
    assert drawn  # a plot is shown as the PNG beside it
    for drawing in drawn:
        root = ElementTree.parse(drawing).getroot()
        assert drawing in shown, f"{drawing.name} is on no page"
        assert root.get("viewBox") and root.find("{*}title") is not None, f"{drawing.name}: viewBox and title"


# the site


@pytest.mark.long
def test_the_site_builds_without_a_warning_and_asks_no_network(tmp_path):
    if not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings_handlers"))):
        pytest.skip("the extra docs is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    built = list(tmp_path.rglob("*.html"))
    assert len(built) == len(list(DOCS.rglob("*.md"))) + 1  # and 404.html
    for page in built:
        loaded = re.findall(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="?(https?:|//)', page.read_text())
        assert not loaded, f"{page.name} loads from the network"
    index = (tmp_path / "search" / "search_index.js").read_text()
    assert index.startswith("var __index") and "supermask" in index
