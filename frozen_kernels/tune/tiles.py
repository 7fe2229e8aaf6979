"""Measures the tiles of the Triton product on the GPU at hand, for `bench --tune`; nothing else ever tunes.

Each entry of the shipped table keeps the sizes it serves and gets the fastest tile found for them: one field is varied
at a time, and the best so far goes on to the next. Residencies and directions are timed together, for a tile must not
depend on them: seed, mask and planes give bitwise the same outputs. A candidate is timed only where it is exact.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import __version__
from ..backends import triton as backend
from ..backends.geometry import POINT, Side, as_pixels, geometry, side
from ..backends.reference.weights import effective
from ..backends.targets import Entries, Table, target
from ..backends.triton import tuning
from ..backends.triton.launch import decode_args, interpreting
from ..backends.triton.product import fill
from ..backends.triton.tuning import Entry, Tile
from ..format import STORED, Pack, make_header, matrix_shape

SECONDS = 1800.0
ops: Any = torch.ops.frozen_kernels
HALF = 32768  # of the weights, as a threshold
MARGIN = 0.97  # of the shipped tile's time: less of a gain is noise
REPLAY_MS = 5  # of one of the graph replays whose median counts
CHOICES = {
    "pixels": (16, 32, 64, 128, 256),
    "rows": (64, 128, 256),
    "words": (1, 2, 4, 8),
    "warps": (4, 8),
    "stages": (2, 3, 4),
}
# rows and output pixels: an entry is timed at those that it serves
SIZES = (
    (1024, 1), (256, 16), (256, 49), (1024, 49), (16, 3136), (64, 3136), (128, 784), (256, 784), (512, 12544),
)  # fmt: skip
DTYPES = {"half": torch.bfloat16, "float": torch.float32}
CODES = {"bits": "sign", "bytes": "uniform", "values": STORED}
RESIDENCIES = ("planes", "mask")  # of drawn weights


class _Layout(NamedTuple):
    """The layers that stand for a layout of the product's inputs; a linear layer has no taps."""

    channels: int
    taps: int
    memory_format: torch.memory_format | None
    back: bool  # whether products with the transposed weight share the entry


LAYOUTS = {
    "linear": _Layout(1024, 0, None, True),
    "runs": _Layout(128, 3, torch.channels_last, True),
    "strided": _Layout(128, 3, torch.contiguous_format, True),
    "mixed": _Layout(3, 7, torch.channels_last, False),
}


class Case(NamedTuple):
    """A product: a launch with a tile, where its result lies, and what that must be."""

    launch: Callable[[Tile], Any]
    y: Tensor
    expected: Tensor


class Choice(NamedTuple):
    """What was found for an entry of a key: how many times as fast as the shipped tile, over so many candidates."""

    key: str
    entry: Entry
    shipped: Tile
    faster: float
    tried: int


Timer = Callable[[Callable[[], object]], float]
Say = Callable[[str], object]


def lacking() -> str:
    """Why no tile can be timed here; empty where it can."""
    return "; ".join(backend.reasons()) or ("kernels run in Triton's interpreter" if interpreting() else "")


def replayed(call: Callable[[], object]) -> float:
    """Milliseconds of a call, the median of replays of a CUDA graph of many."""
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(call, rep=REPLAY_MS, return_mode="median")


def integers(size: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format | None = None) -> Tensor:
    """Whose products with codes are exact in any order."""
    values = torch.arange(math.prod(size)).mul(37).remainder(7).sub(3).reshape(size).to(dtype)
    return values.contiguous(memory_format=memory_format) if memory_format else values


def pack(residency: str, code: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Pack:
    """A frozen tensor, half of it dropped; of a stored weight with values of this dtype."""
    if code == STORED:
        return _stored(shape, dtype, device)
    # nothing is free: time does not depend on what is kept
    header = make_header(seed=0, tau_prune=HALF, tau_freeze=2 * HALF, scale=1.0)
    rows, cols = matrix_shape(shape)
    supermask, offsets = torch.empty(0, dtype=torch.uint8), ops.offsets(header, rows, cols)
    keep = ops.keep_plane(header, supermask, offsets, rows, cols).to(device)
    draw = ops.draw_plane(header, code, rows, cols).to(device) if residency == "planes" else None
    return Pack(header.to(device), None, None, keep, draw, None, None, None, code, shape)


def _stored(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Pack:
    """Packed values that are integers, half of them dropped."""
    rows, cols = matrix_shape(shape)
    header = make_header(0, code=STORED)
    keep = ops.planes(ops.draws(header, rows, cols, 0, 0) < HALF)
    values = ops.pack_values(integers(shape, dtype), keep).to(device)
    offsets = ops.plane_offsets(keep, cols).to(device)
    return Pack(header.to(device), None, offsets, keep.to(device), None, None, values, None, STORED, shape)


def _packs(shape: tuple[int, ...], dtype: torch.dtype, code: str, device: torch.device) -> list[Pack]:
    """The weight in every residency that a product decodes."""
    return [pack(r, code, shape, dtype, device) for r in (("packed",) if code == STORED else RESIDENCIES)]


def _cases(
    layout: _Layout, rows: int, pixels: int, dtype: torch.dtype, code: str, device: torch.device
) -> Iterator[Case]:
    """The products of a layer and of its input's gradient in every residency."""
    channels, edge, pad = layout.channels, math.isqrt(pixels), layout.taps // 2
    shape: tuple[int, ...] = (rows, channels)
    x_size: tuple[int, ...] = (pixels, channels)
    y_size: tuple[int, ...] = (pixels, rows)
    at = POINT
    if layout.taps:
        shape = (rows, channels, layout.taps, layout.taps)
        x_size, y_size = (1, channels, edge, edge), (1, rows, edge, edge)
        at = geometry(shape, (1, 1), (pad, pad), (1, 1), 1)
    packs = _packs(shape, dtype, code, device)
    weight = effective(packs[0], torch.float32).double()
    for transposed in (False, True) if layout.back else (False,):
        sizes = (y_size, x_size) if transposed else (x_size, y_size)
        x, y = (integers(size, dtype, layout.memory_format).to(device) for size in sizes)
        if not layout.taps:
            exact = x.double() @ (weight if transposed else weight.T)
        else:
            exact = (F.conv_transpose2d if transposed else F.conv2d)(x.double(), weight, padding=pad)
        y_side, x_side = (side(t) if layout.taps else as_pixels(t)[0][1] for t in (y, x))
        for pack in packs:
            args = decode_args(pack)

            def launch(
                tile: Tile, x: Tensor = x, y: Tensor = y, xs: Side = x_side, ys: Side = y_side,
                args: dict[str, Any] = args, transposed: bool = transposed,
            ) -> Any:  # fmt: skip
                return fill(y, ys, x, xs, args, at, transposed, tile=tile)

            yield Case(launch, y, exact.to(dtype))


def cases(key: str, entries: list[Entry], entry: Entry, device: torch.device) -> list[Case]:
    """What an entry of a key is timed on: the layers of `SIZES` that it serves."""
    _, name, width, kind = key.split("/")
    return [
        case
        for rows, pixels in SIZES
        if tuning.fitting(entries, rows, pixels) is entry
        for case in _cases(LAYOUTS[name], rows, pixels, DTYPES[width], CODES[kind], device)
    ]


@contextlib.contextmanager
def as_value_error(device: torch.device) -> Iterator[None]:
    """ValueError in one line for what Triton or CUDA refuses."""
    from triton.errors import TritonError

    try:
        yield
    except (TritonError, RuntimeError) as why:
        if device.type == "cuda":
            torch.cuda.synchronize()  # an error that no later launch survives is not this one's alone
        first = str(why).strip().partition("\n")[0]
        raise ValueError(f"{type(why).__name__}: {first[:120]}") from None


def geometric_mean(times: list[float]) -> float:
    return math.exp(sum(map(math.log, times)) / len(times))


def cost(found: list[Case], tile: Tile, timer: Timer) -> float:
    """Geometric mean of the cases' times; ValueError where one is wrong, spills or is not compiled."""
    for case in found:
        case.y.fill_(math.nan)
        with as_value_error(case.y.device):
            built = case.launch(tile)
        if getattr(built, "n_spills", 0):
            raise ValueError(f"spills {built.n_spills} registers")
        if not torch.equal(case.y, case.expected):
            raise ValueError("wrong results")
    return geometric_mean([timer(partial(case.launch, tile)) for case in found])


def varied(tile: Tile, field: str, value: int) -> Tile:
    """The tile with another value; sums of the tensor cores stay as short as they were, so errors as small."""
    changed = tile._replace(**{field: value})
    if tile.flush and field == "words":
        changed = changed._replace(flush=max(1, tile.flush * tile.words // value))
    return changed


def search(shipped: Tile, price: Callable[[Tile], float], go_on: Callable[[], bool]) -> tuple[Tile, float, int]:
    """The cheapest tile found, how many times as fast as the shipped one, and how many were priced."""
    prices = {shipped: price(shipped)}

    def cheapest() -> Tile:
        return min(prices, key=prices.__getitem__)

    for field, values in CHOICES.items():
        start = cheapest()
        for value in values:
            tile = varied(start, field, value)
            if tile not in prices and go_on():
                prices[tile] = price(tile)
    best = cheapest()
    if not prices[best] < MARGIN * prices[shipped]:
        return shipped, 1.0, len(prices)
    return best, prices[shipped] / prices[best], len(prices)


def choices(
    entries_of: Entries, device: torch.device, seconds: float, timer: Timer, clock: Callable[[], float], say: Say
) -> Iterator[Choice]:
    """Of every entry; each gets an equal share of the time left, and at least its shipped tile is priced."""
    end, left = clock() + seconds, sum(map(len, entries_of.values()))
    for key, entries in entries_of.items():
        for entry in entries:
            share = clock() + (end - clock()) / left
            left -= 1
            found = cases(key, entries, entry, device) if clock() < end else []
            if not found:
                say(f"{key} {_sizes(entry)}: not measured, time is up; the shipped tile stays")
                yield Choice(key, entry, entry.tile, 1.0, 0)
                continue

            what = f"{key} {_sizes(entry)}"

            def price(tile: Tile, found: list[Case] = found, what: str = what) -> float:
                try:
                    return cost(found, tile, timer)
                except ValueError as why:
                    say(f"{what}: skipped {show(tile)}: {why}")
                    return math.inf

            tile, faster, tried = search(entry.tile, price, lambda share=share: clock() < share)  # type: ignore
            yield Choice(key, entry._replace(tile=tile), entry.tile, faster, tried)


def _sizes(entry: Entry) -> str:
    rows, pixels = ("any" if limit is None else f"to {limit}" for limit in (entry.rows, entry.pixels))
    return f"rows {rows}, pixels {pixels}"


def show(tile: Tile) -> str:
    return f"{tile.rows} x {tile.pixels}, {tile.words} words, {tile.warps} warps, {tile.stages} stages"


def line(choice: Choice) -> tuple[str, str, str, str, str, int]:
    """Of a printed table."""
    same = choice.shipped == choice.entry.tile
    tiles = show(choice.shipped), "the same" if same else show(choice.entry.tile)
    return choice.key, _sizes(choice.entry), *tiles, f"{choice.faster:.2f}", choice.tried


HEAD = ("key", "sizes", "shipped tile", "tile", "x shipped", "tried")


def machine(device: torch.device) -> str:
    """What `made` tells of a measured target."""
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}, frozen_kernels {__version__}"
    return f"timed on {torch.cuda.get_device_name(device)}, {versions}"


def tuned(
    old: Table, device: torch.device, made: str, seconds: float, say: Say, timer: Timer = replayed,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Table, list[Choice]]:  # fmt: skip
    """A table with this GPU's target measured and the others as they were, and what was found."""
    name = target(device)
    found, entries = [], tuning.shipped(name)[1]
    for choice in choices(entries, device, seconds, timer, clock, say):
        found.append(choice)
        if choice.tried:
            say(f"{choice.key} {_sizes(choice.entry)}: {show(choice.entry.tile)}, {choice.faster:.2f} x shipped")
    # a key that time did not reach goes on following the shipped table
    reached = dict.fromkeys(c.key for c in found if c.tried)
    measured: Entries = {key: [c.entry for c in found if c.key == key] for key in reached}
    return Table({**old.made, name: made}, {**old.targets, name: measured}), found
