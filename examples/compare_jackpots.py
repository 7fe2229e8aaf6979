"""Lottery jackpots beside pruning by magnitude, over rates and seeds, on scikit-learn's digits.

`python examples/compare_jackpots.py` (ten minutes on two cores) trains dense nets, removes most of their weights and
searches which to keep (Zhang et al., arXiv 2104.08700): from the largest magnitudes, and from a start drawn at random
with as many weights in each layer, with and without the short restriction. It writes results.csv, accuracy.png and
swaps.png to the folder of `--out`. Accuracies are those of the last epoch, not of the best one.

Masks change what batch norm sees, so that its running statistics are made anew from all training images before every
accuracy: of dense nets, of pruned ones and after each epoch of a search. Training sees the statistics of its batches
alone, so a search goes on as if nothing had been made anew.

Dense nets depend on the rounding of sums: with another number of threads they are others, and so are all figures.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from training.images import Arrays, digits
from training.models import unit

import frozen_kernels as fk

RATES = (("l1", 0.9), ("l1", 0.95), ("l1", 0.98), ("uniform", 0.9), ("uniform", 0.95), ("uniform", 0.98))
QUICK_RATES = (("l1", 0.98), ("uniform", 0.95))
EPOCHS, BATCH = 20, 64
DENSE_LR, LR = 0.1, 0.1  # of the weights, and of the scores: only its ratio to the gap matters
GAP = 0.01  # between the scores of kept and dropped weights at the start
KINDS = {  # start and restriction
    ("magnitude", "short"): "jackpot",
    ("magnitude", None): "jackpot, no restriction",
    ("random", "short"): "random start",
    ("random", None): "random start, no restriction",
}
COLUMNS = ("rates", "removed", "start", "restriction", "seed", "dense", "epoch", "accuracy", "swaps", "overlap")


@dataclass
class Run:
    """One search, lists by epoch; epoch 0 is the start, which of magnitudes is pruning alone.

    Args:
        dense: accuracy of the dense net of this seed.
        accuracy: on the held-out digits.
        swaps: weights swapped for others in the epoch, of all layers.
        overlap: share of the kept weights that magnitude pruning keeps too.
    """

    rates: str
    removed: float
    start: str
    restriction: str | None
    seed: int
    dense: float
    accuracy: list[float]
    swaps: list[int]
    overlap: list[float]

    @property
    def epochs_to_dense(self) -> int:
        """The first epoch after which accuracy is within 1 point of dense; one more than there are where never."""
        near = (epoch for epoch, value in enumerate(self.accuracy[1:], 1) if value >= self.dense - 0.01)
        return next(near, len(self.accuracy))


def build_net() -> nn.Sequential:
    """Five 3x3 convolutions with batch norm, 244,368 weights to search among, and the classifier, which stays dense."""
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(
        unit(1, 16, 3, 1, True, relu), unit(16, 32, 3, 1, True, relu), nn.MaxPool2d(2),
        unit(32, 64, 3, 1, True, relu), nn.MaxPool2d(2),
        unit(64, 128, 3, 1, True, relu), unit(128, 128, 3, 1, True, relu), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def layers_of(model: nn.Module) -> list[fk.nn.FrozenLayer]:
    return [layer for layer in model.modules() if isinstance(layer, fk.nn.FrozenLayer)]


@torch.no_grad()
def accuracy(model: nn.Module, train: Arrays, test: Arrays) -> float:
    """Share of the held-out digits that a model gets right, with batch norm's statistics of all training images."""
    fk.recalibrate_(model, [train.images])
    model.eval()
    right = model(test.images).argmax(1) == test.labels
    model.train()
    return right.float().mean().item()


def train_epochs(
    model: nn.Module,
    parameters: list[nn.Parameter],
    train: Arrays,
    *,
    lr: float,
    epochs: int,
    seed: int,
    after_step: Callable[[], int] = lambda: 0,
) -> Iterator[int]:
    """SGD with momentum 0.9 and weight decay 5e-4, cosine by epoch; after each epoch the sum of `after_step`."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        total = 0
        for batch in torch.randperm(len(train), generator=order)[: len(train) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(model(train.images[batch]), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += after_step()
        schedule.step()
        yield total


def train_dense(train: Arrays, *, epochs: int, seed: int) -> nn.Module:
    """The net whose weights the searches choose from."""
    torch.manual_seed(seed)
    model = build_net()
    for _ in train_epochs(model, list(model.parameters()), train, lr=DENSE_LR, epochs=epochs, seed=seed):
        pass
    return model


def start_at_random(layers: list[fk.nn.FrozenLayer], seed: int) -> None:
    """Other masks, with as many weights in each layer, and scores that want them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        keep = torch.zeros(layer.shape).flatten()
        keep[torch.randperm(keep.numel(), generator=generator)[: layer.counts["kept"]]] = 1
        keep = keep.view(layer.shape)
        layer.set_keep_mask(keep.bool())
        layer.set_scores_as_weight((keep - 0.5) * GAP)


def search(dense: nn.Module, train: Arrays, test: Arrays, run: Run, *, epochs: int) -> None:
    """Freeze a copy of the dense net and search it; fills the lists of the run."""
    model = copy.deepcopy(dense)
    fk.freeze_(model, fk.FreezeConfig.preset("jackpot", sparsity=run.removed, rates=run.rates))
    layers = layers_of(model)
    largest = [layer.keep_mask() for layer in layers]
    if run.start == "random":
        start_at_random(layers, run.seed)
    steps = len(train) // BATCH
    jackpot = fk.Jackpot(model, epochs=epochs, steps_per_epoch=steps, restriction=run.restriction)

    def note(swaps: int) -> None:
        pairs = [(layer.keep_mask(), mask) for layer, mask in zip(layers, largest, strict=True)]
        both, kept = (sum(int(m.sum()) for m in masks) for masks in zip(*((a & b, b) for a, b in pairs), strict=True))
        run.accuracy.append(accuracy(model, train, test))
        run.swaps.append(swaps)
        run.overlap.append(both / kept)

    note(0)
    course = {"lr": LR, "epochs": epochs, "seed": run.seed}
    for swaps in train_epochs(model, jackpot.parameters(), train, **course, after_step=jackpot.step):
        note(swaps)


def compare(rates: tuple[tuple[str, float], ...], *, seeds: int, epochs: int, images: int | None) -> list[Run]:
    """All searches, of the first `images` training images where that is given."""
    train, test = digits()
    train = Arrays(train.images[:images], train.labels[:images])
    runs = []
    with tqdm(total=seeds * (1 + len(rates) * len(KINDS)), unit="run") as bar:
        for seed in range(seeds):
            dense = train_dense(train, epochs=epochs, seed=seed)
            reached = accuracy(dense, train, test)
            bar.update()
            for kind, removed in rates:
                for start, restriction in KINDS:
                    run = Run(kind, removed, start, restriction, seed, reached, [], [], [])
                    search(dense, train, test, run, epochs=epochs)
                    runs.append(run)
                    bar.update()
    return runs


def grouped(runs: list[Run]) -> dict[tuple[str, float], dict[tuple[str, str | None], list[Run]]]:
    """Runs over seeds by rates, then by start and restriction."""
    found: dict[tuple[str, float], dict[tuple[str, str | None], list[Run]]] = {}
    for run in runs:
        found.setdefault((run.rates, run.removed), {}).setdefault((run.start, run.restriction), []).append(run)
    return found


def write(runs: list[Run], path: Path) -> None:
    """The runs as CSV, a row for each epoch."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in runs:
            fixed = (run.rates, run.removed, run.start, run.restriction or "none", run.seed, run.dense)
            for epoch, values in enumerate(zip(run.accuracy, run.swaps, run.overlap, strict=True)):
                writer.writerow([*fixed, epoch, *values])


def plot(runs: list[Run], path: Path, of: str) -> None:
    """Accuracy, or swaps in a logarithm, after each epoch: means over seeds, a panel for each of the rates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    found = grouped(runs)
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.5 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for panel, ((kind, removed), kinds) in zip(axes.flat, found.items(), strict=False):
        for (start, restriction), same in kinds.items():
            # starts are in the table; here they would press all that follows into a line
            middle = [statistics.mean(values) for values in zip(*(getattr(run, of)[1:] for run in same), strict=True)]
            line = {"color": "C0" if start == "magnitude" else "C1", "linestyle": "-" if restriction else "--"}
            panel.plot(range(1, len(middle) + 1), middle, label=KINDS[start, restriction], **line)
        if of == "accuracy":
            dense = statistics.mean(run.dense for run in next(iter(kinds.values())))
            panel.axhline(dense, color="0.5", linewidth=0.8, label="dense")
            panel.axhline(dense - 0.01, color="0.5", linewidth=0.8, linestyle=":", label="1 point below dense")
        else:
            panel.set_yscale("symlog", linthresh=1)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set(title=f"{kind}, {100 * removed:g} % removed", xlabel="epoch", ylabel=of)
        panel.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _share(values: list[float]) -> str:
    """Mean in percent, and below it the worst and the best where they differ."""
    middle, low, high = (100 * f(values) for f in (statistics.mean, min, max))
    return f"{middle:.2f}" if low == high else f"{middle:.2f}\n{low:.1f}-{high:.1f}"


def _epochs(runs: list[Run]) -> str:
    """Mean epochs to within 1 point of dense; "over" where a seed did not get there."""
    last = len(runs[0].accuracy) - 1
    found = [run.epochs_to_dense for run in runs]
    over = "over " if max(found) > last else ""
    return f"{over}{statistics.mean(min(epochs, last) for epochs in found):.1f}"


def _overlap(runs: list[Run]) -> str:
    return f"{statistics.mean(run.overlap[-1] for run in runs):.3f}"


def _swaps(runs: list[Run]) -> str:
    return f"{statistics.mean(sum(run.swaps) for run in runs):,.0f}"


def show(runs: list[Run], epochs: int) -> None:
    """Means over the seeds: what is reached, and how."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    seeds = len({run.seed for run in runs})
    title = f"Accuracy on held-out digits [%], {epochs} epochs, mean of {seeds} seeds, worst-best"
    reached = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns = ("dense", "magnitude\nalone", "jackpot", "jackpot\nno restr.", "random", "random\nno restr.")
    for column in ("removed", *columns):
        reached.add_column(column, justify="right")
    course = Table(
        title="The searches, with / without restriction", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for column in ("removed", "start", "epochs to 1 point\nbelow dense", "overlap with\nmagnitude", "swaps"):
        course.add_column(column, justify="right")
    for (kind, removed), kinds in grouped(runs).items():
        label = f"{kind} {100 * removed:g}"
        started = kinds["magnitude", "short"]
        finals = [[run.accuracy[-1] for run in kinds[key]] for key in KINDS]
        compared = [[run.dense for run in started], [run.accuracy[0] for run in started], *finals]
        reached.add_row(label, *map(_share, compared))
        for start in ("magnitude", "random"):
            pair = [kinds[start, "short"], kinds[start, None]]
            cells = (" / ".join(map(measure, pair)) for measure in (_epochs, _overlap, _swaps))
            course.add_row(label, start, *cells)
    console = Console()
    console.print(reached)
    console.print(course)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0..N-1")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the dense nets, and of each search")
    parser.add_argument("--out", type=Path, default=Path("out/jackpots"))
    parser.add_argument(
        "--quick", action="store_true", help="two rates, one seed, two epochs of a quarter of the digits"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs: at least 1")
    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    rates, images = RATES, None
    if options.quick:
        rates, images, options.seeds, options.epochs = QUICK_RATES, 360, 1, 2
    runs = compare(rates, seeds=options.seeds, epochs=options.epochs, images=images)
    write(runs, options.out / "results.csv")
    plot(runs, options.out / "accuracy.png", of="accuracy")
    plot(runs, options.out / "swaps.png", of="swaps")
    show(runs, options.epochs)
    print(f"written: results.csv, accuracy.png and swaps.png in {options.out}")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
