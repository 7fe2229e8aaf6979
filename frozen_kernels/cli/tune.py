"""`bench --tune`: measures the tables of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from .. import files
from ..backends.cuda import choices
from ..backends.targets import Table, target
from ..backends.triton import tuning
from ..memory import crossover
from ..text import table
from ..tune import choices as tune_choices
from ..tune import tiles as tune_tiles
from ..tune.table import measure_table

TUNE_SECONDS = tune_tiles.SECONDS + tune_choices.SECONDS


def tune(options: argparse.Namespace) -> None:
    """Measure the tables of this machine: where fused kernels beat torch on its CPU, tiles and backends of its GPU."""
    no_gpu = tune_tiles.lacking()
    wanted = [options.device] if options.device else ["cpu"] if no_gpu else ["cpu", "cuda"]
    if no_gpu and options.device == "cuda":
        raise RuntimeError(f"--device cuda: {no_gpu}")
    if options.out and len(wanted) > 1:
        raise ValueError("--out: a file holds one table, choose it by --device cpu or --device cuda")
    if "cpu" in wanted and (crossover.active_level() is not None or wanted == ["cpu"]):
        tune_cpu(options)
    if "cuda" in wanted:
        tune_gpu(options)
    elif options.device is None:
        print(f"GPU tiles and choices: not measured, {no_gpu}")


def _table_path(given: Path | None, user_path: Callable[[], Path], variable: str) -> Path:
    """Where a measured table will go; ValueError, before anything is measured, where there is no place for it."""
    path = given or user_path()
    if files.NOWHERE in path.parents:
        raise ValueError(f"--tune: there is no home folder to keep the table in; give --out FILE or set ${variable}")
    return path


def tune_gpu(options: argparse.Namespace) -> None:
    """Measure tiles of the product on the current GPU, then which backend is the fastest with these."""
    device = torch.device("cuda", torch.cuda.current_device())
    beside: Path | None = options.out and options.out.with_stem(f"{options.out.stem}_choices")
    tiles_path = _table_path(options.out, tuning.user_path, tuning.VARIABLE)
    choices_path = _table_path(beside, choices.user_path, choices.VARIABLE)
    # targets of other GPUs stay
    old_tiles = tuning.read(tiles_path) if tiles_path.exists() else Table({}, {})
    old_choices = choices.read(choices_path) if choices_path.exists() else Table({}, {})
    share = 1.0 if options.seconds is None else options.seconds / TUNE_SECONDS

    seconds = share * tune_tiles.SECONDS
    tiles, found = tune_tiles.tuned(old_tiles, device, tune_tiles.machine(device), seconds, print)
    tuning.write(tiles, tiles_path)
    tuning.in_use.cache_clear()
    print("\n" + table(tune_tiles.HEAD, [tune_tiles.line(choice) for choice in found]))
    print(f"\nwritten to {tiles_path}\n")

    seconds = share * tune_choices.SECONDS
    chosen = tune_choices.tuned(old_choices, device, tune_choices.made(device), seconds, print)
    choices.write(chosen, choices_path)
    choices.forget()
    rows = [tune_choices.line(key, c) for key, found in chosen.targets[target(device)].items() for c in found]
    print("\n" + table(tune_choices.HEAD, rows))
    print(f"\nwritten to {choices_path}")


def tune_cpu(options: argparse.Namespace) -> None:
    """Measure where fused kernels beat torch, for `set_residency(model, "auto")` on this machine."""
    level = crossover.active_level()
    if level is None:
        raise RuntimeError("--tune: there is nothing to measure without the extension")
    path = _table_path(options.out, crossover.user_path, crossover.VARIABLE)
    if options.out is None:
        measured = measure_table([level], level, options.threads)
    else:
        from .. import _C  # type: ignore[attr-defined]

        levels = _C.isa_available()
        measured = measure_table(levels, levels[-1], options.threads)
    crossover.write(measured, path)
    rows = [
        (name, dtype, code, str(cell), f"{cell.mask:.2f}", f"{cell.planes:.2f}")
        for name, dtypes in measured.levels.items()
        for dtype, codes in dtypes.items()
        for code, cells in codes.items()
        for cell in cells
    ]
    print(table(("instruction set", "dtype", "code", "layer", "mask x torch", "planes x torch"), rows))
    print(f"\nwritten to {path}")
