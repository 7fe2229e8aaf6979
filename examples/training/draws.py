"""Orders, splits and augmentation as functions of (seed, epoch, index): equal in every process and after a resume."""

from __future__ import annotations

import numpy as np

ORDER, SPLIT, AUGMENT = range(3)
MOST = 64  # draws of one item

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014) on uint64."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def draws(purpose: int, seed: int, epoch: int, indices: np.ndarray, count: int = 1) -> np.ndarray:
    """uint64 [len(indices), count]: `count` (at most 64) random words of each item."""
    key = np.zeros((), np.uint64)
    for part in (purpose, seed, epoch):
        key = _mix(key ^ _mix(np.asarray(part, np.uint64)))
    counter = np.asarray(indices, np.uint64)[:, None] * np.uint64(MOST) + np.arange(count, dtype=np.uint64)
    return _mix(key ^ _mix(counter))


def uniforms(purpose: int, seed: int, epoch: int, indices: np.ndarray, count: int = 1) -> np.ndarray:
    """Float64 [len(indices), count] in [0, 1)."""
    return (draws(purpose, seed, epoch, indices, count) >> np.uint64(11)) * 2.0**-53


def order(purpose: int, seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of `count` items, int64."""
    return np.argsort(draws(purpose, seed, epoch, np.arange(count))[:, 0], kind="stable")


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions to train on, `int(count * (1 - share))` of them, and the rest."""
    shuffled = order(SPLIT, seed, 0, count)
    first = int(count * (1 - share) + 1e-9)  # 0.8 of 50,000 is no whole number in binary
    return np.sort(shuffled[:first]), np.sort(shuffled[first:])
