"""Measures which backend is fastest for a product on the GPU at hand, for `bench --tune`: the table of GPU choices.

Each key of the shipped table is timed at a few numbers of pixels, each on layers of a few sizes, by CUDA C++, by Triton
and by torch's dense layer. Copies of a weight take turns, so that it comes from memory as in a network. What is refused
or wrong is left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends import reasons, use
from ..backends.cuda import choices
from ..backends.cuda.choices import BACKENDS, Choice
from ..backends.reference.weights import effective
from ..backends.targets import Entries, Table, target
from ..format import STORED, Pack
from .measure import copies_beyond, relative_error
from .tiles import DTYPES, MARGIN, Say, Timer, as_value_error, geometric_mean, integers, machine, ops, pack, replayed

SECONDS = 600.0
CODES = {"bits": "sign", "uniform": "uniform", "normal": "normal", "values": STORED}
DENSE_ERROR = 2**-6  # of torch's layer, which may sum in its own dtype
LAYERS: dict[str, tuple[tuple[int, ...], ...]] = {  # shapes of weights
    "linear": ((1024, 1024), (4096, 4096)),
    "linear_grad_input": ((1024, 1024), (4096, 4096)),
    "conv2d": ((128, 128, 3, 3), (256, 256, 3, 3)),
    "stem": ((64, 3, 7, 7),),
}
STRIDE = {"stem": 2}
# inputs, and the edge of the result's image: a choice for so many pixels, and fewer, is timed there
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "linear": ((1, 1), (2, 1), (4, 1), (5, 1), (8, 1), (16, 1), (32, 1), (128, 1)),
    "linear_grad_input": ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (128, 1)),
    "conv2d": ((1, 7), (1, 14), (1, 28), (2, 28), (8, 28)),
    "stem": ((1, 112), (8, 112)),
}


class Weight(NamedTuple):
    """Copies of a weight in its residency, and dense ones for torch."""

    packs: list[Pack]
    dense: list[Tensor]


def _cache_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def _copies(weight: Pack) -> list[Pack]:
    tensors = {name: t for name, t in weight._asdict().items() if isinstance(t, Tensor)}
    count = copies_beyond(_cache_bytes(weight.header.device), sum(t.nbytes for t in tensors.values()))
    copies: list[dict[str, Any]] = [{name: t.clone() for name, t in tensors.items()} for _ in range(count - 1)]
    return [weight, *(weight._replace(**copy) for copy in copies)]


def weights(key: str, device: torch.device) -> list[Weight]:
    """Those of the layers that a key is timed on."""
    op, width, kind, residency = key.split("/")
    dtype, found = DTYPES[width], []
    for shape in LAYERS[op]:
        packed = pack(residency, CODES[kind], shape, dtype, device)
        plain = effective(packed, dtype)
        if len(shape) == 4:
            plain = plain.contiguous(memory_format=torch.channels_last)
        count = copies_beyond(_cache_bytes(device), plain.nbytes)
        found.append(Weight(_copies(packed), [plain, *(plain.clone() for _ in range(count - 1))]))
    return found


def _input(op: str, shape: tuple[int, ...], batch: int, edge: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if len(shape) == 2:
        return integers((batch, shape[0 if op == "linear_grad_input" else 1]), dtype).to(device)
    edge *= STRIDE.get(op, 1)
    return integers((batch, shape[1], edge, edge), dtype, torch.channels_last).to(device)


def _ours(op: str, x: Tensor, weight: Pack) -> Tensor:
    if op == "linear":
        return ops.linear(x, None, None, *weight)
    if op == "linear_grad_input":
        return ops.linear_grad_input(x, *weight)
    stride, padding = STRIDE.get(op, 1), weight.shape[-1] // 2
    return ops.conv2d(x, None, None, *weight, [stride] * 2, [padding] * 2, [1, 1], 1)


def _dense(op: str, x: Tensor, weight: Tensor) -> Tensor:
    if op == "linear":
        return F.linear(x, weight)
    if op == "linear_grad_input":
        return x @ weight
    return F.conv2d(x, weight, stride=STRIDE.get(op, 1), padding=weight.shape[-1] // 2)


def price(backend: str, op: str, x: Tensor, weight: Weight, timer: Timer) -> float:
    """Milliseconds of a product by a backend; ValueError where it is refused or wrong."""
    run: Callable[..., Tensor] = _dense if backend == "dense" else _ours
    copies: list = weight.dense if backend == "dense" else weight.packs
    exact = _dense(op, x.double(), weight.dense[0].double())
    with as_value_error(x.device), contextlib.nullcontext() if backend == "dense" else use(backend):
        y = run(op, x, copies[0])
        close = backend == "dense" and relative_error(y, exact) <= DENSE_ERROR
        if not close and not torch.equal(y, exact.to(x.dtype)):
            raise ValueError("wrong results")
        return timer(lambda: [run(op, x, copy) for copy in copies]) / len(copies)


def live() -> list[str]:
    """Backends to time: torch's layer is always there."""
    return [backend for backend in BACKENDS if backend == "dense" or not reasons(backend)]


def times(
    key: str, found: list[Weight], batch: int, edge: int, device: torch.device, timer: Timer, say: Say
) -> dict[str, float]:
    """Milliseconds of each live backend that serves all layers, their geometric mean."""
    op, width, _, _ = key.split("/")
    inputs = [_input(op, tuple(w.packs[0].shape), batch, edge, DTYPES[width], device) for w in found]
    taken = {}
    for backend in live():
        priced = partial(price, backend, op, timer=timer)
        try:
            taken[backend] = geometric_mean([priced(x, weight) for x, weight in zip(inputs, found, strict=True)])
        except ValueError as why:
            say(f"{key} at {batch * edge**2} pixels: left out {backend}: {why}")
    return taken


def fastest(taken: dict[str, float], pixels: int) -> Choice:
    """The choice for times by backend; one that is later in their order must be clearly faster."""
    best = next(iter(taken))
    for backend, milliseconds in taken.items():
        if milliseconds < MARGIN * taken[best]:
            best = backend
    told = ", ".join(f"{backend} {1e3 * milliseconds:.3g} us" for backend, milliseconds in taken.items())
    return Choice(pixels, best, f"at {pixels} pixels: {told}")


def joined(found: list[Choice]) -> list[Choice]:
    """Choices for growing numbers of pixels: neighbours of one backend as one, the last for any."""
    out: list[Choice] = []
    for choice in found:
        if out and out[-1].backend == choice.backend:
            out.pop()
        out.append(choice)
    return [*out[:-1], out[-1]._replace(pixels=None)]


def measured(
    keys: list[str], device: torch.device, seconds: float, timer: Timer, clock: Callable[[], float], say: Say
) -> Iterator[tuple[str, list[Choice]]]:
    """Choices of each key that time suffices for."""
    end = clock() + seconds
    for key in keys:
        if clock() >= end:
            say(f"{key}: not measured, time is up; the shipped choices stay")
            continue
        layers, found = weights(key, device), []
        for batch, edge in SIZES[key.split("/")[0]]:
            taken = times(key, layers, batch, edge, device, timer, say)
            if taken:
                found.append(fastest(taken, batch * edge**2))
        if found:
            yield key, joined(found)


def made(device: torch.device) -> str:
    """What a table tells of a measured target."""
    missing = [f"; without {backend}: {'; '.join(reasons(backend))}" for backend in BACKENDS if backend not in live()]
    return machine(device) + "".join(missing)


def tuned(
    old: Table, device: torch.device, made: str, seconds: float, say: Say, timer: Timer = replayed,
    clock: Callable[[], float] = time.monotonic,
) -> Table:  # fmt: skip
    """A table with this GPU's target measured and the others as they were."""
    name, entries = target(device), Entries()
    for key, found in measured(list(choices.shipped(name)[1]), device, seconds, timer, clock, say):
        entries[key] = found
        say(f"{key}: {', '.join(f'{limit(choice)} {choice.backend}' for choice in found)}")
    return Table({**old.made, name: made}, {**old.targets, name: entries})


def limit(choice: Choice) -> str:
    return "any" if choice.pixels is None else f"to {choice.pixels}"


def line(key: str, choice: Choice) -> tuple[str, ...]:
    """Of a printed table."""
    return *key.split("/"), limit(choice), choice.backend, choice.why


HEAD = ("op", "dtype", "code", "residency", "pixels", "backend", "why")
