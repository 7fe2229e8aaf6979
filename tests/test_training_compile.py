"""A search under torch.compile and activation checkpointing: the same scores and masks, few compilations, no wrong
gradients."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from test_training_path import batch, bits, gradients, loss_of, network, shuffle, wanted
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import frozen_kernels as fk


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Training:
    """A network, its search and its optimizer, with the step of a training loop in parts to compile."""

    def __init__(self, every: int = 1, optimizer: str = "SGD", make=network, **settings) -> None:
        self.model = make(**settings)
        self.search = fk.EdgePopup(self.model, refresh_every=every)
        options = {"lr": 0.5, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.02}
        self.optimizer = getattr(torch.optim, optimizer)(self.search.parameters(), **options)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss_of(self.model, x, y)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = self.loss(x, y)
        loss.backward()
        self.update()
        return loss.detach()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.search.step()


def run(training: Training, step, frames: CompileCounterWithBackend, steps: int = 6) -> list[int]:
    """Trains on the same batches each time; how many frames were compiled after each step."""
    torch.manual_seed(3)
    counts = []
    for _ in range(steps):
        step(*batch())
        counts.append(frames.frame_count)
    return counts


def check_equal_to_eager(training: Training, step, frames, **settings) -> list[int]:
    counts = run(training, step, frames)
    eager = Training(**settings)
    run(eager, eager.step, frames)
    found, expected = list(training.model.parameters()), list(eager.model.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert bits(training.model) == bits(eager.model) != bits(Training(**settings).model)
    return counts


def test_a_compiled_loss_in_one_graph():
    training, frames = Training(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(training.loss, fullgraph=True, backend=frames)

    def step(x, y):
        compiled(x, y).backward()
        training.update()

    assert check_equal_to_eager(training, step, frames) == [1] * 6


WHOLE = {
    "dense": {"residency": "dense", "optimizer": "AdamW"},
    "local": {"residency": "seed", "scope": "local", "scaling": "dynamic", "score_dtype": "bfloat16"},
    "every third": {"every": 3},
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_compiled_training_step(name):
    """New masks, planes replaced and a count of steps compile nothing again once a step has met all its branches."""
    training, frames = Training(**WHOLE[name]), CompileCounterWithBackend("aot_eager")
    counts = check_equal_to_eager(training, torch.compile(training.step, backend=frames), frames, **WHOLE[name])
    met = max(2, WHOLE[name].get("every", 1))
    assert 0 < counts[met - 1] == counts[-1]


def perceptron() -> nn.Sequential:
    """Few kernels to generate."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False))
    fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.4))
    return model


@pytest.mark.long
def test_a_training_step_compiled_by_inductor():
    training, frames = Training(make=perceptron), CompileCounterWithBackend("inductor")
    step = torch.compile(training.step, backend=frames)
    counts = check_equal_to_eager(training, step, frames, make=perceptron)
    assert counts[1] == counts[-1]


def test_a_compiled_optimizer_step():
    training, frames = Training(), CompileCounterWithBackend("aot_eager")
    update = torch.compile(training.update, backend=frames)

    def step(x, y):
        training.loss(x, y).backward()
        update()

    counts = check_equal_to_eager(training, step, frames)
    assert 0 < counts[1] == counts[-1]


class Checkpointed(nn.Module):
    """A network whose frozen layers are computed again in the backward; its batch norm and head are not."""

    def __init__(self, model: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x):
        for part in self.model:
            again = isinstance(part, fk.nn.FrozenLayer)
            x = checkpoint(part, x, use_reentrant=self.reentrant) if again else part(x)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_checkpointing_changes_no_gradient(residency, reentrant):
    plain, model, (x, y) = network(residency), Checkpointed(network(residency), reentrant), batch()
    for run in (plain, model):
        # a reentrant block gives gradients only where its input has one
        loss_of(run, x.clone().requires_grad_(), y).backward()
    found, expected = gradients(model), gradients(plain)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_checkpointing_in_a_compiled_graph():
    plain, model, (x, y) = network(), Checkpointed(network(), False), batch()
    loss_of(plain, x, y).backward()
    torch.compile(lambda x, y: loss_of(model, x, y), fullgraph=True, backend="aot_eager")(x, y).backward()
    torch.testing.assert_close(gradients(model), gradients(plain))


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
@pytest.mark.parametrize("how", ["compiled", "checkpoint", "reentrant checkpoint"])
def test_a_step_before_the_backward_is_an_error(how, residency):
    model = network(residency)
    wrapped = Checkpointed(model, how.startswith("reentrant")) if "checkpoint" in how else model
    run = torch.compile(wrapped, backend="aot_eager") if how == "compiled" else wrapped
    x, y = batch()
    loss = loss_of(run, x.requires_grad_(), y)
    shuffle(model)
    fk.EdgePopup(model).step()
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|supermask: changed between"):
        loss.backward()
    # the next step is none the worse for it
    loss_of(run, x, y).backward()
    assert bits(model) == wanted(model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_new_masks_from_any_source_before_the_backward_are_an_error(reentrant):
    model, (x, y) = network(), batch()
    state = copy.deepcopy(model.state_dict())
    shuffle(model)
    fk.EdgePopup(model).step()
    loss = loss_of(Checkpointed(model, reentrant), x.requires_grad_(), y)
    model.load_state_dict(state)
    with pytest.raises(RuntimeError, match="supermask: changed between"):
        loss.backward()


def in_thread(call) -> None:
    """Run to its end in another thread; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call).result()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_in_other_threads_after_many_steps(reentrant):
    """Backwards on a GPU run in a thread of their own."""
    training, (x, y) = Training(), batch()
    for _ in range(3):
        training.step(x, y)
    outer = Checkpointed(training.model, reentrant)
    in_thread(lambda: loss_of(outer, x.clone().requires_grad_(), y).backward())
    nested = checkpoint(outer, x.clone().requires_grad_(), use_reentrant=True)
    in_thread(lambda: nested.sum().backward())
    loss = loss_of(outer, x.clone().requires_grad_(), y)
    shuffle(training.model)
    in_thread(fk.EdgePopup(training.model).step)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|supermask: changed between"):
        loss.backward()


LOAD = """
import sys, torch
import frozen_kernels  # the ops of the program
for path in sys.argv[1:]:
    program, expected = torch.export.load(path + ".pt2").module(), torch.load(path + ".expected")
    for x, y in expected:
        torch.testing.assert_close(program(x), y, rtol=0, atol=0)
print(len(sys.argv) - 1)
"""


def test_a_searched_network_exports_to_another_process(tmp_path):
    """The program takes any batch and gives bitwise what the network gave."""
    training = Training(scaling="dynamic")
    training.step(*batch())
    model = training.model.eval()
    fk.finalize_(model)
    paths = []
    for residency in ("seed", "mask", "planes", "dense"):
        fk.set_residency(model, residency)
        x = batch(3)[0]
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
        paths.append(str(tmp_path / residency))
        torch.export.save(program, paths[-1] + ".pt2")
        torch.save([(x, model(x).detach()) for x in (x, batch(7)[0])], paths[-1] + ".expected")
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", LOAD, *paths], cwd=root, capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr
