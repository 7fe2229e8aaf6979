"""OGBN-Arxiv's files as OGB ships them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .gin import undirected
from .parts import Data, Part

DOWNLOAD = "unpack arxiv.zip from http://snap.stanford.edu/ogb/data/nodeproppred/ as ogbn_arxiv"
UNLABELLED = -100  # what cross_entropy ignores


@dataclass(frozen=True)
class Nodes:
    """The whole graph as one item, with the labels of some nodes.

    Args:
        features: float32 [nodes, width].
        labels: int64 [nodes], -100 for nodes of other parts.
        labels_each: how many nodes have a label.
    """

    features: Tensor
    labels: Tensor
    labels_each: int

    def __len__(self) -> int:
        return 1

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        return self.features, self.labels


def _table(path: Path, dtype: type, columns: int | None = None) -> np.ndarray:
    """A csv file as [rows, columns]; FileNotFoundError or ValueError that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {DOWNLOAD}")
    try:
        found: np.ndarray = np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: truncated or not a table of {np.dtype(dtype).name} ({error})") from error
    if columns is not None and found.shape[1] != columns:
        raise ValueError(f"{path}: {columns} columns, got {found.shape[1]}")
    return found


def _rows(path: Path, found: np.ndarray, expected: int, of: Path) -> None:
    if len(found) != expected:
        raise ValueError(f"{path}: {len(found)} rows, but {of.name} says {expected}")


def _split(path: Path, nodes: int) -> Tensor:
    chosen = torch.from_numpy(_table(path, np.int64, 1)[:, 0])
    if not len(chosen):
        raise ValueError(f"{path}: empty")
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < nodes:
        raise ValueError(f"{path}: nodes from 0 to {nodes - 1}, got {int(chosen.min())} to {int(chosen.max())}")
    return chosen


def ogbn_arxiv(path: Path, classes: int, features: int, device: torch.device) -> Data:
    """The citation graph, undirected, with the split by time (Hu et al. 2020).

    Args:
        path: `ogbn_arxiv`, or the folder that holds it: `raw/*.csv.gz` and `split/time/*.csv.gz`.
        classes: as the model has; every label is below it.
        features: width of a node's features, as the model takes.
        device: where the whole graph goes.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, truncated or does not fit the others or the model.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.path: {path} is no folder; {DOWNLOAD} there")
    folder = path / "ogbn_arxiv" if (path / "ogbn_arxiv").is_dir() else path
    raw = folder / "raw"
    sizes = {part: raw / f"num-{part}-list.csv.gz" for part in ("node", "edge")}
    nodes, edge_count = (int(_table(file, np.int64, 1)[0, 0]) for file in sizes.values())
    edges, feat, label = (raw / f"{name}.csv.gz" for name in ("edge", "node-feat", "node-label"))
    ends = _table(edges, np.int64, 2)
    _rows(edges, ends, edge_count, sizes["edge"])
    if not 0 <= ends.min() <= ends.max() < nodes:
        raise ValueError(f"{edges}: nodes from 0 to {nodes - 1}, got {ends.min()} to {ends.max()}")
    x = _table(feat, np.float32)
    _rows(feat, x, nodes, sizes["node"])
    if x.shape[1] != features:
        raise ValueError(f"model.features: {features}, but {feat} has {x.shape[1]} per node")
    y = _table(label, np.int64, 1)[:, 0]
    _rows(label, y, nodes, sizes["node"])
    if y.min() < 0 or y.max() != classes - 1:
        raise ValueError(f"model.classes: {classes}, but {label} has labels from {y.min()} to {y.max()}")
    inputs, labels = torch.from_numpy(x).to(device), torch.from_numpy(y)
    parts: dict[str, Part] = {}
    for name, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        chosen = _split(folder / "split" / "time" / f"{file}.csv.gz", nodes)
        masked = torch.full_like(labels, UNLABELLED)
        masked[chosen] = labels[chosen]
        parts[name] = Nodes(inputs, masked.to(device), len(torch.unique(chosen)))
    train = parts.pop("train")
    return Data(train, parts, undirected(torch.from_numpy(ends.T.copy()), nodes).to(device), nodes)
