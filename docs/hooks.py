"""What mkdocs.yml cannot say: an entry of `nav` that ends in a slash stands for all pages of that folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    config.nav = expanded(config.nav, Path(config.docs_dir))
    return config


def expanded(nav: Any, docs: Path) -> Any:
    """The same navigation with the pages of folders in place of the folders: `index.md`, then by name."""
    if isinstance(nav, dict):
        return {title: expanded(entry, docs) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [page for entry in nav for page in pages_of(entry, docs)]
    return nav


def pages_of(entry: Any, docs: Path) -> list[Any]:
    if isinstance(entry, str) and entry.endswith("/"):
        pages = sorted((docs / entry).glob("*.md"), key=lambda page: (page.name != "index.md", page.name))
        return [page.relative_to(docs).as_posix() for page in pages]
    return [expanded(entry, docs)]
