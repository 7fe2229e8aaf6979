"""Run in a fresh process by `test_memory`: measures one case and prints it as JSON.

`memory_probe.py peak linear|conv2d seed|mask|planes forward|backward|step` gives the rise of process memory over the
state that exists between steps, `memory_probe.py peaks linear|conv2d` those of all nine and of a step of the dense
residency, one after the other; `memory_probe.py rest seed|mask` gives resident bytes per 4096 x 4096 layer;
`memory_probe.py training resnet18|stack [default|for-loop|foreach|fused [RESIDENCY [SCORE_DTYPE]]]` gives bytes per
weight at the peak of a whole training step.
"""

import gc
import json
import sys

import torch
from torch import nn

import frozen_kernels as fk
from benchmarks.training import training_memory
from frozen_kernels.memory.footprint import _status, reset_peak, trim

SHAPES = {"linear": (4096, 4096), "conv2d": (512, 512, 3, 3)}
COPIES = 6


def build(op: str, residency: str) -> nn.Module:
    if op == "linear":
        layer = fk.nn.FrozenLinear(4096, 4096, bias=False)
    else:
        layer = fk.nn.FrozenConv2d(512, 512, 3, padding=1, bias=False)
    layer.set_residency(residency)
    return layer


def sample(op: str) -> torch.Tensor:
    return torch.ones(32, 4096) if op == "linear" else torch.ones(4, 512, 14, 14)


def peak(op: str, residency: str, mode: str) -> dict:
    layer = build(op, residency)
    x = sample(op)
    with torch.no_grad():
        grad = torch.ones_like(layer(x))
    live = 1 if mode == "forward" else 2  # the output, and the gradient of the input
    if mode == "forward":
        fk.finalize_(layer)

        def run() -> None:
            with torch.no_grad():
                layer(x)

    elif mode == "backward":
        # a fixed network: no gradient of scores is freed or made that could hide another block
        fk.finalize_(layer)
        x.requires_grad_(True)

        def run() -> None:
            layer(x).backward(grad)

    else:
        x.requires_grad_(True)
        search = fk.EdgePopup(layer)
        optimizer = torch.optim.SGD(search.parameters(), lr=0.1, momentum=0.9)

        def run() -> None:
            # frees the last gradient, which the state between steps holds, before the next one is made
            optimizer.zero_grad()
            layer(x).backward(grad)
            optimizer.step()
            search.step()

    run()
    x.grad = None
    trim()
    if not reset_peak():
        return {"skip": "/proc/self/clear_refs is refused"}
    before = _status("VmRSS")
    run()
    rise = _status("VmHWM") - before
    weights = torch.Size(SHAPES[op]).numel()
    return {"rise": rise, "activations": live * x.numel() * 4, "dense": 4 * weights}


def peaks(op: str) -> dict:
    """By residency and mode; the dense one last, so that it tells whether the blocks of the others hide a weight."""
    cases = [(residency, mode) for residency in ("seed", "mask", "planes") for mode in ("forward", "backward", "step")]
    return {" ".join(case): peak(op, *case) for case in [*cases, ("dense", "step")]}


def rest(residency: str) -> dict:
    layers = [nn.Sequential(build("linear", residency))]
    fk.finalize_(layers[0])
    trim()
    before = _status("VmRSS")
    for _ in range(COPIES):
        layers.append(nn.Sequential(build("linear", residency)))
        fk.finalize_(layers[-1])
    gc.collect()
    trim()
    return {"bytes": (_status("VmRSS") - before) / COPIES, "dense": 4 * 4096 * 4096}


def training(*case: str) -> dict:
    if not reset_peak():
        return {"skip": "/proc/self/clear_refs is refused"}
    return training_memory(*case)


if __name__ == "__main__":
    torch.set_num_threads(2)
    measure = {"peak": peak, "peaks": peaks, "rest": rest, "training": training}[sys.argv[1]]
    print(json.dumps(measure(*sys.argv[2:])))
