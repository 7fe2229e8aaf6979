"""Pictures of a record: latency against batch, and bytes per weight."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .records import OK, Row, write_whole
from .registry import DTYPES, LINEAR_SHAPES, RESIDENT, SHORT

INK, GRID, LOSING = "#222222", "#dddddd", "#f6dcd9"
STYLES = {  # code, residency: colour, marker, label
    ("sign", "planes"): ("#0b6e99", "o", "sign, planes"),
    ("sign", "mask"): ("#4fa3a5", "s", "sign, mask"),
    ("sign", "seed"): ("#8a6fb0", "^", "sign, seed"),
    ("uniform", "mask"): ("#d08a2e", "D", "uniform, mask"),
    ("normal", "mask"): ("#b5562b", "v", "normal, mask"),
}
KINDS = {"disk": ("#333333", "ticket on disk"), "seed": ("#8a6fb0", "seed"), "mask": ("#4fa3a5", "mask"),
         "planes": ("#0b6e99", "planes"), "dense": ("#bbbbbb", "dense")}  # fmt: skip
CODES = ("sign", "uniform", "normal", "constant")


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _line(rows: Sequence[Row], code: str, residency: str, column: str) -> tuple[list[int], list[float]]:
    """Batches and values of a column of one kind of layer."""
    found = sorted(
        (int(r["batch"]), float(r[column]))
        for r in rows
        if r["code"] == code and r["residency"] == residency and r["threshold_bits"] == "16"
    )
    return [b for b, _ in found], [v for _, v in found]


def _latency_panel(axes: Any, rows: Sequence[Row], label: str) -> None:
    batches, torch_ms = _line(rows, "sign", "planes", "baseline_median")
    if not batches:
        axes.set_visible(False)
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.plot(batches, torch_ms, color=INK, linewidth=2, linestyle="--", label="torch, dense")
    tops = list(torch_ms)
    for (code, residency), (colour, marker, name) in STYLES.items():
        x, y = _line(rows, code, residency, "median")
        axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.5, label=name)
        tops += y
    top = 1.6 * max(tops)
    axes.fill_between(batches, torch_ms, top, color=LOSING, linewidth=0, zorder=0, label="slower than torch")
    axes.set_ylim(top=top)
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(label, fontsize=10)
    _clean(axes)


def latency(rows: Sequence[Row]) -> Any:
    """Milliseconds of linear layers against the batch: a row of panels for each dtype."""
    figure, grid = plt.subplots(len(DTYPES), len(LINEAR_SHAPES), figsize=(11, 6.6), sharex="col", squeeze=False)
    for i, dtype in enumerate(DTYPES):
        for axes, shape in zip(grid[i], LINEAR_SHAPES, strict=True):
            size = f"{shape[0]}x{shape[1]}"
            mine = [r for r in rows if r["op"] == "linear" and r["dtype"] == dtype and r["shape"] == size]
            _latency_panel(axes, mine, f"{shape[0]} x {shape[1]}, {SHORT[dtype]}")
        grid[i][0].set_ylabel("milliseconds a call")
    for axes in grid[-1]:
        axes.set_xlabel("batch")
    handles, labels = next((a.get_legend_handles_labels() for a in grid.flat if a.lines), ([], []))
    figure.legend(handles, labels, loc="lower center", ncol=len(labels) or 1, frameon=False, fontsize=9)
    figure.suptitle(f"Linear layers at freeze ratio 0.7 on {rows[0]['threads']} threads, {rows[0]['isa']}", fontsize=11)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def footprint(rows: Sequence[Row]) -> Any:
    """Bytes per weight of a 4096 x 4096 layer by code and by what is kept."""
    values = {(r["code"], r["residency"]): float(r["median"]) for r in rows if r["group"] == "footprint"}
    figure, axes = plt.subplots(figsize=(8.5, 4.4))
    width = 0.8 / len(KINDS)
    for i, kind in enumerate(("disk", *RESIDENT)):
        colour, label = KINDS[kind]
        heights = [values.get((code, kind), float("nan")) for code in CODES]
        places = [c + (i - (len(KINDS) - 1) / 2) * width for c in range(len(CODES))]
        bars = axes.bar(places, heights, 0.92 * width, color=colour, label=label)
        axes.bar_label(bars, [f"{h:.2g}" for h in heights], fontsize=7, padding=2, color=INK)
    for bytes_, name in ((4, "fp32"), (2, "bf16")):
        axes.axhline(bytes_, color=INK, linewidth=0.8, linestyle=":", zorder=0)
        axes.text(len(CODES) - 0.42, bytes_, name, fontsize=8, va="center", color=INK)
    axes.set_yscale("log")
    axes.set_ylim(0.02, 8)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xticks(range(len(CODES)), CODES)
    axes.set_ylabel("bytes per weight")
    axes.set_title("What a 4096 x 4096 layer keeps at freeze ratio 0.7", fontsize=11)
    _clean(axes)
    axes.grid(False, axis="x")
    figure.legend(loc="lower center", ncol=len(KINDS), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def convolutions(rows: Sequence[Row]) -> Any:
    """Times as fast as torch of each distinct convolution of the ResNets, one panel a batch, sorted."""
    kinds = [kind for kind in STYLES if kind[1] != "seed"]
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    every = [float(row["ratio"]) for row in rows if row["group"] == "resnet"]
    low, high = 0.85 * min(0.5, *every), 1.15 * max(2.0, *every)
    for axes, batch in zip(grid, ("1", "16"), strict=True):
        mine = [r for r in rows if r["group"] == "resnet" and r["batch"] == batch]
        for code, residency in kinds:
            colour, marker, label = STYLES[code, residency]
            ratios = sorted(float(r["ratio"]) for r in mine if (r["code"], r["residency"]) == (code, residency))
            axes.plot(range(1, len(ratios) + 1), ratios, color=colour, marker=marker, markersize=4, label=label)
        axes.axhspan(low, 1, color=LOSING, linewidth=0, zorder=0, label="slower than torch")
        axes.set_yscale("log", base=2)
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("convolutions, slowest first")
        axes.set_title(f"batch {batch}", fontsize=10)
        _clean(axes)
    grid[0].set_ylabel("times as fast as torch")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False, fontsize=9)
    figure.suptitle("Distinct convolutions of ResNet-18 and ResNet-50, fp32, channels last", fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def draw(rows: Sequence[Row], beside: Path) -> list[Path]:
    """Writes the pictures that the rows have figures for, next to a CSV; returns their paths."""
    right = [row for row in rows if row["status"] == OK]
    written = []
    for group, picture in (("linear", latency), ("footprint", footprint), ("resnet", convolutions)):
        if any(row["group"] == group for row in right):
            figure = picture(right)
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=140)
            plt.close(figure)
            path = beside.with_name(f"{beside.stem}-{picture.__name__}.png")
            write_whole(path, image.getvalue())
            written.append(path)
    return written
