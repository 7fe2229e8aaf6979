"""Where fused kernels beat dense torch: the measured tables behind `set_residency(model, "auto")`.

The package ships one for each maker of processors; `python -m frozen_kernels bench --tune` measures the machine at hand
into a file of the user's, which then comes first. `tune` measures, `residency` decides.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import platform
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import replace, user_file

SHIPPED = Path(__file__).with_name("residency_table.json")
SHIPPED_OTHERS = (Path(__file__).with_name("residency_table_amd.json"),)
VARIABLE = "FROZEN_KERNELS_TABLE"
VERSION = 2
FUSED = ("seed", "mask", "planes")
UNKNOWN_NOISE = 0.03  # of cells of version 1, which do not tell theirs
NEAR = 0.25  # of the weight of the nearest cell: a cell that counts for at least so much must agree
OUTSIDE = 4  # so many times below the smallest cell, the cost of a call decides and was not measured


class Cell(NamedTuple):
    """A measured layer: rows and columns of one group of its weight, output pixels (samples of a linear layer, indices
    of an embedding), and how many times as fast as dense torch each residency ran, None where it was not measured.

    `noise`: by what part those factors may be too high. Of a stored weight `mask` and `planes` are both its packed
    values.
    """

    kind: str
    rows: int
    cols: int
    pixels: int
    mask: float
    planes: float
    seed: float | None = None
    noise: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.rows} x {self.cols} on {self.pixels:,} pixels"

    def factor(self, residency: str) -> float | None:
        """How many times as fast as dense torch."""
        found: float | None = getattr(self, residency)
        return found


class Table(NamedTuple):
    """Cells by instruction set, dtype and code; `made` says on what they were measured."""

    made: dict[str, Any]
    levels: dict[str, dict[str, dict[str, list[Cell]]]]

    def cells(self, level: str, dtype: str, code: str) -> list[Cell]:
        """Cells for a layer; float32 stands in for a dtype that was not measured at this level."""
        by_dtype = self.levels.get(level, {})
        return by_dtype.get(dtype, by_dtype.get("float32", {})).get(code, [])

    def elsewhere(self) -> str | None:
        """On what other machine, or with how many other threads, the table was measured; None where it was this one."""
        here = {"machine": processor(), "threads": torch.get_num_threads()}
        other = {key: self.made.get(key, "unknown") for key, value in here.items() if self.made.get(key) != value}
        if not other:
            return None
        return ", ".join(f"{key} {value} (here {here[key]})" for key, value in other.items())


class Estimate(NamedTuple):
    """How many times as fast as dense torch a layer will be in each fused residency that was measured.

    `factors` are interpolated; `floors` are what they are at least, noise and disagreement of the cells considered;
    `cells` are those that count, nearest first.
    """

    factors: dict[str, float]
    floors: dict[str, float]
    cells: list[Cell]

    def __str__(self) -> str:
        return ("at " if len(self.cells) == 1 else "near ") + " and ".join(map(str, self.cells[:2]))


def estimate(cells: Iterable[Cell], kind: str, rows: int, cols: int, pixels: int) -> Estimate | None:
    """What the cells of a kind say of a layer; None without cells, or for one smaller than all that was measured.

    Logarithms of factors are interpolated over logarithms of sizes: of the cells on each side of the layer in rows,
    columns and pixels the nearest counts, by the inverse of its distance's square.
    """
    found = [cell for cell in cells if cell.kind == kind]
    wanted = tuple(max(size, 1) for size in (rows, cols, pixels))
    if not found or OUTSIDE * wanted[0] * wanted[1] < min(cell.rows * cell.cols for cell in found):
        return None
    if OUTSIDE * wanted[2] < min(cell.pixels for cell in found):
        return None
    weights = _weights(found, wanted)
    total = sum(weights.values())

    def mean(of: Callable[[Cell], float]) -> float:
        return sum(weight * of(cell) for cell, weight in weights.items()) / total

    nearest = sorted(weights, key=lambda cell: -weights[cell])
    near = [cell for cell in nearest if weights[cell] >= NEAR * weights[nearest[0]]]
    factors, floors = {}, {}
    for residency in FUSED:
        known = {cell: f for cell in weights if (f := cell.factor(residency)) is not None}
        if len(known) < len(weights):
            continue
        factors[residency] = math.exp(mean(lambda cell, known=known: math.log(known[cell])))  # type: ignore[misc]
        sure = factors[residency] * (1 - mean(lambda cell: cell.noise))
        floors[residency] = min(sure, *(known[cell] * (1 - cell.noise) for cell in near))
    return Estimate(factors, floors, near)


def _weights(cells: Iterable[Cell], wanted: tuple[int, ...]) -> dict[Cell, float]:
    """The nearest cell of each side, with the inverse of its distance's square; those of these very sizes alone."""
    nearest: dict[tuple[int, ...], tuple[float, Cell]] = {}
    exact: dict[Cell, float] = {}  # several where layers of other groups have these sizes in each
    for cell in cells:
        away = [math.log(size / asked) for size, asked in zip(cell[1:4], wanted, strict=True)]
        distance = sum(d * d for d in away)
        if distance == 0:
            exact[cell] = 1.0
            continue
        for side in itertools.product(*((-1, 1) if d == 0 else (1,) if d > 0 else (-1,) for d in away)):
            if side not in nearest or distance < nearest[side][0]:
                nearest[side] = distance, cell
    return exact or {cell: 1 / distance for distance, cell in nearest.values()}


def processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def active_level() -> str | None:
    """The instruction set that the kernels use now; None without the extension."""
    try:
        from .. import _C  # type: ignore[attr-defined]
    except ImportError:
        return None
    return str(_C.isa())  # type: ignore[attr-defined]


def user_path() -> Path:
    """Where `--tune` writes: $FROZEN_KERNELS_TABLE, else a file in the user's cache folder."""
    return user_file(SHIPPED.name, VARIABLE)


def read(path: Path) -> Table:
    """The table in a file; ValueError where it is not one."""
    try:
        data = json.loads(path.read_text())
        version = data["version"]
        if version not in (1, VERSION):
            raise ValueError(f"version {version}, this release reads 1 and {VERSION}")
        levels = {
            level: {
                dtype: {code: [_cell(row, version) for row in rows] for code, rows in codes.items()}
                for dtype, codes in dtypes.items()
            }
            for level, dtypes in data["levels"].items()
        }
        return Table(dict(data["made"]), levels)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise ValueError(f"{path}: not a residency table ({type(why).__name__}: {why})") from None


def _cell(row: list, version: int) -> Cell:
    kind, rows, cols, pixels, mask, planes, *more = row
    seed, noise = (None, UNKNOWN_NOISE) if version == 1 and not more else more
    if min(rows, cols, pixels, mask, planes, 1 if seed is None else seed) <= 0 or not 0 <= noise < 1:
        raise ValueError(f"{row} is not positive")
    sizes = (int(rows), int(cols), int(pixels))
    return Cell(str(kind), *sizes, float(mask), float(planes), None if seed is None else float(seed), float(noise))


def write(table: Table, path: Path) -> None:
    """Replace a file by a table in one step, one cell a line."""
    parts = [f'{{"version": {VERSION},\n"made": {json.dumps(table.made)},\n"levels": {{']
    levels = []
    for level, dtypes in table.levels.items():
        lines = []
        for dtype, codes in dtypes.items():
            rows = [
                f'"{code}": [\n' + ",\n".join(json.dumps(c) for c in cells) + "\n]" for code, cells in codes.items()
            ]
            lines.append(f'"{dtype}": {{' + ",\n".join(rows) + "}")
        levels.append(f'"{level}": {{' + ",\n".join(lines) + "}")
    parts.append(",\n".join(levels) + "}}\n")
    replace(path, "\n".join(parts))


def in_use(level: str | None) -> tuple[Path, Table]:
    """The user's table where it has this instruction set, else the shipped one."""
    path = user_path()
    if path.exists():
        try:
            table = read(path)
        except (OSError, ValueError) as why:
            warnings.warn(f"{why}; the shipped table is used", stacklevel=2)
        else:
            if level in table.levels:
                return path, table
    return shipped(level)


def shipped(level: str | None) -> tuple[Path, Table]:
    """Of the shipped tables that have this instruction set the one of this processor, or of this maker's."""
    here = processor()

    def fits(found: tuple[Path, Table]) -> tuple[bool, bool, bool]:
        there = str(found[1].made["machine"])
        return level in found[1].levels, there == here, there.split()[:1] == here.split()[:1]

    return max(((path, read(path)) for path in (SHIPPED, *SHIPPED_OTHERS)), key=fits)
