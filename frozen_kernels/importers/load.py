"""`load_`: a published file of a masked network into a plain model, in place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SCALINGS
from ..nn.models import unwrapped
from ..process import release_memory
from . import hidden_networks, jackpots_2021, jackpots_2023, place, slt, source, torch_prune
from .layout import Given, Layout
from .report import ImportReport

_LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT for module in (hidden_networks, slt, jackpots_2021, jackpots_2023, torch_prune)
}
LAYOUTS: tuple[str, ...] = tuple(_LAYOUTS)
"""The layouts of published files that `load_` reads."""


def _chosen(layout: str, state: dict[str, Tensor]) -> Layout:
    """The layout asked for, or the one that the names of a state show; ValueError where they show none, or several."""
    if layout != "auto":
        if not _LAYOUTS[layout].recognised(state):
            raise ValueError(f"layout: {layout!r} asked for, and no layer of the file is masked in that way")
        return _LAYOUTS[layout]
    found = [each for each in _LAYOUTS.values() if each.recognised(state)]
    if len(found) != 1:
        shown = " and ".join(each.name for each in found) or "no layout"
        raise ValueError(
            f"layout: the names in the file are those of {shown}; give layout=, one of {', '.join(LAYOUTS)}"
        )
    return found[0]


def _check_settings(layout: str, given: Given) -> None:
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout: auto or one of {', '.join(LAYOUTS)}, got {layout!r}")
    if given.fixed is not None and not isinstance(given.fixed, bool):
        raise ValueError(f"fixed: True, False or None, got {given.fixed!r}")
    if given.scaling is not None and given.scaling not in SCALINGS:
        raise ValueError(f"scaling: one of {', '.join(SCALINGS)}, got {given.scaling!r}")


def _check_taken(layout: Layout, given: Given) -> None:
    for name, value in given._asdict().items():
        if value is not None and name not in layout.settings:
            takes = ", ".join(layout.settings) or "nothing"
            raise ValueError(f"{name}: {value!r} given, but a file of layout {layout.name} takes {takes}")


@torch.inference_mode(False)
@torch.no_grad()
def load_(
    model: nn.Module,
    path_or_state: str | os.PathLike[str] | Mapping[str, Any],
    layout: str = "auto",
    *,
    sparsity: float | Mapping[str, float] | None = None,
    fixed: bool | None = None,
    scaling: str | None = None,
) -> ImportReport:
    """Load a published file of a masked network into `model`, in place.

    Every layer that the file masks becomes a stored frozen layer, finalized and packed: its kept values in the dtype
    of the file, and one mask bit per weight. Every other tensor is loaded as it is. Hooks, train mode, dtype and device
    of the model stay. A state may lie under `state_dict` or `model` in the file, with `module.` before its names, and a
    weight of a 1x1 convolution fits a linear layer.

    Layouts: "hidden-networks" (Ramanujan et al., arXiv 1911.13299), "slt" (slt_within_frozen_network, Otsuka et al.,
    arXiv 2402.14029), "jackpots-2021" and "jackpots-2023" (lottery-jackpots, Zhang et al., arXiv 2104.08700), and
    "torch-prune" (`torch.nn.utils.prune`).

    Args:
        model: a plain torch model, or one in `torch.compile` or `DataParallel`.
        path_or_state: a file by `torch.save` or of safetensors, or what it holds. No code in a file runs.
        layout: one of `LAYOUTS`; "auto" tells it from the names.
        sparsity: fraction of zeros, of hidden-networks, or of jackpots-2021 in place of its list `cfg`: one number, or
            one by name of a layer. hidden-networks calls the fraction kept prune_rate: `sparsity = 1 - prune_rate`.
        fixed: of hidden-networks, whether the scores are the mask itself; by default, where all are 0 or 1.
        scaling: of slt, none, static or dynamic, where the scales in the file do not tell.

    Returns:
        A report: the frozen layers, what was computed and what in the file was outdated.

    Raises:
        ValueError: the file is no such file, does not fit the model, or leaves something open that a keyword argument
            says; the message names the file, the tensor and both values. The model is unchanged.
        OSError: the file is missing or cannot be read.
        TypeError: neither a path nor a mapping.
    """
    given = Given(sparsity, fixed, scaling)
    _check_settings(layout, given)
    name = source.name_of(path_or_state)
    try:
        inside = unwrapped(model)
        held = place.slots(inside)
        found = source.checkpoint(source.read(path_or_state), set(held))
        chosen = _chosen(layout, found.state)
        _check_taken(chosen, given)
        read = chosen.read(found, given)
        planned = place.plan(inside, held, read)
    except ValueError as why:
        raise ValueError(f"{name}: {why}") from None
    place.carry_out(inside, planned)
    release_memory()
    return ImportReport(chosen.name, name, planned.layers, planned.dense, planned.loaded, read.recomputed, read.stale)
