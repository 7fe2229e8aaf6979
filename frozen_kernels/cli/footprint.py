"""`footprint`: bytes of a ticket, or of a model that a callable makes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from ..convert.freeze import finalize_, freeze_
from ..memory.footprint import Footprint, forward_peak
from ..memory.footprint import footprint as bytes_of
from ..nn.models import frozen_layers
from .conversion import OPTIONS, add_options, config_of, refuse_without_model
from .models import INPUT_HELP, build_model, make_inputs, users_code
from .progress import reporter
from .ticket_bytes import TicketBytes, ticket_bytes
from .usage import Usage

_CALLABLE = re.compile(r".{2,}:[\w.]+")  # one letter before the colon is a drive


def footprint(options: argparse.Namespace) -> None:
    """Bytes of a ticket (FILE) or a model (MODULE:CALLABLE): on disk by kind, and in memory."""
    found: TicketBytes | Footprint
    if Path(options.file).exists():
        refuse_without_model(options, OPTIONS, f"{options.file} is a file")
        found = ticket_bytes(options.file)
    elif _CALLABLE.fullmatch(options.file):
        found = _of_model(options)
    else:
        raise FileNotFoundError(f"{options.file}: no such FILE, and no MODULE:CALLABLE such as my_module:build")
    print(found.to_json(indent=1) if options.json else found)


def _of_model(options: argparse.Namespace) -> Footprint:
    texts = options.input or []
    if len(texts) > 1:
        raise Usage(f"--input: one input, got {len(texts)}")
    steps = ["model made", "converted", "bytes counted", *("forward measured" for _ in texts), ""]
    show = reporter() or (lambda done, total, what: None)
    progress = (show(done, len(steps) - 1, what) for done, what in enumerate(steps))
    next(progress)
    seed = options.seed or 0
    torch.manual_seed(seed)  # of weights that are drawn where the model is made
    model = build_model(options.file)
    config = config_of(model, options)
    inputs = make_inputs(texts, model, torch.Generator().manual_seed(seed))
    next(progress)
    with users_code("model: it cannot be converted"):
        try:
            if not frozen_layers(model):
                freeze_(model, config)
            finalize_(model)
            next(progress)
            measured = bytes_of(model)
        except ValueError as why:
            raise Usage(str(why)) from why
    for args, text in zip(inputs, texts, strict=True):
        next(progress)
        with users_code(f"--input {text}: the model refuses it"):
            measured.peak = forward_peak(model, args)
    next(progress)
    return measured


def add(commands: Any) -> None:
    """The command and its options."""
    sub = commands.add_parser("footprint", help=footprint.__doc__)
    sub.add_argument(
        "file", metavar="FILE|MODULE:CALLABLE",
        help="a ticket, or a function without arguments that makes a torch.nn.Module, imported from the current folder "
        "too; a model that is not frozen is converted first",
    )  # fmt: skip
    sub.add_argument(
        "--input", action="append", metavar="SIZES", help=f"with a model, to measure a forward's peak: {INPUT_HELP}"
    )
    add_options(sub)
    sub.add_argument("--json", action="store_true", help="print JSON in place of tables")
    sub.set_defaults(run=footprint)
