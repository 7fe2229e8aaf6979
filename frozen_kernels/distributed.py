"""What `DistributedDataParallel` is told of a frozen model.

Sharded scores need nothing here: the search sees them (`select.sharded`). torch.distributed is imported where it is
needed and not before.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from .nn.layer import OWN_BUFFERS, FrozenLayer
from .nn.models import frozen_layers

__all__ = ["prepare_ddp_"]


def _digest(layers: dict[str, FrozenLayer]) -> bytes:
    """sha256 over the names, settings and all of the weights of frozen layers, with their gains."""
    digest = hashlib.sha256()
    for name, layer in layers.items():
        digest.update(f"{name} {layer.shape} {layer.config}\n".encode())
        signs = layer.packed_signs() if layer.signed else None
        for tensor in (
            layer.header, layer.packed_supermask(), signs, layer.values, layer.row_scale, layer.coats,
            layer.generations, layer.gain,
        ):  # fmt: skip
            if tensor is not None:
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def prepare_ddp_(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Make a frozen model ready for `DistributedDataParallel(model)`, in place, and return it.

    DDP broadcasts every buffer before each forward. Those of frozen layers are functions of seed and scores, or stored
    values that stay as they are, the same on all ranks: DDP is told to leave them alone, which saves their bytes and
    lets several forwards come before a backward. Without this call training gives the same numbers. Collective: call it
    on every rank, before wrapping.

    Args:
        model: with frozen layers, not yet wrapped.
        process_group: whose ranks are compared; all by default.

    Raises:
        ValueError: no frozen layers; or their seeds, stored values or signs, settings, masks or gains are not the same
            on every rank of the group, named by its first rank that differs from rank 0.
    """
    import torch.distributed as dist

    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers")
    device = next(iter(layers.values())).device
    mine = torch.tensor(list(_digest(layers)), dtype=torch.uint8, device=device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(every, mine, group=process_group)
    for rank, other in enumerate(every):
        if not torch.equal(other, every[0]):
            differ = "have another seed, value, setting, mask or gain than rank 0's"
            raise ValueError(f"model: frozen layers of rank {rank} {differ}")
    # with the names of wrappers, as DDP knows them
    where = [name for name, module in model.named_modules() if isinstance(module, FrozenLayer)]
    names = [f"{name}.{buffer}" if name else buffer for name in where for buffer in OWN_BUFFERS]
    before = getattr(model, "_ddp_params_and_buffers_to_ignore", ())
    ignore = nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, [*before, *names])
    return model
