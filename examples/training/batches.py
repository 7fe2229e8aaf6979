"""Which items make which step, and the loader that brings them: the same for any number of processes and workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .draws import ORDER, order
from .graphs import UNLABELLED
from .parts import Part

Batch = tuple[Tensor, Tensor]


class Job(NamedTuple):
    """One step: the items of each of its forward passes in this process, and the labels of all in all processes."""

    items: list[np.ndarray]
    labels: int
    epoch: int | None


class _Jobs(Dataset):
    def __init__(self, part: Part, jobs: list[Job]) -> None:
        self.part, self.jobs = part, jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, at: int) -> tuple[list[Batch], int]:
        job = self.jobs[at]
        return [self._batch(items, job.epoch) for items in job.items], job.labels

    def _batch(self, items: np.ndarray, epoch: int | None) -> Batch:
        if len(items):
            return self.part.batch(items, epoch)
        # a process without items still takes part: collective calls of the others wait for it
        x, y = self.part.batch(np.zeros(1, np.int64), epoch)
        return x, torch.full_like(y, UNLABELLED)


class Plan:
    """The steps of a part.

    The last batch of an epoch is a smaller one, or left out where it would be less than half: batch norm would see
    too little.

    Args:
        part: the items.
        batch: items per step, over all processes.
        accumulate: forward passes per step.
        rank, world: this process and how many there are.
        workers: processes that load; 0 loads here.
    """

    def __init__(self, part: Part, batch: int, *, accumulate: int = 1, rank: int = 0, world: int = 1, workers: int = 0):
        self.part, self.batch, self.accumulate = part, batch, accumulate
        self.rank, self.world, self.workers = rank, world, workers
        self.steps = max(1, (len(part) + batch // 2) // batch)

    def check_training(self) -> None:
        """ValueError where batch norm would see a single image: a forward pass of a process with fewer than 2."""
        last = min(self.batch, len(self.part) - (self.steps - 1) * self.batch)
        if self.part.labels_each == 1 and last < 2 * self.accumulate * self.world:
            cut = f"{self.accumulate} passes of {self.world} processes"
            raise ValueError(f"data.batch: {self.batch} leaves a batch of {last} images, too few for {cut}")

    def _job(self, items: np.ndarray, accumulate: int, epoch: int | None) -> Job:
        passes = np.array_split(items, accumulate)
        mine = [np.array_split(one, self.world)[self.rank] for one in passes]
        return Job(mine, len(items) * self.part.labels_each, epoch)

    def train(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[list[Batch], int]]:
        """The steps of an epoch from `start` on: the batches of its forward passes, and how many labels it has."""
        shuffled = order(ORDER, seed, epoch, len(self.part))
        cuts = [slice(i * self.batch, (i + 1) * self.batch) for i in range(start, self.steps)]
        return self._load([self._job(shuffled[cut], self.accumulate, epoch) for cut in cuts])

    def evaluate(self) -> Iterator[tuple[list[Batch], int]]:
        """All items once, as they are."""
        items = np.arange(len(self.part))
        cuts = [slice(i, i + self.batch) for i in range(0, len(items), self.batch)]
        return self._load([self._job(items[cut], 1, None) for cut in cuts])

    def _load(self, jobs: list[Job]) -> Iterator[tuple[list[Batch], int]]:
        if not self.workers:  # on its own thread, and without copies of what lies in memory already
            found = _Jobs(self.part, jobs)
            return (found[i] for i in range(len(jobs)))
        loader = DataLoader(
            _Jobs(self.part, jobs), batch_size=None, num_workers=self.workers, worker_init_fn=_ignore_interrupt,
            generator=torch.Generator(),  # else it would draw from the generator that a checkpoint holds
        )  # fmt: skip
        return iter(loader)


def _ignore_interrupt(worker: int) -> None:
    """The trainer ends its workers itself, after the checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
