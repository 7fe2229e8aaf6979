"""`bench`: a model, a few layers, or with --tune the tables of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..format import CODES
from ..tune.bench import ROUNDS
from ..tune.bench import SECONDS as MODEL_SECONDS
from .bench_layers import SECONDS, bench_layers
from .bench_model import bench_model
from .conversion import OPTIONS, add_options, refuse_without_model
from .models import INPUT_HELP
from .tune import TUNE_SECONDS, tune
from .usage import MOST_THREADS, Usage, whole

MODEL_ONLY = (*OPTIONS, "channels_last", "json", "output")
LAYERS_ONLY = ("batch", "code", "freeze_ratio")


def bench(options: argparse.Namespace) -> None:
    """A model (MODULE:CALLABLE), or a few layers, in each residency against dense torch, checked first."""
    for name in ("out", "device"):
        if getattr(options, name) and not options.tune:
            raise Usage(f"--{name}: goes with --tune")
    if options.model is None:
        refuse_without_model(options, MODEL_ONLY, "there is none")
    elif options.tune:
        raise Usage(f"--tune: measures this machine, and goes without a model, got {options.model!r}")
    if options.tune:
        tune(options)
    elif options.model is None:
        bench_layers(options)
    else:
        for name in LAYERS_ONLY:
            if getattr(options, name) is not None:
                raise Usage(f"--{name.replace('_', '-')}: goes without a model, got {options.model!r}")
        bench_model(options)


def add(commands: Any) -> None:
    """The command and its options."""
    sub = commands.add_parser("bench", help=bench.__doc__)
    sub.add_argument(
        "model", nargs="?", metavar="MODULE:CALLABLE",
        help="a function without arguments that makes a torch.nn.Module, imported from the current folder too; a few "
        "layers by default",
    )  # fmt: skip
    sub.add_argument("--input", action="append", metavar="SIZES", help=f"with a model, once or more: {INPUT_HELP}")
    add_options(sub)
    sub.add_argument(
        "--channels-last", action="store_true", default=None,
        help="with a model: hold it and its inputs of four dimensions in this memory format, which is the faster one "
        "for convolutions in torch",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true", default=None, help="with a model: print JSON in place of the table")
    sub.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="with a model: write bench.md, bench.json and a picture, bench.png and bench.svg, here",
    )  # fmt: skip
    sub.add_argument("--batch", type=whole("--batch", 1), help="of the layers (1)")
    sub.add_argument(
        "--rounds", type=whole("--rounds", 1), default=ROUNDS, help=f"at most so many, and at least five ({ROUNDS})"
    )
    sub.add_argument(
        "--seconds", type=float,
        help=f"no further rounds after this, of a layer ({SECONDS:g}) or an input of a model ({MODEL_SECONDS:g}); with "
        f"--tune: for GPU tiles and choices ({TUNE_SECONDS:g})",
    )  # fmt: skip
    sub.add_argument(
        "--threads", type=whole("--threads", 1, MOST_THREADS), default=torch.get_num_threads(),
        help="of torch and the kernels",
    )  # fmt: skip
    sub.add_argument("--code", choices=CODES, help="of the layers (sign)")
    sub.add_argument("--freeze-ratio", type=float, help="of the layers (0.7)")
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
