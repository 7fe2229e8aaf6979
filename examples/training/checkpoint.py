"""Files of a run, each replaced in one step: a process killed at any moment leaves the old file or the new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from .settings import FREE_TO_CHANGE, Settings, flat

VERSION = 1
KEYS = (
    "version", "settings", "model", "optimizer", "scheduler", "search", "rng", "epoch", "step", "running", "rows",
    "seconds",
)  # fmt: skip


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole beside `path`, then put it in its place."""
    temporary = path.with_name(f".{path.name}.tmp")  # always this one: what a killed process left is written over
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # the rename itself; not every system can sync a folder
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(path: Path, settings: Settings, state: dict[str, Any]) -> None:
    """Replace the checkpoint."""
    content = {"version": VERSION, "settings": flat(settings), **state}
    replace(path, lambda file: torch.save(content, file))


def load(path: Path, settings: Settings) -> dict[str, Any]:
    """The state that `save` was given, on the CPU; nothing in the file is ever called.

    Raises:
        ValueError: the file is damaged, of another version, or of a run with other settings: the first that differs
            is named with both values. Those in `FREE_TO_CHANGE` may differ.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises almost anything
        raise ValueError(f"{path}: truncated or not a checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: a checkpoint of version {VERSION}, got {found}")
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise ValueError(f"{path}: not a checkpoint of this trainer, {missing[0]!r} is missing")
    _check_same(path, content["settings"], flat(settings))
    return content


def _check_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in dict.fromkeys([*wanted, *saved]):
        if key not in FREE_TO_CHANGE and saved.get(key) != wanted.get(key):
            raise ValueError(
                f"{path}: of another run, {key} was {saved.get(key)!r} and is {wanted.get(key)!r} now; "
                "choose another folder as out"
            )
