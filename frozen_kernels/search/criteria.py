"""Layer ratios by a criterion instead of a formula: SNIP, GraSP and SynFlow, each from the dense model.

Each gives the density of every layer that `freeze_` converts, by name: `FreezeConfig(distribution=ratios,
prune_ratio=1 - density)` spreads what is pruned at random over the layers like that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..convert.choose import FilterFn, candidates
from .rule import check_count

__all__ = ["grasp", "snip", "synflow"]

Loss = Callable[[nn.Module], Tensor]


@torch.enable_grad()
def snip(model: nn.Module, loss: Loss, density: float, filter_fn: FilterFn | None = None) -> dict[str, float]:
    """Densities of layers by connection sensitivity `|g * w|`: the highest are kept (Lee et al., arXiv 1810.02340).

    Args:
        model: the dense model; it is copied, and not changed.
        loss: gives the scalar loss of a model, such as `lambda m: F.cross_entropy(m(x), y)` of one batch.
        density: of all weights of the layers together, in (0, 1].
        filter_fn: as of `freeze_`.

    Returns:
        `{name: density}`, layers of one weight alike.

    Raises:
        ValueError: no layer that `freeze_` converts, another density, or a criterion that is not finite, or 0 for every
            weight; of a layer that the loss does not use it is 0.
    """
    twin, weights = _copied(model, density, filter_fn)
    gradients = _gradients(loss(twin), [w for _, w in weights])
    return _densities(weights, [(w * g).abs() for (_, w), g in zip(weights, gradients, strict=True)], density)


@torch.enable_grad()
def grasp(model: nn.Module, loss: Loss, density: float, filter_fn: FilterFn | None = None) -> dict[str, float]:
    """Densities of layers by gradient flow: of `-w * H g` the lowest are kept (Wang et al., arXiv 2002.07376).

    Of a loss that is linear in the weights H is 0, which is an error. The paper divides logits by 200, as `loss` may.

    Args:
        model: as of `snip`.
        loss: as of `snip`.
        density: as of `snip`.
        filter_fn: as of `snip`.

    Returns:
        As of `snip`.

    Raises:
        ValueError: as of `snip`.
    """
    twin, weights = _copied(model, density, filter_fn)
    held = [w for _, w in weights]
    # fused attention has no second derivative
    with sdpa_kernel(SDPBackend.MATH):
        value = loss(twin)
    gradients = _gradients(value, held, create_graph=True)
    fixed = [g.detach() for g in gradients]
    flow = sum(((g * f).sum() for g, f in zip(gradients, fixed, strict=True)), torch.zeros(()))
    products = _gradients(flow, held)
    return _densities(weights, [w * h for w, h in zip(held, products, strict=True)], density)


@torch.enable_grad()
def synflow(
    model: nn.Module,
    input_shape: Sequence[int],
    density: float,
    filter_fn: FilterFn | None = None,
    rounds: int = 100,
) -> dict[str, float]:
    """Densities of layers by synaptic flow `|w * dR/dw|`, without data (Tanaka et al., arXiv 2006.05467).

    R is the sum of the outputs for an input of ones, all parameters and buffers taken by magnitude, in float64 and eval
    mode. The density falls to its end in `rounds` exponential steps, so that no layer is cut off early.

    Args:
        model: as of `snip`.
        input_shape: of one input, without the batch.
        density: as of `snip`.
        filter_fn: as of `snip`.
        rounds: how often weights are dropped; the paper takes 100.

    Returns:
        As of `snip`.

    Raises:
        ValueError: as of `snip`, or `rounds` is no integer >= 1.
    """
    rounds = check_count("rounds", rounds, 1)
    twin, weights = _copied(model, density, filter_fn)
    twin.double().eval()
    with torch.no_grad():
        for t in (*twin.parameters(), *twin.buffers()):
            if t.is_floating_point():
                t.abs_()
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=weights[0][1].device)
    ratios: dict[str, float] = {}
    for done in range(1, rounds + 1):
        gradients = _gradients(twin(ones).sum(), [w for _, w in weights])
        flows = [(w * g).abs() for (_, w), g in zip(weights, gradients, strict=True)]
        ratios, kept = _kept(weights, flows, density ** (done / rounds))
        with torch.no_grad():
            for (_, w), keep in zip(weights, kept, strict=True):
                w.mul_(keep)
    return ratios


Weights = list[tuple[list[str], nn.Parameter]]


def _copied(model: nn.Module, density: float, filter_fn: FilterFn | None) -> tuple[nn.Module, Weights]:
    """A copy of the model, and the weights in it that freeze_ would replace, with the names of their layers."""
    if not 0 < density <= 1:
        raise ValueError(f"density: a number in (0, 1], got {density!r}")
    twin = copy.deepcopy(model)
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, module in candidates(twin, filter_fn)[0].items():
        weight: nn.Parameter = module.weight  # type: ignore[assignment]
        weight.requires_grad_()
        found.setdefault(id(weight), ([], weight))[0].append(name)
    if not found:
        raise ValueError("model: no layer that freeze_ converts")
    return twin, list(found.values())


def _gradients(value: Tensor, weights: Sequence[Tensor], create_graph: bool = False) -> Sequence[Tensor]:
    """The gradients of a scalar, 0 where it does not depend on a weight."""
    if not value.requires_grad:
        return [torch.zeros_like(w) for w in weights]
    return torch.autograd.grad(value, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True)


def _densities(weights: Weights, criterion: Sequence[Tensor], density: float) -> dict[str, float]:
    if not any(c.any() for c in criterion):
        count = sum(c.numel() for c in criterion)
        raise ValueError(f"criterion: 0 for all {count} weights, as where the loss does not depend on them: no ranks")
    return _kept(weights, criterion, density)[0]


def _kept(weights: Weights, criterion: Sequence[Tensor], density: float) -> tuple[dict[str, float], list[Tensor]]:
    """The density of each layer, and which of its weights are kept: the highest of all by the criterion."""
    every = torch.cat([c.detach().flatten().to(torch.float64) for c in criterion])
    if not every.isfinite().all():
        bad = [names[0] for (names, _), c in zip(weights, criterion, strict=True) if not c.isfinite().all()]
        raise ValueError(
            f"criterion: of {bad[0]!r} not finite, for {int((~every.isfinite()).sum())} of {every.numel()}"
        )
    kept = torch.zeros(every.shape, dtype=torch.bool, device=every.device)
    kept[every.sort(descending=True, stable=True).indices[: round(density * every.numel())]] = True
    parts = [k.view_as(c) for k, c in zip(kept.split([c.numel() for c in criterion]), criterion, strict=True)]
    ratios = {
        name: int(keep.sum()) / keep.numel() for (names, _), keep in zip(weights, parts, strict=True) for name in names
    }
    return ratios, parts
