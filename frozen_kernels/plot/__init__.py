"""Pictures of layers, training and sweeps; matplotlib is imported when the first one is drawn.

Each function returns a `matplotlib.figure.Figure` and, given a path, saves it as PNG and as SVG. Pictures have a white
background, the colours of Okabe and Ito, which colour-blind readers tell apart, and letters that are readable at 800
pixels width. The same data and matplotlib give the same bytes: a file has no date in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "layers", "residencies", "save", "sweep"]

History = Sequence[Mapping[str, Any]]


def layers(model: nn.Module, path: str | PathLike[str] | None = None, *, title: str | None = None) -> Figure:
    """What becomes of the weights of each frozen layer: locked, free and kept, free and dropped, pruned.

    One bar a layer, in traversal order, with the layer's name on its left and its number of weights on its right. Of
    stored weights and stored signs, which are all free, there are the kept and the dropped ones.

    Args:
        model: with frozen layers, bare or in a wrapper; searched or finalized. Shared weights have a bar in each layer.
        path: where to save the picture, as PNG and as SVG (see `save`); not saved by default.
        title: above the picture; by default how many of how many weights are kept.

    Raises:
        TypeError: `model` is no module.
        ValueError: a model without frozen layers, or on the meta device, where nobody knows a mask.
        ImportError: matplotlib is missing.
        OSError: the files cannot be written.
    """
    from .by_layer import draw

    return _finished(draw(model, title), path)


def curves(
    history: History | Mapping[str, History | Sequence[History]],
    path: str | PathLike[str] | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Accuracy and loss by epoch.

    A panel for accuracy and one for loss, whichever there are. `list(csv.DictReader(file))` of the `log.csv` of
    `examples/train.py` is a history.

    Args:
        history: of one run, a row for each epoch: mappings with `epoch`, `loss`, and accuracies (0 to 1) under
            `accuracy` or names that end so, such as `test_accuracy`. Numbers may be text; empty cells are left out, and
            NaN and infinity, of a run that diverged, leave a gap. Or several by label: one of each, or a list of
            equally long ones over seeds, of which the mean is drawn and the span from the least to the largest.
        path: where to save the picture, as PNG and as SVG (see `save`); not saved by default.
        title: above the picture; none by default.

    Raises:
        ValueError: an empty history, rows without `epoch`, with neither loss nor accuracy, with a cell that is no
            number, or with a column whose name is no text; the message names the row and the column.
        ImportError: matplotlib is missing.
        OSError: the files cannot be written.
    """
    from .by_epoch import draw

    return _finished(draw(history, title), path)


def sweep(
    rows: Sequence[Any],
    path: str | PathLike[str] | None = None,
    *,
    x: str = "bytes",
    y: str = "accuracy",
    series: str = "series",
    point: str | None = None,
    references: Mapping[str, float] | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
) -> Figure:
    """Accuracy against bytes, or any column against another: means, and bars from the least to the largest.

    Rows of one series that agree in `point` (in `x` where no point is named) are one point: runs over seeds. The points
    of a series are joined by a line in the order of x. x is in a logarithm where the largest is more than ten times the
    smallest. Columns whose names end in `bytes` are given in B, kB, MB; those that end in `accuracy` or `ratio`, in
    percent.

    Args:
        rows: mappings or dataclasses, one for each run.
        path: where to save the picture, as PNG and as SVG (see `save`); not saved by default.
        x: the column of the horizontal axis: numbers, or text that is one.
        y: the column of the vertical axis, the same.
        series: the column that tells series apart, in the order of their first rows; its values are the legend.
        point: the column whose value is written beside each point; nothing is written by default.
        references: horizontal lines by label, in the units of y.
        xlabel: of the horizontal axis; the column's name by default, with its unit.
        ylabel: of the vertical axis, the same.
        title: above the picture; none by default.

    Raises:
        ValueError: no rows, a row that lacks one of the columns, a cell that is no finite number, in which case the
            message names the row and the column; or a reference that is none.
        ImportError: matplotlib is missing.
        OSError: the files cannot be written.
    """
    from .by_size import Columns, draw

    columns = Columns(x, y, series, point)
    return _finished(draw(rows, columns, references or {}, (xlabel, ylabel, title)), path)


def residencies(rows: Sequence[Any], path: str | PathLike[str] | None = None, *, title: str | None = None) -> Figure:
    """Bytes and time of a model in every residency beside dense torch, as `bench` measured them.

    Bars on the left are bytes on disk, resident and at the peak of a forward (of the input with the highest one); those
    on the right the time of a forward over that of dense torch, one colour for each input, with milliseconds beside
    them.

    Args:
        rows: the rows of a `BenchReport`.
        path: where to save the picture, as PNG and as SVG (see `save`); not saved by default.
        title: above the picture; none by default.

    Raises:
        ValueError: no rows.
        ImportError: matplotlib is missing.
        OSError: the files cannot be written.
    """
    from .by_residency import draw

    return _finished(draw(rows, title), path)


def save(figure: Figure, path: str | PathLike[str]) -> list[Path]:
    """Write a picture as PNG and as SVG, each replaced in one step; the paths of both.

    Args:
        figure: of matplotlib, by a function of this module or your own.
        path: without an ending, or with that of either: `out/net`, `out/net.png` and `out/net.SVG` are the same. The
            folder is made where it is missing.

    Raises:
        ValueError: a path that ends in no file's name, such as `out/` or `.png`.
        OSError: the files cannot be written.
    """
    from .canvas import save

    return save(figure, path)


def _finished(figure: Figure, path: str | PathLike[str] | None) -> Figure:
    if path is not None:
        save(figure, path)
    return figure
