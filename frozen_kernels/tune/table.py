"""Measures the residency table: fused layers against dense torch, one instruction set a process."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import __version__
from ..config import FreezeConfig
from ..memory.crossover import Cell, Table
from ..memory.residency import kind_of
from ..nn.layers import TWINS
from .measure import interleaved

ROUNDS, SECONDS = 9, 0.3  # of a cell
CODES = ("sign", "uniform", "normal")
# from here on torch has bfloat16 instructions of its own, and the two dtypes part
HALF_LEVELS = ("avx512", "amx")
# what makes torch, where it can do more, run as on a machine that has this level alone
TORCH_AS = {
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}


class _Layer(NamedTuple):
    make: Callable[[], nn.Module]
    sizes: tuple[tuple[int, ...], ...]  # of inputs


def _conv(channels: int, kernel: int, *sizes: tuple[int, int], groups: int = 1) -> _Layer:
    """A square convolution on inputs of (batch, pixels a side)."""
    return _Layer(
        lambda: nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups),
        tuple((batch, channels, side, side) for batch, side in sizes),
    )


LAYERS = (
    _Layer(lambda: nn.Linear(256, 256), ((1, 256), (8, 256), (64, 256))),
    _Layer(lambda: nn.Linear(1024, 1024), ((1, 1024), (8, 1024), (64, 1024))),
    _Layer(lambda: nn.Linear(1024, 4096), ((1, 1024), (8, 1024), (64, 1024))),
    _conv(16, 3, (1, 28), (16, 28)),
    _conv(64, 3, (1, 28), (8, 28)),
    _conv(256, 3, (1, 14), (4, 14)),
    _conv(256, 1, (1, 28)),
    _conv(128, 3, (1, 28), (8, 28), groups=128),
    _Layer(lambda: nn.ConvTranspose2d(64, 64, 4, 2, 1), ((1, 64, 14, 14),)),
)


def _held(plain: nn.Module, code: str) -> dict[str, nn.Module]:
    """Frozen twins with the plain layer's weight, by residency."""
    layers: dict[str, nn.Module] = {}
    for residency in ("mask", "planes"):
        # nothing free: time does not depend on what is kept, and no scores are drawn
        config = FreezeConfig(code=code, prune_ratio=0.5, lock_ratio=0.5)
        layer = TWINS[type(plain)].from_module(plain, config)  # type: ignore[attr-defined]
        layer.finalize()
        layer.set_residency(residency)
        layers[residency] = layer
    with torch.no_grad():
        plain.weight.copy_(layers["mask"].weight)  # type: ignore[operator, union-attr, arg-type]
    return layers


def _input(size: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = torch.Size(size).numel()
    return (torch.arange(count) * 37 % 256).sub(127.5).div(128).reshape(size).to(dtype)


@torch.no_grad()
def _measure(layer: _Layer, code: str, dtype: torch.dtype) -> Iterator[Cell]:
    plain = layer.make().to(dtype)
    held = _held(plain, code)
    twin = held["mask"]
    groups = getattr(plain, "groups", 1)
    for size in layer.sizes:
        x = _input(size, dtype)
        calls = {name: partial(m, x) for name, m in {"torch": plain, **held}.items()}
        # what else ran meanwhile only added time, to a few rounds of a side at random
        best = {name: min(times) for name, times in interleaved(calls, ROUNDS, SECONDS).items()}
        mask, planes = (round(best["torch"] / best[name], 3) for name in ("mask", "planes"))
        y = plain(x)
        pixels = y.numel() // y.shape[1]
        yield Cell(kind_of(twin), twin.rows // groups, twin.cols, pixels, mask, planes)  # type: ignore


def measure_level(level: str, say: Callable[[str], object]) -> dict[str, dict[str, list[Cell]]]:
    """Cells by dtype and code of the instruction set that is active, which is `level`."""
    dtypes = {"float32": torch.float32}
    if level in HALF_LEVELS:
        dtypes["bfloat16"] = torch.bfloat16
    found: dict[str, dict[str, list[Cell]]] = {}
    for name, dtype in dtypes.items():
        found[name] = {}
        for code in CODES:
            found[name][code] = [cell for layer in LAYERS for cell in _measure(layer, code, dtype)]
            say(f"{level} {name} {code}: {len(found[name][code])} layers measured")
    return found


def _in_a_process(level: str, threads: int, torch_too: bool) -> dict[str, dict[str, list[Cell]]]:
    """`measure_level` where this level is active from the start, and with `torch_too` the most that torch uses."""
    env = {**os.environ, "FROZEN_KERNELS_ISA": level, **(TORCH_AS[level] if torch_too else {})}
    command = [sys.executable, "-m", "frozen_kernels.tune.table", level, str(threads)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {level} ended with exit status {done.returncode}")
    measured = json.loads(done.stdout)
    return {
        dtype: {code: [Cell(*c) for c in cells] for code, cells in codes.items()} for dtype, codes in measured.items()
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure_table(levels: Sequence[str], best: str, threads: int) -> Table:
    """The table of some instruction sets of this machine; `best` is the one that torch uses by itself."""
    made = {
        "machine": _processor(),
        "frozen_kernels": __version__,
        "torch": torch.__version__,
        "threads": threads,
    }
    return Table(made, {level: _in_a_process(level, threads, level != best) for level in levels})


def main(arguments: Sequence[str]) -> None:
    """Measure the level named, with so many threads, and print its cells as JSON."""
    level, threads = arguments
    torch.set_num_threads(int(threads))
    print(json.dumps(measure_level(level, lambda line: print(line, file=sys.stderr))))


if __name__ == "__main__":
    main(sys.argv[1:])
