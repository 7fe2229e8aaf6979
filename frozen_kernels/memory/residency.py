"""What frozen layers keep in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, unwrapped
from ..nn.state import RECORD
from ..process import release_memory
from ..tensor import ALL_RESIDENCIES, Residency, residencies_of
from ..text import table as text_table
from . import crossover
from .auto import FACTOR, Choice, Goal, Wish, auto_residency
from .footprint import storage_bytes

CHOICES = (*ALL_RESIDENCIES, "auto")


class ResidencyReport(dict[str, str]):
    """The residency that each layer got, by name; `print` it.

    `reasons` says why, `before` and `after` how many bytes the layer's frozen weight held and holds, scores and bias
    left out; `total_before` and `total_after` of all layers, shared tensors once. `table` is the file that `auto` went
    by, and `elsewhere` on what other machine that was measured, both None where there is none.
    """

    def __init__(
        self,
        chosen: Mapping[str, str],
        reasons: dict[str, str],
        before: dict[str, int],
        after: dict[str, int],
        totals: tuple[int, int],
        table: Path | None = None,
        elsewhere: str | None = None,
    ) -> None:
        super().__init__(chosen)
        self.reasons, self.before, self.after = reasons, before, after
        self.total_before, self.total_after = totals
        self.table, self.elsewhere = table, elsewhere

    def __str__(self) -> str:
        rows = [
            (name or "model", residency, f"{self.before[name]:,}", f"{self.after[name]:,}", self.reasons[name])
            for name, residency in self.items()
        ]
        rows.append(("total", "", f"{self.total_before:,}", f"{self.total_after:,}", ""))
        lines = [text_table(("layer", "residency", "bytes before", "bytes", "why"), rows)]
        if self.table is not None:
            where = "on this machine" if self.elsewhere is None else f"elsewhere: {self.elsewhere}"
            lines.append(f"by {self.table}, measured {where}")
        if self.elsewhere is not None:
            lines.append("`python -m frozen_kernels bench --tune` measures this machine")
        return "\n".join(lines)


def _held(layer: FrozenLayer) -> list[Tensor]:
    """What a layer's residency holds."""
    return [t for name in RECORD if (t := layer._buffers[name]) is not None]


@contextlib.contextmanager
def _as_for_inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients: a measurement must not move running statistics."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def output_pixels(model: nn.Module, sample_input: Any) -> dict[FrozenLayer, int]:
    """The most output pixels of a call of each layer in a forward: samples of a linear one, indices of an embedding."""
    found: dict[FrozenLayer, int] = {}

    def see(layer: nn.Module, _: Any, y: Tensor) -> None:
        assert isinstance(layer, FrozenLayer)
        channels = y.shape[-1] if len(layer.shape) == 2 else y.shape[1 - len(layer.shape)]
        found[layer] = max(found.get(layer, 0), y.numel() // max(channels, 1))

    handles = [layer.register_forward_hook(see) for layer in frozen_layers(model).values()]
    try:
        with _as_for_inference(model):
            model(*(sample_input if isinstance(sample_input, tuple) else (sample_input,)))
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.inference_mode(False)
@torch.no_grad()
def set_residency(
    model: nn.Module,
    residency: Residency | Literal["auto"],
    sample_input: Any = None,
    *,
    auto: Goal = "speed",
    factor: float = FACTOR,
) -> ResidencyReport:
    """Hold every frozen layer as seed, mask, planes or dense, or as `auto` picks; returns what each layer got by name.

    Stored weights are packed or dense, stored signs planes or dense; several coats are in all but seed, weights drawn
    again in planes or dense. A residency that not all layers have is for those that do; the others stay as they are.
    Fused residencies of drawn weights (all but dense) give bitwise the same outputs. `auto` for speed takes dense where
    torch was measured to be faster than the fused kernels on a layer of about this size, its call included, and where
    that is not sure; on a GPU where the table that chooses its backends says so. `python -m frozen_kernels bench
    --tune` measures your machine.

    Args:
        model: a module with frozen layers, bare or in a wrapper such as `torch.compile`'s.
        residency: seed, mask, planes, packed, dense, or `auto`.
        sample_input: for `auto`, the argument of a typical forward, or a tuple of them, which runs once to see how many
            pixels each layer makes; without it, one sample for linear layers and 28 x 28 pixels for convolutions.
        auto: what `auto` is for: speed, or memory, the smallest fused residency that takes no more than `factor` of
            torch's time; dense where none does.
        factor: of torch's time, at least 1.

    Raises:
        ValueError: another name, a factor below 1, a model without frozen layers or with none that has the residency,
            and `packed` where a layer is still searched.
    """
    if residency not in CHOICES:
        raise ValueError(f"residency: one of {', '.join(CHOICES)}, got {residency!r}")
    if auto not in get_args(Goal):
        raise ValueError(f"auto: one of {', '.join(get_args(Goal))}, got {auto!r}")
    if not factor >= 1:
        raise ValueError(f"factor: a number of at least 1, got {factor!r}")
    model = unwrapped(model)
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers")
    path = table = None
    if residency == "auto":
        path, table = crossover.in_use(crossover.active_level())
        pixels = {} if sample_input is None else output_pixels(model, sample_input)
        wish = Wish(auto, factor)
        picked = {name: auto_residency(layer, pixels.get(layer), wish, table) for name, layer in layers.items()}
    else:
        picked = {name: _asked_for(layer, residency) for name, layer in layers.items()}
        if not any(residency in layer.residencies for layer in layers.values()):
            lacking = ", ".join(sorted({_lacking(layer, residency) for layer in layers.values()}))
            raise ValueError(f"residency: {residency!r}, which no layer of {lacking} has")
        for name, layer in layers.items():
            if layer.stored and residency == "packed" and not layer.packed:
                raise ValueError(f"residency: 'packed' is for finalized layers, and {name or 'model'!r} is searched")
    if table is None or not any(choice.measured for choice in picked.values()):
        path = table = None
    before, total = _bytes_held(layers)
    for name, layer in layers.items():
        layer.set_residency(picked[name].residency)
    after, total_after = _bytes_held(layers)
    release_memory()
    return ResidencyReport(
        {name: choice.residency for name, choice in picked.items()},
        {name: choice.why for name, choice in picked.items()},
        before,
        after,
        (total, total_after),
        path,
        None if table is None else table.elsewhere(),
    )


def _asked_for(layer: FrozenLayer, residency: Residency) -> Choice:
    if residency in layer.residencies:
        return Choice(residency, "asked for")
    return Choice(layer.residency, f"stays: {_lacking(layer, residency)} has no {residency}")  # type: ignore[arg-type]


def _lacking(layer: FrozenLayer, residency: Residency) -> str:
    """What of a layer rules a residency out."""
    if residency not in residencies_of(layer.code):
        return f"code {layer.code}"
    return "several coats" if layer.generations is None else "generations of its own"


def _bytes_held(layers: dict[str, FrozenLayer]) -> tuple[dict[str, int], int]:
    """Bytes of each layer's frozen weight, and of all together."""
    held = {name: _held(layer) for name, layer in layers.items()}
    return {name: storage_bytes(ts) for name, ts in held.items()}, storage_bytes(t for ts in held.values() for t in ts)
