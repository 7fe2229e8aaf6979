"""Which tile a product runs with: data by GPU, kernel, dtype, kind of code and sizes.

The package ships a table; `python -m frozen_kernels bench --tune` measures the GPU at hand into a file of the user's,
which then comes first.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import targets
from ..targets import integer, target

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


def _tile(fields: dict[str, Any]) -> Tile:
    unknown = sorted(set(fields) - set(Tile._fields))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}, one of {', '.join(Tile._fields)}")
    missing = [name for name in Tile._fields if name not in fields and name not in Tile._field_defaults]
    if missing:
        raise ValueError(f"{missing[0]} is missing in {fields}")
    for name, value in fields.items():
        integer(name, value, SMALLEST.get(name, 0 if name == "flush" else 1))
        if name in SMALLEST and value & (value - 1):
            raise ValueError(f"{name}: a power of two, got {value}")
    return Tile(**fields)


def _entry(row: list) -> Entry:
    pixels, rows, fields = row
    return Entry(pixels, rows, _tile(fields))


def _row(entry: Entry) -> list:
    # as in the shipped table: no field that is not used
    return [entry.pixels, entry.rows, {name: n for name, n in entry.tile._asdict().items() if n or name != "flush"}]


_FILE = targets.TableFile(
    "tile table", SHIPPED, VERSION, "gpu_tiles.json", VARIABLE, ("pixels", "rows"), _entry, _row
)  # fmt: skip
read, write, user_path, shipped = _FILE.read, _FILE.write, _FILE.user_path, _FILE.shipped
in_use = functools.cache(_FILE.in_use)


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
