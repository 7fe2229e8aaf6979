"""What `set_residency(model, "auto")` picks for a layer, from the measured table."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from ..backends.cuda import choices
from ..backends.geometry import geometry
from ..format import SIGNS, STORED
from ..nn.layer import FrozenLayer
from ..nn.layers import FrozenEmbedding
from ..tensor import Residency, default_residency, resident_bytes
from . import crossover

Goal = Literal["speed", "memory"]
STORED_SPARSITIES = (0.5, 0.8, 0.9)  # that stored weights are measured at
FEW_ROWS = 16  # of a group: below, a grouped convolution is measured as a depthwise one
CLEAR = 1.1  # planes must be so many times as fast as the mask to be worth their memory
FACTOR = 1.5  # of torch's time, that `memory` may take
LINEAR_SAMPLES, CONVOLUTION_PIXELS = 1, 28 * 28  # of a call, where there is no sample input


class Choice(NamedTuple):
    """The residency picked for a layer, why, and whether a table said so."""

    residency: Residency
    why: str
    measured: bool = False


class Wish(NamedTuple):
    """What is wanted: speed, or memory within a factor of torch's time."""

    goal: Goal = "speed"
    factor: float = FACTOR


def kind_of(layer: FrozenLayer) -> str:
    """What a layer is measured as: linear, embedding, conv, depthwise (few rows a group) or transposed."""
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, FrozenEmbedding):
        return "embedding"
    if getattr(layer, "transposed", False):
        return "transposed"
    if len(layer.shape) == 2:
        return "linear"
    return "depthwise" if groups > 1 and layer.rows // groups < FEW_ROWS else "conv"


def auto_residency(
    layer: FrozenLayer, pixels: int | None = None, wish: Wish | None = None, table: crossover.Table | None = None
) -> Choice:
    """The residency that `auto` picks for a layer, and why.

    For speed: of mask and planes the smaller, or planes where clearly faster, if surely at least as fast as dense
    torch; else dense. For memory: the smallest of seed, mask and planes that surely takes no more than the wished
    factor of torch's time; else dense. On a GPU, for both: dense where the table of GPU choices names it, else fused.

    Args:
        pixels: output pixels of a call, samples of a linear layer, indices of an embedding, if known.
        table: the one in use by default.
    """
    wish = Wish() if wish is None else wish
    if layer.stored and not layer.packed:
        return Choice("dense", "its mask is being searched")
    if layer.tuned is not None:
        return Choice("packed", "its values are being tuned")
    small = default_residency(layer.code, layer.coats is not None, layer.generations is not None)
    if layer.code == "sign" and wish.goal == "speed":
        small = "planes"
    if pixels is None:
        pixels = LINEAR_SAMPLES if len(layer.shape) == 2 else CONVOLUTION_PIXELS
    if layer.device.type == "cuda":
        return _on_gpu(layer, small, pixels)
    if layer.device.type != "cpu":
        return Choice(small, f"not measured on {layer.device.type}")
    level = crossover.active_level()
    if level is None:
        return Choice("dense", "no fused kernels here: the extension is missing")
    if layer.dtype == torch.float64:
        return Choice("dense", "float64 has no fused kernels")
    dtype = "float32" if layer.dtype == torch.float32 else "bfloat16"
    # a constant code has nothing but a mask, and runs as sign does with both planes at hand, as stored signs do
    code: str = "sign" if layer.code in ("constant", SIGNS) else layer.code
    if layer.stored:
        measured = measured_sparsity(1 - layer.counts["kept"] / max(layer.rows * layer.cols, 1))
        if measured is None:
            return Choice("dense", f"fewer than {STORED_SPARSITIES[0]:.0%} of its weights are dropped")
        code = stored_code(measured)
        # tiles serve no stored weight: the kernels are those of the level below
        level = "vnni" if level == "amx" else level
    table = crossover.in_use(level)[1] if table is None else table
    cells = [cell for cell in table.cells(level, dtype, code) if cell.kind == kind_of(layer)]
    if not cells:
        return Choice(small, f"not measured for {kind_of(layer)} layers on {level}")
    rows, cols = layer.rows // getattr(layer, "groups", 1), layer.cols
    found = crossover.estimate(cells, kind_of(layer), rows, cols, pixels)
    if found is None:
        return Choice("dense", "smaller than all that was measured", True)
    if layer.stored:
        return _packed(found, wish)
    found = _in_coats(layer, found)
    return _smallest(layer, found, wish.factor) if wish.goal == "memory" else _fastest(layer, found)


def _on_gpu(layer: FrozenLayer, small: Residency, pixels: int) -> Choice:
    op = _gpu_op(layer)
    if op is None or layer.dtype == torch.float64:
        return Choice(small, "not measured on cuda")
    # a constant code has all planes that it needs
    residency = "planes" if layer.code == "constant" else small
    code = "sign" if layer.signed else layer.code
    found = choices.choose(op, layer.device, layer.dtype, code, residency, pixels)
    why = f"GPU choices name {found.backend}, {found.why}"
    return Choice("dense" if found.backend == "dense" else small, why)


def _gpu_op(layer: FrozenLayer) -> str | None:
    """What the layer is called in the table of GPU choices, None for one that it says nothing of."""
    if kind_of(layer) == "linear":
        return "linear"
    at = layer.geometry()
    if at is None or kind_of(layer) != "conv" or at.groups > 1 or len(layer.shape) > 4:
        return None
    return choices.op_of(geometry(layer.shape, at.stride, at.padding, at.dilation, 1), layer.shape[1], False)


def measured_sparsity(sparsity: float) -> float | None:
    """The next lower sparsity that stored weights are measured at, None below them all: fewer zeros take longer."""
    return max((s for s in STORED_SPARSITIES if s <= sparsity + 1e-3), default=None)


def stored_code(sparsity: float) -> str:
    """The code in a table of stored weights that drop so many."""
    return f"{STORED} {sparsity:g}"


def _packed(found: crossover.Estimate, wish: Wish) -> Choice:
    """A cell of stored weights has the factor of packed values in place of every fused residency."""
    said = _said({"packed": found.factors["mask"]}, found)
    enough = 1 / wish.factor if wish.goal == "memory" else 1
    return Choice("packed" if found.floors["mask"] >= enough else "dense", said, True)


def _in_coats(layer: FrozenLayer, found: crossover.Estimate) -> crossover.Estimate:
    """A call of a layer in several coats is as many calls of one, and only some residencies are possible."""
    calls = 1 if layer.coats is None else 1 + layer.coats.shape[0]

    def of(by_residency: dict[str, float]) -> dict[str, float]:
        return {name: x / calls for name, x in by_residency.items() if name in layer.residencies}

    return found._replace(factors=of(found.factors), floors=of(found.floors))


def _of_code(layer: FrozenLayer, by_residency: dict[str, float]) -> dict[str, float]:
    """Of a constant code, whose planes are a mask alone, the figures of planes as those of the mask; of stored signs
    those of planes alone."""
    if layer.signed:
        return {"planes": by_residency["planes"]}
    if layer.code != "constant":
        return by_residency
    return {("mask" if name == "planes" else name): x for name, x in by_residency.items() if name != "mask"}


def _said(factors: dict[str, float], found: crossover.Estimate) -> str:
    return f"{', '.join(f'{name} {factor:.2f}' for name, factor in factors.items())} times as fast as torch {found}"


def _fastest(layer: FrozenLayer, found: crossover.Estimate) -> Choice:
    factors, floors = _of_code(layer, found.factors), _of_code(layer, found.floors)
    said = _said({name: factor for name, factor in factors.items() if name != "seed"}, found)
    names: tuple[Residency, ...] = ("mask", "planes")
    fast = {name: factors[name] for name in names if floors.get(name, 0.0) >= 1}
    if not fast:
        return Choice("dense", said, True)
    if len(fast) == 2 and fast["planes"] < CLEAR * fast["mask"]:
        return Choice("mask", said, True)
    return Choice(max(fast, key=lambda name: fast[name]), said, True)


def _smallest(layer: FrozenLayer, found: crossover.Estimate, factor: float) -> Choice:
    factors, floors = _of_code(layer, found.factors), _of_code(layer, found.floors)
    names: list[Residency] = [name for name in layer.residencies if name != "dense"]
    coats = 1 if layer.coats is None else 1 + layer.coats.shape[0]
    generations = 1 if layer.generations is None else 1 << layer.generations.shape[0]
    size = {
        name: resident_bytes(layer.shape, layer.code, layer.free, name, coats=coats, generations=generations)
        for name in names
    }
    good = [name for name in names if floors.get(name, 0.0) * factor >= 1]
    return Choice(min(good, key=lambda name: size[name], default="dense"), _said(factors, found), True)
