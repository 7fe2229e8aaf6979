"""Banks of small nets, for tests of switching, mixing and files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from frozen_kernels.nn.models import frozen_layers


def small() -> nn.Sequential:
    """A convolution, batch norm and two linear layers on [batch, 3, 6, 6]."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 33), nn.ReLU(), nn.Linear(33, 4)
    )


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 6, 6)


def reshuffle(model: nn.Module, step: int) -> None:
    """Other masks, batch norm statistics and, where drawn, scores: as if another task had been learned."""
    draw = torch.Generator().manual_seed(step)
    for layer in {id(m.scores): m for m in frozen_layers(model).values()}.values():
        if layer.stored:
            scores = torch.randn(layer.free, generator=draw)
            mask = torch.zeros(layer.free, dtype=torch.bool)
            mask[scores.argsort()[: layer.free // 4 + step]] = True
            layer.set_supermask(fk.format.pack_bits(mask))
        else:
            layer.scores.data.copy_(torch.randn(layer.free, generator=draw))
    if any(not layer.stored for layer in frozen_layers(model).values()):
        fk.EdgePopup(model).step()
    model.train()
    with torch.no_grad():
        model(torch.randn(8, 3, 6, 6, generator=draw) + step)
    model.eval()


def bank_of(
    tasks: int = 3, per_task: list[str] | None = None, **settings
) -> tuple[fk.MaskBank, dict[str, Tensor], Tensor]:
    """A bank over `small` while it is searched, each task's outputs when it was added, and their input."""
    model = small()
    config = fk.FreezeConfig(**{"seed": 9, "freeze_ratio": 0.4, "scaling": "dynamic", **settings})
    fk.freeze_(model, config, lambda module, name: True)
    bank, x, outputs = fk.MaskBank(model, per_task), images(), {}
    for step in range(tasks):
        reshuffle(model, step)
        bank.add(f"task{step}")
        outputs[f"task{step}"] = model(x).detach()
    return bank, outputs, x


STORED = {"code": "stored", "freeze_ratio": 0.0, "scaling": "none", "sparsity": 0.75, "scope": "local"}


def stored_bank(tasks: int = 3, per_task: list[str] | None = None) -> tuple[fk.MaskBank, dict[str, Tensor], Tensor]:
    return bank_of(tasks, per_task, **STORED)


def good_bank(path: Path, values: str | None = None) -> bytes:
    """The bytes of a bank's file: of drawn weights, or of stored ones as `values`."""
    torch.manual_seed(0)
    bank = (bank_of(2) if values is None else stored_bank(2))[0]
    bank.finalize(values)
    bank.save(path)
    return path.read_bytes()
