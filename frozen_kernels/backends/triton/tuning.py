"""Which tile a product runs with: data shipped with the package, by GPU, kernel, dtype, kind of code and pixels."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import torch

SHIPPED = Path(__file__).with_name("tuning.json")
VERSION = 1
PROGRAMS = 264  # a launch is split until it has about so many: two for each multiprocessor of the largest GPUs
MIN_STEPS = 4  # of a part: below that a part's start and end cost more than its work


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


Table = dict[str, dict[str, list[Entry]]]


def parse(text: str) -> Table:
    """Entries by target and key; ValueError for another version."""
    data = json.loads(text)
    if data["version"] != VERSION:
        raise ValueError(f"tuning table: version {data['version']}, this release reads {VERSION}")
    return {
        target: {
            key: [Entry(pixels, rows, Tile(**fields)) for pixels, rows, fields in entries]
            for key, entries in keys.items()
        }
        for target, keys in data["targets"].items()
    }


@functools.cache
def table() -> Table:
    return parse(SHIPPED.read_text())


@functools.cache
def target(device: torch.device) -> str:
    """Name of a GPU's architecture in the table, such as sm_90 or gfx942."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def tile(kernel: str, device: torch.device, dtype: torch.dtype, code: str, rows: int, pixels: int) -> Tile:
    """The tile for so many rows of a group and output pixels; a target without an entry takes the default's."""
    width = "float" if dtype == torch.float32 else "half"
    kind = "bits" if code in ("sign", "constant") else "bytes"
    key = f"{kernel}/{width}/{kind}"
    entries = table().get(target(device), {}).get(key) or table()["default"][key]
    return next(
        entry.tile
        for entry in entries
        if (entry.pixels is None or pixels <= entry.pixels) and (entry.rows is None or rows <= entry.rows)
    )


def split(programs: int, steps: int) -> int:
    """Into how many parts the steps of each program are cut, so that a small launch fills a GPU."""
    return max(1, min(PROGRAMS // max(programs, 1), steps // MIN_STEPS))
