"""Which modules of a model `freeze_` can convert, and why it passes over the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..nn.attention import FrozenMultiheadAttention, input_projections
from ..nn.conv1d import is_conv1d
from ..nn.layer import FrozenLayer
from ..nn.models import named_modules
from ..nn.twins import is_layer, twin_of, weight_place
from ..select.sharded import is_sharded, loaded_class
from ..text import listed

FilterFn = Callable[[nn.Module, str], bool]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_HOLDERS = (  # module and class of wrappers that hold on to the parameters a model had when it was wrapped
    ("torch.nn.parallel", "DistributedDataParallel"),
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
)


def check_wrappers(model: nn.Module) -> None:
    """ValueError where a wrapper in or around the model would go on with the parameters that it now has."""
    holders = tuple(kind for place in _HOLDERS if (kind := loaded_class(*place)) is not None)
    for name, module in model.named_modules():
        if isinstance(module, holders):
            where = f"{name!r} is" if name else "is"
            raise ValueError(f"model: {where} in {type(module).__name__}; freeze the model before it is wrapped")


def _reads(readers: list[tuple[str, str]], name: str) -> str | None:
    for reader, kind in readers:
        if name != reader and (not reader or name.startswith(reader + ".")):
            return f"{kind} {reader!r} reads its weight without calling it"
    return None


def _readers(model: nn.Module) -> list[tuple[str, str]]:
    """Modules that read their children's weights without calling them, and that no frozen one stands for."""
    return [
        (name, type(m).__name__)
        for name, m in named_modules(model)
        if isinstance(m, nn.MultiheadAttention)
        and not isinstance(m, FrozenMultiheadAttention)
        and not input_projections(m)
    ]


def _named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers that hold a weight, frozen or not, by name; what stands for the weights of an attention comes with it."""
    for name, module in named_modules(model):
        if isinstance(module, FrozenLayer) or is_layer(module):
            yield name, module
        for child, part in input_projections(module).items():
            yield f"{name}.{child}" if name else child, part


def _turned_ties(chosen: dict[str, nn.Module]) -> dict[str, str]:
    """Layers of one weight that hold it differently: by rows of outputs, and by rows of inputs."""
    first_of: dict[int, tuple[str, bool]] = {}
    found = {}
    for name, module in chosen.items():
        first, turned = first_of.setdefault(id(module.weight), (name, is_conv1d(module)))
        if turned != is_conv1d(module):
            found[name] = found[first] = f"{first!r} and {name!r} share a weight, which one of them holds transposed"
    return found


def _reason_to_skip(module: nn.Module, readers: list[tuple[str, str]], name: str) -> str | None:
    """Why a layer that holds a weight cannot be converted; None where it can."""
    if isinstance(module, FrozenLayer):
        return "already frozen"
    reads = _reads(readers, name)
    if reads is not None:
        return reads
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized"
    if hasattr(module, "weight_g") or hasattr(module, "weight_orig"):
        return "its weight is recomputed by a hook of torch.nn.utils"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy: run a batch through the model first"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is not a parameter"
    if is_sharded(weight):
        return "sharded: freeze the model before fully_shard"
    if twin_of(module) is None:
        return f"subclass {type(module).__name__} of a torch layer"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return "max_norm, scale_grad_by_freq and sparse need a stored weight"
    if weight.dtype not in _DTYPES:
        return f"weight of {weight.dtype}"
    if weight.layout != torch.strided:
        return f"weight of layout {weight.layout}"
    return None


def _place_of(module: nn.Module) -> tuple[int, str]:
    owner, part = weight_place(module)
    return id(owner), part


def candidates(model: nn.Module, filter_fn: FilterFn | None) -> tuple[dict[str, nn.Module], list[tuple[str, str]]]:
    """Layers that can be converted by name, and (name, reason) of those that are not."""
    readers = _readers(model)
    chosen: dict[str, nn.Module] = {}
    skipped: list[tuple[str, str]] = []
    for name, module in _named_layers(model):
        why = _reason_to_skip(module, readers, name)
        if why is None and filter_fn is None and isinstance(module, nn.Embedding):
            why = "embeddings are converted where filter_fn says so"
        if why is None and filter_fn is not None and not filter_fn(module, name):
            why = "filter_fn"
        if why is None:
            chosen[name] = module
        else:
            skipped.append((name, why))
    for name, why in _turned_ties(chosen).items():
        del chosen[name]
        skipped.append((name, why))
    converted = {_place_of(m) for m in chosen.values()}
    kept = {
        id(p): name or type(m).__name__
        for name, m in named_modules(model)
        for part, p in m._parameters.items()
        if (id(m), part) not in converted
    }
    for name, module in list(chosen.items()):
        if id(module.weight) in kept:
            del chosen[name]
            skipped.append((name, f"shares its weight with {kept[id(module.weight)]!r}, which is not converted"))
    return chosen, skipped


def passed_over(model: nn.Module) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Modules beside torch's layers and frozen ones that hold parameters of their own.

    Those with a parameter of two or more dimensions with the reason why they stay, and the others with their type.
    """
    readers = _readers(model)
    matrices: list[tuple[str, str]] = []
    vectors: list[tuple[str, str]] = []
    for name, module in named_modules(model):
        standing = {part.place[1] for part in input_projections(module).values()}
        held = {n: p for n, p in module._parameters.items() if p is not None and n not in standing}
        if isinstance(module, FrozenLayer) or is_layer(module) or not held:
            continue
        kind = type(module).__name__
        lazy = [n for n, p in held.items() if isinstance(p, nn.UninitializedParameter)]
        wide = [n for n, p in held.items() if n not in lazy and p.dim() >= 2]
        if not lazy and not wide:
            vectors.append((name, kind))
        elif isinstance(module, nn.utils.parametrize.ParametrizationList):
            matrices.append((name, "parametrized"))
        else:
            why = _reads(readers, name) or f"{kind} has no frozen twin"
            shapes = [f"{n} {list(held[n].shape)}" for n in wide] + [f"{n}, lazy," for n in lazy]
            matrices.append((name, f"{why}; {listed(shapes)} stay{'s' if len(shapes) == 1 else ''}"))
    return matrices, vectors


def model_bytes(model: nn.Module, chosen: dict[str, nn.Module]) -> tuple[int, int]:
    """Bytes of the weights of frozen layers and of those `chosen` to be, as dense weights, and of the whole model."""
    frozen: dict[object, int] = {}
    other: dict[int, int] = {}
    picked = {_place_of(m) for m in chosen.values()}
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
                continue
            size = tensor.numel() * tensor.element_size()
            if isinstance(module, FrozenLayer):
                if name in ("bias", "gain"):
                    other[id(tensor)] = size
            elif (id(module), name) in picked:
                frozen[id(tensor)] = size
            else:
                other[id(tensor)] = size
        if isinstance(module, FrozenLayer):
            frozen[module.identity] = module.rows * module.cols * module.dtype.itemsize
    weights = sum(frozen.values())
    return weights, weights + sum(other.values())
