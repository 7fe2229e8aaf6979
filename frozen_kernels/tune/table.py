"""Measures the residency table: fused layers against dense torch, one instruction set a process."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import __version__
from ..config import FreezeConfig
from ..format import STORED, DrawnCode
from ..memory.auto import STORED_SPARSITIES, kind_of, stored_code
from ..memory.crossover import FUSED, Cell, Table, processor
from ..nn.layer import FrozenLayer
from ..nn.layers import TWINS
from .measure import interleaved, quartiles

ROUNDS, SECONDS = 15, 0.5  # of a layer and an input
MOST_NOISE = 0.2  # what more says is that the machine was busy
CODES: tuple[DrawnCode, ...] = ("sign", "uniform", "normal")
STORED_CODES = {stored_code(sparsity): sparsity for sparsity in STORED_SPARSITIES}
# from here on torch has bfloat16 instructions of its own, and the two dtypes part
HALF_LEVELS = ("avx512", "vnni", "zen4", "amx")
# what makes torch, where it can do more, run as on a machine that has this level alone
TORCH_AS = {
    "portable": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "vnni": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "zen4": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}


class _Layer(NamedTuple):
    make: Callable[[], nn.Module]
    sizes: tuple[tuple[int, ...], ...]  # of inputs


def _linear(cols: int, rows: int) -> _Layer:
    return _Layer(lambda: nn.Linear(cols, rows), tuple((batch, cols) for batch in (1, 8, 64)))


def _conv(
    channels: int, kernel: int, *sizes: tuple[int, int], rows: int | None = None, stride: int = 1, groups: int = 1
) -> _Layer:
    """A convolution, of as many rows as channels by default, on inputs of (batch, pixels a side)."""
    return _Layer(
        lambda: nn.Conv2d(channels, channels if rows is None else rows, kernel, stride, kernel // 2, groups=groups),
        tuple((batch, channels, side, side) for batch, side in sizes),
    )


def _transposed(channels: int, *sizes: tuple[int, int]) -> _Layer:
    return _Layer(
        lambda: nn.ConvTranspose2d(channels, channels, 4, 2, 1),
        tuple((batch, channels, side, side) for batch, side in sizes),
    )


def _embedding(count: int, dim: int) -> _Layer:
    return _Layer(lambda: nn.Embedding(count, dim), ((1,), (64,), (1024,)))


# the small ones cost little but their call, which is what decides there
LAYERS = (
    *(_linear(cols, rows) for cols, rows in (
        (16, 16), (64, 64), (128, 128), (256, 256), (512, 16), (16, 512), (512, 512), (1024, 1024), (1024, 4096),
        (4096, 1024),
    )),
    _conv(8, 3, (1, 8), (16, 8)),
    _conv(16, 3, (1, 8), (1, 28), (16, 28)),
    _conv(64, 3, (1, 8), (1, 28), (1, 56), (8, 28), (16, 56)),
    _conv(128, 3, (1, 28), (16, 28)),
    _conv(256, 3, (1, 14), (4, 14)),
    _conv(512, 3, (1, 7), (16, 7)),
    _conv(64, 1, (1, 8), (1, 28), (1, 56), (16, 56)),
    _conv(64, 1, (1, 56), (16, 56), rows=256),
    _conv(256, 1, (1, 56), (16, 56), rows=64),
    _conv(128, 1, (1, 28), (16, 28), rows=512),
    _conv(512, 1, (1, 28), (16, 28), rows=128),
    _conv(256, 1, (1, 28)),
    _conv(1024, 1, (1, 14), (16, 14), rows=256),
    _conv(512, 1, (1, 7), (16, 7), rows=2048),
    _conv(3, 3, (1, 8), (16, 28), rows=16),
    _conv(3, 7, (1, 112), (4, 112), (16, 224), rows=64, stride=2),
    _conv(16, 3, (1, 8), groups=16),
    _conv(128, 3, (1, 28), (8, 28), groups=128),
    _conv(960, 3, (1, 7), (16, 7), groups=960),
    _transposed(16, (1, 4)),
    _transposed(64, (1, 14), (16, 14)),
    _embedding(1000, 64),
    _embedding(4000, 512),
)  # fmt: skip


def _held(plain: nn.Module) -> dict[str, FrozenLayer]:
    """Frozen twins of a layer by code and residency, of which the key is both."""
    found: dict[str, FrozenLayer] = {}
    twin: Any = TWINS[type(plain)]
    for code in CODES:
        # nothing free: time does not depend on what is kept, and no scores are drawn
        layer = twin.from_module(plain, FreezeConfig(code=code, prune_ratio=0.5, lock_ratio=0.5))
        layer.finalize()
        for residency in FUSED:
            found[f"{code} {residency}"] = copy.deepcopy(layer)
            found[f"{code} {residency}"].set_residency(residency)
    if not isinstance(plain, nn.Embedding):
        for name, sparsity in STORED_CODES.items():
            layer = twin.from_module(plain, FreezeConfig(code=STORED, sparsity=sparsity))
            layer.finalize()
            found[f"{name} packed"] = layer
    return found


def _factors(taken: Sequence[dict[str, list[float]]], code: str) -> dict[str, float | None]:
    """How many times as fast as torch each residency is; of a stored weight one, in place of mask and planes."""

    def factor(residency: str) -> float:
        # what else ran meanwhile only added time, to a few rounds of a side at random
        return round(min(min(t["torch"]) / min(t[f"{code} {residency}"]) for t in taken), 3)

    if code in STORED_CODES:
        packed = factor("packed")
        return {"mask": packed, "planes": packed, "seed": None}
    return {residency: factor(residency) for residency in FUSED}


def _input(plain: nn.Module, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    count = torch.Size(size).numel()
    values = torch.arange(count) * 37
    if isinstance(plain, nn.Embedding):
        return (values % plain.num_embeddings).reshape(size)
    return (values % 256).sub(127.5).div(128).reshape(size).to(dtype)


def _noise(times: Sequence[float]) -> float:
    """By what part of its least a time varies from round to round."""
    return quartiles(times).low / min(times) - 1


@torch.no_grad()
def _measure(layer: _Layer, dtype: torch.dtype) -> Iterator[tuple[str, Cell]]:
    """A cell for each code and size of input: whole calls of modules, torch's and ours in turns.

    Torch is faster in one layout of an image or the other: the factor is that of the layout which suits it best.
    """
    plain = layer.make().to(dtype)
    held = _held(plain)
    twin = next(iter(held.values()))
    rows = twin.rows // getattr(plain, "groups", 1)
    for size in layer.sizes:
        x = _input(plain, size, dtype)
        layouts = [x] if x.dim() < 4 else [x, x.contiguous(memory_format=torch.channels_last)]
        taken = []
        for given in layouts:
            calls = {"torch": partial(plain, given)} | {name: partial(m, given) for name, m in held.items()}
            taken.append(interleaved(calls, ROUNDS, SECONDS / len(layouts)))
        y = plain(x)
        pixels = y.numel() // y.shape[1]
        for code in list(dict.fromkeys(name.rpartition(" ")[0] for name in held)):
            sides = ["torch", *(name for name in held if name.startswith(code + " "))]
            noise = max(_noise(t[name]) for t in taken for name in sides)
            sizes = kind_of(twin), rows, twin.cols, pixels
            yield code, Cell(*sizes, **_factors(taken, code), noise=round(min(noise, MOST_NOISE), 3))  # type: ignore[arg-type]


def measure_level(level: str, say: Callable[[str], object]) -> dict[str, dict[str, list[Cell]]]:
    """Cells by dtype and code of the instruction set that is active, which is `level`."""
    dtypes = {"float32": torch.float32}
    if level in HALF_LEVELS:
        dtypes["bfloat16"] = torch.bfloat16
    found: dict[str, dict[str, list[Cell]]] = {}
    for name, dtype in dtypes.items():
        found[name] = {code: [] for code in (*CODES, *STORED_CODES)}
        for layer in LAYERS:
            for code, cell in _measure(layer, dtype):
                found[name][code].append(cell)
        say(f"{level} {name}: {sum(map(len, found[name].values()))} layers measured")
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


def measure_table(levels: Sequence[str], best: str, threads: int) -> Table:
    """The table of some instruction sets of this machine; `best` is the one that torch uses by itself."""
    made = {
        "machine": processor(),
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
