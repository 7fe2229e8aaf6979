"""What a training step of a search holds in memory. To be run in a fresh process, as `tests/memory_probe.py` does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from frozen_kernels.config import ScoreDtype
from frozen_kernels.memory.footprint import _status, reset_peak, trim
from frozen_kernels.tensor import Residency

from .models import resnet18

SEED = 1
OPTIMIZERS: dict[str, dict] = {
    "default": {},
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def _stack(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10, bias=False))


def _one_of_each() -> nn.Sequential:
    """Every kind of layer of the models below, so that its code is in memory before theirs is measured."""
    first = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64, affine=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    rest = [nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.Conv2d(64, 64, 1, 2, bias=False), *_stack(64, 1)]
    return nn.Sequential(*first, *rest)


# name: the model, and an input so small that its activations are counted in and still are nothing beside the weights
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: resnet18(affine=False, classes=10), (2, 3, 32, 32)),
    "stack": (lambda: _stack(512, 8), (2, 512, 2, 2)),
    "one of each": (_one_of_each, (2, 3, 32, 32)),
}


class Step:
    """A frozen model at freeze ratio 0.7 with a global search and SGD, and the parts of its training step."""

    def __init__(self, name: str, optimizer: str, residency: Residency, score_dtype: ScoreDtype) -> None:
        make, size = MODELS[name]
        torch.manual_seed(SEED)
        self.model = make()
        fk.freeze_(self.model, fk.FreezeConfig(seed=SEED, score_dtype=score_dtype))
        fk.set_residency(self.model, residency)
        self.search = fk.EdgePopup(self.model)
        self.optimizer = torch.optim.SGD(
            self.search.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, **OPTIMIZERS[optimizer]
        )
        self.x, self.y = torch.randn(size), torch.arange(size[0])

    def backward(self) -> None:
        nn.functional.cross_entropy(self.model(self.x), self.y).backward()

    def run(self) -> None:
        self.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.search.step()

    def parts(self) -> dict[str, int]:
        """Bytes of what the step holds, by the sizes of the tensors; gradients as they are after a backward."""
        layers, scores = self.search.layers, _bytes(self.search.parameters())
        return {
            "scores": scores,
            "gradients": scores,
            "momentum": _bytes([state["momentum_buffer"] for state in self.optimizer.state.values()]),
            "planes": _bytes([t for m in layers for t in (m.header, m.supermask, m.keep, m.draw, m.dense)]),
            "offsets": _bytes([m.offsets for m in layers]),
        }


def _bytes(tensors: list) -> int:
    return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def _memory(field: str) -> int:
    found = _status(field)
    if found is None:
        raise RuntimeError(f"{field}: /proc/self/status does not tell")
    return found


def _rise(call: Callable[[], None]) -> int:
    """By how many bytes process memory rises at most over what it was before a call; it may hold some afterwards."""
    if not reset_peak():
        raise RuntimeError("/proc/self/clear_refs is refused: no peak of process memory here")
    before = _memory("VmRSS")
    call()
    return _memory("VmHWM") - before


def training_memory(
    name: str = "resnet18",
    optimizer: str = "default",
    residency: Residency = "mask",
    score_dtype: ScoreDtype = "float32",
) -> dict:
    """Process memory of a whole training step beyond that of the libraries, per weight, activations counted in.

    `name`: resnet18 or stack (8 convolutions of 512 x 512 x 3 x 3); `optimizer`: how SGD with momentum and weight decay
    is computed, default, for-loop, foreach or fused. Returns `bytes_per_weight` at the peak of the step; `at_rest`
    between steps; `backward`, `optimizer` and `search`, by how much each rises; `parts`, the tensors that the step
    holds by their sizes; all in bytes per weight; and `weights`. RuntimeError where the system does not report peaks.
    A process measures once, and malloc must give freed blocks back (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).
    """
    warm = Step("one of each", optimizer, residency, score_dtype)  # what every process pays once
    for _ in range(2):
        warm.run()
    trim()
    empty = _memory("VmRSS")
    step = Step(name, optimizer, residency, score_dtype)
    for _ in range(2):
        step.run()
    trim()
    rest = _memory("VmRSS") - empty
    whole = _rise(step.run)
    trim()
    rises = {"backward": _rise(step.backward), "optimizer": _rise(step.optimizer.step)}
    step.optimizer.zero_grad()
    trim()
    rises["search"] = _rise(step.search.step)
    weights = sum(m.rows * m.cols for m in step.search.layers)
    return {
        "weights": weights,
        "bytes_per_weight": (rest + whole) / weights,
        "at_rest": rest / weights,
        **{part: rise / weights for part, rise in rises.items()},
        "parts": {part: size / weights for part, size in step.parts().items()},
    }
