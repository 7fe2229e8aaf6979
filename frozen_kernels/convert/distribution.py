"""How prune and lock ratios spread over the layers of a network (Otsuka et al., arXiv 2402.14029, section 4).

`uniform` gives every layer the same ratio, `erk` (Erdos-Renyi-Kernel, Evci et al., arXiv 1911.11134) prunes layers with
few weights for their dimensions less, `epl` (edges per layer) keeps the same number in each, `igq` (ideal gas quota)
lies between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..config import DISTRIBUTIONS, RATIO_RULES

Shape = Sequence[int]


def _filled(capacities: list[int], demands: list[float], total: float) -> list[float]:
    """Shares of `total` in proportion to the demands, none above its capacity; what overflows goes to the others."""
    shares = [0.0] * len(capacities)
    open_ = list(range(len(capacities)))
    while open_ and total > 0:
        unit = total / math.fsum(demands[i] for i in open_)
        # the fullest go first, one group of equals at a time: the rest are shared out anew without them
        fullest = max(demands[i] / capacities[i] for i in open_)
        if unit * fullest < 1:
            for i in open_:
                shares[i] = unit * demands[i]
            break
        full = [i for i in open_ if demands[i] / capacities[i] == fullest]
        for i in full:
            shares[i] = float(capacities[i])
        total -= sum(capacities[i] for i in full)
        open_ = [i for i in open_ if i not in full]
    return shares


def _uniform(shapes: Sequence[Shape], density: float) -> list[float]:
    return [density for _ in shapes]


def _erk(shapes: Sequence[Shape], density: float) -> list[float]:
    counts = [math.prod(shape) for shape in shapes]
    kept = _filled(counts, [float(sum(shape)) for shape in shapes], density * sum(counts))
    return [k / n for k, n in zip(kept, counts, strict=True)]


def _epl(shapes: Sequence[Shape], density: float) -> list[float]:
    counts = [math.prod(shape) for shape in shapes]
    kept = _filled(counts, [1.0] * len(counts), density * sum(counts))
    return [k / n for k, n in zip(kept, counts, strict=True)]


def _igq(shapes: Sequence[Shape], density: float) -> list[float]:
    counts = [math.prod(shape) for shape in shapes]
    target = density * sum(counts)
    if target <= 0:
        return [0.0] * len(counts)
    low, high = 0.0, len(counts) / target  # a layer keeps less than 1 / force
    while low < (force := (low + high) / 2) < high:
        kept = math.fsum(n / (1 + force * n) for n in counts)
        low, high = (force, high) if kept > target else (low, force)
    # at density 1 nothing presses
    return [1 / (1 + low * n) for n in counts]


_DENSITIES: dict[str, Callable[[Sequence[Shape], float], list[float]]] = {
    "uniform": _uniform,
    "erk": _erk,
    "epl": _epl,
    "igq": _igq,
}


def _proportional(shapes: Sequence[Shape], given: Sequence[float], density: float) -> list[float]:
    """Densities in proportion to those given, so that `density` of all weights remain; none above 1."""
    counts = [math.prod(shape) for shape in shapes]
    if density == 1:
        return [1.0] * len(counts)
    some = [i for i, g in enumerate(given) if g]
    room, total = sum(counts[i] for i in some), density * sum(counts)
    if total > room:
        raise ValueError(
            f"distribution: layers of a density above 0 have {room} of {sum(counts)} weights, {total:g} kept"
        )
    kept = dict(zip(some, _filled([counts[i] for i in some], [counts[i] * given[i] for i in some], total), strict=True))
    return [kept.get(i, 0.0) / n for i, n in enumerate(counts)]


def layer_densities(distribution: str | Sequence[float], shapes: Sequence[Shape], density: float) -> list[float]:
    """The density of each layer so that `density` of all weights remain.

    Args:
        distribution: uniform; erk, in proportion to `sum(dims) / prod(dims)`; epl, the same number of weights in each;
            igq, `n / (1 + f n)` weights of a layer's `n`; or in proportion to the densities given. A layer that would
            exceed 1 is dense, and the others share the rest anew.
        shapes: of the weight tensors, kernel dimensions included.
        density: fraction in [0, 1].
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density: a number in [0, 1], got {density!r}")
    if not isinstance(distribution, str):
        given = [g for g, shape in zip(distribution, shapes, strict=True) if math.prod(shape)]
        spread = iter(_proportional([shape for shape in shapes if math.prod(shape)], given, density))
        return [next(spread) if math.prod(shape) else density for shape in shapes]
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution: one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    found = iter(_DENSITIES[distribution]([shape for shape in shapes if math.prod(shape)], density))
    return [next(found) if math.prod(shape) else density for shape in shapes]  # layers without weights have no say


def layer_ratios(
    distribution: str | Sequence[float], ratio_rule: str, shapes: Sequence[Shape], prune_ratio: float, lock_ratio: float
) -> list[tuple[float, float]]:
    """prune_ratio and lock_ratio of each layer, for those of the whole network.

    With `D(density)` the sparsities that a distribution gives, `P_l = D(1 - P)` by both rules; `L_l` is
    `D(1 - P - L) - P_l` by sparsity_distribution and `1 - D(L)` by density_distribution.
    """
    if ratio_rule not in RATIO_RULES:
        raise ValueError(f"ratio_rule: one of {', '.join(RATIO_RULES)}, got {ratio_rule!r}")
    unpruned = layer_densities(distribution, shapes, 1 - prune_ratio)
    if ratio_rule == "density_distribution":
        locked = layer_densities(distribution, shapes, lock_ratio)
    else:
        free = layer_densities(distribution, shapes, max(1 - prune_ratio - lock_ratio, 0.0))
        locked = [u - f for u, f in zip(unpruned, free, strict=True)]
    # a layer's share grows with the density, so only rounding can leave these bounds
    return [(1 - u, min(max(k, 0.0), u)) for u, k in zip(unpruned, locked, strict=True)]
