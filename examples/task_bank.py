"""Ten tasks in one net: permuted digits, a supermask for each over the same random weights, in one file.

`python examples/task_bank.py` needs scikit-learn and no download. Each task is scikit-learn's handwritten digits with
one fixed permutation of the pixels. Which task a batch is of is then told without a label, by the entropy gradient of
SupSup (Wortsman et al. 2020). See `--help`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training.images import digits

import frozen_kernels as fk

TASKS, EPOCHS, BATCH, SEED = 10, 6, 64, 0
# of ten classes: SupSup's superfluous neurons, to which only a net that does not know the task gives a probability
OUTPUTS = 100
INFERRED_FROM = 64  # images of a batch whose task is told
CONFIG = {"code": "sign", "sparsity": 0.5, "freeze_ratio": 0.0, "scope": "local", "scaling": "static"}


class Task(NamedTuple):
    """A name, pixels [B, 64] and labels [B]."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def build_net(width: int = 256) -> nn.Sequential:
    """A net of three layers without biases, so that all that a task needs is its mask."""
    return nn.Sequential(
        nn.Linear(64, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False), nn.ReLU(),
        nn.Linear(width, OUTPUTS, bias=False),
    )  # fmt: skip


def permuted_digits(count: int = TASKS, seed: int = SEED) -> list[Task]:
    """1437 digits to train on and 360 held out for each task, pixels in an order that a seeded generator draws."""
    train, test = digits()
    draw = torch.Generator().manual_seed(seed)
    tasks = []
    for number in range(count):
        order = torch.randperm(64, generator=draw)
        parts = [split.images.flatten(1)[:, order] for split in (train, test)]
        tasks.append(Task(f"permutation {number}", parts[0], train.labels, parts[1], test.labels))
    return tasks


def search_mask(model: nn.Module, task: Task, epochs: int, seed: int) -> None:
    """Edge-popup from fresh scores: the weights are those of every other task."""
    for layer in fk.nn.models.frozen_layers(model).values():
        layer.reset_parameters()
    search = fk.EdgePopup(model)
    count = len(task.train_y)
    steps = count // BATCH
    optimizer = torch.optim.SGD(search.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(count, generator=draw)[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(model(task.train_x[batch]), task.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            search.step()
            schedule.step()


def learn(tasks: list[Task], epochs: int = EPOCHS, seed: int = SEED, width: int = 256) -> fk.MaskBank:
    """A bank with a mask for each task."""
    model = build_net(width)
    fk.freeze_(model, fk.FreezeConfig(seed=seed, **CONFIG))
    bank = fk.MaskBank(model)
    for number, task in enumerate(tasks):
        search_mask(model, task, epochs, number)
        bank.add(task.name)
    bank.finalize()
    model.eval()
    return bank


class Row(NamedTuple):
    """What is told of one task: accuracy with its own mask, and the mask inferred by both methods."""

    name: str
    accuracy: float
    one_shot: str
    binary: str
    seconds: float


def measure(bank: fk.MaskBank, tasks: list[Task], images: int = INFERRED_FROM) -> list[Row]:
    """Each task on the held-out digits; its mask is inferred from the first of them."""
    rows = []
    for task in tasks:
        bank.use(task.name)
        with torch.no_grad():
            accuracy = (bank.model(task.test_x).argmax(1) == task.test_y).float().mean().item()
        start = time.perf_counter()
        one_shot = bank.infer(task.test_x[:images])
        seconds = time.perf_counter() - start
        rows.append(Row(task.name, accuracy, one_shot, bank.infer(task.test_x[:images], "binary"), seconds))
    return rows


def switch_seconds(bank: fk.MaskBank, switches: int = 200) -> float:
    """Median time of a switch, per frozen layer."""
    times = []
    for step in range(switches):
        start = time.perf_counter()
        bank.use(bank.names[step % len(bank)])
        times.append(time.perf_counter() - start)
    return sorted(times)[switches // 2] / len(fk.nn.models.frozen_layers(bank.model))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", type=int, default=TASKS)
    options.add_argument("--epochs", type=int, default=EPOCHS, help="of each task's search")
    options.add_argument("--images", type=int, default=INFERRED_FROM, help="in a batch whose task is inferred")
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--out", type=Path, help="keep the bank's file here")
    chosen = options.parse_args()
    tasks = permuted_digits(chosen.tasks, chosen.seed)
    start = time.perf_counter()
    bank = learn(tasks, chosen.epochs, chosen.seed)
    print(f"{len(bank)} masks found in {time.perf_counter() - start:.0f} s\n")
    rows = measure(bank, tasks, chosen.images)
    print("task           | accuracy | inferred, one-shot | inferred, binary")
    for row in rows:
        print(f"{row.name:14} | {100 * row.accuracy:6.2f} % | {row.one_shot:18} | {row.binary}")
    right = [sum(getattr(row, how) == row.name for row in rows) for how in ("one_shot", "binary")]
    mean = sum(row.accuracy for row in rows) / len(rows)
    print(f"\nmean accuracy {100 * mean:.2f} %; of {len(rows)} tasks inferred: one-shot {right[0]}, binary {right[1]}")
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.out or Path(folder) / "bank.safetensors"
        bank.save(path)
        size, masks = path.stat().st_size, fk.masks(bank.model).numel() * len(bank)
    weights = sum(m.rows * m.cols for m in fk.nn.models.frozen_layers(bank.model).values())
    print(
        f"{weights:,} weights; file {size:,} bytes: {masks:,} of masks, {size - masks:,} of names and hashes; "
        f"{len(bank)} dense nets {4 * weights * len(bank):,}"
    )
    print(f"in memory, {bank}")
    seconds = sorted(row.seconds for row in rows)[len(rows) // 2]
    print(f"a switch: {1e6 * switch_seconds(bank):.1f} us per layer; one-shot inference: {1e3 * seconds:.1f} ms")


if __name__ == "__main__":
    main()
