"""Tables by GPU and key: files of the package, and of the user's, whose entries come first."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import replace, user_file

Entries = dict[str, list[Any]]  # by key


class Table(NamedTuple):
    """Entries by target; `made` says of each target how they were chosen."""

    made: dict[str, str]
    targets: dict[str, Entries]


class InUse(NamedTuple):
    """The table that a target's entries come from, how they were chosen, and all entries."""

    path: Path
    made: str
    entries: Entries


class TableFile(NamedTuple):
    """One kind of table: where its files lie, and what an entry is there.

    A row of a file begins with the largest sizes that its entry serves, None for any, one for each name in `limits`.
    Of a key's entries the first that serves a size counts, so the last must serve all.
    """

    what: str
    shipped_path: Path
    version: int
    user_name: str
    variable: str
    limits: tuple[str, ...]
    entry: Callable[[list], Any]
    row: Callable[[Any], list]

    def read(self, path: Path) -> Table:
        """The table in a file; ValueError naming file, key and value where it is not one."""
        at = f"not a {self.what}"
        try:
            data = json.loads(path.read_text())
            if data["version"] != self.version:
                raise ValueError(f"version {data['version']}, this release reads {self.version}")
            targets: dict[str, Entries] = {}
            for name, keys in data["targets"].items():
                targets[name] = {}
                for key, rows in keys.items():
                    at = f"{name} {key}"
                    targets[name][key] = self._entries(rows)
            return Table(dict(data["made"]), targets)
        except (ValueError, KeyError, TypeError, AttributeError) as why:
            raise ValueError(f"{path}: {at} ({type(why).__name__}: {why})") from None

    def _entries(self, rows: list) -> list:
        found = []
        for row in rows:
            for name, value in zip(self.limits, row, strict=False):
                if value is not None:
                    integer(f"{name} limit", value, 1)
            found.append(self.entry(row))
        if not found or any(limit is not None for limit in rows[-1][: len(self.limits)]):
            raise ValueError(f"the last entry must serve any size, got {rows[-1:]}")
        return found

    def write(self, table: Table, path: Path) -> None:
        """Replace a file by a table in one step, one entry a line."""
        targets = []
        for name, keys in table.targets.items():
            lines = []
            for key, entries in keys.items():
                rows = [json.dumps(self.row(entry)) for entry in entries]
                lines.append(f'"{key}": [\n' + ",\n".join(rows) + "\n]")
            targets.append(f'"{name}": {{\n' + ",\n".join(lines) + "\n}")
        head = f'"version": {self.version},\n"made": {json.dumps(table.made)}'
        replace(path, f'{{\n{head},\n"targets": {{\n' + ",\n".join(targets) + "\n}\n}\n")

    def user_path(self) -> Path:
        """Where `--tune` writes: the file that the environment variable names, else one in the user's cache folder."""
        return user_file(self.user_name, self.variable)

    def shipped(self, target: str) -> tuple[str, Entries]:
        """How a target's shipped entries were chosen, and those; of a key without any it takes the default's."""
        table = self.read(self.shipped_path)
        made = table.made.get(target, table.made["default"])
        return made, {**table.targets["default"], **table.targets.get(target, {})}

    def _merged(self, own: Table, target: str) -> Entries:
        """Shipped entries with a user's own in front."""
        known, mine = self.shipped(target)[1], own.targets[target]
        unknown = sorted(set(mine) - set(known))
        if unknown:
            raise ValueError(f"{self.user_path()}: {target} {unknown[0]} is no key of {self.shipped_path.name}")
        return {**known, **mine}

    def in_use(self, target: str) -> InUse:
        """The user's file where it has this target, else the shipped one."""
        path = self.user_path()
        if path.exists():
            try:
                own = self.read(path)
                if target in own.targets:
                    return InUse(path, own.made.get(target, "not told how"), self._merged(own, target))
            except (OSError, ValueError) as why:
                warnings.warn(f"{why}; the shipped table is used", stacklevel=2)
        return InUse(self.shipped_path, *self.shipped(target))


def integer(name: str, value: Any, least: int) -> int:
    """The value; ValueError unless it is an integer of at least so much."""
    if type(value) is not int or value < least:
        raise ValueError(f"{name}: an integer from {least} on, got {value!r}")
    return value


@functools.cache
def target(device: torch.device) -> str:
    """Name of a GPU's architecture in a table, such as sm_90 or gfx942."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"
