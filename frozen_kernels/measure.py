"""Timing two or more ways to compute the same thing in one process, and the error of a result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

MIN_ROUNDS = 2  # quartiles need as many


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, taken in turns so that a slow spell of the machine hits all alike.

    A first round warms up; no further one starts after `seconds`, but at least two are timed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    for turn in range(rounds + 1):
        if turn > MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of two or more measurements."""
    return Quartiles(*statistics.quantiles(values, n=4))


def speedup(base: Sequence[float], taken: Sequence[float]) -> Quartiles:
    """How many times faster `taken` is than `base`: the quotient of medians, and quartiles of the rounds' quotients.

    Both were taken in the same rounds, so that what slowed a whole round cancels.
    """
    low, _, high = quartiles([b / t for b, t in zip(base, taken, strict=True)])
    middle = statistics.median(base) / statistics.median(taken)
    return Quartiles(min(low, middle), middle, max(high, middle))


def relative_error(found: Tensor, right: Tensor) -> float:
    """The largest error of `found` over the largest magnitude of float64 `right`."""
    return float((found.double() - right).abs().max() / right.abs().max())
