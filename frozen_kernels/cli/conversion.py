"""Options of the commands that convert a model, and the settings that they name."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from ..config import PRESETS, FreezeConfig
from ..nn.models import frozen_layers
from .usage import SEEDS, Usage, whole

OPTIONS = ("input", "config", "sparsity", "seed")


def add_options(sub: Any) -> None:
    """--config, --sparsity and --seed."""
    sub.add_argument(
        "--config", metavar="PRESET", help=f"with a model: settings of FreezeConfig.preset: {', '.join(PRESETS)}"
    )
    sub.add_argument("--sparsity", type=float, help="with a model: the share of its weights that are zero")
    sub.add_argument("--seed", type=whole("--seed", 0, SEEDS - 1), help="with a model: of its weights and inputs (0)")


def config_of(model: nn.Module, options: argparse.Namespace) -> FreezeConfig | None:
    """The settings that the options name, None for a model that is frozen. `Usage` where they do not fit."""
    given = {name: value for name in ("sparsity", "seed") if (value := getattr(options, name)) is not None}
    if frozen_layers(model):
        for name in ("config", "sparsity"):
            if getattr(options, name) is not None:
                raise Usage(f"--{name} {getattr(options, name)}: the model is frozen already, and taken as it is")
        return None
    try:
        return FreezeConfig(**given) if options.config is None else FreezeConfig.preset(options.config, **given)
    except ValueError as why:
        raise Usage(str(why)) from None


def refuse_without_model(options: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    """`Usage` for options that go with MODULE:CALLABLE alone."""
    for name in names:
        if getattr(options, name) is not None:
            raise Usage(f"--{name.replace('_', '-')}: goes with MODULE:CALLABLE, and {what}")
