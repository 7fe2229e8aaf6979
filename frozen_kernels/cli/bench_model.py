"""`bench MODULE:CALLABLE`: a user's own model in every residency beside dense torch."""

from __future__ import annotations

import argparse
import sys
import warnings

import torch
from torch import Tensor

from ..nn.models import unwrapped
from ..tune.bench import SECONDS, bench
from .conversion import config_of
from .models import build_model, check_forward, make_inputs
from .progress import reporter
from .usage import Usage


def bench_model(options: argparse.Namespace) -> None:
    """Compare, print the table or JSON, and save both with a picture where a folder is named."""
    if not options.input:
        raise Usage("--input: sizes of an input of the model, such as --input 16,3,224,224")
    torch.set_num_threads(options.threads)
    seed = options.seed or 0
    torch.manual_seed(seed)  # of weights that are drawn where the model is made
    model = unwrapped(build_model(options.model))  # a compiled one would be compiled to check its input
    config = config_of(model, options)
    inputs = make_inputs(options.input, model, torch.Generator().manual_seed(seed))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = [tuple(map(_channels_last, args)) for args in inputs]
    for args, text in zip(inputs, options.input, strict=True):
        check_forward(model, args, text)
    seconds = SECONDS if options.seconds is None else options.seconds
    try:
        report = bench(model, inputs, config, seconds=seconds, rounds=options.rounds, progress=reporter())
    except ValueError as why:
        raise Usage(str(why)) from why
    report.model = options.model
    print(report.to_json(indent=1) if options.json else report)
    if options.output is not None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            written = report.save(options.output)
        notes = [f"written: {', '.join(map(str, written))}", *(str(warning.message) for warning in said)]
        print("\n".join(notes), file=sys.stderr)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
