"""Rows of GPU results: their columns, the machine they name, a line, a table of targets and a picture."""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import summary
from ..machine import identity
from ..records import CASE, MACHINE, MEASURED, OK, REFUSED, Row, write_rows, write_whole
from .registry import TARGETS

EXTRA = ("host_us", "baseline_host_us", "clock_mhz", "cuda", "triton", "driver")
COLUMNS = (*CASE, *MEASURED, *EXTRA, *MACHINE)
INK, GRID, OURS, LOSING = "#222222", "#dddddd", "#0b6e99", "#f6dcd9"


def query(*fields: str) -> list[str]:
    """What nvidia-smi says of the first GPU; empty where it says nothing. Clocks are read, never set."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return [""] * len(fields)
    return [part.strip() for part in done.stdout.strip().split(",")]


def clock_mhz() -> str:
    """The clock of the multiprocessors now."""
    return query("clocks.sm")[0]


def here() -> dict[str, str]:
    """The columns that say where and with what a row was measured."""
    import triton

    found = {**identity(), "cuda": torch.version.cuda or "", "triton": triton.__version__, "driver": ""}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found |= {"machine": torch.cuda.get_device_name(), "isa": f"sm_{major}{minor}", "threads": ""}
        found["driver"] = query("driver_version")[0]
    else:
        found["machine"] = "no GPU, Triton's interpreter"
    return found


def slug(device: str) -> str:
    """Name of the files of a device."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def line_of(row: Row) -> str:
    """A row in a line of text."""
    name = f"{row['name'].removeprefix('gpu/'):52}"
    if row["status"] != OK:
        return f"{name} {row['status']}: {row['note']}"
    if not row["median"]:
        return f"{name} right; not timed: {row['note']}"
    text = f"{name} {1e3 * float(row['median']):9.1f} us  {float(row['ratio']):5.2f}x {row['baseline']}"
    text += f" ({float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f})"
    if row["other_ratio"]:
        text += f"  {float(row['other_ratio']):5.2f}x {row['other']}"
    return f"{text}  host {float(row['host_us']):.0f} us, {float(row['baseline_host_us']):.0f}"


def table(rows: Sequence[Row]) -> list[str]:
    """The targets, and what was measured for each."""
    head = ["| what | target | measured (medians) | fastest | met |", "|---|---|---|---|---|"]
    return [*head, *("| " + " | ".join(summary.cells(target, rows)) + " |" for target in TARGETS)]


def markdown(rows: Sequence[Row]) -> str:
    """Targets against what was measured, and every case."""
    first = rows[0]
    clocks = sorted({int(row["clock_mhz"]) for row in rows if row["clock_mhz"].isdigit()})
    seen = f" Clocks read between cases: {clocks[0]} to {clocks[-1]} MHz." if clocks else ""
    versions = f"torch {first['torch']}, CUDA {first['cuda']}, triton {first['triton']}, driver {first['driver']}"
    out = [
        f"{first['machine']} ({first['isa']}), {versions}, package {first['package']} at {first['commit']}.",
        "Device time: replays of CUDA graphs in turn over copies of the weight that together exceed the cache.",
        "Medians, and quartiles of the rounds' quotients. First compared with float64: errors are at most twice",
        f"the baseline's. Host time is that of an eager call.{seen}",
        "",
        *table(rows),
        "",
        "| case | us | baseline us | x baseline | quartiles | x compiled masked dense | host us | baseline host us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["name"].removeprefix("gpu/")
        if row["status"] != OK:
            out.append(f"| {name} | {row['status']}: {row['note']} | | | | | | |")
            continue
        times = [f"{1e3 * float(row[c]):.1f}" for c in ("median", "baseline_median")]
        ratios = [f"{float(row['ratio']):.2f}", f"{float(row['ratio_low']):.2f} to {float(row['ratio_high']):.2f}"]
        other = f"{float(row['other_ratio']):.2f}" if row["other_ratio"] else ""
        hosts = [f"{float(row[c]):.0f}" for c in ("host_us", "baseline_host_us")]
        out.append("| " + " | ".join([name, *times, *ratios, other, *hosts]) + " |")
    return "\n".join([*out, "", *(f"{row['name']}: {row['note']}." for row in rows if row["note"]), ""])


def picture(rows: Sequence[Row]) -> bytes:
    """Times as fast as the baseline of each timed case, with quartiles and targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    timed = [row for row in rows if row["status"] == OK][::-1]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.24 * len(timed)))
    ratios, lows, highs = ([float(row[c]) for row in timed] for c in ("ratio", "ratio_low", "ratio_high"))
    spread = [
        [r - low for r, low in zip(ratios, lows, strict=True)],
        [h - r for r, h in zip(ratios, highs, strict=True)],
    ]
    axes.axvspan(0, 1, color=LOSING, linewidth=0, zorder=0)
    axes.barh(range(len(timed)), ratios, 0.7, xerr=spread, color=OURS, ecolor=INK, error_kw={"linewidth": 0.8})
    for i, row in enumerate(timed):
        if row["target"]:
            axes.plot([float(row["target"])] * 2, [i - 0.45, i + 0.45], color=INK, linewidth=1.5)
    axes.set_yticks(range(len(timed)), [row["name"].removeprefix("gpu/") for row in timed], fontsize=7)
    axes.set_ylim(-0.7, len(timed) - 0.3)
    axes.set_xlabel("times as fast as the baseline; a black line is the target")
    axes.set_title(f"Frozen layers on {rows[0]['machine']}", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=140)
    plt.close(figure)
    return image.getvalue()


def write(rows: Sequence[Row], folder: Path, plots: bool) -> list[str]:
    """Writes the record of a device; what could not be written and why."""
    path = folder / f"{slug(rows[0]['machine'])}.csv"
    write_rows(path, rows, COLUMNS)
    write_whole(path.with_suffix(".md"), markdown(rows))
    if not plots or not any(row["status"] == OK for row in rows):
        return []
    try:
        write_whole(path.with_suffix(".png"), picture(rows))
    except ImportError as why:
        return [f"no picture: {why}"]
    return []


def verdict(rows: Sequence[Row]) -> str:
    """How many rows ended how."""
    counts = {status: sum(row["status"] == status for row in rows) for status in (OK, REFUSED, "skipped")}
    return ", ".join(f"{count} {status}" for status, count in counts.items())
