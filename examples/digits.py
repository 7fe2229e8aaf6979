"""Train a ticket inside a frozen CNN on scikit-learn's handwritten digits and compare it with a trained dense net.

`python examples/digits.py` runs everything and writes to `out/`; see `--help`. The pieces are plain functions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from training.images import digits
from training.models import digits_net as build_net

import frozen_kernels as fk

EPOCHS, SWEEP_EPOCHS, BATCH = 20, 10, 64
FROZEN = {"code": "sign", "sparsity": 0.5, "freeze_ratio": 0.7}
DENSE_SOURCE = {"code": "sign", "sparsity": 0.5, "freeze_ratio": 0.0}
RESIDENCY = "planes"  # of the ticket wherever it is measured: size, memory and time of one and the same net
WARM_UP = 10  # calls: the first ones find no memory, and a team of threads asleep
SWEEP_FREEZE = (0.3, 0.5, 0.7, 0.9)
SWEEP_PRUNE = (0.25, 0.45)


class Split(NamedTuple):
    """Images [B, 1, 8, 8] and labels [B]."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_split() -> Split:
    """1437 digits to train on and 360 held out, one fixed stratified split, normalised by the training part."""
    train, test = digits()
    return Split(train.images, train.labels, test.images, test.labels)


def fit(
    model: nn.Module,
    parameters: list[nn.Parameter],
    data: Split,
    *,
    epochs: int,
    seed: int,
    title: str,
    lr: float = 0.1,
    after_step: Callable[[], object] = lambda: None,
    quiet: bool = False,
) -> None:
    """SGD with momentum 0.9, weight decay 1e-4 and a cosine schedule, over `epochs` shuffled passes."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
    count = len(data.train_y)
    steps = count // BATCH if count >= BATCH else 1
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    order = torch.Generator().manual_seed(seed)
    model.train()
    with tqdm(total=epochs * steps, desc=title, unit="step", disable=quiet, leave=True) as bar:
        for _ in range(epochs):
            shuffled = torch.randperm(count, generator=order)
            for batch in shuffled[: steps * BATCH].split(BATCH):
                loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                after_step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                bar.update()
    model.eval()


def train_dense(data: Split, *, seed: int, epochs: int = EPOCHS, quiet: bool = False) -> nn.Module:
    """The baseline: every weight trained."""
    torch.manual_seed(seed)
    model = build_net()
    fit(model, list(model.parameters()), data, epochs=epochs, seed=seed, title=f"dense, seed {seed}", quiet=quiet)
    return model


def train_ticket(
    data: Split, *, seed: int, epochs: int = EPOCHS, title: str = "", quiet: bool = False, **config
) -> nn.Module:
    """A supermask found by edge-popup inside random weights; `config` as `fk.FreezeConfig`. Finalized."""
    model = build_net()
    fk.freeze_(model, fk.FreezeConfig(seed=seed, **(config or FROZEN)))
    search = fk.EdgePopup(model)
    title = title or f"frozen, seed {seed}"
    fit(
        model, search.parameters(), data,
        epochs=epochs, seed=seed, title=title, after_step=search.step, quiet=quiet,
    )  # fmt: skip
    fk.finalize_(model)
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: Split) -> float:
    """Share of the held-out digits that the model gets right."""
    return (model.eval()(data.test_x).argmax(1) == data.test_y).float().mean().item()


def mask_bytes(model: nn.Module) -> int:
    """Bytes of the packed supermasks: what a ticket stores of the weights."""
    return sum(m.packed_supermask().numel() for m in model.modules() if isinstance(m, fk.nn.FrozenLayer))


@torch.no_grad()
def latencies(models: dict[str, nn.Module], x: Tensor, seconds: float = 1.0) -> dict[str, float]:
    """Median seconds of an eager forward of each model, without gradients and after some that warm up.

    Calls take turns, so that a busy machine slows all alike, and each round goes the other way round, so that none
    always meets the caches as the same other one left them.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UP):
        for model in models.values():
            model(x)
    order = list(models.items())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        order.reverse()
        for name, model in order:
            start = time.perf_counter()
            model(x)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def load_net(path: Path) -> nn.Module:
    """The dense net or the ticket behind a file name, ready to serve."""
    if path.name.startswith("dense"):
        model = build_net()
        model.load_state_dict(load_file(path))
    else:
        model = fk.load_ticket(build_net(), path)
        fk.set_residency(model, RESIDENCY)
    return model.eval()


def in_new_process(*arguments: str) -> str:
    """Run this script once more with other arguments; what it prints."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def check(ticket: Path, outputs: Path) -> None:
    """In a new process: does the ticket give bitwise the outputs that were saved beside it?"""
    model = load_net(ticket)
    expected = load_file(outputs)["outputs"]
    with torch.no_grad():
        got = model(load_split().test_x)
    if not torch.equal(got.view(torch.int32), expected.view(torch.int32)):
        raise SystemExit(f"{ticket}: outputs differ by up to {(got - expected).abs().max().item()}")
    print("bitwise equal")


def memory(path: Path, batch: int) -> None:
    """In a new process: JSON of the footprint of a net, with the rise of memory during one forward."""
    model = load_net(path)
    print(fk.footprint(model, torch.zeros(batch, 1, 8, 8)).to_json())


@dataclass
class Point:
    """One trained ticket of the sweep."""

    source: str
    freeze_ratio: float
    ticket_bytes: int
    mask_bytes: int
    accuracy: float


def sweep(data: Split, out: Path, *, seed: int, epochs: int = SWEEP_EPOCHS, quiet: bool = False) -> list[Point]:
    """Tickets of a dense source, of randomly pruned (sparse) sources and of frozen ones, with their file sizes."""
    settings: list[tuple[str, dict]] = [("dense source", DENSE_SOURCE)]
    settings += [("sparse source", {"code": "sign", "sparsity": 0.5, "prune_ratio": p}) for p in SWEEP_PRUNE]
    settings += [("frozen", {"code": "sign", "sparsity": 0.5, "freeze_ratio": f}) for f in SWEEP_FREEZE]
    points = []
    for source, config in settings:
        freeze = fk.FreezeConfig(**config).freeze_ratio
        title = f"{source}, {freeze:.0%} fixed"
        model = train_ticket(data, seed=seed, epochs=epochs, title=title, quiet=quiet, **config)
        path = out / "sweep.safetensors"
        fk.save_ticket(model, path)
        points.append(Point(source, freeze, path.stat().st_size, mask_bytes(model), accuracy(model, data)))
        path.unlink()
    return points


def plot(points: list[Point], finished: dict[str, dict], path: Path, *, epochs: int, seed: int) -> None:
    """Accuracy against bytes on disk: the sweep and, by label, `disk` and `accuracy` of the finished nets."""
    rows = [asdict(p) | {"series": f"ticket, {p.source}", "point": f"{p.freeze_ratio:g}"} for p in points]
    rows += [
        {"series": label, "ticket_bytes": net["disk"], "accuracy": net["accuracy"], "point": ""}
        for label, net in finished.items()
    ]
    fk.plot.sweep(
        rows, path, x="ticket_bytes", point="point",
        xlabel="bytes on disk; numbers: share of weights fixed before the search", ylabel="accuracy on held-out digits",
        title=f"Digits. Tickets: {epochs} epochs, one run, seed {seed}",
    )  # fmt: skip


def save_run(data: Split, out: Path, *, seed: int, epochs: int, quiet: bool) -> dict:
    """Train both nets, save them, check the ticket in a new process, and measure them from their files."""
    dense_path, ticket_path, outputs = (out / f"{name}.safetensors" for name in ("dense", "ticket", "outputs"))
    save_file(train_dense(data, seed=seed, epochs=epochs, quiet=quiet).state_dict(), dense_path)
    ticket = train_ticket(data, seed=seed, epochs=epochs, quiet=quiet)
    fk.save_ticket(ticket, ticket_path)
    fk.set_residency(ticket, RESIDENCY)
    with torch.no_grad():
        save_file({"outputs": ticket(data.test_x)}, outputs)
    print("ticket loaded in a new process:", in_new_process("--check", str(ticket_path), str(outputs)).strip())
    nets = {"dense": load_net(dense_path), "frozen": load_net(ticket_path)}
    files = {"dense": dense_path, "frozen": ticket_path}
    result: dict = {"seed": seed, "mask_bytes": mask_bytes(nets["frozen"])}
    for name, net in nets.items():
        measured = json.loads(in_new_process("--memory", str(files[name])))
        resident, rise = measured["resident"]["total"], measured["peak"]["bytes"]
        result[name] = {
            "accuracy": accuracy(net, data),
            "disk": files[name].stat().st_size,
            "resident": resident,
            "forward": rise,
            "peak": None if rise is None else resident + rise,
        }
    for batch in (1, 64):
        for name, seconds in latencies(nets, data.test_x[:batch]).items():
            result[name][f"latency_{batch}"] = seconds
    return result


def show(runs: list[dict], points: list[Point]) -> None:
    """The table: dense trained net against frozen ticket, means over the runs (medians of latencies)."""
    from rich.console import Console
    from rich.table import Table

    def over_runs(name: str, key: str) -> float | None:
        values = [r[name][key] for r in runs]
        # one run beside a busy neighbour would own a mean of latencies
        middle = np.median if key.startswith("latency") else np.mean
        return None if None in values else float(middle(values))

    def kilobytes(value: float | None) -> str:
        return "not measured" if value is None else f"{value / 1000:,.1f} kB"

    seeds = ", ".join(str(r["seed"]) for r in runs)
    table = Table(title=f"Digits, 389,600 weights, mean over seed{'s' * (len(runs) > 1)} {seeds}")
    for column in ("", "dense, trained", f"frozen ticket, {RESIDENCY}", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    rows: list[tuple[str, str, Callable[[float | None], str]]] = [
        ("bytes on disk", "disk", kilobytes),
        ("resident bytes of the net", "resident", kilobytes),
        ("peak of net + forward, batch 64", "peak", kilobytes),
        ("latency, batch 1 (median)", "latency_1", lambda v: f"{1e3 * (v or 0):.2f} ms"),
        ("latency, batch 64 (median)", "latency_64", lambda v: f"{1e3 * (v or 0):.2f} ms"),
    ]
    accuracies = [f"{over_runs(name, 'accuracy'):.2%}" for name in ("dense", "frozen")]
    table.add_row("accuracy, 360 held-out digits", *accuracies, "")
    for label, key, text in rows:
        dense, frozen = over_runs("dense", key), over_runs("frozen", key)
        ratio = f"{dense / frozen:.2f}x" if dense and frozen else ""
        table.add_row(label, text(dense), text(frozen), ratio)
    console = Console()
    console.print(table)
    for run in runs:
        got = f"dense {run['dense']['accuracy']:.2%}, frozen ticket {run['frozen']['accuracy']:.2%}"
        console.print(f"seed {run['seed']}: {got}", highlight=False)
    source = next((p for p in points if p.source == "dense source"), None)
    if source is not None:
        ours = runs[0]["mask_bytes"]
        console.print(
            f"mask bytes: {ours:,} frozen, {source.mask_bytes:,} in the ticket of the dense source, "
            f"{source.mask_bytes / ours:.2f}x smaller",
            highlight=False,
            soft_wrap=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train with seeds 0..N-1, report the mean")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--sweep-epochs", type=int, default=SWEEP_EPOCHS, help="0 leaves the plot out")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--check", nargs=2, type=Path, metavar=("TICKET", "OUTPUTS"), help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.check:
        return check(*options.check)
    if options.memory:
        return memory(options.memory, 64)
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs: at least 1")
    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_split()
    live = [name for name, state in fk.backends.report().items() if state == "live"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, backends: {', '.join(live)}")
    if "cpu" not in live:
        print("no kernels, the reference regenerates every weight in plain torch: try --epochs 1 --sweep-epochs 0")
    run = {"epochs": options.epochs, "quiet": options.quiet}
    runs = [save_run(data, options.out, seed=seed, **run) for seed in range(options.seeds)]
    points = []
    if options.sweep_epochs:
        points = sweep(data, options.out, seed=0, epochs=options.sweep_epochs, quiet=options.quiet)
        picture = options.out / "accuracy_vs_size.png"
        finished = {f"{name}, {options.epochs} epochs": runs[0][name] for name in ("dense", "frozen")}
        plot(points, finished, picture, epochs=options.sweep_epochs, seed=0)
    show(runs, points)
    (options.out / "digits.json").write_text(json.dumps({"runs": runs, "sweep": [asdict(p) for p in points]}, indent=1))
    if options.sweep_epochs:
        print(f"wrote {picture}")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
