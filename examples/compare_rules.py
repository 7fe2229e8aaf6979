"""Every rule of `fk.search` on one net: accuracy against bytes, with the dense net, its int8 weights and a random mask.

`python examples/compare_rules.py` trains on scikit-learn's digits and writes results.csv, rules.md, rules.png and
rules.svg to the folder of `--out`. Of a ticket only its scores are trained. Stopped, the same command goes on where it
was.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import statistics
import struct
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import small_files
import torch
from digits import Split, load_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import frozen_kernels as fk
from frozen_kernels.files import replace

CHANNELS, BLOCKS, BATCH = 32, 3, 64


class Block(nn.Module):
    """Two 3 x 3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, channels), nn.BatchNorm2d(channels, affine=False)
        self.conv2, self.bn2 = _conv(channels, channels), nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, bias=False)


def build() -> nn.Sequential:
    """A residual net for 8 x 8 images; batch norm has no parameters, so scores are all there is to train."""
    stem = (_conv(1, CHANNELS), nn.BatchNorm2d(CHANNELS, affine=False), nn.ReLU(), nn.MaxPool2d(2))
    blocks = [Block(CHANNELS) for _ in range(BLOCKS)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10, bias=False))


@dataclass(frozen=True)
class Rule:
    """How a rule is run: its preset with the settings beside it, the search, and the optimizer's settings."""

    label: str
    preset: str
    search: Callable[[nn.Module, int, int], Any]
    lr: float = 0.1
    weight_decay: float = 1e-4
    settings: dict[str, Any] = field(default_factory=dict)
    fold: bool = False
    ratios: Callable[[nn.Module, Split], dict[str, float]] | None = None
    last: Callable[[Any], None] = lambda search: None  # what is done with the search at the end


def _popup(model: nn.Module, epochs: int, steps: int) -> Any:
    return fk.EdgePopup(model)


def _loss(data: Split) -> Callable[[nn.Module], Tensor]:
    return lambda model: F.cross_entropy(model(data.train_x[: 4 * BATCH]), data.train_y[: 4 * BATCH])


search = fk.search
DENSITY = 0.5
PRUNED: dict[str, Any] = {"prune_ratio": 1 - DENSITY, "lock_ratio": 0.0, "scope": "global", "sparsity": 0.75}
RULES: dict[str, Rule] = {
    "edge_popup": Rule("edge-popup", "edge_popup", _popup),
    "sampled": Rule("sampled supermask", "sampled", lambda m, e, n: search.Sampled(m), 50.0, 0.0),
    "settled": Rule(
        "sampled, its likeliest mask",
        "sampled",
        lambda m, e, n: search.Sampled(m),
        50.0,
        0.0,
        last=lambda s: s.settle(),
    ),
    "gem_miner": Rule(
        "Gem-Miner",
        "gem_miner",
        lambda m, e, n: search.GemMiner(m, epochs=e, steps_per_epoch=n, freeze_every=max(e // 4, 1)),
        lr=1.0,
    ),
    "ugt": Rule("UGT", "ugt", lambda m, e, n: search.UGT(m, steps=e * n)),
    "biprop": Rule("biprop", "biprop", lambda m, e, n: search.Biprop(m)),
    "hidden_fold": Rule("hidden-fold", "hidden_fold", _popup, fold=True),
    "multicoated": Rule(
        "multicoated, 3",
        "multicoated",
        lambda m, e, n: search.Multicoated(m, (0.75, 0.875)),
        settings={"sparsity": 0.5},
    ),
    "signed": Rule("signed supermask", "signed", lambda m, e, n: search.Signed(m)),
    "trichromatic": Rule("trichromatic", "trichromatic", lambda m, e, n: search.Trichromatic(m)),
    "iterand": Rule("IteRand", "iterand", lambda m, e, n: search.IteRand(m, every=n, rate=0.1)),
    "snip": Rule(
        "edge-popup, SNIP's ratios",
        "sparse_source",
        _popup,
        settings=PRUNED,
        ratios=lambda m, d: search.snip(m, _loss(d), DENSITY),
    ),
    "grasp": Rule(
        "edge-popup, GraSP's ratios",
        "sparse_source",
        _popup,
        settings=PRUNED,
        ratios=lambda m, d: search.grasp(m, _loss(d), DENSITY),
    ),
    "synflow": Rule(
        "edge-popup, SynFlow's ratios",
        "sparse_source",
        _popup,
        settings=PRUNED,
        ratios=lambda m, d: search.synflow(m, d.train_x.shape[1:], DENSITY),
    ),
}
OTHERS = {"random": "random mask", "dense": "dense, float32", "int8": "dense, int8"}


@dataclass
class Run:
    """One run: epochs, test accuracy, bytes of the weights and of the rest (batch norm), and the share that is kept."""

    rule: str
    seed: int
    epochs: int
    accuracy: float
    weight_bytes: int
    other_bytes: int
    kept: float


def accuracy(model: nn.Module, data: Split) -> float:
    """The share of the test part that a model gets right."""
    model.eval()
    with torch.no_grad():
        return (model(data.test_x).argmax(1) == data.test_y).float().mean().item()


def fit(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Split, epochs: int, seed: int, after: Callable
) -> None:
    """Train; `after` is called after each step of the optimizer."""
    order, steps = torch.Generator().manual_seed(seed), -(-len(data.train_y) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.train_y), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
            after()
            schedule.step()


def plain(rule: Rule) -> nn.Sequential:
    """The net before it is frozen, and what its ticket is loaded into."""
    model = build()
    if rule.fold:
        search.fold_blocks_([m for m in model if isinstance(m, Block)])
    return model


def freeze(rule: Rule, data: Split, seed: int) -> nn.Module:
    """A net with the masks that the rule's preset begins with."""
    torch.manual_seed(seed)
    model = plain(rule)
    settings: dict[str, Any] = {"seed": seed, **rule.settings}
    if rule.ratios is not None:
        settings["distribution"] = rule.ratios(model, data)
    fk.freeze_(model, fk.FreezeConfig.preset(rule.preset, **settings))
    return model


def train(rule: Rule, data: Split, epochs: int, seed: int) -> nn.Module:
    """A net whose scores alone were trained by a rule, with its last masks."""
    model = freeze(rule, data, seed)
    found = rule.search(model, epochs, -(-len(data.train_y) // BATCH))
    optimizer = torch.optim.SGD(found.param_groups(weight_decay=rule.weight_decay), lr=rule.lr, momentum=0.9)
    fit(model, optimizer, data, epochs, seed, found.step)
    rule.last(found)
    recalibrate(model, data)
    return model


def random_mask(rule: Rule, data: Split, seed: int) -> nn.Module:
    """The net of a rule before its first step, with batch norm's statistics of the data: a random mask."""
    model = freeze(rule, data, seed)
    recalibrate(model, data)
    return model


def recalibrate(model: nn.Module, data: Split) -> None:
    """Give batch norm the statistics of the last mask: of one that moved they are those of many."""
    fk.recalibrate_(model, [data.train_x[i : i + BATCH] for i in range(0, len(data.train_x), BATCH)])


def ticket(model: nn.Module, path: Path) -> tuple[int, int]:
    """Save a ticket; the bytes of its weights and of its other tensors."""
    fk.save_ticket(model, path)
    with open(path, "rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    others = [t for n, t in model.state_dict().items() if "running" in n or "tracked" in n]
    other = sum(t.numel() * t.element_size() for t in others)
    return os.path.getsize(path) - 8 - header - other, other


def measure(name: str, data: Split, epochs: int, seed: int, folder: Path) -> Run:
    """A run of a rule, judged by the ticket as a fresh model reads it."""
    rule = RULES["edge_popup" if name == "random" else name]
    model = random_mask(rule, data, seed) if name == "random" else train(rule, data, epochs, seed)
    path = folder / f"{name}-{seed}.safetensors"
    weights, other = ticket(model, path)
    layers = {layer.identity: layer for layer in model.modules() if isinstance(layer, fk.nn.FrozenLayer)}.values()
    kept = sum(layer.counts["kept"] for layer in layers) / sum(layer.rows * layer.cols for layer in layers)
    return Run(name, seed, epochs, accuracy(fk.load_ticket(plain(rule), path), data), weights, other, kept)


def dense(data: Split, epochs: int, seed: int) -> list[Run]:
    """The dense net, and the same with int8 weights and one scale a row."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    fit(model, optimizer, data, epochs, seed, lambda: None)
    recalibrate(model, data)
    other = sum(b.numel() * b.element_size() for b in model.buffers())
    runs = [
        Run("dense", seed, epochs, accuracy(model, data), 4 * sum(p.numel() for p in model.parameters()), other, 1.0)
    ]
    small_files.round_(model, "int8")
    size = sum(p.numel() + 4 * p.shape[0] for p in model.parameters())
    return [*runs, Run("int8", seed, epochs, accuracy(model, data), size, other, 1.0)]


def means(runs: list[Run]) -> dict[str, tuple[float, float, float, float, float, float]]:
    """Mean, least and largest accuracy, bytes of weights and of the rest, and kept share of each rule."""
    found = {}
    for name in dict.fromkeys(run.rule for run in runs):
        same = [run for run in runs if run.rule == name]
        hits = [run.accuracy for run in same]
        found[name] = (
            statistics.mean(hits), min(hits), max(hits), statistics.mean(r.weight_bytes for r in same),
            statistics.mean(r.other_bytes for r in same), statistics.mean(r.kept for r in same),
        )  # fmt: skip
    return found


def label(name: str) -> str:
    return OTHERS.get(name) or RULES[name].label


def table(runs: list[Run]) -> str:
    """The means in Markdown."""
    lines = ["| rule | preset | kept | weights, bytes | batch norm, bytes | accuracy, worst to best |"]
    lines.append("|---|---|---|---|---|---|")
    for name, (mean, low, high, weights, other, kept) in means(runs).items():
        preset = f"`{RULES[name].preset}`" if name in RULES else ""
        lines.append(
            f"| {label(name)} | {preset} | {kept:.0%} | {weights:,.0f} | {other:,.0f} | "
            f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def write(runs: list[Run], path: Path) -> None:
    """The runs as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[f.name for f in fields(Run)], *map(astuple, runs)])
    replace(path, lambda file: file.write(text.getvalue().encode()))


def read(path: Path) -> list[Run]:
    """The runs that an earlier call wrote."""
    if not path.exists():
        return []
    with open(path) as file:
        return [
            Run(
                r["rule"],
                int(r["seed"]),
                int(r["epochs"]),
                float(r["accuracy"]),
                int(r["weight_bytes"]),
                int(r["other_bytes"]),
                float(r["kept"]),
            )
            for r in csv.DictReader(file)
            if r.get("epochs")  # a file of before has none
        ]


def plot(runs: list[Run], path: Path) -> None:
    """Accuracy against the bytes of the weights: means, and bars from the worst seed to the best."""
    chance = [run.accuracy for run in runs if run.rule == "random"]
    fk.plot.sweep(
        [asdict(run) | {"series": label(run.rule)} for run in runs if run.rule != "random"],
        path,
        x="weight_bytes",
        references={label("random"): statistics.mean(chance)} if chance else None,
        xlabel="bytes of the weights, batch norm apart",
        ylabel="test accuracy",
        title=f"digits, mean of {len({run.seed for run in runs})} seeds, bars from the worst to the best",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0..N-1")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE")
    parser.add_argument("--out", type=Path, default=Path("out/rules"))
    options = parser.parse_args()
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: at least 1")
    options.out.mkdir(parents=True, exist_ok=True)
    results, data = options.out / "results.csv", load_split()
    runs = read(results)
    done = {(run.rule, run.seed) for run in runs if run.epochs == options.epochs}
    todo = [(name, seed) for name in (*options.rules, "random", "dense") for seed in range(options.seeds)]
    for name, seed in tqdm([t for t in todo if t not in done], unit="run"):
        if name == "dense":
            runs += dense(data, options.epochs, seed)
        else:
            runs.append(measure(name, data, options.epochs, seed, options.out))
        write(runs, results)
    place = {name: i for i, name in enumerate((*RULES, *OTHERS))}
    # runs of other epochs stay in the file alone
    runs = [run for run in runs if run.epochs == options.epochs]
    runs.sort(key=lambda run: (place[run.rule], run.seed))
    (options.out / "rules.md").write_text(table(runs))
    plot(runs, options.out / "rules.png")
    print(table(runs), end="")
    print("written:", ", ".join(str(options.out / name) for name in ("results.csv", "rules.md", "rules.png")))


if __name__ == "__main__":
    main()
