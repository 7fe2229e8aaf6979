"""torch.compile and torch.export of frozen models: whole graphs, few compilations, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import frozen_kernels as fk


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.relu(self.linear(x))


def mlp(**settings) -> nn.Sequential:
    model = nn.Sequential(*(Block(24) for _ in range(12)))
    fk.freeze_(model, fk.FreezeConfig(seed=2**64 - 1, scaling="dynamic", **settings))
    return model


def cnn() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, groups=2, bias=False),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 36, 10),
    )
    fk.freeze_(model, fk.FreezeConfig(code="normal"))
    return model


MODELS = {"mlp": (mlp, (5, 24)), "cnn": (cnn, (4, 1, 8, 8))}


def train_step(run, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One step of a search; what the model gives afterwards."""
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=0.5)
    run(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    search.step()
    return run(x)


def check_equal_to_eager(name: str, residency: str, backend: str) -> None:
    make, x_shape = MODELS[name]
    torch.manual_seed(0)
    eager = make()
    torch.manual_seed(0)
    model = make()
    for m in (eager, model):
        fk.set_residency(m, residency)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(x_shape)
    torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(train_step(compiled, model, x), train_step(eager, eager, x))
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# a layer's kind and its residency meet in one model; what many blocks add is the same in all residencies
CASES = [("mlp", "mask"), *(("cnn", residency) for residency in ("seed", "mask", "planes", "dense"))]


@pytest.mark.parametrize(("name", "residency"), CASES)
def test_whole_graph_equals_eager_and_trains(name, residency):
    check_equal_to_eager(name, residency, "aot_eager")


def test_inductor():
    check_equal_to_eager("cnn", "planes", "inductor")


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_a_repeated_block_compiles_at_most_twice(residency, finalized):
    """Seeds, streams, scales and the numbers of free weights differ from block to block."""
    model = mlp(threshold_bits=6)
    assert len({block.linear.scores.numel() for block in model}) > 2
    fk.set_residency(model, residency)
    if finalized:
        fk.finalize_(model)
    x = torch.randn(5, 24)
    expected = model(x)
    counter = CompileCounterWithBackend("eager")
    for block in model:
        block.compile(fullgraph=True, backend=counter)
    torch.testing.assert_close(model(x), expected)
    assert counter.frame_count <= 2
    if not finalized:
        model(x).sum().backward()
        fk.EdgePopup(model).step()
        model(x)
        assert counter.frame_count <= 2


def test_a_new_mask_does_not_recompile():
    model = mlp()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x, search = torch.randn(5, 24), fk.EdgePopup(model)
    for _ in range(3):
        compiled(x).sum().backward()
        with torch.no_grad():
            for p in search.parameters():
                p.copy_(torch.randn_like(p))
        search.step()
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


def test_dynamic_batch():
    model = cnn().eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 5, 7):
        x = torch.randn(batch, 1, 8, 8)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(("name", "residency"), CASES)
def test_export_of_a_finalized_model(name, residency, tmp_path):
    make, x_shape = MODELS[name]
    model = make().eval()
    fk.finalize_(model)
    fk.set_residency(model, residency)
    x = torch.randn(x_shape)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (x, torch.cat((x, x))):
        torch.testing.assert_close(loaded(rows), model(rows))
