"""Sweeps: one column of runs against another, such as accuracy against bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from numbers import Real
from typing import Any, NamedTuple

from .canvas import (
    COLOURS,
    INK,
    MARKERS,
    Axes,
    Figure,
    legend_text,
    number_in,
    picture,
    styled,
    text_of,
    ticker,
    write_ticks,
)

HEIGHT = 4.8
FEW, ROW = 6, 0.24  # entries whose legend has a place inside; inches of a row of one below
LOGARITHM = 10  # times the smallest x, beyond which they are in a logarithm
WIDE = 500  # and beyond which there is no place for ticks at 2 and 5


class Columns(NamedTuple):
    """Which columns of the rows are drawn."""

    x: str
    y: str
    series: str
    point: str | None


class Point(NamedTuple):
    """Runs over seeds: mean x, mean, least and largest y, and what is written beside it."""

    x: float
    y: float
    low: float
    high: float
    text: str


def _read(rows: Sequence[Any], columns: Columns) -> list[Mapping[str, Any]]:
    """The rows as mappings that have every column. ValueError names the row and the column."""
    found: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows):
        values = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
        if not isinstance(values, Mapping):
            raise ValueError(f"row {number}: a mapping or a dataclass, got {type(row).__name__}")
        for column in (columns.series, columns.point):
            if column is not None and column not in values:
                raise ValueError(f"row {number}: no column {column!r}, there are {', '.join(map(repr, values))}")
        numbers = {column: number_in(values, column, number) for column in (columns.x, columns.y)}
        found.append({**values, **numbers})
    if not found:
        raise ValueError("rows: one for each run, got none")
    return found


def _points(rows: list[Mapping[str, Any]], columns: Columns) -> dict[str, list[Point]]:
    """The points of each series, by x."""
    runs: dict[str, dict[Any, list[Mapping[str, Any]]]] = {}
    for row in rows:
        place = row[columns.x if columns.point is None else columns.point]
        runs.setdefault(str(row[columns.series]), {}).setdefault(place, []).append(row)
    found = {}
    for series, places in runs.items():
        points = []
        for place, same in places.items():
            values = [row[columns.y] for row in same]
            text = "" if columns.point is None else f"{place:g}" if isinstance(place, float) else str(place)
            x = statistics.mean(row[columns.x] for row in same)
            points.append(Point(x, statistics.mean(values), min(values), max(values), text))
        found[series] = sorted(points)
    return found


def _draw_series(axes: Axes, number: int, label: str, points: list[Point]) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    xs, ys = [p.x for p in points], [p.y for p in points]
    bars = [[p.y - p.low for p in points], [p.high - p.y for p in points]]
    axes.errorbar(
        xs, ys, yerr=bars if any(map(any, bars)) else None, label=legend_text(label),
        color=colour, linestyle="-" if len(points) > 1 else "", linewidth=2, marker=marker, markersize=8,
        elinewidth=1.5, capsize=4,
    )  # fmt: skip
    # every other series has its texts below, where those of its neighbour are not
    up, side = (9, "bottom") if number % 2 == 0 else (-9, "top")
    for p in points:
        if p.text:
            axes.annotate(
                p.text, (p.x, p.y), xytext=(0, up), textcoords="offset points",
                ha="center", va=side, color=colour, fontsize=11,
            )  # fmt: skip


def _draw_references(axes: Axes, references: Mapping[str, float], text: Any) -> None:
    """Horizontal lines where the points are; a value that is far from them is in the legend alone."""
    low, high = axes.get_ylim()
    for number, (label, value) in enumerate(references.items()):
        where = "" if low <= value <= high else " (below)" if value < low else " (above)"
        line = ("--", ":", "-.")[number % 3]
        axes.plot([], [], color=INK, linestyle=line, label=legend_text(f"{label}: {text(value)}{where}"))
        if not where:
            axes.axhline(value, color=INK, linestyle=line, linewidth=1.2, zorder=1)


def draw(
    rows: Sequence[Any],
    columns: Columns,
    references: Mapping[str, float],
    texts: tuple[str | None, str | None, str | None],
) -> Figure:
    """The picture; see `frozen_kernels.plot.sweep`. `texts`: of the x axis, of the y axis, and above."""
    found = _points(_read(rows, columns), columns)
    for label, value in references.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"references: {label!r} is a finite number, got {value!r}")
    xlabel, ylabel, title = texts
    every = [p for points in found.values() for p in points]
    least, largest = min(p.x for p in every), max(p.x for p in every)
    entries = len(found) + len(references)
    below = entries > FEW
    with styled():
        figure = picture(HEIGHT + (ROW * -(-entries // 2) if below else 0))
        axes = figure.subplots()
        for number, (label, points) in enumerate(found.items()):
            _draw_series(axes, number, label, points)
        axes.margins(0.08)
        if least > 0 and largest > LOGARITHM * least:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if largest < WIDE * least else (1,)))
        write_ticks(axes.xaxis, text_of(columns.x))
        write_ticks(axes.yaxis, text_of(columns.y))
        axes.set_xlabel(columns.x.replace("_", " ") if xlabel is None else xlabel)
        axes.set_ylabel(columns.y.replace("_", " ") if ylabel is None else ylabel)
        _draw_references(axes, references, text_of(columns.y))
        if below:
            figure.legend(loc="outside lower center", ncols=2)
        elif entries > 1:
            axes.legend()
        if title is not None:
            axes.set_title(title)
    return figure
