"""What all pictures have in common: colours, letters, and how they become files."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import IO, Any

from ..files import replace
from ..text import bytes_text, percent_text

try:
    from matplotlib import style, ticker
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ImportError as why:
    lacking = f"frozen_kernels.plot needs matplotlib ({why}): pip install 'frozen-kernels[plot]'"
    raise ModuleNotFoundError(lacking, name=why.name) from None

WIDTH = 8.0  # inches: 800 pixels of a README are 100 an inch
DOTS = 160  # of a PNG, an inch: sharp on screens of twice the density
INK, PALE = "#222222", "#dddddd"
# Okabe and Ito's, without the yellow, which is not seen on white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "os^DvPX*<>ph"
LINES = ("-", "--", "-.", ":")
STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 13,
    "figure.facecolor": "white",
    "figure.titlesize": 14,
    "font.size": 12,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.hashsalt": "frozen_kernels",  # names of parts do not change from one drawing to the next
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Picture(Figure):
    """A figure that a notebook shows, although no pyplot made it."""

    def _repr_png_(self) -> bytes:
        return rendered(self, "png")


def styled() -> AbstractContextManager[None]:
    """The look of all pictures, whatever the user's settings are, which come back at the end.

    A `$` in a name or a title is a dollar, and begins no formula.
    """
    return style.context(["default", {**STYLE, "text.parse_math": False}])


def picture(height: float) -> Picture:
    """An empty figure of so many inches; to be called within `styled`."""
    return Picture(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12))


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a PNG or an SVG."""
    image = io.BytesIO()
    # a date or a version of matplotlib would change the file where the picture is the same
    unsaid: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with style.context(["default", dict(STYLE)]):  # a figure of the user's may have formulas
        figure.savefig(image, format=kind, dpi=DOTS, metadata=unsaid)
    return image.getvalue()


def _draw_into(figure: Figure, kind: str, file: IO[bytes]) -> None:
    file.write(rendered(figure, kind))


def save(figure: Figure, path: str | PathLike[str]) -> list[Path]:
    """Both files of a picture; see `frozen_kernels.plot.save`."""
    name = os.fsdecode(path)
    given, separators = Path(name), (os.sep, os.altsep or os.sep)
    stem = re.sub(r"\.(png|svg)$", "", given.name, flags=re.IGNORECASE)
    if name.endswith(separators) or stem in ("", ".."):
        raise ValueError(f"path: a file, with a name before .png or .svg, got {name!r}")
    written = [given.with_name(f"{stem}.{kind}") for kind in ("png", "svg")]
    for target in written:
        # drawn into the open file: a folder that cannot be written is found at once
        replace(target, partial(_draw_into, figure, target.suffix[1:]))
    return written


def number_text(value: float) -> str:
    return f"{value:.4g}"


def text_of(column: str) -> Any:
    """How the values of a column are written, by its name."""
    if column.endswith("bytes"):
        return bytes_text
    return percent_text if column.endswith(("accuracy", "ratio")) else number_text


def write_ticks(axis: Any, text: Any) -> None:
    """Let an axis write its ticks so, the large ones alone."""
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(ticker.NullFormatter())


def number_in(row: Mapping[str, Any], column: str, number: int, *, finite: bool = True) -> float:
    """The number in a column of a row, which may be text. ValueError names the row, counted from 0, and the column."""
    if column not in row:
        raise ValueError(f"row {number}: no column {column!r}, there are {', '.join(map(repr, row))}")
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        value = float(row[column])
        if math.isfinite(value) or not finite:
            return value
    raise ValueError(f"row {number}: a {'finite ' * finite}number in column {column!r}, got {row[column]!r}")


def legend_text(label: str) -> str:
    """A label that is shown: of empty ones, and of those that begin with an underscore, matplotlib shows none."""
    return f" {label}" if label[:1] in ("", "_") else label


__all__ = ["Axes", "Figure", "ticker"]
