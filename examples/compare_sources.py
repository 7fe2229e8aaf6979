"""Tickets of frozen networks beside those of randomly pruned (sparse) and untouched (dense) sources, over seeds.

`python examples/compare_sources.py` trains on scikit-learn's digits and writes results.csv, sources.png and
sources.svg to the folder of `--out`; `--config` takes another experiment. At one freeze ratio both sources leave the
same number of free weights, so their tickets have the same size. Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from tqdm import tqdm
from training import processes, settings
from training.loop import Trainer

import frozen_kernels as fk
from frozen_kernels.files import replace

FREEZE = (0.5, 0.7, 0.9, 0.97)
VARIED = ("freeze", "freeze.preset", "freeze.freeze_ratio", "seed", "out")
LABELS = {"frozen": "frozen", "sparse_source": "sparse source", "dense_source": "dense source"}


@dataclass
class Run:
    """One trained ticket; sizes in bytes, accuracy on the test part."""

    source: str
    freeze_ratio: float
    seed: int
    sparsity: float
    mask_bytes: int
    ticket_bytes: int
    accuracy: float


def train(config: Path, out: Path, source: str, freeze_ratio: float, seed: int, overrides: list[str]) -> Run:
    """A ticket of one source at one freeze ratio, or the one that an earlier call left in its folder."""
    varied = [f"freeze.preset={source}", f"freeze.freeze_ratio={freeze_ratio}", f"seed={seed}"]
    folder = out / f"{source}-{freeze_ratio:g}-{seed}"
    chosen = settings.load(config, [*overrides, *varied, f"out={folder}"])
    assert chosen.freeze is not None
    group = processes.start(chosen.parallel, chosen.device)
    result = Trainer(chosen, group, resume=True, quiet=True).run()
    return Run(
        source, freeze_ratio, seed, chosen.freeze.sparsity, result.mask_bytes, result.file_bytes, result.accuracy
    )


def means(runs: list[Run]) -> dict[tuple[str, float], tuple[float, float, float, float]]:
    """Mean, least and largest accuracy and mean mask bytes of each source and freeze ratio."""
    found: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        found.setdefault((run.source, run.freeze_ratio), []).append(run)
    return {
        key: (
            statistics.mean(r.accuracy for r in same),
            min(r.accuracy for r in same),
            max(r.accuracy for r in same),
            statistics.mean(r.mask_bytes for r in same),
        )
        for key, same in found.items()
    }


def write(runs: list[Run], path: Path) -> None:
    """The runs as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[f.name for f in fields(Run)], *map(astuple, runs)])
    replace(path, lambda file: file.write(text.getvalue().encode()))


def plot(runs: list[Run], path: Path) -> None:
    """Accuracy against mask bytes: means, and bars from the worst seed to the best."""
    fk.plot.sweep(
        [asdict(run) | {"series": f"ticket, {LABELS[run.source]}"} for run in runs],
        path,
        x="mask_bytes",
        point="freeze_ratio",
        xlabel="bytes of all masks; numbers: share of weights fixed before the search",
        ylabel="test accuracy",
        title=f"Mean of {len({run.seed for run in runs})} seeds, bars from the worst to the best",
    )


def show(runs: list[Run]) -> None:
    """The means as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Test accuracy, mean of {len({run.seed for run in runs})} seeds (worst to best)")
    for column in ("fixed", "mask bytes", "frozen", "sparse source", "dense source"):
        table.add_column(column, justify="right")
    found = means(runs)
    for freeze_ratio in sorted({ratio for _, ratio in found}):
        cells = {source: value for (source, ratio), value in found.items() if ratio == freeze_ratio}
        sizes = " / ".join(f"{size:,.0f}" for size in dict.fromkeys(round(v[3]) for v in cells.values()))
        text = {source: f"{v[0]:.2%} ({v[1]:.2%} to {v[2]:.2%})" for source, v in cells.items()}
        table.add_row(f"{freeze_ratio:.0%}", sizes, *(text.get(source, "") for source in LABELS))
    console = Console()
    console.print(table)
    dense = next((v[3] for (source, _), v in found.items() if source == "dense_source"), None)
    if dense:
        for (source, ratio), value in found.items():
            if source == "frozen":
                console.print(f"masks at {ratio:.0%}: {dense / value[3]:.2f}x smaller than of the dense source")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "digits-sources.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0..N-1")
    parser.add_argument("--freeze", type=float, nargs="+", default=list(FREEZE), metavar="RATIO")
    parser.add_argument("--out", type=Path, default=Path("out/sources"))
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    ours = [text for text in options.overrides if text.partition("=")[0] in VARIED]
    if ours:
        parser.error(f"--set {ours[0]}: this script varies {', '.join(VARIED)} itself")
    planned = [("dense_source", 0.0)]
    planned += [(source, ratio) for ratio in options.freeze for source in ("frozen", "sparse_source")]
    todo = [(source, ratio, seed) for source, ratio in planned for seed in range(options.seeds)]
    runs = []
    try:
        for source, ratio, seed in tqdm(todo, unit="run"):
            runs.append(train(options.config, options.out, source, ratio, seed, options.overrides))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write(runs, options.out / "results.csv")
    plot(runs, options.out / "sources.png")
    show(runs)
    print(f"written: {options.out / 'results.csv'}, {options.out / 'sources.png'}")


if __name__ == "__main__":
    main()
