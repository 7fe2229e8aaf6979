"""Signs that a model was trained before its weights are replaced: for a report, so none that fresh models show.

Fresh are constants, and numbers that are drawn alike over a weight, whatever their distribution: all of `nn.init`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..nn.models import frozen_layers, named_modules

_BATCHES = 10  # fewer batches through a batch norm may only have been a look at shapes
_WRITES = 30  # in place since a weight and its bias were made: more than an initialization, fewer than a training
_SAMPLE = (64, 1024)  # rows and columns of a weight that are looked at
_LEAST = 16  # of both, to tell anything
_UNEVEN = 8.0  # standard deviations from what chance gives
_NORMS: tuple[type[nn.Module], ...] = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)


def _varies(values: Tensor | None) -> bool:
    if values is None or values.device.type == "meta" or isinstance(values, nn.UninitializedParameter):
        return False
    return values.numel() > 1 and bool((values != values.flatten()[0]).any())


def _norm_sign(norm: nn.Module) -> str | None:
    mean, batches = norm._buffers.get("running_mean"), norm._buffers.get("num_batches_tracked")
    if mean is not None and mean.device.type != "meta" and bool((mean != 0).any()):
        count = 0 if batches is None else int(batches)
        # statistics without a count come from a checkpoint
        if count == 0 or count >= _BATCHES:
            return f"running statistics{f' of {count} batches' if count else ''}"
    learned = norm._parameters.get("bias")
    # some draw the weights of a norm, nobody its biases
    if _varies(learned if learned is not None else norm._parameters.get("weight")):
        return "the parameters of a norm vary"
    return None


def _writes(layer: nn.Module) -> int:
    """How often a layer's parameters were written in place, the least of weight and bias."""
    return min(0 if p.is_inference() else p._version for p in layer._parameters.values() if p is not None)


def unevenness(weight: Tensor) -> float | None:
    """How many standard deviations rows or columns of a weight differ more than numbers drawn alike do, the larger.

    Of the variance of their mean squares, over that of means of so many numbers drawn alike; None where there are too
    few to tell, or all are of one magnitude.
    """
    sample = weight.detach().flatten(1)[: _SAMPLE[0], : _SAMPLE[1]].to(torch.float64)
    rows, cols = sample.shape
    if min(rows, cols) < _LEAST:
        return None
    squares = sample.square()
    by_chance = float(squares.var())
    if not by_chance > 1e-6 * float(squares.mean()) ** 2:
        return None
    of_rows, of_cols = (float(squares.mean(dim).var()) * n / by_chance for dim, n in ((1, cols), (0, rows)))
    return max((of_rows - 1) * math.sqrt((rows - 1) / 2), (of_cols - 1) * math.sqrt((cols - 1) / 2))


def signs_of_training(model: nn.Module, chosen: dict[str, nn.Module]) -> list[str]:
    """Why the weights of the chosen layers look trained, one line of each kind; empty where they may be fresh.

    A batch norm that has statistics; norms whose biases differ; weights that were written in place more often than an
    initialization does; and weights whose rows or columns are more uneven than numbers drawn alike are, in most layers.
    """
    found = []
    # of another kind of tensor nobody knows what it can do
    weights = {n: w for n, m in chosen.items() if type(w := m.weight) is nn.Parameter and w.device.type != "meta"}
    # of a model that has frozen layers, its norms tell nothing of the others
    if not frozen_layers(model):
        norms = {name: _norm_sign(m) for name, m in named_modules(model) if isinstance(m, _NORMS)}
        found += [f"{name}: {sign}" for name, sign in norms.items() if sign][:1]
    written = {name: _writes(chosen[name]) for name in weights}
    found += [f"{name}: written in place {count} times" for name, count in written.items() if count > _WRITES][:1]
    measured = {name: z for name, w in weights.items() if (z := unevenness(w)) is not None}
    uneven = [name for name, z in measured.items() if z > _UNEVEN]
    if 2 * len(uneven) > len(measured):
        found.append(f"{uneven[0]}: rows or columns of its weight differ more than drawn ones")
    return found
