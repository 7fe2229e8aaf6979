"""Where fused kernels beat dense torch: the measured table behind `set_residency(model, "auto")`.

The package ships one; `python -m frozen_kernels bench --tune` measures the machine at hand into a file of the user's,
which then comes first. `tune` measures, `residency` decides.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..files import replace, user_file

SHIPPED = Path(__file__).with_name("residency_table.json")
VARIABLE = "FROZEN_KERNELS_TABLE"
VERSION = 1


class Cell(NamedTuple):
    """A measured layer: rows and columns of one group of its weight, output pixels (samples of a linear layer), and
    how many times as fast as dense torch each residency ran."""

    kind: str
    rows: int
    cols: int
    pixels: int
    mask: float
    planes: float

    def __str__(self) -> str:
        return f"{self.kind} {self.rows} x {self.cols} on {self.pixels:,} pixels"


class Table(NamedTuple):
    """Cells by instruction set, dtype and code; `made` says on what they were measured."""

    made: dict[str, Any]
    levels: dict[str, dict[str, dict[str, list[Cell]]]]

    def cells(self, level: str, dtype: str, code: str) -> list[Cell]:
        """Cells for a layer; float32 stands in for a dtype that was not measured at this level."""
        by_dtype = self.levels.get(level, {})
        return by_dtype.get(dtype, by_dtype.get("float32", {})).get(code, [])


def nearest(cells: Iterable[Cell], kind: str, rows: int, cols: int, pixels: int) -> Cell | None:
    """The cell of a kind whose sizes are nearest, by the squares of their ratios' logarithms; None without cells."""

    def distance(cell: Cell) -> float:
        pairs = ((cell.rows, rows), (cell.cols, cols), (cell.pixels, pixels))
        return sum(math.log(a / max(b, 1)) ** 2 for a, b in pairs)

    return min((cell for cell in cells if cell.kind == kind), key=distance, default=None)


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
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}, this release reads {VERSION}")
        levels = {
            level: {
                dtype: {code: [_cell(row) for row in rows] for code, rows in codes.items()}
                for dtype, codes in dtypes.items()
            }
            for level, dtypes in data["levels"].items()
        }
        return Table(dict(data["made"]), levels)
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise ValueError(f"{path}: not a residency table ({type(why).__name__}: {why})") from None


def _cell(row: list) -> Cell:
    kind, rows, cols, pixels, mask, planes = row
    if min(rows, cols, pixels, mask, planes) <= 0:
        raise ValueError(f"{row} is not positive")
    return Cell(str(kind), int(rows), int(cols), int(pixels), float(mask), float(planes))


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
    return SHIPPED, read(SHIPPED)
