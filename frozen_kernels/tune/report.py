"""`BenchReport`: what `bench` found, as a table, JSON and a picture."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import plot
from ..files import replace
from ..text import bytes_text, listed, table

TORCH = "torch, dense"
MOST_SPREAD = 0.2  # of the median, between the quartiles: what more says is that the machine was busy
LEAST_RISE = 1_000_000  # bytes: a rise below it is noise, and no figure to compare
HEAD = ("input", "weights as", "on disk", "resident", "peak", "median", "quartiles", "x torch")
LEGEND = (
    "on disk: the ticket, of dense torch the state dict. resident: all parameters and buffers. peak: resident and the "
    "rise of memory during a forward. 57x behind a size: 57 times smaller than dense torch. x torch: times as fast."
)


@dataclass
class BenchRow:
    """A model in one residency, or in dense torch, on one input; bytes, and milliseconds of a forward.

    Fields: `input` as text; `side`, "torch, dense", a residency or "auto"; `layers`, how many are in which residency;
    `disk` of the ticket, None where there can be none; `resident` of all parameters and buffers; `forward`, the rise of
    memory during a forward, None where it cannot be measured; `error` and `torch_error`, the largest against float64,
    relative to the largest value of its output, None where it is not finite; `median`, `low` and `high`, the quartiles
    over `rounds`, and `speedup`, how many times faster than dense torch the median is, all None where the side was not
    timed; `refused`, why it was not.
    """

    input: str
    side: str
    layers: dict[str, int]
    disk: int | None
    resident: int
    forward: int | None = None
    error: float | None = 0.0
    torch_error: float = 0.0
    refused: str = ""
    rounds: int = 0
    median: float | None = None
    low: float | None = None
    high: float | None = None
    speedup: float | None = None

    @property
    def peak(self) -> int | None:
        """Resident bytes and the rise during a forward, None where that cannot be measured."""
        return None if self.forward is None else self.resident + self.forward

    @property
    def spread(self) -> float:
        """How far the quartiles lie apart, over the median; 0 where nothing was timed."""
        return (self.high - self.low) / self.median if self.high and self.low and self.median else 0.0

    @property
    def label(self) -> str:
        """The side, and of several residencies how many layers are in each."""
        if not self.layers or list(self.layers) == [self.side]:
            return self.side
        if len(self.layers) == 1:
            return f"{self.side}: {next(iter(self.layers))}"
        return f"{self.side}: " + ", ".join(f"{count} {name}" for name, count in self.layers.items())


@dataclass
class BenchReport:
    """A model in every residency beside dense torch; `print` it, `.to_json()`, or `.save(folder)`.

    Fields: `model`, its type (of the command line, MODULE:CALLABLE); `config` as text, or that the model was frozen
    already; `frozen_bytes` of the `model_bytes` are weights that are frozen, counted as dense ones; `frozen`, how many
    layers; `left`, name and reason of the layers, and other modules with a parameter of two or more dimensions, that
    stay as they are; `machine`, what it was measured on; `rows`, one for each side and input.
    """

    model: str
    config: str
    frozen: int
    frozen_bytes: int
    model_bytes: int
    left: list[tuple[str, str]]
    machine: dict[str, Any]
    rows: list[BenchRow] = field(default_factory=list)

    def to_json(self, **options: Any) -> str:
        """All figures as JSON; `options` go to `json.dumps`."""
        rows = [{**asdict(row), "peak": row.peak} for row in self.rows]
        return json.dumps({**asdict(self), "rows": rows}, **{"allow_nan": False} | options)

    def __str__(self) -> str:
        return "\n".join([*self._about(), "", table(HEAD, self._cells()), "", *self._notes()])

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write bench.md, bench.json, bench.png and bench.svg into a folder, each in one step; their paths.

        The folder is made where it is missing. Where matplotlib is missing there are no pictures, and a UserWarning
        says so.

        Raises:
            OSError: a file cannot be written.
        """
        stem = Path(folder) / "bench"
        written = [stem.with_suffix(".md"), stem.with_suffix(".json")]
        replace(written[0], self.to_markdown())
        replace(written[1], self.to_json(indent=1) + "\n")
        try:
            title = f"{self.model}, {_threads(self.machine)}"
            written += plot.save(plot.residencies(self.rows, title=title), stem)
        except ImportError as why:
            warnings.warn(f"no picture: {why}", stacklevel=2)
        return written

    def to_markdown(self) -> str:
        """The table in Markdown, between what was measured and what to know of it."""
        lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *self._cells())]
        return "\n".join([*(f"{line}\n" for line in self._about()), *lines, "", *(f"{n}\n" for n in self._notes())])

    def _about(self) -> list[str]:
        share = 100 * self.frozen_bytes / max(self.model_bytes, 1)
        lines = [
            f"{self.model}: {share:.1f} % of its {bytes_text(self.model_bytes)} are the weights of {self.frozen} "
            f"frozen layer{'s' * (self.frozen != 1)}; {self.config}"
        ]
        why: dict[str, list[str]] = {}
        for name, reason in self.left:
            why.setdefault(reason, []).append(name or "model")
        lines += [f"left as it is: {listed(names)} ({reason})" for reason, names in why.items()]
        here = self.machine
        lines.append(
            f"torch {here['torch']} on {here['device']}, {here['machine']}, {_threads(here)}, "
            f"kernels: {here['kernels']}; sides in turns for up to {here['seconds']:g} s an input"
        )
        return lines

    def _dense(self, row: BenchRow) -> BenchRow:
        return next(r for r in self.rows if r.input == row.input and r.side == TORCH)

    def _cells(self) -> list[Sequence[str]]:
        found: list[Sequence[str]] = []
        for row in self.rows:
            dense = self._dense(row)
            seen = min(row.forward or 0, dense.forward or 0) >= LEAST_RISE
            sizes = (row.disk, dense.disk), (row.resident, dense.resident), (row.peak, dense.peak if seen else None)
            times = ("not timed", "", "")
            if row.median is not None:
                times = (f"{row.median:.3f} ms", f"{row.low:.3f} to {row.high:.3f}", f"{row.speedup:.2f}")
            found.append((row.input, row.label, *(_size(*pair) for pair in sizes), *times))
        return found

    def _notes(self) -> list[str]:
        wrong = [f"not timed: {row.label} on {row.input}: {row.refused}" for row in self.rows if row.refused]
        timed = [row for row in self.rows if row.median is not None]
        notes = [*wrong, LEGEND]
        if timed:
            worst = max(row.error or 0.0 for row in timed)
            notes.append(
                f"every timed side is right: its error against float64 is at most twice torch's, {worst:.1e} at most."
            )
        noisy = sum(row.spread > MOST_SPREAD for row in timed)
        if noisy:
            notes.append(
                f"{noisy} of {len(timed)} times are noisy, their quartiles more than {MOST_SPREAD:.0%} of the median "
                "apart: measure again when the machine is idle."
            )
        return notes


def _threads(machine: dict[str, Any]) -> str:
    return f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"


def _size(size: int | None, dense: int | None) -> str:
    """Bytes, and how many times smaller than dense."""
    if size is None:
        return "?"
    times = f"{dense / size:.3g}" if dense and size else "1"
    return bytes_text(size) + (f", {times}x" if float(times) > 1 else "")
