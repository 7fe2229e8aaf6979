"""Bars of bytes and time of a model in every residency."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..text import bytes_text
from .canvas import INK, Axes, Figure, picture, styled, ticker, write_ticks

BAR = 0.2  # inches
AROUND = 1.9
BYTES = (("on disk", "#0072b2"), ("resident", "#56b4e9"), ("peak of a forward", "#b3b3b3"))
INPUTS = ("#009e73", "#d55e00", "#cc79a7", "#e69f00", "#000000")  # none of the colours of bytes
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # a line that text crosses
ROOM = 1.4  # times the longest bar, for the text beside it


def _group(axes: Axes, series: dict[str, tuple[str, list[float | None]]], texts: dict[str, list[str]]) -> None:
    """Horizontal bars side by side: a group for each side, a colour for each of the series."""
    thick = 0.84 / len(series)
    longest = max((v for _, values in series.values() for v in values if v is not None), default=1.0)
    for i, (label, (colour, values)) in enumerate(series.items()):
        places = [n + (i - (len(series) - 1) / 2) * thick for n in range(len(values))]
        axes.barh(places, [v or 0.0 for v in values], 0.9 * thick, color=colour, label=label)
        for place, value, text in zip(places, values, texts[label], strict=True):
            axes.text((value or 0) + 0.02 * longest, place, text, va="center", fontsize=10, bbox=BEHIND)
    axes.set_xlim(0, ROOM * longest)
    axes.grid(False, axis="y")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.16), ncols=1 if len(series) > 3 else len(series))


def _largest(sizes: Iterable[int | None]) -> int | None:
    """Of those that are known, None where none is."""
    return max((size for size in sizes if size is not None), default=None)


def _bytes_panel(axes: Axes, rows: Sequence[Any], sides: list[str]) -> None:
    of = {side: [row for row in rows if row.side == side] for side in sides}
    kinds = {
        "on disk": [of[side][0].disk for side in sides],
        "resident": [max(row.resident for row in of[side]) for side in sides],
        "peak of a forward": [
            max((row.peak for row in of[side] if row.peak is not None), default=None) for side in sides
        ],
    }
    known = {label: (colour, kinds[label]) for label, colour in BYTES if any(v is not None for v in kinds[label])}
    texts = {label: ["" if v is None else bytes_text(v) for v in values] for label, (_, values) in known.items()}
    _group(axes, known, texts)
    axes.set_title("bytes")
    axes.set_yticks(range(len(sides)), sides)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
    write_ticks(axes.xaxis, bytes_text)


def _time_panel(axes: Axes, rows: Sequence[Any], sides: list[str]) -> None:
    series, texts = {}, {}
    for i, name in enumerate(dict.fromkeys(row.input for row in rows)):
        found = {row.side: row for row in rows if row.input == name}
        timed = [found.get(side) for side in sides]
        series[name] = (INPUTS[i % len(INPUTS)], [1 / r.speedup if r and r.speedup else None for r in timed])
        texts[name] = [f"{r.median:.3g} ms" if r and r.median is not None else "not timed" for r in timed]
    _group(axes, series, texts)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--", zorder=0)
    axes.set_title("time, dense torch = 1")
    axes.set_yticks([])


def draw(rows: Sequence[Any], title: str | None) -> Figure:
    """The picture; see `frozen_kernels.plot.residencies`."""
    if not rows:
        raise ValueError("rows: those of a BenchReport, got none")
    sides = list(dict.fromkeys(row.side for row in rows))
    inputs = len({row.input for row in rows})
    with styled():
        figure = picture(AROUND + BAR * len(sides) * max(3, inputs))
        left, right = figure.subplots(1, 2)
        _bytes_panel(left, rows, sides)
        _time_panel(right, rows, sides)
        if title is not None:
            figure.suptitle(title)
    return figure
