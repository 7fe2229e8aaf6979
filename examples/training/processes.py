"""The processes of a run: what they share is reached through these functions alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import frozen_kernels as fk

STATE = states.StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int
    world: int
    device: torch.device
    parallel: str


def start(parallel: str, device: str) -> Processes:
    """Join the run that torchrun started, or be one alone.

    Raises:
        ValueError: a device that is not there; ddp or fsdp without torchrun, none with it.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if parallel == "none":
        if world > 1:
            raise ValueError(f"parallel: 'none', but torchrun started {world} processes; --set parallel=ddp or fsdp")
        return Processes(0, 1, _usable(device), parallel)
    if "RANK" not in os.environ:
        raise ValueError(f"parallel: {parallel!r} needs torchrun --nproc-per-node N in place of python")
    if device != "cpu" and ":" in device:
        raise ValueError(f"device: each process takes its own; one type such as cuda, got {device!r}")
    own = _usable(device if device == "cpu" else f"{device}:{os.environ['LOCAL_RANK']}")
    if own.type != "cpu":
        torch.accelerator.set_device_index(own)
    dist.init_process_group(dist.get_default_backend_for_device(own))
    return Processes(dist.get_rank(), dist.get_world_size(), own, parallel)


def _usable(device: str) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the latter
        raise ValueError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]})") from None
    return torch.device(device)


def stop() -> None:
    """Leave the run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(model: nn.Module, processes: Processes) -> nn.Module:
    """The model that is called in training; under fsdp it is the one that was given, changed in place.

    Averages of batch norm are those of the first process in all, as DistributedDataParallel has it.
    """
    layers = [module for module in model.modules() if isinstance(module, fk.nn.FrozenLayer)]
    if processes.parallel == "ddp":
        return DistributedDataParallel(fk.distributed.prepare_ddp_(model) if layers else model)
    if processes.parallel == "fsdp":
        mesh = init_device_mesh(processes.device.type, (processes.world,))
        apart = fk.nn.FrozenLayer if layers else (nn.Linear, nn.Conv2d)
        for module in [m for m in model.modules() if isinstance(m, apart)]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.register_forward_pre_hook(lambda module, inputs: _take_averages(module))
    return model


@torch.no_grad()
def _take_averages(model: nn.Module) -> None:
    """Batch norm's averages, and whatever else changes in a forward, from the first process."""
    held = [b for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for b in m.buffers()]
    for dtype in dict.fromkeys(b.dtype for b in held):  # in one order everywhere, which a set has not
        buffers = [b for b in held if b.dtype == dtype]
        together = torch.cat([b.flatten() for b in buffers])
        dist.broadcast(together, src=0)
        for buffer, values in zip(buffers, together.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def total(values: Tensor, processes: Processes) -> Tensor:
    """The sum over all processes."""
    summed = values.clone()
    if processes.world > 1:
        dist.all_reduce(summed)
    return summed


def wait(processes: Processes) -> None:
    """Until all processes are here."""
    if processes.world > 1:
        dist.barrier()


def full_model_state(model: nn.Module) -> dict[str, Any]:
    """The model's state as complete CPU tensors; collective, and empty but in the first process."""
    return dict(states.get_model_state_dict(model, options=STATE))


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """States of model and optimizer as complete CPU tensors, by the names of one process: any `parallel` loads them.

    Collective, and empty but in the first process.
    """
    of_optimizer = states.get_optimizer_state_dict(model, optimizer, options=STATE)
    return {"model": full_model_state(model), "optimizer": of_optimizer}


def load_full_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give model and optimizer their part of what `full_state` made, which each process has read."""
    states.set_model_state_dict(model, dict(state["model"]), options=STATE)
    states.set_optimizer_state_dict(model, optimizer, state["optimizer"], options=STATE)
