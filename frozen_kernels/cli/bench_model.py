"""`bench MODULE:CALLABLE`: a user's own model in every residency beside dense torch."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..tune.bench import SECONDS, bench
from ..tune.report import BenchReport
from .conversion import config_of
from .models import build_model, make_inputs, users_code
from .progress import reporter
from .usage import Usage, one_line


def bench_model(options: argparse.Namespace) -> None:
    """Compare, print the table or JSON, and save both with a picture where a folder is named."""
    if not options.input:
        raise Usage("--input: sizes of an input of the model, such as --input 16,3,224,224")
    report = _report(options)
    print(report.to_json(indent=1) if options.json else report)
    if options.output is not None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            written = report.save(options.output)
        notes = [f"written: {', '.join(map(str, written))}", *(str(warning.message) for warning in said)]
        print("\n".join(notes), file=sys.stderr)


def _report(options: argparse.Namespace) -> BenchReport:
    seed = options.seed or 0
    torch.manual_seed(seed)  # of weights that are drawn where the model is made
    model = build_model(options.model)
    torch.set_num_threads(options.threads)  # whatever the user's code has set
    config = config_of(model, options)
    inputs = make_inputs(options.input, model, torch.Generator().manual_seed(seed))
    _make_folder(options.output)
    seconds = SECONDS if options.seconds is None else options.seconds
    with users_code("model: its forward failed"):
        if options.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = [tuple(map(_channels_last, args)) for args in inputs]
        try:
            report = bench(model, inputs, config, seconds=seconds, rounds=options.rounds, progress=reporter())
        except ValueError as why:
            raise Usage(re.sub("^x: ", "--input: ", str(why))) from why
    report.model = options.model
    return report


def _make_folder(output: Path | None) -> None:
    """`Usage`, before anything is measured, where there can be no folder."""
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise Usage(f"--output {output}: expected a folder, or a place for one: {one_line(why)}") from why


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
