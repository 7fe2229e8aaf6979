"""What tests of stored weights share: masks and swaps by plain definitions, on lists."""

from __future__ import annotations

import math

import torch
from helpers import gather_free, matrix_of, weight_of
from torch import Tensor, nn

import frozen_kernels as fk


def in_stream(weight: Tensor) -> Tensor:
    """A tensor of a weight's shape in stream order."""
    matrix = matrix_of(weight)
    return gather_free(matrix, torch.zeros(matrix.shape, dtype=torch.int8))


def from_stream(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `in_stream`."""
    place = in_stream(torch.arange(math.prod(shape)).view(shape))
    flat = torch.empty(math.prod(shape), dtype=values.dtype)
    flat[place] = values
    return flat.view(shape)


def better(scores: list[float], kept: list[bool]) -> list[int]:
    """Positions from best to worst: higher score, NaN above all; then kept now; then the lower position."""
    ranked = [math.inf if math.isnan(s) else s for s in scores]
    nan = [math.isnan(s) for s in scores]
    return sorted(range(len(scores)), key=lambda i: (not nan[i], -ranked[i], not kept[i], i))


def swapped(scores: list[float], kept: list[bool], rate: float) -> list[bool]:
    """The mask after a step of the search: ceil(pairs * rate) of the best that enter, and of the worst that leave."""
    order = better(scores, kept)
    wanted = set(order[: sum(kept)])
    entering = [i for i in order if i in wanted and not kept[i]]
    leaving = [i for i in reversed(order) if i not in wanted and kept[i]]
    count = math.ceil(len(entering) * rate)
    out = list(kept)
    for i, j in zip(entering[:count], leaving[:count], strict=True):
        out[i], out[j] = True, False
    return out


def swapped_in_groups(scores: Tensor, keep: Tensor, kept: int, of: int, rate: float) -> Tensor:
    """The mask [rows, cols] after a step under a pattern; scores and mask [rows, cols] as they lie in the matrix."""
    pairs = []
    for row in range(keep.shape[0]):
        for first in range(0, keep.shape[1], of):
            own, now = scores[row, first : first + of].tolist(), keep[row, first : first + of].tolist()
            order = better(own, now)
            wanted = set(order[:kept])
            entering = [i for i in order if i in wanted and not now[i]]
            leaving = [i for i in reversed(order) if i not in wanted and now[i]]
            pairs += [
                (own[i] - own[j], (row, first + i), (row, first + j)) for i, j in zip(entering, leaving, strict=True)
            ]
    places = in_stream(torch.arange(keep.numel()).view(keep.shape)).tolist()
    position = {place: n for n, place in enumerate(places)}
    pairs.sort(key=lambda p: (-p[0], position[p[1][0] * keep.shape[1] + p[1][1]]))
    out = keep.clone()
    for _, enters, leaves in pairs[: math.ceil(len(pairs) * rate)]:
        out[enters], out[leaves] = True, False
    return out


def pretrained() -> nn.Sequential:
    """A small net with a convolution of each kind of layout, batch norm and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(100, 33), nn.ReLU(), nn.Linear(33, 10),
    )  # fmt: skip


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 7, 7)


def jackpot(model: nn.Module, sparsity: float = 0.8, rates: object = "l1", **settings) -> fk.FreezeReport:
    return fk.freeze_(model, fk.FreezeConfig.preset("jackpot", sparsity=sparsity, rates=rates, **settings))


def stored_layers(model: nn.Module) -> dict[str, fk.nn.FrozenLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, fk.nn.FrozenLayer)}


__all__ = [
    "better", "from_stream", "images", "in_stream", "jackpot", "pretrained", "stored_layers", "swapped",
    "swapped_in_groups", "weight_of",
]  # fmt: skip
