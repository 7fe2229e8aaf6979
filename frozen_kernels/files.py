"""Measured tables of a user's machine: where they lie, and how a file is replaced in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path


def user_file(name: str, variable: str) -> Path:
    """The file that the environment variable names, else one of this name in the user's cache folder."""
    given = os.environ.get(variable)
    if given:
        return Path(given)
    home = Path.home()
    if sys.platform == "darwin":
        folder = home / "Library" / "Caches"
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return folder / "frozen_kernels" / name


def replace(path: Path, text: str) -> None:
    """Write a file whole or, where that fails, leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
