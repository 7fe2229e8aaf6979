"""The two sides of a setting: torch's calls and ours on the same inputs, and how right our results are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format as fmt

from .registry import Case
from .verify import Verdict, judge

SEED = 2024
ROUNDS = 200
SAMPLED = 32  # rows or images of a result that are compared with float64
SAMPLED_OUTPUTS = 1 << 18

Call = Callable[[], object]


@dataclass
class Setup:
    """What is timed in the same rounds: baselines by their name, and our calls by the name of the case.

    `calls_of_a_turn`: how many calls a timed one makes, where one alone is too short for the clock.
    `held`: bytes in memory of what a case times, where that is a whole model.
    """

    baselines: dict[str, Call]
    calls: dict[str, Call]
    verdict: Callable[[str], Verdict]
    rounds: int = ROUNDS
    note: str = ""
    calls_of_a_turn: int = 1
    held: dict[str, int | None] = field(default_factory=dict)


@lru_cache(maxsize=4)
def _state(shape: tuple[int, ...], code: str, bits: int) -> tuple[Tensor, Tensor]:
    """A header at freeze ratio 0.7 and sparsity 0.5, and a supermask by chance."""
    frozen = fk.FrozenTensor.create(
        shape, seed=SEED, code=code, prune_ratio=0.35, lock_ratio=0.35, threshold_bits=bits, residency="seed"
    )
    assert frozen.supermask is not None
    chance = torch.Generator().manual_seed(SEED)
    kept = torch.randint(0, 256, frozen.supermask.shape, dtype=torch.uint8, generator=chance)
    return frozen.header, frozen.supermask & kept


@lru_cache(maxsize=8)
@torch.no_grad()
def _layer(
    shape: tuple[int, ...], geometry: tuple, dtype: str, code: str, residency: str, bits: int
) -> fk.nn.FrozenLayer:
    """A finalized layer with a bias, as it serves."""
    options = {"dtype": getattr(torch, dtype), "code": code, "threshold_bits": bits, "state": _state(shape, code, bits)}
    if len(shape) == 2:
        layer: fk.nn.FrozenLayer = fk.nn.FrozenLinear(shape[1], shape[0], **options)
    else:
        stride, padding, dilation, groups = geometry
        layer = fk.nn.FrozenConv2d(shape[1] * groups, shape[0], shape[2:], stride, padding, dilation, groups, **options)
    assert layer.bias is not None
    layer.bias.copy_(torch.linspace(-1, 1, shape[0]))
    layer.set_residency(residency)
    return layer


def layer_of(case: Case) -> fk.nn.FrozenLayer:
    """The frozen layer that a case is about."""
    return _layer(case.shape, case.geometry, case.dtype, case.code, case.residency, case.threshold_bits)


def sample(case: Case, count: int) -> Tensor:
    """Which rows or images to compare: all of few, else as many as are quick, evenly spread with first and last."""
    if len(case.input) == 4:
        outputs = case.operations // case.batch // math.prod(case.shape[1:])  # of one image
        most = max(2, SAMPLED_OUTPUTS // outputs)
    else:
        most = SAMPLED
    return torch.linspace(0, count - 1, min(count, most)).long()


def apply(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if len(case.shape) == 2 else F.conv2d(x, weight, bias, *case.geometry)


def spread(case: Case, size: Sequence[int]) -> Tensor:
    """Normal values of the case's dtype, channels last where they are images."""
    out = torch.randn(*size).to(getattr(torch, case.dtype))
    return out.contiguous(memory_format=torch.channels_last) if out.dim() == 4 else out


def layer_setup(cases: Sequence[Case]) -> Setup:
    """Forward of one layer, against the dense layer, and against weight times mask at each call."""
    torch.manual_seed(SEED)
    by_name = {case.name: case for case in cases}
    layers = {name: layer_of(case) for name, case in by_name.items()}
    first = cases[0]
    x = spread(first, first.input)
    plain: Any = fk.to_dense(layers[first.name])
    mask = layers[first.name].keep_mask().to(x.dtype)
    if x.dim() == 4:
        plain, mask = plain.to(memory_format=torch.channels_last), mask.contiguous(memory_format=torch.channels_last)
    rows = sample(first, first.batch)
    known: dict[tuple, tuple[Tensor, Tensor]] = {}

    def references(case: Case) -> tuple[Tensor, Tensor]:
        """Torch's result and the float64 one, on the sample, once for each weight."""
        key = (case.code, case.threshold_bits)
        if key not in known:
            layer = layers[case.name]
            assert layer.bias is not None
            exact = apply(case, x[rows].double(), layer.frozen.weight(torch.float32).double(), layer.bias.double())
            known[key] = fk.to_dense(layer)(x)[rows], exact
        return known[key]

    def verdict(name: str) -> Verdict:
        return judge(layers[name](x)[rows], *references(by_name[name]))

    baselines: dict[str, Call] = {
        "torch": lambda: plain(x),
        "masked dense": lambda: apply(first, x, plain.weight * mask, plain.bias),
    }
    return Setup(baselines, {name: partial(layer, x) for name, layer in layers.items()}, verdict)


def dense_backward(case: Case, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Torch's gradient of the input or of the dense weight."""
    of_input = case.op.endswith("grad_input")
    if len(case.shape) == 2:
        return grad @ weight if of_input else grad.T @ x
    stride, padding, dilation, groups = case.geometry
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [of_input, not of_input, False]
    )
    return found[0 if of_input else 1]


def score_gradient(layer: fk.nn.FrozenLayer, grad_weight: Tensor, scores: Tensor) -> Tensor:
    """The straight-through formula on the free weights in stream order: sign(score) * dL/dW * code * scale."""
    header = fmt.header_fields(layer.header)
    names = {"seed": header["seed"], "stream": header["stream"]}
    codes = fmt.codes(layer.rows, layer.cols, code=layer.code, **names)
    part = fmt.partition(
        layer.rows, layer.cols, tau_prune=header["tau_prune"], tau_freeze=header["tau_freeze"], **names
    )
    local = fmt.to_matrix(grad_weight) * (codes.to(grad_weight.dtype) * header["scale"])
    return fmt.stream_order(local)[fmt.stream_order(part == 0)] * scores.sign().to(grad_weight.dtype)


def gradient_setup(cases: Sequence[Case]) -> Setup:
    """Gradient of the input, or of the scores, against torch's backward of the dense layer."""
    torch.manual_seed(SEED)
    first = cases[0]
    layers = {case.name: layer_of(case) for case in cases}
    x = spread(first, first.input)
    grad = spread(first, layers[first.name](x).shape)
    weight = layers[first.name].weight
    if x.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    scores = torch.randn(layers[first.name].counts["free"])
    op = getattr(torch.ops.frozen_kernels, first.op)
    geometry = [list(g) if isinstance(g, tuple) else g for g in first.geometry]

    def call(layer: fk.nn.FrozenLayer) -> Tensor:
        pack = layer.frozen._replace(offsets=offsets).pack()
        if first.op.endswith("grad_scores"):
            return op(grad, x, scores, *pack, *geometry)
        return op(grad, *([list(x.shape)] if geometry else []), *pack, *geometry)

    offsets = torch.ops.frozen_kernels.offsets(layers[first.name].header, *fmt.matrix_shape(first.shape))

    def verdict(name: str) -> Verdict:
        theirs = dense_backward(first, grad, x, weight)
        exact = dense_backward(first, grad.double(), x.double(), weight.double())
        if first.op.endswith("grad_scores"):
            theirs, exact = (score_gradient(layers[name], t, scores) for t in (theirs, exact))
        return judge(call(layers[name]), theirs, exact)

    calls: dict[str, Call] = {name: partial(call, layer) for name, layer in layers.items()}
    return Setup({"torch": lambda: dense_backward(first, grad, x, weight)}, calls, verdict)
