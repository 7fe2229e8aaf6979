"""Settings about layers and nets as a user serves them: calls of small layers, and what `auto` picks."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

import frozen_kernels as fk

from .models import NETS, settle
from .registry import Case
from .sides import SEED, Call, Setup, score_gradient, spread
from .verify import Verdict, judge
from .whole import as_served, serve, serve_dense

TURN = 0.5e-3  # seconds: calls that take less are timed in a loop, short enough to fit between interruptions
MOST_CALLS = 400  # of a turn
TRIED = 5  # calls to see how long one takes
JUDGED = 1 << 17  # outputs, so that errors of few do not decide by chance
MOST_JUDGED, NETS_JUDGED = 4096, 64  # samples of a layer and of a net that are compared
GRADIENTS_JUDGED = 64
SETTLED_BY = 64  # samples that batch norm's statistics are of

MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "dense": torch.no_grad,
    "train": torch.enable_grad,
}


def plain_layer(case: Case) -> nn.Module:
    """Torch's own layer of a case, with a bias, as its constructor fills it."""
    if not case.geometry:
        return nn.Linear(case.shape[1], case.shape[0])
    stride, padding, dilation, groups = case.geometry
    kernel: Any = case.shape[2:]
    if case.op == "conv_transpose2d":
        inputs, outputs = case.shape[0], case.shape[1] * groups
        return nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, 0, groups, True, dilation)
    return nn.Conv2d(case.shape[1] * groups, case.shape[0], kernel, stride, padding, dilation, groups)


def _in_a_loop(call: Call, times: int, mode: Callable[[], Any] = contextlib.nullcontext) -> Call:
    def run() -> None:
        with mode():
            for _ in repeat(None, times):
                call()

    return run


def _calls_of_a_turn(call: Call) -> int:
    """How often to call in a turn so that the clock and a turn's first call count for little."""
    fastest = math.inf
    for _ in range(TRIED):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return min(max(1, round(TURN / fastest)), MOST_CALLS)


def _forward_verdict(
    model: nn.Module,
    plain: nn.Module,
    draw: Callable[[], Tensor],
    samples: int = MOST_JUDGED,
    exact: nn.Module | None = None,
) -> Verdict:
    """Calls of the size that is timed against float64, as many as give enough outputs to judge by."""
    exact = copy.deepcopy(plain).double() if exact is None else exact
    first = draw()
    calls = min(JUDGED // model(first).numel(), samples // len(first))
    inputs = [first, *(draw() for _ in range(calls - 1))]
    found, torchs, right = (torch.cat([run(x) for x in inputs]) for run in (model, plain, lambda x: exact(x.double())))
    return judge(found, torchs, right)


def _backward(layer: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Gradients of the input and of all parameters, as a step of training finds and leaves them."""
    layer(x).backward(grad)
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None


@torch.enable_grad()
def _gradients(layer: Any, weight: Tensor, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.to(weight.dtype).requires_grad_()
    return list(torch.autograd.grad(layer(x), (x, weight, layer.bias), grad.to(weight.dtype)))


def _training_verdict(layer: Any, plain: Any, draw: Callable[[], Tensor]) -> Verdict:
    """Gradients of input, scores and bias against float64, over many calls of the size that is timed."""
    exact = copy.deepcopy(plain).double()
    scores = layer.scores.detach()
    found: dict[str, list[list[Tensor]]] = {"ours": [], "torch": [], "exact": []}
    for _ in range(GRADIENTS_JUDGED):
        x = draw()
        grad = torch.randn_like(layer(x))
        found["ours"].append(_gradients(layer, layer.scores, x, grad))
        for side, of in (("torch", plain), ("exact", exact)):
            inputs, weight, bias = _gradients(of, of.weight, x, grad)
            found[side].append([inputs, score_gradient(layer, weight, scores), bias])
    verdicts = [
        judge(*(torch.cat([gradients[i].flatten() for gradients in found[side]]) for side in found)) for i in range(3)
    ]
    return next((v for v in verdicts if not v.passed), max(verdicts, key=lambda v: v.error))


def call_setup(cases: Sequence[Case]) -> Setup:
    """A call of a small layer from Python, forward or with backward, against torch's own layer."""
    (case,) = cases
    kind = case.op.split()[1]
    torch.manual_seed(SEED)
    model = nn.Sequential(plain_layer(case))
    fk.freeze_(model, fk.FreezeConfig(seed=SEED, code=case.code))
    if kind != "train":
        fk.finalize_(model)
    fk.set_residency(model, case.residency)
    layer, plain = model[0], fk.to_dense(model).get_submodule("0")

    def draw() -> Tensor:
        return torch.randn(case.input)

    x = draw().requires_grad_(kind == "train")
    grad = torch.randn_like(plain(x))

    def call(of: nn.Module) -> Call:
        return (lambda: _backward(of, x, grad)) if kind == "train" else (lambda: of(x))

    def verdict(name: str) -> Verdict:
        if kind == "train":
            return _training_verdict(layer, plain, draw)
        with MODES[kind]():
            return _forward_verdict(layer, plain, draw)

    with MODES[kind]():
        times = _calls_of_a_turn(call(plain))
    ours, theirs = (_in_a_loop(call(of), times, MODES[kind]) for of in (layer, plain))
    return Setup({"torch": theirs}, {case.name: ours}, verdict, calls_of_a_turn=times)


def net_setup(cases: Sequence[Case]) -> Setup:
    """A forward of a small net served as whole models are: batch norm folded on both sides, channels last."""
    (case,) = cases
    torch.manual_seed(SEED)
    model: Any = NETS[case.op].make().eval()
    fk.freeze_(model, fk.FreezeConfig(seed=SEED, code=case.code))
    fk.finalize_(model)

    def draw() -> Tensor:
        return as_served(torch.randn(case.input))

    settle(model, torch.randn(SETTLED_BY, *case.input[1:]))
    exact, plain = fk.to_dense(model).double(), serve_dense(fk.to_dense(model))
    x = draw()
    serve(model, case.residency, x)
    times = _calls_of_a_turn(lambda: plain(x))
    return Setup(
        {"torch": _in_a_loop(lambda: plain(x), times)},
        {case.name: _in_a_loop(lambda: model(x), times)},
        lambda name: _forward_verdict(model, plain, draw, NETS_JUDGED, exact),
        note="batch norm folded on both sides",
        calls_of_a_turn=times,
    )


def auto_setup(cases: Sequence[Case]) -> Setup:
    """A layer or a whole small net in `auto` for the input that is timed, against dense torch.

    Layers take channels last, which torch likes, and nets what a user has who does nothing.
    """
    (case,) = cases
    torch.manual_seed(SEED)
    whole = case.op in NETS
    model: Any = (NETS[case.op].make() if whole else nn.Sequential(plain_layer(case))).eval()
    fk.freeze_(model, fk.FreezeConfig(seed=SEED, code=case.code))
    fk.finalize_(model)
    plain: Any = fk.to_dense(model)
    if not whole:
        plain = plain.to(memory_format=torch.channels_last)

    def draw() -> Tensor:
        return torch.randn(case.input) if whole else spread(case, case.input)

    x = draw()
    chosen = fk.set_residency(model, "auto", sample_input=x)
    if not whole:
        model = model.to(memory_format=torch.channels_last)  # a dense weight, as on torch's side
    ours, theirs = (model, plain) if whole else (model.get_submodule("0"), plain.get_submodule("0"))
    times = _calls_of_a_turn(lambda: theirs(x))
    counts = {kept: list(chosen.values()).count(kept) for kept in dict.fromkeys(chosen.values())}
    note = "auto: " + ", ".join(f"{count} {kept}" if len(chosen) > 1 else kept for kept, count in counts.items())
    return Setup(
        {"torch": _in_a_loop(lambda: theirs(x), times)},
        {case.name: _in_a_loop(lambda: ours(x), times)},
        lambda name: _forward_verdict(ours, theirs, draw, NETS_JUDGED if whole else MOST_JUDGED),
        note=note,
        calls_of_a_turn=times,
    )
