"""The processes of a run: what they share is reached through these functions alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int
    world: int
    device: torch.device
    parallel: str


def start(parallel: str, device: str) -> Processes:
    """Join the run; ValueError for a device that is not there."""
    if parallel != "none":
        raise ValueError(f"parallel: only 'none' in this version, got {parallel!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        raise ValueError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]})") from None
    return Processes(0, 1, torch.device(device), parallel)


def stop() -> None:
    """Leave the run."""


def wrap(model: nn.Module, processes: Processes) -> nn.Module:
    """The model that is called in training."""
    return model


def total(values: Tensor, processes: Processes) -> Tensor:
    """The sum over all processes."""
    return values


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """States of model and optimizer as complete CPU tensors, collected from all processes."""

    def on_cpu(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().cpu()
        if isinstance(value, dict):
            return {key: on_cpu(item) for key, item in value.items()}
        return [on_cpu(item) for item in value] if isinstance(value, (list, tuple)) else value

    return on_cpu({"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()})


def load_full_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give model and optimizer their part of what `full_state` made."""
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
