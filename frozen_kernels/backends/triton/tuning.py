"""Which tile a product runs with: data by GPU, kernel, dtype, kind of code and sizes.

The package ships a table; `python -m frozen_kernels bench --tune` measures the GPU at hand into a file of the user's,
which then comes first.
"""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...files import replace, user_file

SHIPPED = Path(__file__).with_name("tuning.json")
VARIABLE = "FROZEN_KERNELS_TILES"
VERSION = 1
PROGRAMS = 264  # a launch is split until it has about so many: two for each multiprocessor of the largest GPUs
MIN_STEPS = 4  # of a part: below that a part's start and end cost more than its work
KINDS = {"sign": "bits", "constant": "bits", "stored": "values"}  # of codes, else bytes
SMALLEST = {"rows": 16, "pixels": 16, "words": 1, "warps": 1}  # all powers of two; tensor cores take no less


class Tile(NamedTuple):
    """Sizes of a program's tile and how it is compiled.

    `words` of 32 columns are decoded a step; sums of the tensor cores are added up every `flush` steps (0: never).
    """

    rows: int
    pixels: int
    words: int
    warps: int
    stages: int
    flush: int = 0


class Entry(NamedTuple):
    """A tile and the largest pixel count and row count of a group that it serves, None for any."""

    pixels: int | None
    rows: int | None
    tile: Tile


Entries = dict[str, list[Entry]]  # by key


class Table(NamedTuple):
    """Entries by target; `made` says of each target how they were chosen."""

    made: dict[str, str]
    targets: dict[str, Entries]


class InUse(NamedTuple):
    """The table that a target's entries come from, how they were chosen, and all entries."""

    path: Path
    made: str
    entries: Entries


def _integer(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name}: an integer from {least} on, got {value!r}")
    return value


def _tile(fields: dict[str, Any]) -> Tile:
    unknown = sorted(set(fields) - set(Tile._fields))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}, one of {', '.join(Tile._fields)}")
    missing = [name for name in Tile._fields if name not in fields and name not in Tile._field_defaults]
    if missing:
        raise ValueError(f"{missing[0]} is missing in {fields}")
    for name, value in fields.items():
        _integer(name, value, SMALLEST.get(name, 0 if name == "flush" else 1))
        if name in SMALLEST and value & (value - 1):
            raise ValueError(f"{name}: a power of two, got {value}")
    return Tile(**fields)


def _entries(rows: list) -> list[Entry]:
    found = []
    for pixels, limit, fields in rows:
        for name, value in (("pixels limit", pixels), ("rows limit", limit)):
            if value is not None:
                _integer(name, value, 1)
        found.append(Entry(pixels, limit, _tile(fields)))
    if not found or found[-1].pixels is not None or found[-1].rows is not None:
        raise ValueError(f"the last entry must serve any size, got {rows[-1:]}")
    return found


def read(path: Path) -> Table:
    """The table in a file; ValueError naming file, key and value where it is not one."""
    at = "not a tile table"
    try:
        data = json.loads(path.read_text())
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}, this release reads {VERSION}")
        targets: dict[str, Entries] = {}
        for target, keys in data["targets"].items():
            targets[target] = {}
            for key, rows in keys.items():
                at = f"{target} {key}"
                targets[target][key] = _entries(rows)
        return Table(dict(data["made"]), targets)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise ValueError(f"{path}: {at} ({type(why).__name__}: {why})") from None


def write(table: Table, path: Path) -> None:
    """Replace a file by a table in one step, one entry a line."""
    targets = []
    for target, keys in table.targets.items():
        lines = []
        for key, entries in keys.items():
            # as in the shipped table: no field that is not used
            rows = [
                [e.pixels, e.rows, {name: n for name, n in e.tile._asdict().items() if n or name != "flush"}]
                for e in entries
            ]
            lines.append(f'"{key}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]")
        targets.append(f'"{target}": {{\n' + ",\n".join(lines) + "\n}")
    head = f'"version": {VERSION},\n"made": {json.dumps(table.made)}'
    replace(path, f'{{\n{head},\n"targets": {{\n' + ",\n".join(targets) + "\n}\n}\n")


def user_path() -> Path:
    """Where `--tune` writes: $FROZEN_KERNELS_TILES, else a file in the user's cache folder."""
    return user_file("gpu_tiles.json", VARIABLE)


def shipped(target: str) -> tuple[str, Entries]:
    """How the shipped entries of a target were chosen, and those; of a key without any it takes the default's."""
    table = read(SHIPPED)
    return table.made.get(target, table.made["default"]), {**table.targets["default"], **table.targets.get(target, {})}


def _merged(own: Table, target: str) -> Entries:
    """Shipped entries with a user's own in front."""
    known, mine = shipped(target)[1], own.targets[target]
    unknown = sorted(set(mine) - set(known))
    if unknown:
        raise ValueError(f"{user_path()}: {target} {unknown[0]} is no key, one of {', '.join(known)}")
    return {**known, **mine}


@functools.cache
def in_use(target: str) -> InUse:
    """The user's file where it has this target, else the shipped one."""
    path = user_path()
    if path.exists():
        try:
            own = read(path)
            if target in own.targets:
                return InUse(path, own.made.get(target, "not told how"), _merged(own, target))
        except (OSError, ValueError) as why:
            warnings.warn(f"{why}; the shipped table is used", stacklevel=2)
    return InUse(SHIPPED, *shipped(target))


@functools.cache
def target(device: torch.device) -> str:
    """Name of a GPU's architecture in the table, such as sm_90 or gfx942."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def fitting(entries: list[Entry], rows: int, pixels: int) -> Entry:
    """The first entry that serves so many rows of a group and output pixels."""
    return next(
        entry
        for entry in entries
        if (entry.pixels is None or pixels <= entry.pixels) and (entry.rows is None or rows <= entry.rows)
    )


def tile(kernel: str, device: torch.device, dtype: torch.dtype, code: str, rows: int, pixels: int) -> Tile:
    """The tile for so many rows of a group and output pixels."""
    width = "float" if dtype == torch.float32 else "half"
    kind = KINDS.get(code, "bytes")
    return fitting(in_use(target(device)).entries[f"{kernel}/{width}/{kind}"], rows, pixels).tile


def split(programs: int, steps: int) -> int:
    """Into how many parts the steps of each program are cut, so that a small launch fills a GPU."""
    return max(1, min(PROGRAMS // max(programs, 1), steps // MIN_STEPS))
