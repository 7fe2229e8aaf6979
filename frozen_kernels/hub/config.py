"""`config.json` of a shared ticket: whose folder it is, where the ticket lies, and how its model is built."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..tickets.container import parse_json, short

CONFIG = "config.json"
LARGEST = 1 << 20  # bytes that are read: what another wrote is not parsed without a bound
LIBRARY = "frozen_kernels"
LAYOUT = 1
"""The version of a shared folder's layout that is written, and the newest that is read; a ticket has its own."""

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_FILE = re.compile(r"[^/\\:\x00]+\.safetensors")


class FolderError(ValueError):
    """A folder or repository that holds no shared ticket of this library, or only a part of one."""


@dataclass(frozen=True)
class Config:
    """What `config.json` says.

    `ticket` is a file's name in the same folder, `build` is `module:callable` or None, and `build_kwargs` are the
    keyword arguments with which that callable, or one that the user passes, makes the plain model. `transformers` says
    that the file of that library's configuration beside it is ours, and not one that the user put there.
    """

    ticket: str
    build: str | None
    build_kwargs: dict[str, Any]
    transformers: bool = False

    def to_json(self) -> str:
        """The file's text."""
        fields = {
            "library_name": LIBRARY,
            "layout": LAYOUT,
            "ticket": self.ticket,
            "build": self.build,
            "build_kwargs": self.build_kwargs,
            **({"transformers": True} if self.transformers else {}),
        }
        return json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def arguments(self) -> str:
        """The keyword arguments as a person writes them, in one line, the end of many left out."""
        text = ", ".join(f"{ascii(name)[1:-1]}={value!a}" for name, value in self.build_kwargs.items())
        return text if len(text) <= 200 else f"{text[:200]}..."


def check_path(build: object) -> str:
    """`module:callable`; ValueError for anything else."""
    if not isinstance(build, str) or not _PATH.fullmatch(build):
        raise ValueError(f"build: 'module:callable' as in 'my_package.nets:build', got {short(build)}")
    return build


def check_arguments(build_kwargs: Mapping[str, Any] | None, called: str = "build_kwargs") -> dict[str, Any]:
    """Keyword arguments that come back from JSON as they are; ValueError, which says `called`, for others."""
    given = {} if build_kwargs is None else build_kwargs
    if not isinstance(given, Mapping):
        raise ValueError(f"{called}: a mapping from names to values, got {short(given)}")
    for name, value in given.items():
        if not isinstance(name, str):
            raise ValueError(f"{called}: names are text, got {short(name)}")
        try:
            text = json.dumps([name, value], allow_nan=False, ensure_ascii=False)
            text.encode()  # halves of surrogate pairs have no place in UTF-8
            back = json.loads(text)[1]
        except (TypeError, ValueError, RecursionError) as why:
            raise ValueError(f"{called}: {short(name)} is {_shown(value)}, which JSON cannot hold: {why}") from None
        # a tuple would come back as a list, and keys that are numbers as text
        if back != value:
            raise ValueError(f"{called}: {short(name)} is {short(value)}; from JSON it comes back as {short(back)}")
    return dict(given)


def _shown(value: object) -> str:
    try:
        return short(value)
    except (ValueError, RecursionError):  # an integer with too many digits, a list nested too deeply
        return f"of type {type(value).__name__}"


def read_config(path: str | os.PathLike[str]) -> Config:
    """What a `config.json` says.

    Raises:
        FolderError: it is no file, too large, no JSON, of another library, of a newer layout, or lacks something; the
            message names the file, the field, what was expected and what came.
        OSError: the file is missing or cannot be read.
    """
    name = os.fsdecode(path)
    if os.path.exists(name) and not os.path.isfile(name):  # a FIFO would be waited for
        raise FolderError(f"{name}: expected a regular file")
    with open(name, "rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise FolderError(f"{name}: at most {LARGEST} bytes are read, it has more")
    try:
        found = parse_json(text)
    except ValueError as why:
        raise FolderError(f"{name}: expected JSON, got {short(text[:40])}: {why}") from None
    try:
        return _checked(found)
    except ValueError as why:
        raise FolderError(f"{name}: {why}") from None


def _checked(found: object) -> Config:
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {short(found)}")
    library = found.get("library_name")
    if library != LIBRARY:
        kind = found.get("model_type")
        whose = "" if kind is None else f"; with model_type {short(kind)} it is a configuration of transformers"
        raise ValueError(f"library_name: expected {LIBRARY!r}, got {short(library)}{whose}")
    layout = found.get("layout")
    if isinstance(layout, bool) or not isinstance(layout, int) or layout < 1:
        raise ValueError(f"layout: an integer from 1, got {short(layout)}")
    if layout > LAYOUT:
        raise ValueError(f"layout: {layout}; this release reads up to {LAYOUT}, a newer frozen_kernels wrote this")
    ticket, build, arguments = found.get("ticket"), found.get("build"), found.get("build_kwargs", {})
    # a path would let a file from elsewhere name any file of this machine
    if not isinstance(ticket, str) or not _FILE.fullmatch(ticket) or not ticket.isprintable():
        raise ValueError(f"ticket: a file name that ends in .safetensors, without a folder, got {short(ticket)}")
    if not isinstance(arguments, dict):
        raise ValueError(f"build_kwargs: a JSON object, got {short(arguments)}")
    path = None if build is None else check_path(build)
    return Config(ticket, path, arguments, found.get("transformers") is True)
