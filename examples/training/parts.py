"""What the trainer needs of a data set: parts that give batches by index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor


class Part(Protocol):
    """Items by index; `labels_each` is how many labels one has: 1 for an image, all nodes of the part for a graph."""

    @property
    def labels_each(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        """Inputs and int64 labels (-100: none) of some items, augmented by the draws of an epoch unless it is None."""


@dataclass(frozen=True)
class Subset:
    """Some items of a part, whose augmentation stays that of their index in the whole."""

    whole: Part
    chosen: np.ndarray

    @property
    def labels_each(self) -> int:
        return self.whole.labels_each

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        return self.whole.batch(self.chosen[indices], epoch)


@dataclass(frozen=True)
class Data:
    """What to train on and, by name, what accuracy is measured on; a graph's int64 edges [2, E] and its nodes."""

    train: Part
    held_out: dict[str, Part] = field(default_factory=dict)
    edges: Tensor | None = None
    nodes: int = 0
