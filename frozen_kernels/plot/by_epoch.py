"""Curves of training: accuracy and loss by epoch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..text import percent_text
from .canvas import (
    COLOURS,
    LINES,
    Axes,
    Figure,
    legend_text,
    number_in,
    number_text,
    picture,
    styled,
    ticker,
    write_ticks,
)

HEIGHT = 3.8


class Curve(NamedTuple):
    """A column of a run, or of runs over seeds: the mean at each epoch, and the least and the largest."""

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def _columns(run: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """The values of each column that is drawn, by epoch, NaN for a gap. ValueError names the row and the column."""
    found: dict[str, dict[float, float]] = {}
    for number, row in enumerate(run):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number}: a mapping from columns to values, got {type(row).__name__}")
        for name, value in row.items():
            if not isinstance(name, str):
                why = "; csv.DictReader puts cells beyond the header there" if name is None else ""
                raise ValueError(f"row {number}: columns have names that are text, got {name!r}: {value!r}{why}")
        epoch = number_in(row, "epoch", number)
        for name, value in row.items():
            if value not in ("", None) and (name == "loss" or name.endswith("accuracy")):
                there = number_in(row, name, number, finite=False)
                found.setdefault(name, {})[epoch] = there if math.isfinite(there) else math.nan
    if not found:
        have = ", ".join(map(repr, run[0])) if run else "no rows"
        raise ValueError(f"history: a loss, or columns that end in 'accuracy', got {have}")
    return found


def _over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Curve]:
    """The curves of runs that differ in their seeds, by column: epochs that all of them have."""
    every = [_columns(run) for run in runs]
    curves = {}
    for name in every[0]:
        values = [run.get(name, {}) for run in every]
        epochs = sorted(set.intersection(*map(set, values)))
        if len(epochs) < max(map(len, values)):
            raise ValueError(f"history: column {name!r} has the epochs {epochs} in all runs, and others in some")
        at = [[run[epoch] for run in values] for epoch in epochs]
        at = [[math.nan] if any(map(math.isnan, v)) else v for v in at]  # no mean is known where a run diverged
        curves[name] = Curve(epochs, [statistics.mean(v) for v in at], [min(v) for v in at], [max(v) for v in at])
    return curves


def _by_label(history: Any) -> dict[str, dict[str, Curve]]:
    """The curves of each label, "" for a single run without one."""
    if not isinstance(history, Mapping):
        if not isinstance(history, Iterable):
            raise ValueError(f"history: rows of epochs, got {type(history).__name__}")
        return {"": _over_seeds([list(history)])}
    if not history:
        raise ValueError("history: rows of epochs by label, got none")
    found = {}
    for label, runs in history.items():
        runs = list(runs)
        found[str(label)] = _over_seeds([runs] if not runs or isinstance(runs[0], Mapping) else runs)
    return found


def _draw_panel(axes: Axes, named: list[tuple[str, str]], found: dict[str, dict[str, Curve]], one: bool) -> None:
    """Lines of some columns: colours tell runs apart, and lines columns; of one run colours tell columns apart."""
    columns = list(dict.fromkeys(column for _, column in named))
    labels = list(found)
    for label, column in named:
        curve, j = found[label][column], columns.index(column)
        colour = COLOURS[(j if one else labels.index(label)) % len(COLOURS)]
        what = column.replace("_", " ")
        said = what if one else label if len(columns) == 1 else f"{label}, {what}"
        line = "-" if one else LINES[j % len(LINES)]
        marker = "o" if len(curve.epochs) == 1 else ""
        axes.plot(
            curve.epochs, curve.mean, color=colour, linestyle=line, marker=marker, linewidth=2, label=legend_text(said)
        )
        if any(low < high for low, high in zip(curve.low, curve.high, strict=True)):
            axes.fill_between(curve.epochs, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    if len(named) > 1:
        axes.legend()


def draw(history: Any, title: str | None) -> Figure:
    """The picture; see `frozen_kernels.plot.curves`."""
    found = _by_label(history)
    every = [(label, column) for label, curves in found.items() for column in curves]
    panels = {
        "accuracy": [(label, column) for label, column in every if column != "loss"],
        "loss": [(label, column) for label, column in every if column == "loss"],
    }
    panels = {name: columns for name, columns in panels.items() if columns}
    with styled():
        figure = picture(HEIGHT)
        for axes, (name, columns) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            _draw_panel(axes, columns, found, list(found) == [""])
            axes.set_ylabel(name)
            write_ticks(axes.yaxis, percent_text if name == "accuracy" else number_text)
        if title is not None:
            figure.suptitle(title)
    return figure
