"""`bench` without a model: a few layers in each residency."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import backends
from .. import nn as frozen_nn
from ..config import DEFAULT_FREEZE_RATIO, FreezeConfig
from ..tensor import RESIDENCIES, resident_bytes
from ..text import table
from ..tune.measure import MIN_ROUNDS, interleaved, quartiles, relative_error, speedup
from .usage import Usage

BENCH_LAYERS: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("linear 1024x1024", lambda: nn.Linear(1024, 1024), (1024,)),
    ("linear 4096x1024", lambda: nn.Linear(1024, 4096), (1024,)),
    ("conv2d 64x64x3x3 on 28x28", lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 28, 28)),
    ("conv2d 256x256x3x3 on 14x14", lambda: nn.Conv2d(256, 256, 3, padding=1), (256, 14, 14)),
)
SECONDS = 5.0  # a layer gets no further rounds after this
BENCH_TOLERANCE = 1e-4  # largest error over largest output, against float64


class Settings(NamedTuple):
    """Of the inputs, of the layers, and how long they are timed."""

    batch: int
    code: Any
    freeze_ratio: float
    rounds: int
    seconds: float


def _check_output(name: str, found: Tensor, right: Tensor) -> None:
    error = relative_error(found, right)
    if not error <= BENCH_TOLERANCE:
        raise ValueError(f"{name}: relative error {error:.2e} against float64, at most {BENCH_TOLERANCE:.0e}")


def _bench_layer(
    label: str, make: Callable[[], nn.Module], size: tuple[int, ...], chosen: Settings
) -> list[Sequence[object]]:
    plain = make()
    twin = frozen_nn.TWINS[type(plain)]
    config = FreezeConfig(code=chosen.code, freeze_ratio=chosen.freeze_ratio)
    x = torch.randn(chosen.batch, *size)
    layers: dict[str, nn.Module] = {}
    for residency in RESIDENCIES:
        layers[residency] = twin.from_module(plain, config)  # type: ignore[attr-defined]
        layers[residency].finalize()  # type: ignore[operator]
        layers[residency].set_residency(residency)  # type: ignore[operator]
    plain.weight.copy_(layers["mask"].weight)  # type: ignore[operator, union-attr, arg-type]
    right = make().double()
    right.load_state_dict(plain.state_dict())
    expected = right(x.double())
    calls = {"torch": lambda: plain(x)} | {name: (lambda m=layer: m(x)) for name, layer in layers.items()}
    for name, call in calls.items():
        _check_output(f"{label}, {name}", call(), expected)
    times = interleaved(calls, chosen.rounds, chosen.seconds)
    out: list[Sequence[object]] = []
    for name, taken in times.items():
        low, middle, high = quartiles(taken)
        faster = speedup(times["torch"], taken).median
        held = 4 * plain.weight.numel()  # type: ignore[operator, union-attr]
        if name != "torch":
            layer = layers[name]
            held = resident_bytes(layer.shape, layer.code, layer.counts["free"], name)  # type: ignore
        out.append((label, name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{faster:.2f}", held))
    return out


@torch.no_grad()
def bench_layers(options: argparse.Namespace) -> None:
    """Forward of a few layers in each residency against the dense torch layer, checked first, on the same threads."""
    chosen = Settings(
        1 if options.batch is None else options.batch,
        "sign" if options.code is None else options.code,
        DEFAULT_FREEZE_RATIO if options.freeze_ratio is None else options.freeze_ratio,
        max(options.rounds, MIN_ROUNDS),
        SECONDS if options.seconds is None else options.seconds,
    )
    try:
        FreezeConfig(code=chosen.code, freeze_ratio=chosen.freeze_ratio)
    except ValueError as why:
        raise Usage(str(why)) from None
    torch.set_num_threads(options.threads)
    live = ", ".join(name for name, state in backends.report().items() if state == "live")
    print(
        f"batch {chosen.batch}, float32, code {chosen.code}, freeze ratio {chosen.freeze_ratio:g}, "
        f"{torch.get_num_threads()} threads, up to {chosen.rounds} rounds; live backends: {live}\n"
    )
    rows = [row for label, make, size in BENCH_LAYERS for row in _bench_layer(label, make, size, chosen)]
    print(table(("layer", "residency", "median ms", "quartiles", "x torch", "bytes held"), rows))
