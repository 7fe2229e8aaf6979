"""Files of a run, each replaced in one step: a process killed at any moment leaves the old file or the new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from frozen_kernels.files import write_whole

from .settings import FREE_TO_CHANGE, Settings, flat

VERSION = 2
KEYS = (
    "version", "settings", "model", "optimizer", "scheduler", "search", "rng", "epoch", "step", "running", "rows",
    "compared", "seconds",
)  # fmt: skip


def save(path: Path, settings: Settings, state: dict[str, Any]) -> None:
    """Replace the checkpoint."""
    content = {"version": VERSION, "settings": flat(settings), **state}
    write_whole(path, lambda file: torch.save(content, file))


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
