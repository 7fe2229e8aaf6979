"""Models that hold frozen layers: which layers, in which wrapper, and in whose place."""

from __future__ import annotations

from torch import nn

from ..select.sharded import is_sharded, loaded_class
from .layer import FrozenLayer


def frozen_layers(model: nn.Module) -> dict[str, FrozenLayer]:
    """Frozen layers of a model by qualified name, each once, in traversal order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FrozenLayer)}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever the model holds `old`."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def reshard(model: nn.Module) -> None:
    """Give every module under `fully_shard` its sharded parameters back: gathered ones may be older than those."""
    kind = loaded_class("torch.distributed.fsdp", "FSDPModule")
    if kind is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `DistributedDataParallel`, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def has_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` holds any parameter of the model."""
    reshard(model)
    return any(is_sharded(p) for p in model.parameters())
