"""Timing two or more ways to compute the same thing in one process, and the error of a result."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

MIN_ROUNDS = 5  # quartiles of fewer say little
WARM_UP = 2  # calls before the first round
SHORT, MOST_REPEATS = 2.0, 16  # milliseconds: below, a call is repeated in its turn
MOST_COPIES = 40  # of a weight


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, taken in turns so that a slow spell of the machine hits all alike.

    A call that can be short is repeated in its turn and the fastest counts: one that meets the caches as the other
    calls left them, or whose team waits for a processor, says nothing of the call. No further round starts after
    `seconds`, but at least five are timed.
    """
    deadline = time.perf_counter() + seconds
    fastest = {name: min(_milliseconds(call) for _ in range(WARM_UP)) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        if turn >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            repeats = min(math.ceil(SHORT / fastest[name]), MOST_REPEATS)
            times[name].append(min(_milliseconds(call) for _ in range(repeats)))
            fastest[name] = min(fastest[name], times[name][-1])
    return times


def copies_beyond(cache: int, held: int) -> int:
    """How many copies of `held` bytes take twice the cache together, so that none is met there again."""
    return max(2, min(MOST_COPIES, math.ceil(2 * cache / max(held, 1))))


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
