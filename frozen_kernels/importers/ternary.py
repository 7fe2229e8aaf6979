"""Layers whose weights already are -a, 0 and a, as those of BitNet (Ma et al., arXiv 2402.17764): two bits a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import FreezeConfig
from ..convert.choose import candidates, check_wrappers, passed_over
from ..format import SIGNS
from ..nn.attention import input_projections, open_attentions
from ..nn.conv1d import is_conv1d
from ..nn.layer import FrozenLayer, Made
from ..nn.models import named_modules, replace_modules, unwrapped
from ..nn.twins import is_layer, twin_of
from ..process import release_memory
from ..tensor import FrozenTensor
from .report import Imported, Layers

FilterFn = Callable[[nn.Module, str], bool]

_VALUES_SHOWN = 4
_ROWS = 1 << 20  # weights that are looked at together


class Scales(NamedTuple):
    """The magnitude of a ternary weight: `scale`, times `row_scale` float32 [rows] where rows differ."""

    scale: float
    row_scale: Tensor | None


@dataclass
class TernaryReport(Layers):
    """What `ternary_` did; `print` it. `layers`: what was imported; `skipped`: what was passed over, and why."""

    layers: list[Imported] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"ternary layers imported: {len(self.layers)}; {self.kept:,} of {self.weights:,} weights are not zero"]
        lines += [f"  {layer}, {layer.values}" for layer in self.layers]
        if self.skipped:
            lines.append(f"passed over: {len(self.skipped)}")
            lines += [f"  {name or 'model'}: {why}" for name, why in self.skipped]
        return "\n".join(lines)


def _blocks(weight: Tensor) -> list[tuple[int, Tensor]]:
    """First row and rows [n, columns] of a weight, some at a time: what is computed of them stays small."""
    if not weight.numel():
        return []
    step = max(_ROWS // (weight.numel() // weight.shape[0]), 1)
    return [(row, weight[row : row + step].flatten(1)) for row in range(0, weight.shape[0], step)]


def _values_of(row: Tensor) -> str:
    found = row.unique()
    shown = ", ".join(f"{v:.9g}" for v in found[:_VALUES_SHOWN].tolist())
    more = f" and {found.numel() - _VALUES_SHOWN} more" if found.numel() > _VALUES_SHOWN else ""
    return f"{found.numel()} values: {shown}{more}"


def _row_magnitudes(weight: Tensor) -> Tensor:
    """float32 [rows]: the one magnitude of each row; ValueError with the row and its values where it has others."""
    largest = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device)
    for first, rows in _blocks(weight):
        bad = ~rows.isfinite()
        if bad.any():
            row, col = bad.nonzero()[0].tolist()
            raise ValueError(f"row {first + row}: {float(rows[row, col])}, finite weights expected")
        magnitude = rows.abs()
        own = magnitude.amax(1)
        others = ((magnitude != own[:, None]) & (magnitude != 0)).any(1)
        if others.any():
            row = int(others.nonzero()[0])
            raise ValueError(f"row {first + row}: {_values_of(rows[row])}; -a, 0 and a expected")
        exact = own.to(torch.float32)
        rounded = exact.to(own.dtype) != own
        if rounded.any():
            row = int(rounded.nonzero()[0])
            raise ValueError(f"row {first + row}: {float(own[row]):.17g}, which is not a float32")
        largest[first : first + rows.shape[0]] = exact
    return largest


def scales_of(weight: Tensor) -> Scales:
    """What a ternary weight is in multiples of; ValueError that names the first row that is not ternary."""
    magnitudes = _row_magnitudes(weight)
    used = magnitudes[magnitudes > 0]
    if not used.numel():
        return Scales(0.0, None)
    if bool((used == used[0]).all()):
        return Scales(float(used[0]), None)
    return Scales(1.0, magnitudes)


def _weight_of(module: Any) -> Tensor:
    """The weight with its outputs in rows, as its twin has it."""
    weight: Tensor = module.weight.detach()
    return weight.T if is_conv1d(module) else weight


def _twin(module: Any, scales: Scales) -> FrozenLayer:
    """The frozen layer that stands for a ternary one, finalized, with its two planes."""
    weight = _weight_of(module)
    record = FrozenTensor.signs(weight != 0, weight < 0, scales.scale, scales.row_scale)
    count = weight.numel()
    kept = int(torch.ops.frozen_kernels.popcount(record.keep))
    config = FreezeConfig(code=SIGNS, sparsity=(count - kept) / count if count else 0.0, scope="local")
    twin: FrozenLayer = twin_of(module).from_module(
        module, config, sigma=scales.scale, state=Made(record, (0, 0, count), "planes")
    )
    return twin


def _unpacked_elsewhere(model: nn.Module) -> list[tuple[str, str]]:
    """Modules of other libraries that hold a matrix as a buffer, which nothing else in a report would name."""
    found = []
    for name, module in named_modules(model):
        weight = module._buffers.get("weight")
        if weight is not None and weight.dim() >= 2 and not isinstance(module, FrozenLayer) and not is_layer(module):
            found.append((name, f"{type(module).__name__} has no frozen twin, and its weight is a buffer"))
    return found


def _planned(chosen: dict[str, nn.Module], strict: bool) -> tuple[dict[str, Scales], list[tuple[str, str]]]:
    """The scales of each layer that is ternary, and why others are not; ValueError for those where `strict`."""
    planned: dict[str, Scales] = {}
    skipped: list[tuple[str, str]] = []
    known: dict[int, Scales | str] = {}  # by parameter: layers may share one
    for name, module in chosen.items():
        weight: Any = module.weight
        if id(weight) not in known:
            try:
                if weight.device.type == "meta":
                    raise ValueError("on the meta device, it has no values")
                known[id(weight)] = scales_of(_weight_of(module))
            except ValueError as why:
                if strict:
                    raise ValueError(f"'{name}.weight': {why}") from None
                known[id(weight)] = f"weight: {why}"
        found = known[id(weight)]
        if isinstance(found, str):
            skipped.append((name, found))
        else:
            planned[name] = found
    return planned, skipped


@torch.inference_mode(False)
@torch.no_grad()
def ternary_(model: nn.Module, filter_fn: FilterFn | None = None) -> TernaryReport:
    """Turn every linear layer and convolution whose weights are -a, 0 and a into a frozen layer of code "signs".

    In place, finalized, and exact: `a` is one float32 number of the tensor, or one of each row (dim 0 of the weight).
    A weight takes a keep bit and a sign bit in memory, in a ticket less. Biases, hooks, train mode, dtype and device
    stay; layers of one Parameter stay one weight. -0.0 counts as 0. Embeddings stay, and so do subclasses of torch's
    layers, such as those of transformers that quantize their inputs too.

    Args:
        model: a plain model, or one in `torch.compile` or `DataParallel`.
        filter_fn: (module, name) -> bool, which layers to import. Without it all that are ternary.

    Returns:
        A report: what was imported, and what was passed over and why.

    Raises:
        ValueError: a layer that `filter_fn` asks for has other values, or NaN or infinite ones, with the tensor, the
            row and the values; the model is itself a layer, or in `DistributedDataParallel` or
            `FullyShardedDataParallel`. The model is unchanged.
    """
    check_wrappers(model)
    model = unwrapped(model)
    if is_layer(model) or input_projections(model):
        raise ValueError(f"model: a bare {type(model).__name__} cannot be replaced in place; put it in a module")

    def asked(module: nn.Module, name: str) -> bool:
        return not isinstance(module, nn.Embedding) and (filter_fn is None or filter_fn(module, name))

    chosen, skipped = candidates(model, asked)
    modules = dict(named_modules(model))
    embedding = "embeddings are not imported"
    skipped = [(n, embedding if type(modules[n]) is nn.Embedding and why == "filter_fn" else why) for n, why in skipped]
    planned, others = _planned(chosen, filter_fn is not None)
    report = TernaryReport(skipped=[*skipped, *others, *passed_over(model)[0], *_unpacked_elsewhere(model)])
    twins = {name: _twin(chosen[name], scales) for name, scales in planned.items()}
    # nothing above has changed the model, nothing below refuses
    open_attentions(model, [chosen[name] for name in planned])
    replace_modules(model, [(chosen[name], layer) for name, layer in twins.items()])
    first_of: dict[int, FrozenLayer] = {}
    for name, layer in twins.items():
        module: Any = chosen.pop(name)
        layer.tie_to(first_of.setdefault(id(module.weight), layer))
        scales, kept, count = planned[name], layer.counts["kept"], layer.rows * layer.cols
        magnitude = f"scale {scales.scale:.6g}" if scales.row_scale is None else "a scale for each row"
        report.layers.append(Imported(name, type(module).__name__, layer.shape, kept, count, magnitude))
    release_memory()
    return report
