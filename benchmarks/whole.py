"""Settings about more than one layer: whole models, the threshold of a search, regeneration, tickets."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frozen_kernels as fk
from examples.training.models import build
from frozen_kernels import format as fmt
from frozen_kernels.format import Code
from frozen_kernels.tensor import Residency
from frozen_kernels.tune.measure import WARM_UP

from .models import MODELS, WHOLE, fuse_batch_norm, resnet50, settle, weight_shapes
from .published import PublishedLayer, free_positions, published, sort_step
from .registry import Case
from .sides import SEED, Call, Setup
from .verify import Verdict, equal, judge

SETTLING_IMAGE = 64  # smaller than what is measured: the statistics only have to be of the right size
COMPARED = 2
LOADS = 6
CLASSES = 10
TAU = (22938, 45875)  # 0.35 and 0.7 of 65536


def settled(model: nn.Module) -> nn.Module:
    """A model in eval mode, its batch norm with statistics of its own activations."""
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        settle(model, torch.randn(4, 3, SETTLING_IMAGE, SETTLING_IMAGE))
    return model.eval()


def dense_model(name: str) -> nn.Module:
    """A model as its constructor fills it, in eval mode."""
    torch.manual_seed(SEED)
    return settled(WHOLE[name].make())


def frozen_model(name: str, affine: bool = True) -> nn.Module:
    """A finalized model at freeze ratio 0.7 in eval mode; `affine`: of a ResNet's batch norm."""
    torch.manual_seed(SEED)
    model = WHOLE[name].make() if affine else MODELS[name](affine=False)
    fk.freeze_(model, fk.FreezeConfig(seed=SEED))
    fk.finalize_(model)
    return settled(model)


def as_served(x: Tensor) -> Tensor:
    """Images with channels last, as torch likes them; other inputs as they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def serve_dense(model: nn.Module) -> nn.Module:
    """A dense model as torch is fastest: batch norm folded, channels last."""
    return cast(Any, fuse_batch_norm(model)).to(memory_format=torch.channels_last)


def serve(model: nn.Module, residency: str, x: Tensor) -> nn.Module:
    """A frozen model with batch norm folded, held so, in place; returns it. Dense weights are laid out as torch's."""
    fk.fold_batch_norm_(model)
    fk.set_residency(model, cast(Residency, residency), sample_input=x)
    return cast(Any, model).to(memory_format=torch.channels_last) if x.dim() == 4 else model


def model_setup(cases: Sequence[Case]) -> Setup:
    """A forward of a whole model in each residency, batch norm folded on both sides."""
    first = cases[0]
    model = frozen_model(first.op)
    exact = fk.to_dense(model).double()
    plain = serve_dense(fk.to_dense(model))
    x = as_served(torch.randn(first.input))
    served = {case.name: serve(copy.deepcopy(model), case.residency, x) for case in cases}
    rows = torch.linspace(0, first.batch - 1, min(first.batch, COMPARED)).long()
    theirs, right = plain(x)[rows], exact(x[rows].double())

    def verdict(name: str) -> Verdict:
        return judge(served[name](x)[rows], theirs, right)

    calls: dict[str, Call] = {name: partial(of, x) for name, of in served.items()}
    held = {name: fk.footprint(of).totals()["resident"]["total"] for name, of in served.items()}
    return Setup({"torch": lambda: plain(x)}, calls, verdict, note="batch norm folded on both sides", held=held)


class Training:
    """A model in training and its data: a pass is forward and backward, a step also new scores and new masks."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, parameters: list[nn.Parameter], search: Call) -> None:
        self.model, self.x, self.y, self.search = model, x, y, search
        self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)

    @torch.enable_grad()
    def run_pass(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()

    def run_step(self) -> None:
        self.run_pass()
        self.optimizer.step()
        self.search()


class Recorded(NamedTuple):
    """What a layer was given in one pass: its input and the gradient of its result."""

    layer: PublishedLayer
    x: Tensor
    grad: Tensor

    @torch.enable_grad()
    def gradients(self, layer: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Gradients of input and scores of a layer that is given the same."""
        x = self.x.to(dtype).requires_grad_()
        return list(torch.autograd.grad(layer(x), (x, layer.scores), self.grad.to(dtype)))


def record(training: Training) -> list[Recorded]:
    """What each layer of a published model is given in one pass."""
    found: list[Recorded] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        x = inputs[0].detach()
        y.register_hook(lambda grad: found.append(Recorded(layer, x, grad)))

    layers = [m for m in training.model.modules() if isinstance(m, PublishedLayer)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    training.run_pass()
    for handle in handles:
        handle.remove()
    return found


def gradient_verdict(of: Recorded, layer: Any) -> Verdict:
    """A frozen layer's gradients against float64, both sides given the input and gradient of one pass.

    Layer by layer: through a whole model one ReLU that a rounding turns weighs more than all rounding errors.
    """
    torchs, exact = of.gradients(of.layer), of.gradients(copy.deepcopy(of.layer).double(), torch.float64)
    where = free_positions(layer)
    torchs[1], exact[1] = (fmt.to_matrix(grad).flatten()[where] for grad in (torchs[1], exact[1]))
    verdicts = [judge(*three) for three in zip(of.gradients(layer), torchs, exact, strict=True)]
    return next((v for v in verdicts if not v.passed), max(verdicts, key=lambda v: v.error))


def training_setup(cases: Sequence[Case]) -> Setup:
    """A step of a search, and forward and backward alone, against edge-popup as published on the same network."""
    first = cases[0]
    torch.manual_seed(SEED)
    model = build(first.op, CLASSES)
    fk.freeze_(model, fk.FreezeConfig(seed=SEED, code=cast(Code, first.code)))
    plain: Any = published(copy.deepcopy(model))
    plain = plain.to(memory_format=torch.channels_last)
    x = torch.randn(first.input).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (first.batch,))
    ours: dict[str, Training] = {}
    for residency in dict.fromkeys(case.residency for case in cases):
        own = copy.deepcopy(model)
        fk.set_residency(own, cast(Residency, residency))
        search = fk.EdgePopup(own)
        ours[residency] = Training(own, x, y, search.parameters(), search.step)
    theirs = Training(plain, x, y, list(plain.parameters()), lambda: sort_step(plain))
    given = {id(of.layer): of for of in record(theirs)}
    plains = [m for m in plain.modules() if isinstance(m, PublishedLayer)]

    def verdict(name: str) -> Verdict:
        own = next(ours[case.residency] for case in cases if case.name == name)
        layers = fk.EdgePopup(own.model).layers
        found = [gradient_verdict(given[id(of)], layer) for of, layer in zip(plains, layers, strict=True)]
        return next((v for v in found if not v.passed), max(found, key=lambda v: v.error))

    def call(case: Case) -> Call:
        own = ours[case.residency]
        return own.run_pass if case.baseline == "published pass" else own.run_step

    baselines: dict[str, Call] = {"published step": theirs.run_step, "published pass": theirs.run_pass}
    return Setup(baselines, {case.name: call(case) for case in cases}, verdict)


def select_setup(cases: Sequence[Case]) -> Setup:
    """The middle one of all scores, against torch's sort and its k-th value, which need not take magnitudes here."""
    (case,) = cases
    torch.manual_seed(SEED)
    scores = torch.randn(case.shape[0]).abs()
    rank = case.shape[0] // 2

    def find() -> Tensor:
        return torch.ops.frozen_kernels.select([scores], rank)

    def verdict(name: str) -> Verdict:
        kept = torch.ops.frozen_kernels.pack_above(scores, find())
        bits = (kept[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        right = scores > torch.kthvalue(scores, rank).values
        return equal(bits.flatten()[: scores.numel()].bool(), right)

    baselines: dict[str, Call] = {
        "torch.sort": lambda: torch.sort(scores),
        "kthvalue": lambda: torch.kthvalue(scores, rank),
    }
    return Setup(baselines, {case.name: find}, verdict)


def generate_setup(cases: Sequence[Case]) -> Setup:
    """Codes and partition of all weights of ResNet-50, against as many normal numbers of torch's generator."""
    extents = [fmt.matrix_shape(shape) for shape in weight_shapes("resnet50")]
    total = sum(math.prod(extent) for extent in extents)

    def make(case: Case, stream: int) -> Tensor:
        rows, cols = extents[stream]
        if case.op == "partition":
            return fmt.partition(rows, cols, seed=SEED, stream=stream, tau_prune=TAU[0], tau_freeze=TAU[1])
        return fmt.codes(rows, cols, seed=SEED, stream=stream, code=case.code)

    def call(case: Case) -> None:
        for stream in range(len(extents)):
            make(case, stream)

    def verdict(name: str) -> Verdict:
        case = next(c for c in cases if c.name == name)
        found = make(case, 1)
        with fk.backends.use("reference"):
            return equal(found, make(case, 1))

    calls: dict[str, Call] = {case.name: partial(call, case) for case in cases}
    return Setup({"torch.randn": lambda: torch.randn(total)}, calls, verdict)


def _empty_resnet50() -> nn.Module:
    """The model with memory but no values: filling weights that a load replaces is no part of loading."""
    with torch.device("meta"):
        model = resnet50()
    return model.to_empty(device="cpu")


def ticket_setup(cases: Sequence[Case]) -> Setup:
    """Loading a ticket of ResNet-50, checked whole, against loading the state of the dense model."""
    (case,) = cases
    model = frozen_model("resnet50")
    folder = tempfile.TemporaryDirectory()
    ticket, state = Path(folder.name) / "ticket.safetensors", Path(folder.name) / "dense.pt"
    fk.save_ticket(model, ticket)
    torch.save(fk.to_dense(model).state_dict(), state)
    empty = {side: [_empty_resnet50() for _ in range(WARM_UP + LOADS)] for side in ("frozen", "dense")}

    def load_dense() -> None:
        assert folder  # its files go with it
        empty["dense"].pop().load_state_dict(torch.load(state, weights_only=True))

    def verdict(name: str) -> Verdict:
        loaded = fk.load_ticket(_empty_resnet50(), ticket)
        pairs = zip(_supermasks(loaded), _supermasks(model), strict=True)
        return equal(torch.tensor([torch.equal(a, b) for a, b in pairs]), torch.tensor(True).expand(54))

    baselines: dict[str, Call] = {"torch.load": load_dense}
    calls: dict[str, Call] = {case.name: lambda: fk.load_ticket(empty["frozen"].pop(), ticket)}
    return Setup(baselines, calls, verdict, rounds=LOADS)


def _supermasks(model: nn.Module) -> list[Tensor]:
    return [m.packed_supermask() for m in model.modules() if isinstance(m, fk.nn.FrozenLayer)]


SETUPS: dict[str, Callable[[Sequence[Case]], Setup]] = {
    "model": model_setup,
    "training": training_setup,
    "select": select_setup,
    "generate": generate_setup,
    "ticket": ticket_setup,
}
