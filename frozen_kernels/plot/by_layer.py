"""Stacked bars of what becomes of each layer's weights."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import nn

from ..nn.models import frozen_layers, unwrapped
from ..text import count_text, percent_text
from .canvas import Figure, picture, styled, ticker, write_ticks

BAR, TALLEST = 0.34, 14.0  # inches of a bar and of all bars
LETTERS = 0.24  # inches of a line of text
AROUND = 1.6  # inches for title, legend and axis
LONGEST = 30  # letters of a name
PARTS = (  # colour of each part, from what is kept for good to what is dropped for good
    ("locked: kept for good", "#0072b2"),
    ("free, kept", "#56b4e9"),
    ("free, dropped", "#e69f00"),
    ("pruned: dropped for good", "#b3b3b3"),
)


class Shares(NamedTuple):
    """Counts of a layer's weights, in the order of `PARTS`."""

    locked: int
    kept: int
    dropped: int
    pruned: int


def shares_of(model: nn.Module) -> dict[str, Shares]:
    """The counts of each frozen layer by name. ValueError where there is none, or no mask is known."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: a torch.nn.Module, got {type(model).__name__}")
    found = {}
    for name, layer in frozen_layers(unwrapped(model)).items():
        if layer.device.type == "meta":
            raise ValueError(f"model: {name!r} is on the meta device, where no mask is known")
        c = layer.counts
        kept = c["kept"] - c["locked"]
        found[name or type(layer).__name__] = Shares(c["locked"], kept, c["free"] - kept, c["pruned"])
    if not found:
        raise ValueError("model: no frozen layers to draw; freeze_ makes them")
    return found


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def draw(model: nn.Module, title: str | None) -> Figure:
    """The picture; see `frozen_kernels.plot.layers`."""
    found = shares_of(model)
    # deep models have thinner bars and not every name
    thick = min(BAR, TALLEST / len(found))
    every = math.ceil(LETTERS / thick)
    with styled():
        figure = picture(AROUND + thick * len(found))
        axes = figure.subplots()
        left = [0.0] * len(found)
        for i, (label, colour) in enumerate(PARTS):
            widths = [layer[i] / max(sum(layer), 1) for layer in found.values()]
            if any(widths):
                axes.barh(range(len(found)), widths, 0.8, left, color=colour, edgecolor="white", label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        named = range(0, len(found), every)
        names, sizes = list(found), [sum(layer) for layer in found.values()]
        axes.set_yticks(named, [_short(names[i]) for i in named])
        axes.set(xlim=(0, 1), ylim=(len(found) - 0.5, -0.5), xlabel="share of the layer's weights")
        write_ticks(axes.xaxis, percent_text)
        axes.grid(False, axis="y")
        weights = axes.secondary_yaxis("right")
        weights.yaxis.set_major_locator(ticker.FixedLocator(list(named)))
        weights.yaxis.set_major_formatter(ticker.FixedFormatter([count_text(sizes[i]) for i in named]))
        weights.tick_params(length=0)
        weights.spines["right"].set_visible(False)
        axes.set_title("weights", loc="right", fontsize=12)
        kept, all_weights = sum(layer.locked + layer.kept for layer in found.values()), sum(sizes)
        said = f"{percent_text(kept / max(all_weights, 1))} of {all_weights:,} weights are kept"
        axes.set_title(said if title is None else title)
        figure.legend(loc="outside lower center", ncols=2)
    return figure
