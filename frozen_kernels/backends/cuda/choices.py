"""Which backend runs a product on a GPU: data by GPU, op, dtype, kind of code, residency and pixels.

The package ships a table; `python -m frozen_kernels bench --tune` measures the GPU at hand into a file of the user's,
which then comes first.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch

from .. import targets
from ..geometry import POINT, Geometry
from ..targets import target

SHIPPED = Path(__file__).with_name("choices.json")
VARIABLE = "FROZEN_KERNELS_CHOICES"
VERSION = 1
BACKENDS = ("cuda", "triton", "dense")  # dense: torch's own layer, which `auto` residency takes
OPS = ("linear", "linear_grad_input", "conv2d", "stem")
KINDS = {"sign": "bits", "constant": "bits", "stored": "values"}  # of codes, else the code itself
STEM_CHANNELS = 4


class Choice(NamedTuple):
    """The backend of a product of up to so many pixels, None for any, and the measurement or count that says so."""

    pixels: int | None
    backend: str
    why: str


def _entry(row: list) -> Choice:
    pixels, backend, why = row
    if backend not in BACKENDS:
        raise ValueError(f"backend: one of {', '.join(BACKENDS)}, got {backend!r}")
    if not isinstance(why, str) or not why:
        raise ValueError(f"why: text expected, got {why!r}")
    return Choice(pixels, backend, why)


_FILE = targets.TableFile(
    "table of GPU choices", SHIPPED, VERSION, "gpu_choices.json", VARIABLE, ("pixels",), _entry, list
)  # fmt: skip
read, write, user_path, shipped = _FILE.read, _FILE.write, _FILE.user_path, _FILE.shipped
in_use = functools.cache(_FILE.in_use)


def key(op: str, dtype: torch.dtype, code: str, residency: str) -> str:
    """Of the table's entries for a product."""
    return f"{op}/{'float' if dtype == torch.float32 else 'half'}/{KINDS.get(code, code)}/{residency}"


# on the path of each call, so remembered by what a call has at hand
@functools.cache
def _entries(op: str, device: torch.device, dtype: torch.dtype, code: str, residency: str) -> list[Choice]:
    return in_use(target(device)).entries[key(op, dtype, code, residency)]


def choose(op: str, device: torch.device, dtype: torch.dtype, code: str, residency: str, pixels: int) -> Choice:
    """The first entry that serves so many output pixels, of the table in use."""
    entries: list[Choice] = _entries(op, device, dtype, code, residency)
    for entry in entries:
        if entry.pixels is None or pixels <= entry.pixels:
            break
    return entry


def op_of(geometry: Geometry, channels: int, transposed: bool) -> str:
    """What a product with a weight of so many channels is called in the table."""
    if geometry[:4] == POINT[:4]:
        return "linear_grad_input" if transposed else "linear"
    return "stem" if channels <= STEM_CHANNELS else "conv2d"


def forget() -> None:
    """Read the files again at the next call."""
    in_use.cache_clear()
    _entries.cache_clear()
