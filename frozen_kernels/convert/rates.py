"""How many weights each stored layer keeps: the rates of a lottery jackpot (Zhang et al., arXiv 2104.08700)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import FreezeConfig, kept_of_pattern
from ..nn.stored import kept_of
from ..nn.twins import frozen_shape
from ..text import listed


def _pointwise(module: nn.Module) -> bool:
    weight: Any = module.weight
    return isinstance(module, nn.Linear) or math.prod(weight.shape[2:]) == 1


def leave_dense(
    configs: dict[str, FreezeConfig], modules: Mapping[str, nn.Module], chosen_by_hand: bool
) -> list[tuple[str, str]]:
    """Take out of `configs` the stored layers that stay dense; returns their names and why.

    The classifier, which is the last of the stored layers where that is linear or a 1 x 1 convolution, unless layers
    were chosen by hand; layers that a dict of rates does not name, and those that a pattern does not fit. ValueError
    for rates of names that are no such layer.
    """
    stored = [name for name, config in configs.items() if config.code == fmt.STORED]
    left: dict[str, str] = {}
    for name in stored:
        config, cols = configs[name], fmt.matrix_shape(frozen_shape(modules[name]))[1]
        if isinstance(modules[name], nn.Embedding):
            left[name] = "embeddings have no stored weights: it stays dense"
        elif isinstance(config.rates, Mapping):
            unknown = [key for key in config.rates if key not in stored]
            if unknown:
                raise ValueError(f"rates: {listed(unknown)}, but the layers that can be stored are {listed(stored)}")
            if name not in config.rates:
                left[name] = "rates do not name it"
        elif config.pattern is not None and cols % kept_of_pattern(config.pattern)[1]:
            left[name] = f"its {cols} columns do not divide into the groups of pattern {config.pattern}"
        elif not chosen_by_hand and name == stored[-1] and _pointwise(modules[name]):
            left[name] = "the classifier, as the last layer: it stays dense unless filter_fn says otherwise"
    dense = {id(modules[name].weight): name for name in left}
    for name in stored:
        other = dense.get(id(modules[name].weight))
        if name not in left and other is not None:
            left[name] = f"shares its weight with {other!r}, which stays dense"
    for name in left:
        del configs[name]
    return list(left.items())


def kept_counts(configs: Mapping[str, FreezeConfig], weights: Mapping[str, Tensor]) -> dict[str, int]:
    """How many weights each stored layer keeps; those of one config with rates "l1" share a magnitude threshold.

    With "l1" the `round(n * sparsity)` smallest of all `n` are dropped; of equal ones the layer that comes first, then
    the lower position, is kept. A weight shared by layers counts once.
    """
    found: dict[str, int] = {}
    first_of: dict[int, str] = {}
    networks: list[tuple[FreezeConfig, dict[int, list[str]]]] = []
    for name, config in configs.items():
        if config.code != fmt.STORED:
            continue
        count = weights[name].numel()
        if config.pattern is not None:
            kept, of = kept_of_pattern(config.pattern)
            found[name] = count // of * kept
        elif config.rates == "l1":
            same = next((group for other, group in networks if other == config), None)
            if same is None:
                same = {}
                networks.append((config, same))
            same.setdefault(id(weights[name]), []).append(name)
        else:
            rates = config.rates
            found[name] = kept_of(count, rates[name] if isinstance(rates, Mapping) else config.sparsity)
            first = first_of.setdefault(id(weights[name]), name)
            if found[first] != found[name]:
                counts = f"{found[first]} and {found[name]}"
                raise ValueError(f"rates: {first!r} and {name!r} are one weight, which would keep {counts} values")
    for config, tensors in networks:
        unique = [weights[names[0]] for names in tensors.values()]
        for names, kept in zip(tensors.values(), _largest(unique, config.sparsity), strict=True):
            found.update(dict.fromkeys(names, kept))
    return found


def _largest(weights: list[Tensor], sparsity: float) -> list[int]:
    """How many of the largest magnitudes of all lie in each weight."""
    total = sum(w.numel() for w in weights)
    kept = kept_of(total, sparsity)
    if kept == total or any(w.device.type == "meta" for w in weights):
        return [kept_of(w.numel(), sparsity if kept < total else 0.0) for w in weights]
    flat = [w.detach().flatten().to(torch.float32) for w in weights]
    key = int(torch.ops.frozen_kernels.select(flat, total - kept))
    found = []
    for w in flat:
        keys = fmt.score_keys(w)
        found.append((int((keys > key).sum()), int((keys == key).sum())))
    left = kept - sum(above for above, _ in found)
    counts = []
    for above, ties in found:
        taken = min(ties, left)
        left -= taken
        counts.append(above + taken)
    return counts
