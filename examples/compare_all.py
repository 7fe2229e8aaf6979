"""Accuracy against bytes on disk: dense, int8, ternary and pruned nets, and tickets of three kinds, on digits.

`python examples/compare_all.py` (some minutes) trains a CNN on scikit-learn's digits by seven methods, at several sizes
and three seeds, and writes results.csv, all.md, all.png and all.svg to the folder of `--out`.

- A size is that of the whole file, batch norm and header included. `small_files.py` says what the plain files hold.
- An accuracy is that of a fresh net which was filled from that file, on 360 digits that no training saw.
- Every net sees `--epochs` epochs. Pruned nets and jackpots spend the first half on the dense net that they begin with.
- Learning rates and settings were chosen on 287 digits held out of the training part: `--tune` repeats that choice, and
  shows the accuracies. Then all 1437 digits train, and the last epoch counts.
- Batch norm's statistics are made anew from all training digits before a net is saved, for every method.

One thread, so that every machine of a kind finds the same figures.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import small_files
import torch
from digits import BATCH, Split, accuracy, fit
from digits import load_split as load_digits
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm
from training.models import digits_net

import frozen_kernels as fk
from frozen_kernels.files import replace

EPOCHS, WIDTH = 20, 0.5
WIDTHS = (1, 0.5, 0.25)  # of layers, where a smaller file is a narrower net
REMOVED = (0.8, 0.9, 0.95, 0.98)
FIXED = (0.5, 0.7, 0.9)
VALIDATION, TUNED_SEEDS = 287, 2
LOWEST = 94.0  # percent, of the picture: an arrow tells of means below it
# Okabe and Ito's: readers who see few colours tell them apart
COLOURS = ("#000000", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#0072b2", "#d55e00")
MARKERS = "os^Dv<P"


class Job(NamedTuple):
    """One net to train: where its file goes, and the settings of its method."""

    data: Split
    seed: int
    epochs: int
    size: float
    path: Path
    settings: dict[str, Any]
    dense: dict[tuple, nn.Module]  # nets that several methods begin with, trained once


def build(width: float = 1) -> nn.Module:
    """The CNN of 98,032 weights, or one with layers `width` times as wide."""
    return digits_net(width=WIDTH * width)


def train(model: nn.Module, parameters: list[nn.Parameter], job: Job, epochs: int, lr: float, **options: Any) -> None:
    fit(model, parameters, job.data, epochs=epochs, seed=job.seed, title="", lr=lr, quiet=True, **options)


def recalibrate(model: nn.Module, data: Split) -> None:
    fk.recalibrate_(model, list(data.train_x.split(BATCH)))


def judged(model: nn.Module, job: Job, kind: str) -> float:
    """Save a net with weights of this kind; the accuracy of what the file holds."""
    small_files.round_(model, kind)
    recalibrate(model, job.data)
    small_files.save(model, job.path, kind)
    return accuracy(small_files.load_(build(job.size if kind != "pruned" else 1), job.path), job.data)


def dense_net(job: Job, width: float, epochs: int, lr: float) -> nn.Module:
    """A copy of the dense net of this width after so many epochs."""
    key = (job.seed, width, epochs, lr)
    if key not in job.dense:
        torch.manual_seed(job.seed)
        model = build(width)
        train(model, list(model.parameters()), job, epochs, lr)
        job.dense[key] = model
    return copy.deepcopy(job.dense[key])


def dense(job: Job, kind: str) -> float:
    """Train all weights, then save them as they are or rounded to int8."""
    return judged(dense_net(job, job.size, job.epochs, job.settings["lr"]), job, kind)


class Ternary(nn.Module):
    """Ternary weights in the forward; the gradient goes to the weights behind them as if nothing was rounded."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (small_files.ternary(weight) - weight).detach()


def ternary(job: Job) -> float:
    """Train with ternary weights from the first step on (Li et al., arXiv 1605.04711)."""
    torch.manual_seed(job.seed)
    model = build(job.size)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Ternary())
    train(model, list(model.parameters()), job, job.epochs, job.settings["lr"])
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    return judged(model, job, "ternary")


def pruned(job: Job) -> float:
    """Drop the smallest magnitudes of all layers at half time, and train the rest on."""
    model = dense_net(job, 1, job.epochs // 2, job.settings["dense_lr"])
    weights = list(model.parameters())
    with torch.no_grad():
        sizes = torch.cat([weight.flatten().abs() for weight in weights])
        least = sizes.kthvalue(round(job.size * sizes.numel())).values
        masks = [weight.abs() > least for weight in weights]

    @torch.no_grad()
    def mask() -> None:
        for weight, kept in zip(weights, masks, strict=True):
            weight.mul_(kept)

    mask()
    train(model, weights, job, job.epochs - job.epochs // 2, job.settings["lr"], after_step=mask)
    return judged(model, job, "pruned")


def ticket(model: nn.Module, job: Job) -> float:
    """Save a searched net as a ticket; the accuracy of what the file holds."""
    recalibrate(model, job.data)
    fk.save_ticket(model, job.path)
    return accuracy(fk.load_ticket(build(), job.path), job.data)


def jackpot(job: Job) -> float:
    """Search which weights of the dense net of half time to keep, but for its classifier (arXiv 2104.08700)."""
    epochs = job.epochs - job.epochs // 2
    model = dense_net(job, 1, job.epochs // 2, job.settings["dense_lr"])
    config = fk.FreezeConfig.preset("jackpot", sparsity=job.size, rates="l1")
    fk.freeze_(model, config)  # the classifier stays dense, as in the paper
    search = fk.Jackpot(model, epochs=epochs, steps_per_epoch=max(len(job.data.train_y) // BATCH, 1))
    train(model, search.parameters(), job, epochs, job.settings["lr"], after_step=search.step)
    fk.finalize_(model, "int8")
    return ticket(model, job)


def drawn(job: Job, source: str) -> float:
    """Search which drawn weights count, after a share of them was fixed (Otsuka et al., arXiv 2402.14029)."""
    settings = {"prune_ratio": job.size, "lock_ratio": 0.0} if source == "sparse" else {"freeze_ratio": job.size}
    sparsity = (1 + job.size) / 2 if source == "sparse" else 0.5
    model = build()
    chosen = {name: value for name, value in job.settings.items() if name != "lr"}
    fk.freeze_(model, fk.FreezeConfig(seed=job.seed, sparsity=sparsity, **settings, **chosen))
    search = fk.EdgePopup(model)
    train(model, search.parameters(), job, job.epochs, job.settings["lr"], after_step=search.step)
    fk.finalize_(model)
    return ticket(model, job)


@dataclass(frozen=True)
class Method:
    """How nets are made: `sizes` of kind `what`, the settings that were chosen, and those that `--tune` tries."""

    label: str
    run: Callable[[Job], float]
    what: str
    sizes: tuple[float, ...]
    settings: dict[str, Any]
    tried: tuple[dict[str, Any], ...]


def _rates(*rates: float, **fixed: Any) -> tuple[dict[str, Any], ...]:
    return tuple({**fixed, "lr": rate} for rate in rates)


KINDS: tuple[dict[str, Any], ...] = (
    {"code": "sign"},
    {"code": "uniform", "distribution": "erk"},
    {"code": "sign", "distribution": "epl", "scaling": "dynamic"},
)
DRAWN = tuple({**kind, "lr": 0.1} for kind in KINDS)
TRIED = _rates(0.03, 0.1, 0.3)
LATER = _rates(0.01, 0.03, 0.1, 0.3, dense_lr=0.1)
METHODS = {
    "dense": Method("dense, float32", partial(dense, kind="float32"), "width", WIDTHS, {"lr": 0.03}, TRIED),
    "int8": Method("dense, int8", partial(dense, kind="int8"), "width", WIDTHS, {"lr": 0.03}, TRIED),
    "ternary": Method("ternary", ternary, "width", WIDTHS, {"lr": 0.03}, TRIED),
    "pruned": Method("pruned by magnitude, int8", pruned, "removed", REMOVED, {"dense_lr": 0.1, "lr": 0.3}, LATER),
    "jackpot": Method("ticket: jackpot, int8", jackpot, "removed", REMOVED, {"dense_lr": 0.1, "lr": 0.1}, LATER),
    "sparse": Method(
        "ticket: sparse source", partial(drawn, source="sparse"), "fixed", FIXED, {**KINDS[2], "lr": 0.1}, DRAWN
    ),
    "frozen": Method("ticket: frozen", partial(drawn, source="frozen"), "fixed", FIXED, {**KINDS[2], "lr": 0.1}, DRAWN),
}


@dataclass
class Run:
    """One net: bytes of its file, and the share of the test digits that the file's net gets right."""

    method: str
    size: float
    seed: int
    epochs: int
    bytes: int
    accuracy: float


def run_all(names: list[str], data: Split, seeds: int, epochs: int, sizes: int | None) -> list[Run]:
    """Every method at every size (the first `sizes` where given) and seed."""
    todo = [(seed, name, size) for seed in range(seeds) for name in names for size in METHODS[name].sizes[:sizes]]
    shared: dict[tuple, nn.Module] = {}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        for seed, name, size in tqdm(todo, unit="net"):
            job = Job(data, seed, epochs, size, path, METHODS[name].settings, shared)
            right = METHODS[name].run(job)
            runs.append(Run(name, size, seed, epochs, path.stat().st_size, right))
    return runs


def tune(names: list[str], data: Split, epochs: int) -> None:
    """Accuracies on the validation digits of what each method tried, at its middle size."""
    train_x, test_x = data.train_x[:-VALIDATION], data.train_x[-VALIDATION:]
    train_y, test_y = data.train_y[:-VALIDATION], data.train_y[-VALIDATION:]
    held, shared = Split(train_x, train_y, test_x, test_y), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        for name in names:
            method = METHODS[name]
            for settings in method.tried:
                # the two sizes at the end where methods differ
                jobs = [
                    Job(held, seed, epochs, size, path, settings, shared)
                    for seed in range(TUNED_SEEDS)
                    for size in method.sizes[-2:]
                ]
                right = statistics.mean(method.run(job) for job in jobs)
                print(f"{name:8} {right:.2%}  {settings}", flush=True)


class Point(NamedTuple):
    """Mean over the seeds, and the worst and the best."""

    kilobytes: float
    mean: float
    low: float
    high: float


def points(runs: list[Run]) -> dict[tuple[str, float], Point]:
    """By method and size; accuracies in percent."""
    found: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        found.setdefault((run.method, run.size), []).append(run)
    return {
        key: Point(
            statistics.mean(run.bytes for run in same) / 1000,
            *(100 * f(run.accuracy for run in same) for f in (statistics.mean, min, max)),
        )
        for key, same in found.items()
    }


def table(runs: list[Run]) -> str:
    """The means in Markdown."""
    lines = ["| method | size | bytes on disk | accuracy, worst to best |", "|---|---|---|---|"]
    for (name, size), point in points(runs).items():
        method = METHODS[name]
        spread = f"{point.mean:.2f} % ({point.low:.2f} to {point.high:.2f})"
        share = f"{size:g} of the width" if method.what == "width" else f"{size:.0%} {method.what}"
        lines.append(f"| {method.label} | {share} | {1000 * point.kilobytes:,.0f} | {spread} |")
    return "\n".join(lines) + "\n"


def plot(runs: list[Run], path: Path) -> None:
    """Accuracy against bytes as PNG and SVG: means, bars from the worst seed to the best; full lines for tickets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    found = points(runs)
    floor = max(LOWEST, min(point.low for point in found.values()) - 0.5)
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for (name, method), colour, marker in zip(METHODS.items(), COLOURS, MARKERS, strict=True):
        own = [found[name, size] for size in method.sizes if (name, size) in found]
        sizes = [point.kilobytes for point in own]
        bars = [[p.mean - p.low for p in own], [p.high - p.mean for p in own]]
        look = {"linestyle": "-", "linewidth": 2.2} if method.label.startswith("ticket") else {"linestyle": ":"}
        axes.errorbar(
            sizes, [p.mean for p in own], bars, color=colour, marker=marker, markersize=7, capsize=3, elinewidth=1,
            label=method.label, **look,
        )  # fmt: skip
        for point in own:
            if point.mean < floor:
                said = {"xytext": (-12, 30), "textcoords": "offset points", "ha": "right", "color": colour}
                arrow = {"arrowstyle": "->", "color": colour}
                axes.annotate(f"{point.mean:.0f} %", (point.kilobytes, floor), arrowprops=arrow, **said)
    axes.set_xscale("log")
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100, 200, 500) if 0.9 * axes.get_xlim()[0] <= tick]
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(floor, 100)
    axes.set_xlabel("bytes of the file [kB]", fontsize=12)
    axes.set_ylabel("accuracy [%]", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=11, loc="lower right", frameon=False)
    png, svg = path.with_suffix(".png"), path.with_suffix(".svg")
    figure.savefig(svg)
    figure.savefig(png, dpi=150)
    plt.close(figure)
    with Image.open(png) as image:
        few = image.convert("RGB").quantize(64)  # half of the bytes, and no eye sees the difference
    few.save(png, optimize=True)


def write(runs: list[Run], path: Path) -> None:
    """The runs as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[f.name for f in fields(Run)], *map(astuple, runs)])
    replace(path, lambda file: file.write(text.getvalue().encode()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0..N-1")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=Path("out/all"))
    parser.add_argument("--quick", action="store_true", help="one seed, one size, two epochs, few digits")
    parser.add_argument("--tune", action="store_true", help="only show how settings were chosen")
    options = parser.parse_args(arguments)
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: at least 1, got {getattr(options, name)}")
    torch.set_num_threads(1)
    start, data, sizes = time.perf_counter(), load_digits(), None
    if options.quick:
        data = data._replace(train_x=data.train_x[:360], train_y=data.train_y[:360])
        options.seeds, options.epochs, sizes = 1, 2, 1
    if options.tune:
        tune(options.methods, data, options.epochs)
        return 0
    runs = run_all(options.methods, data, options.seeds, options.epochs, sizes)
    options.out.mkdir(parents=True, exist_ok=True)
    write(runs, options.out / "results.csv")
    replace(options.out / "all.md", table(runs))
    plot(runs, options.out / "all")
    print(table(runs), end="")
    print(f"written: {options.out}, {time.perf_counter() - start:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
