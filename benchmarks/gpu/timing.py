"""Device time of calls in turn, each side a CUDA graph; host time of a call; and a budget that runs out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from frozen_kernels.tune.measure import MIN_ROUNDS, interleaved

Call = Callable[[], object]

SHORTEST = 0.5  # milliseconds of a replay: a graph's own start counts a few microseconds
LONGEST = 150.0
MOST_ROUNDS = 200
HOST_CALLS, HOST_ROUNDS, HOST_SECONDS = 20, 5, 1.0


class Budget:
    """Seconds that are left of those given."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - self._clock())


def launches(copies: int, milliseconds: float) -> int:
    """Calls of one replay: each copy equally often, long enough to time, and not endless where a call is slow."""
    most = max(2, int(LONGEST / max(milliseconds, 1e-4)))
    if copies > most:
        return most
    return copies * max(1, math.ceil(SHORTEST / max(milliseconds, 1e-4) / copies))


class Clock(Protocol):
    """Milliseconds of a call of each side in each round; a side is a list of calls on copies of its weight."""

    def rounds(self, sides: Mapping[str, Sequence[Call]], seconds: float) -> dict[str, list[float]]: ...


class HostClock:
    """For a device that has no clock of its own."""

    def rounds(self, sides: Mapping[str, Sequence[Call]], seconds: float) -> dict[str, list[float]]:
        return interleaved({name: calls[0] for name, calls in sides.items()}, MIN_ROUNDS, seconds)


class GraphClock:
    """Replays of CUDA graphs between events."""

    def rounds(self, sides: Mapping[str, Sequence[Call]], seconds: float) -> dict[str, list[float]]:
        graphs = {name: self._captured(calls) for name, calls in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        budget = Budget(seconds)
        for turn in range(MOST_ROUNDS):
            if turn >= MIN_ROUNDS and not budget.left:
                break
            for name, (graph, count) in graphs.items():
                times[name].append(self._milliseconds(graph.replay) / count)
        return times

    def _milliseconds(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()  # while it runs the next one is sent: an idle device would count the sending
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def _captured(self, calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
        """A graph that is long enough to time, and its number of calls."""
        taken = self._milliseconds(calls[0])
        count = launches(len(calls), max(taken, SHORTEST))  # eager calls of short kernels say little of the device
        graph = self._graph(calls, count)
        enough = launches(len(calls), self._milliseconds(graph.replay) / count)
        return (self._graph(calls, enough), enough) if enough > count else (graph, count)

    def _graph(self, calls: Sequence[Call], count: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(count):
                calls[i % len(calls)]()
        return graph


def host_microseconds(calls: Sequence[Call], synchronize: Call) -> float:
    """What a call takes of the processor's time: a median over rounds of a few calls that nothing waits for."""
    taken: list[float] = []
    budget = Budget(HOST_SECONDS)
    while len(taken) < HOST_ROUNDS and (not taken or budget.left):
        synchronize()
        start = time.perf_counter()
        for i in range(HOST_CALLS):
            calls[i % len(calls)]()
        taken.append((time.perf_counter() - start) / HOST_CALLS)
    synchronize()
    return 1e6 * statistics.median(taken)
