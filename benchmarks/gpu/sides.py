"""The two sides of a setting on a device: rotating copies of torch's weights and of ours, and how right ours are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.tune.measure import copies_beyond

from ..sides import SEED, apply, dense_backward, layer_of, sample, score_gradient, spread
from ..verify import Verdict, equal, judge
from .registry import GpuCase
from .timing import Call

COMPILED = "compiled masked dense"


class Place(NamedTuple):
    """Where to run: a device, and the bytes of its last-level cache."""

    device: torch.device
    cache: int

    @property
    def interpreted(self) -> bool:
        return self.device.type == "cpu"


@dataclass
class Sides:
    """Calls on copies: baselines by their name, ours by the name of the case; `absent`: why a baseline is not there."""

    baselines: dict[str, list[Call]]
    calls: dict[str, list[Call]]
    verdict: Callable[[str], Verdict]
    absent: dict[str, str] = field(default_factory=dict)


def _forced(call: Callable[[], Tensor], backend: str = "triton") -> Tensor:
    """The result of our call by the kernels under test and nothing else."""
    with fk.backends.use(backend):
        return call()


def _calls(module: Callable, copies: Sequence[Any], x: Tensor) -> list[Call]:
    return [partial(module, c, x) for c in copies]


def _run(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def _compiled(case: GpuCase, layer: fk.nn.FrozenLayer, x: Tensor, copies: int, plain: nn.Module) -> list[Call]:
    """Weight times mask inside a compiled function: what a user would write who keeps both."""
    function = torch.compile(lambda x, weight, mask, bias: apply(case, x, weight * mask, bias), dynamic=False)
    weight: Any = plain.weight
    mask = layer.keep_mask().to(x.device, x.dtype)
    pairs = [(weight.detach().clone(), mask.clone()) for _ in range(copies)]
    calls: list[Call] = [partial(function, x, w, m, plain.bias) for w, m in pairs]
    calls[0]()
    return calls


def layer_sides(cases: Sequence[GpuCase], place: Place) -> Sides:
    """Forward of a layer against the dense layer that holds the same weights."""
    torch.manual_seed(SEED)
    first = cases[0]
    layers = {case.name: copy.deepcopy(layer_of(case)).to(place.device) for case in cases}
    x = spread(first, first.input).to(place.device)
    plain: Any = fk.to_dense(layer_of(first)).to(place.device)
    if x.dim() == 4:
        plain = plain.to(memory_format=torch.channels_last)
    rows = sample(first, first.batch).to(place.device)
    by_name = {case.name: case for case in cases}

    def verdict(name: str) -> Verdict:
        case, layer = by_name[name], layer_of(by_name[name])
        assert layer.bias is not None
        weight, bias = layer.frozen.weight(torch.float32).to(place.device).double(), layer.bias.to(place.device)
        theirs = fk.to_dense(layer).to(place.device)(x)[rows]
        return judge(
            _forced(lambda: layers[name](x), case.backend)[rows],
            theirs,
            apply(case, x[rows].double(), weight, bias.double()),
        )

    copies = copies_beyond(place.cache, plain.weight.nbytes)
    denses = [plain, *(copy.deepcopy(plain) for _ in range(copies - 1))]
    found = Sides({first.baseline: _calls(_run, denses, x)}, {}, verdict)
    for case in cases:
        count = copies_beyond(place.cache, case.bytes)
        mine = [layers[case.name], *(copy.deepcopy(layers[case.name]) for _ in range(count - 1))]
        found.calls[case.name] = _calls(_run, mine, x)
    if first.other == COMPILED:
        try:
            found.baselines[COMPILED] = _compiled(first, layer_of(first), x, copies, plain)
        except Exception as why:  # a compiler has many ways to fail; the first baseline stands
            found.absent[COMPILED] = f"{COMPILED}: {type(why).__name__}"
    return found


def gradient_sides(cases: Sequence[GpuCase], place: Place) -> Sides:
    """Gradient of the input or of the scores, against torch's backward of the dense layer."""
    torch.manual_seed(SEED)
    (case,) = cases
    layer, here = layer_of(case), place.device
    x = spread(case, case.input).to(here)
    weight = layer.weight.detach().to(here)
    grad = spread(case, apply(case, x, weight, None).shape).to(here)
    if x.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    scores = torch.randn(layer.counts["free"])
    offsets = torch.ops.frozen_kernels.offsets(layer.header, *fmt.matrix_shape(case.shape))
    pack = layer.frozen._replace(offsets=offsets).pack()
    op = getattr(torch.ops.frozen_kernels, case.op)
    geometry = [list(g) if isinstance(g, tuple) else g for g in case.geometry]
    of_scores = case.op.endswith("grad_scores")
    leading: tuple = (x, scores.to(here)) if of_scores else ((list(x.shape),) if geometry else ())

    def ours() -> Callable[[], Tensor]:
        mine = [p.to(here, copy=True) if isinstance(p, Tensor) else p for p in pack]
        return partial(op, grad, *leading, *mine, *geometry)

    def verdict(name: str) -> Verdict:
        theirs = dense_backward(case, grad, x, weight)
        exact = dense_backward(case, grad.double(), x.double(), weight.double())
        if of_scores:
            theirs, exact = (score_gradient(layer, t.cpu(), scores) for t in (theirs.float(), exact))
        return judge(_forced(calls[0]).to(exact.device), theirs, exact)

    calls = [ours() for _ in range(copies_beyond(place.cache, case.bytes))]
    weights = [weight, *(weight.clone() for _ in range(copies_beyond(place.cache, weight.nbytes) - 1))]
    dense: list[Call] = [partial(dense_backward, case, grad, x, w) for w in weights]
    return Sides({case.baseline: dense}, {case.name: list(calls)}, verdict)


def select_sides(cases: Sequence[GpuCase], place: Place) -> Sides:
    """The middle one of all scores, against torch's sort of them."""
    torch.manual_seed(SEED)
    (case,) = cases
    count = case.shape[0]
    copies = [torch.randn(count).abs().to(place.device) for _ in range(copies_beyond(place.cache, 4 * count))]
    rank = count // 2
    calls: list[Call] = [partial(torch.ops.frozen_kernels.select, [scores], rank) for scores in copies]

    def verdict(name: str) -> Verdict:
        scores = copies[0]
        kept = _forced(lambda: torch.ops.frozen_kernels.pack_above(scores, calls[0]())).cpu()
        bits = (kept[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        right = scores.cpu() > torch.sort(scores).values[rank - 1].cpu()
        return equal(bits.flatten()[:count].bool(), right)

    sorts: list[Call] = [partial(torch.sort, scores) for scores in copies]
    return Sides({case.baseline: sorts}, {case.name: calls}, verdict)


BUILDERS: dict[str, Callable[[Sequence[GpuCase], Place], Sides]] = {
    "linear": layer_sides,
    "resnet": layer_sides,
    "gradient": gradient_sides,
    "select": select_sides,
}
