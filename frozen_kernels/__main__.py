"""`python -m frozen_kernels info | inspect FILE | verify FILE | footprint FILE | bench`.

Exit status: 0, 1 for a failure (told in one line on stderr), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from . import __version__, backends, files
from . import nn as frozen_nn
from .backends.cuda import choices
from .backends.targets import Table, target
from .backends.triton import tuning
from .config import FreezeConfig
from .format import CODES, HEADER_WORDS
from .memory import crossover
from .tensor import RESIDENCIES, default_residency, residencies_of, resident_bytes, stored_bytes
from .text import table
from .tickets.container import short
from .tickets.features import features_of
from .tickets.file import TensorRecord, Ticket, read_ticket, verify_ticket
from .tune import choices as tune_choices
from .tune import tiles as tune_tiles
from .tune.measure import MIN_ROUNDS, interleaved, quartiles, relative_error, speedup
from .tune.table import measure_table

BENCH_LAYERS: tuple[tuple[str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("linear 1024x1024", lambda: nn.Linear(1024, 1024), (1024,)),
    ("linear 4096x1024", lambda: nn.Linear(1024, 4096), (1024,)),
    ("conv2d 64x64x3x3 on 28x28", lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 28, 28)),
    ("conv2d 256x256x3x3 on 14x14", lambda: nn.Conv2d(256, 256, 3, padding=1), (256, 14, 14)),
)
SECONDS = 5.0  # a layer gets no further rounds after this
TUNE_SECONDS = tune_tiles.SECONDS + tune_choices.SECONDS
BENCH_TOLERANCE = 1e-4  # largest error over largest output, against float64


def info(options: argparse.Namespace) -> None:
    """Versions, live backends, instruction set, threads; with --kernels what each CPU kernel and GPU backend serves."""
    if options.kernels:
        print_kernels()
        print_choices()
        return
    print(f"frozen_kernels {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "safetensors")))
    try:
        from . import _C  # type: ignore[attr-defined]

        print(f"extension: {_C.build_info()}; instruction set {_C.isa()} of {', '.join(_C.isa_available())}")
    except ImportError as why:
        print(f"extension: missing ({why}); ops run on the reference, without fused kernels")
    path, measured = crossover.in_use(crossover.active_level())
    print(f"residency table: {path}, measured on {', '.join(f'{k} {v}' for k, v in measured.made.items())}")
    gpu = _gpu()
    for name, found in (("tiles", tuning.in_use(gpu)), ("choices", choices.in_use(gpu))):
        print(f"GPU {name}: {found.path}, for {gpu}: {found.made}")
    print(f"threads: {torch.get_num_threads()}")
    for name, state in backends.report().items():
        print(f"backend {name}: {state}")


def _gpu() -> str:
    """The GPU at hand as tables name it; "default" where there is none."""
    return target(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def print_kernels() -> None:
    """The kernels of the CPU's instruction set in use; the first that serves a call does it."""
    try:
        from . import _C  # type: ignore[attr-defined]
    except ImportError as why:
        raise RuntimeError(f"--kernels: the extension is missing ({why})") from None
    print(f"instruction set {_C.isa()}\n")
    print(table(("operation", "kernel", "serves"), _C.kernels()))


def print_choices() -> None:
    """The table by which a product on a GPU chooses its backend, for the GPU at hand."""
    path, made, entries = choices.in_use(_gpu())
    rows = [tune_choices.line(key, choice) for key, found in entries.items() for choice in found]
    print(f"\nbackends on a GPU of target {_gpu()}, by {path}: {made}\n")
    print(table(tune_choices.HEAD, rows))


def inspect(options: argparse.Namespace) -> None:
    """What a ticket holds; its digest and counts are checked."""
    ticket = read_ticket(options.file)
    print(f"{ticket.path}: format {ticket.metadata['frozen_kernels.format']}, {ticket.file_bytes:,} bytes\n")
    if ticket.masks is not None:
        print(f"a bank of {len(ticket.masks)} masks: {', '.join(map(short, ticket.masks))}\n")
    head = ("frozen", "shape", "code", "seed", "stream", "pruned", "locked", "free", "kept", "scale")
    rows = [
        (short(r.name), _sizes(r.shape), _code(r), str(r.seed), str(r.stream), r.pruned, r.locked, r.free,
         _span([n.kept for n in r.networks], "d"), _span([n.scale for n in r.networks], ".6g"))
        for r in ticket.records
    ]  # fmt: skip
    print(table(head, rows))
    if ticket.ordinary:
        rest = [(short(n), _sizes(t.shape), str(t.dtype).split(".")[-1], t.nbytes) for n, t in ticket.ordinary.items()]
        print("\n" + table(("ordinary", "shape", "dtype", "bytes"), rest))


def _span(values: Sequence[float], form: str) -> str:
    """One value, or the least and the largest of those of a bank's masks."""
    least, most = min(values), max(values)
    return f"{least:{form}}" if least == most else f"{least:{form}} to {most:{form}}"


def _code(record: TensorRecord) -> str:
    code = record.code if record.values is None else f"{record.code} {record.values}"
    code += "" if record.coats is None else f", {record.coats} coats"
    return code if record.generations is None else f"{code}, {record.generations} generations"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def verify(options: argparse.Namespace) -> None:
    """Digest, counts and supermasks of a ticket, and every keep plane regenerated from its seed."""
    ticket = read_ticket(options.file)
    verify_ticket(ticket)
    planes = sum(len(record.supermask_names) for record in ticket.records)
    print(f"{ticket.path}: whole; {planes} keep planes regenerate as written")


_BESIDE = {"stored": "stored values", "signs": "stored signs", "coats": "coats after the first"}


def footprint(options: argparse.Namespace) -> None:
    """Bytes of a ticket on disk by kind, and of its frozen weights in memory by residency."""
    ticket = read_ticket(options.file)
    weights = max(sum(r.rows * r.cols for r in ticket.records), 1)
    masks = sum(ticket.tensors[name].nbytes for r in ticket.records for name in r.supermask_names)
    beside: dict[str, int] = {}
    for r in ticket.records:
        for feature in features_of(r):
            names = {f"{r.name}.{end}" for end in feature.tensors(r)} - {*r.supermask_names}
            size = sum(ticket.tensors[name].nbytes for name in names if name in ticket.tensors)
            beside[feature.name] = beside.get(feature.name, 0) + size
    ordinary = sum(t.nbytes for t in ticket.ordinary.values())
    disk = [("supermasks", masks), *((_BESIDE.get(name, name), size) for name, size in beside.items())]
    disk += [("ordinary tensors", ordinary), ("metadata", ticket.header_bytes)]
    disk.append(("file", ticket.file_bytes))
    many = "" if ticket.masks is None else f", a bank of {len(ticket.masks)} masks"
    print(f"{ticket.path}: {weights:,} frozen weights{many}\n")
    print(table(("on disk", "bytes", "bits/weight"), [(n, size, _bits(size, weights)) for n, size in disk]))
    print("\n" + table(("in memory", "bytes", "bits/weight"), _resident(ticket, weights)))
    ready = "" if ticket.masks is None else ", all masks held ready"
    print(f"\nin memory: computed, frozen weights alone{ready}; dense is float32. Add the ordinary tensors.")


def _resident(ticket: Ticket, weights: int) -> list[tuple[str, int, str]]:
    codes = {r.code for r in ticket.records}
    # those of the codes that have the most; other codes are in their own beside them
    shown = max((residencies_of(code) for code in codes), key=len)
    out: list[tuple[str, int, str]] = []
    for residency in shown:
        size = sum(_held(r, _nearest(r, residency), ticket) for r in ticket.records)
        beside = sorted({_nearest(r, residency) for r in ticket.records} - {residency})
        out.append((", ".join((residency, *beside)), size, _bits(size, weights)))
    return out


def _nearest(record: TensorRecord, residency: str) -> str:
    """The residency itself, or the one that a tensor has in its place."""
    layered = record.coats is not None, record.generations is not None
    return residency if residency in residencies_of(record.code, *layered) else default_residency(record.code, *layered)


def _held(record: TensorRecord, residency: str, ticket: Ticket) -> int:
    """Bytes of a weight in a residency, under each mask of a bank: what masks have in common is there once."""
    others = len(record.networks) - 1
    if record.values is not None:
        size = sum(stored_bytes(record.shape, n.kept, record.values, residency) for n in record.networks)
        scale = 4 * record.rows if record.values == "int8" else 0
        union = ticket.tensors[f"{record.name}.values"].nbytes + ticket.tensors[record.supermask_names[0]].nbytes
        return size - others * scale + (union if record.masks is not None else 0)
    alone = resident_bytes(
        record.shape,
        record.code,
        record.free,
        residency,
        coats=record.coats or 1,
        generations=record.generations or 1,
        row_scaled=f"{record.name}.row_scale" in ticket.tensors,
    )
    if not others:
        return alone
    if residency == "seed":
        return alone + others * (4 * HEADER_WORDS + -(-record.free // 8))
    # the draws are those of all masks
    own = "mask" if residency == "planes" else residency
    return alone + others * resident_bytes(record.shape, record.code, record.free, own)


def _bits(size: int, weights: int) -> str:
    return f"{8 * size / weights:.3f}"


def _check_output(name: str, found: Tensor, right: Tensor) -> None:
    error = relative_error(found, right)
    if not error <= BENCH_TOLERANCE:
        raise ValueError(f"{name}: relative error {error:.2e} against float64, at most {BENCH_TOLERANCE:.0e}")


def _bench_layer(
    label: str, make: Callable[[], nn.Module], size: tuple[int, ...], options: argparse.Namespace
) -> list[Sequence[object]]:
    plain = make()
    twin = frozen_nn.TWINS[type(plain)]
    config = FreezeConfig(code=options.code, freeze_ratio=options.freeze_ratio)
    x = torch.randn(options.batch, *size)
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
    times = interleaved(calls, options.rounds, SECONDS if options.seconds is None else options.seconds)
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


def tune(options: argparse.Namespace) -> None:
    """Measure the tables of this machine: where fused kernels beat torch on its CPU, tiles and backends of its GPU."""
    no_gpu = tune_tiles.lacking()
    wanted = [options.device] if options.device else ["cpu"] if no_gpu else ["cpu", "cuda"]
    if no_gpu and options.device == "cuda":
        raise RuntimeError(f"--device cuda: {no_gpu}")
    if options.out and len(wanted) > 1:
        raise ValueError("--out: a file holds one table, choose it by --device cpu or --device cuda")
    if "cpu" in wanted and (crossover.active_level() is not None or wanted == ["cpu"]):
        tune_cpu(options)
    if "cuda" in wanted:
        tune_gpu(options)
    elif options.device is None:
        print(f"GPU tiles and choices: not measured, {no_gpu}")


def _table_path(given: Path | None, user_path: Callable[[], Path], variable: str) -> Path:
    """Where a measured table will go; ValueError, before anything is measured, where there is no place for it."""
    path = given or user_path()
    if files.NOWHERE in path.parents:
        raise ValueError(f"--tune: there is no home folder to keep the table in; give --out FILE or set ${variable}")
    return path


def tune_gpu(options: argparse.Namespace) -> None:
    """Measure tiles of the product on the current GPU, then which backend is the fastest with these."""
    device = torch.device("cuda", torch.cuda.current_device())
    beside: Path | None = options.out and options.out.with_stem(f"{options.out.stem}_choices")
    tiles_path = _table_path(options.out, tuning.user_path, tuning.VARIABLE)
    choices_path = _table_path(beside, choices.user_path, choices.VARIABLE)
    # targets of other GPUs stay
    old_tiles = tuning.read(tiles_path) if tiles_path.exists() else Table({}, {})
    old_choices = choices.read(choices_path) if choices_path.exists() else Table({}, {})
    share = 1.0 if options.seconds is None else options.seconds / TUNE_SECONDS

    seconds = share * tune_tiles.SECONDS
    tiles, found = tune_tiles.tuned(old_tiles, device, tune_tiles.machine(device), seconds, print)
    tuning.write(tiles, tiles_path)
    tuning.in_use.cache_clear()
    print("\n" + table(tune_tiles.HEAD, [tune_tiles.line(choice) for choice in found]))
    print(f"\nwritten to {tiles_path}\n")

    seconds = share * tune_choices.SECONDS
    chosen = tune_choices.tuned(old_choices, device, tune_choices.made(device), seconds, print)
    choices.write(chosen, choices_path)
    choices.forget()
    rows = [tune_choices.line(key, c) for key, found in chosen.targets[target(device)].items() for c in found]
    print("\n" + table(tune_choices.HEAD, rows))
    print(f"\nwritten to {choices_path}")


def tune_cpu(options: argparse.Namespace) -> None:
    """Measure where fused kernels beat torch, for `set_residency(model, "auto")` on this machine."""
    level = crossover.active_level()
    if level is None:
        raise RuntimeError("--tune: there is nothing to measure without the extension")
    path = _table_path(options.out, crossover.user_path, crossover.VARIABLE)
    if options.out is None:
        measured = measure_table([level], level, options.threads)
    else:
        from . import _C  # type: ignore[attr-defined]

        levels = _C.isa_available()
        measured = measure_table(levels, levels[-1], options.threads)
    crossover.write(measured, path)
    rows = [
        (name, dtype, code, str(cell), f"{cell.mask:.2f}", f"{cell.planes:.2f}")
        for name, dtypes in measured.levels.items()
        for dtype, codes in dtypes.items()
        for code, cells in codes.items()
        for cell in cells
    ]
    print(table(("instruction set", "dtype", "code", "layer", "mask x torch", "planes x torch"), rows))
    print(f"\nwritten to {path}")


@torch.no_grad()
def bench(options: argparse.Namespace) -> None:
    """Forward of a few layers in each residency against the dense torch layer, checked first, on the same threads."""
    for name in ("out", "device"):
        if getattr(options, name) and not options.tune:
            raise ValueError(f"--{name}: goes with --tune")
    if options.tune:
        tune(options)
        return
    torch.set_num_threads(options.threads)
    live = ", ".join(name for name, state in backends.report().items() if state == "live")
    print(
        f"batch {options.batch}, float32, code {options.code}, freeze ratio {options.freeze_ratio:g}, "
        f"{torch.get_num_threads()} threads, up to {options.rounds} rounds; live backends: {live}\n"
    )
    rows = [row for label, make, size in BENCH_LAYERS for row in _bench_layer(label, make, size, options)]
    print(table(("layer", "residency", "median ms", "quartiles", "x torch", "bytes held"), rows))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"1 or more, got {value}")
    return value


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    root = argparse.ArgumentParser(prog="python -m frozen_kernels", description="Frozen networks and their tickets.")
    commands = root.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("info", help=info.__doc__)
    sub.add_argument(
        "--kernels",
        action="store_true",
        help="the CPU kernels by operation, in the order they are asked; the GPU backends",
    )
    sub.set_defaults(run=info)
    for command in (inspect, verify, footprint):
        sub = commands.add_parser(command.__name__, help=command.__doc__)
        sub.add_argument("file", metavar="FILE", help="a ticket")
        sub.set_defaults(run=command)
    sub = commands.add_parser("bench", help=bench.__doc__)
    sub.add_argument("--batch", type=_positive, default=1)
    sub.add_argument("--rounds", type=lambda text: max(_positive(text), MIN_ROUNDS), default=20)
    sub.add_argument(
        "--seconds", type=float,
        help=f"a layer gets no further rounds after this ({SECONDS:g}); with --tune: for GPU tiles and choices "
        f"({TUNE_SECONDS:g})",
    )  # fmt: skip
    sub.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    sub.add_argument("--code", choices=CODES, default="sign")
    sub.add_argument("--freeze-ratio", type=float, default=0.7)
    sub.add_argument(
        "--tune", action="store_true",
        help="measure this machine: the table behind auto residency and, where there is a GPU, tiles of its kernels "
        "and its fastest backends",
    )  # fmt: skip
    sub.add_argument("--device", choices=("cpu", "cuda"), help="with --tune: only the table of this device")
    sub.add_argument(
        "--out", type=Path, metavar="FILE",
        help="with --tune: write the table here, that of the CPU for every instruction set that runs here; that of GPU "
        "choices beside that of tiles, as FILE's name with _choices",
    )  # fmt: skip
    sub.set_defaults(run=bench)
    return root


def _print_anything() -> None:
    """Let names that the console's encoding lacks be printed as escapes: a path may hold any character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _print_anything()
    options = parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has seen enough; nothing is left to write when the interpreter closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, RuntimeError) as why:
        print(f"error: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
