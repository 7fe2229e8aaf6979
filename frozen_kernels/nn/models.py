"""Models that hold frozen layers: which layers, in which wrapper, and in whose place."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..select.sharded import is_sharded, loaded_class
from ..text import listed
from .layer import FrozenLayer

# wrappers that keep what they wrap as it is: where the class stands, its name, and the name that the inside has there
_WRAPPERS = (
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.nn.parallel", "DataParallel", "module"),
    ("torch.nn.parallel", "DistributedDataParallel", "module"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
)


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for a module that is none. ValueError for a wrapper that nobody can see through."""
    for where, name, attribute in _WRAPPERS:
        kind = loaded_class(where, name)
        if kind is not None and isinstance(module, kind):
            return module._modules[attribute]
    flat = loaded_class("torch.distributed.fsdp", "FullyShardedDataParallel")
    if flat is not None and isinstance(module, flat):
        raise ValueError(
            "model: FullyShardedDataParallel has flattened its parameters, and the frozen layers inside cannot be told "
            "from each other; use torch.distributed.fsdp.fully_shard"
        )
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's module, `DataParallel` and other wrappers, or the model itself.

    ValueError for FullyShardedDataParallel, which takes the model apart.
    """
    inside = _inside(model)
    while inside is not None:
        model, inside = inside, _inside(inside)
    return model


def refuse_lazy(model: nn.Module) -> None:
    """ValueError where a layer of the model has no sizes yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"model: {name!r} is lazy and has no size yet; run a batch through the model first")


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As torch's, but for wrappers: in their place, and under their name, comes what is inside.

    So names do not depend on whether a model, or a part of it, is compiled or spread. ValueError as in `unwrapped`.
    """
    seen: set[int] = set()

    def walk(name: str, wrapped: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = unwrapped(wrapped)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for child, part in module._modules.items():
            if part is not None:
                yield from walk(f"{name}.{child}" if name else child, part)

    return walk("", model)


def frozen_layers(model: nn.Module) -> dict[str, FrozenLayer]:
    """Frozen layers of a model by qualified name, each once, in traversal order; wrappers leave no trace in names."""
    return {name: m for name, m in named_modules(model) if isinstance(m, FrozenLayer)}


# attributes by which torch's encoders turn to fused paths, which read the weights of their children
_FUSED_PATHS = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu"),
    (nn.TransformerEncoder, "use_nested_tensor"),
)


def _choose_paths(model: nn.Module) -> None:
    """Let torch's encoders that hold frozen layers call their children, and those that hold none do as they did."""
    for module in model.modules():
        for kind, switch in _FUSED_PATHS:
            if not isinstance(module, kind):
                continue
            before = f"_{switch}_unfrozen"
            frozen = any(isinstance(m, FrozenLayer) for m in module.modules())
            if frozen and switch in vars(module) and before not in vars(module):
                value = getattr(module, switch)
                setattr(module, before, value)
                setattr(module, switch, type(value)())
            elif not frozen and before in vars(module):
                setattr(module, switch, vars(module).pop(before))


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever the model holds `old`."""
    replace_modules(model, [(old, new)])


def replace_modules(model: nn.Module, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Put the second of each pair wherever the model holds the first, in one walk; none is inside another."""
    new_of = {id(old): new for old, new in pairs}
    compiled = loaded_class("torch._dynamo.eval_frame", "OptimizedModule")
    for parent in model.modules():
        for name, child in parent._modules.items():
            if id(child) in new_of:
                parent._modules[name] = new_of[id(child)]
                if compiled is not None and isinstance(parent, compiled):
                    _compile_anew(parent)
    _choose_paths(model)


def _compile_anew(module: Any) -> None:
    """Let torch.compile's module call what it holds now: it keeps a bound method of what it was made for."""
    module.__setstate__(module.__getstate__())


def reshard(model: nn.Module) -> None:
    """Give every module under `fully_shard` its sharded parameters back: gathered ones may be older than those."""
    kind = loaded_class("torch.distributed.fsdp", "FSDPModule")
    if kind is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


def has_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` holds any parameter of the model."""
    reshard(model)
    return any(is_sharded(p) for p in model.parameters())


def spread(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is in `DistributedDataParallel`, or `fully_shard` holds parameters of it."""
    return has_sharded(model) or any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())


def warn_of_stale_masks(layers: dict[str, FrozenLayer]) -> None:
    """UserWarning, as of the caller's caller, that names the layers whose scores moved since their masks were made."""
    stale = [name or "model" for name, layer in layers.items() if layer.masks_are_stale]
    if stale:
        warnings.warn(
            f"model: the scores of {listed(stale)} changed since the masks were made of them; "
            "the masks stay as they are, call search.step() after the optimizer's to make new ones",
            stacklevel=3,
        )
