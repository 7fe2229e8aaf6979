"""What frozen layers keep in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.layer import FrozenLayer
from ..nn.layers import FrozenEmbedding
from ..nn.models import frozen_layers
from ..tensor import RESIDENCIES
from ..text import table as text_table
from . import crossover

CHOICES = (*RESIDENCIES, "auto")
FEW_ROWS = 16  # of a group: below, a grouped convolution is measured as a depthwise one
CLEAR = 1.1  # planes must be so many times as fast as the mask to be worth their memory
LINEAR_SAMPLES, CONVOLUTION_PIXELS = 1, 28 * 28  # of a call, where there is no sample input


class ResidencyReport(dict[str, str]):
    """The residency that each layer got, by name; `reasons` says why, `print` shows both."""

    def __init__(self, chosen: dict[str, str], reasons: dict[str, str]) -> None:
        super().__init__(chosen)
        self.reasons = reasons

    def __str__(self) -> str:
        rows = [(name or "model", residency, self.reasons[name]) for name, residency in self.items()]
        return text_table(("layer", "residency", "why"), rows)


def kind_of(layer: FrozenLayer) -> str:
    """What a layer is measured as: linear, conv, depthwise (few rows a group) or transposed."""
    groups = getattr(layer, "groups", 1)
    if getattr(layer, "transposed", False):
        return "transposed"
    if len(layer.shape) == 2:
        return "linear"
    return "depthwise" if groups > 1 and layer.rows // groups < FEW_ROWS else "conv"


def auto_residency(layer: FrozenLayer, pixels: int | None = None) -> tuple[str, str]:
    """The residency that `auto` picks for a layer, and why; `pixels`: output pixels of a call, if known.

    Of mask and planes the smaller, or planes where clearly faster, if measured to be at least as fast as dense torch;
    else dense.
    """
    small = "planes" if layer.code == "sign" else "mask"
    if isinstance(layer, FrozenEmbedding):
        return small, "an embedding decodes the rows that it is asked for"
    if layer.device.type != "cpu":
        return small, f"not measured on {layer.device.type}"
    level = crossover.active_level()
    if level is None:
        return "dense", "no fused kernels here: the extension is missing"
    if layer.dtype == torch.float64:
        return "dense", "float64 has no fused kernels"
    if pixels is None:
        pixels = LINEAR_SAMPLES if len(layer.shape) == 2 else CONVOLUTION_PIXELS
    return _measured_choice(layer, level, pixels) or (small, f"not measured for {level}")


def _measured_choice(layer: FrozenLayer, level: str, pixels: int) -> tuple[str, str] | None:
    dtype = "float32" if layer.dtype == torch.float32 else "bfloat16"
    # a constant code has nothing but a mask, and runs as sign does with both planes at hand
    code = "sign" if layer.code == "constant" else layer.code
    _, measured = crossover.in_use(level)
    rows, cols = layer.rows // getattr(layer, "groups", 1), layer.cols
    cell = crossover.nearest(measured.cells(level, dtype, code), kind_of(layer), rows, cols, pixels)
    if cell is None:
        return None
    ratios = {"mask": cell.planes} if layer.code == "constant" else {"mask": cell.mask, "planes": cell.planes}
    said = f"{', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())} times as fast as torch at {cell}"
    fast = {name: ratio for name, ratio in ratios.items() if ratio >= 1}
    if not fast:
        return "dense", said
    if len(fast) == 2 and fast["planes"] < CLEAR * fast["mask"]:
        return "mask", said
    return max(fast, key=lambda name: fast[name]), said


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
    """The most output pixels (samples of a linear layer) of a call of each layer that one forward calls."""
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


def set_residency(model: nn.Module, residency: str, sample_input: Any = None) -> ResidencyReport:
    """Hold every frozen layer as seed, mask, planes or dense, or as `auto` picks; returns what each layer got by name.

    Fused residencies (all but dense) give bitwise the same outputs. `auto` takes dense where torch was measured to be
    faster than the fused kernels on a layer of about this size: for speed, not for memory. `python -m frozen_kernels
    bench --tune` measures your machine.

    Args:
        model: a module with frozen layers.
        residency: one of the four, or `auto`.
        sample_input: for `auto`, the argument of a typical forward, or a tuple of them, which runs once to see how many
            pixels each layer makes; without it, one sample for linear layers and 28 x 28 pixels for convolutions.

    Raises:
        ValueError: another name, or a model without frozen layers.
    """
    if residency not in CHOICES:
        raise ValueError(f"residency: one of {', '.join(CHOICES)}, got {residency!r}")
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers")
    if residency == "auto":
        pixels = {} if sample_input is None else output_pixels(model, sample_input)
        picked = {name: auto_residency(layer, pixels.get(layer)) for name, layer in layers.items()}
    else:
        picked = dict.fromkeys(layers, (residency, "asked for"))
    for name, layer in layers.items():
        layer.set_residency(picked[name][0])
    return ResidencyReport({n: r for n, (r, _) in picked.items()}, {n: why for n, (_, why) in picked.items()})
