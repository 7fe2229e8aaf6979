"""`freeze_`: convert a model's layers to frozen ones in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..config import FreezeConfig
from ..nn.layer import FrozenLayer
from ..nn.layers import TWINS
from ..nn.models import frozen_layers, replace_module, reshard
from ..search.rule import update_masks
from ..select.sharded import is_sharded
from .distribution import layer_ratios

ConfigFn = Callable[[nn.Module, str], FreezeConfig | None]
FilterFn = Callable[[nn.Module, str], bool]

_LAYERS: tuple[type[nn.Module], ...] = (*TWINS, FrozenLayer)
# these read their children's weights without calling them
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass
class Converted:
    """One converted layer; `shape` is the weight's, counts are of its weights."""

    name: str
    kind: str
    shape: tuple[int, ...]
    stream: int
    pruned: int
    locked: int
    free: int


@dataclass
class FreezeReport:
    """What `freeze_` converted, and what it skipped and why; `print` it."""

    converted: list[Converted] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def weights(self) -> int:
        """Frozen weights in all."""
        return sum(c.pruned + c.locked + c.free for c in self.converted)

    @property
    def free(self) -> int:
        """Free weights in all: the scores to train and the bits of the supermask."""
        return sum(c.free for c in self.converted)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} layers frozen: {self.weights:,} weights, {self.free:,} of them free"]
        for c in self.converted:
            total = max(c.pruned + c.locked + c.free, 1)
            lines.append(
                f"  {c.name}: {c.kind}{list(c.shape)} stream {c.stream}, "
                f"{c.pruned / total:.1%} pruned, {c.locked / total:.1%} locked, {c.free / total:.1%} free"
            )
        if self.skipped:
            lines.append(f"{len(self.skipped)} layers skipped")
            lines += [f"  {name}: {why}" for name, why in self.skipped]
        return "\n".join(lines)


def _reason_to_skip(module: nn.Module, readers: list[tuple[str, str]], name: str) -> str | None:
    """Why a layer that holds a weight cannot be converted; None where it can."""
    if isinstance(module, FrozenLayer):
        return "already frozen"
    for reader, kind in readers:
        if not reader or name.startswith(reader + "."):
            return f"{kind} {reader!r} reads its weight without calling it"
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized"
    if hasattr(module, "weight_g") or hasattr(module, "weight_orig"):
        return "its weight is recomputed by a hook of torch.nn.utils"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy: run a batch through the model first"
    if is_sharded(module.weight):  # type: ignore[arg-type]
        return "sharded: freeze the model before fully_shard"
    if type(module) not in TWINS:
        return f"subclass {type(module).__name__} of a torch layer"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq or module.sparse):
        return "max_norm, scale_grad_by_freq and sparse need a stored weight"
    if not module.weight.dtype.is_floating_point:
        return f"weight of {module.weight.dtype}"
    return None


def candidates(model: nn.Module, filter_fn: FilterFn | None) -> tuple[dict[str, nn.Module], list[tuple[str, str]]]:
    """Layers that can be converted by name, and (name, reason) of those that are not."""
    readers = [(n, type(m).__name__) for n, m in model.named_modules() if isinstance(m, _READERS)]
    chosen: dict[str, nn.Module] = {}
    skipped: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if not isinstance(module, _LAYERS):
            continue
        why = _reason_to_skip(module, readers, name)
        if why is None and filter_fn is None and isinstance(module, nn.Embedding):
            why = "embeddings are converted where filter_fn says so"
        if why is None and filter_fn is not None and not filter_fn(module, name):
            why = "filter_fn"
        if why is None:
            chosen[name] = module
        else:
            skipped.append((name, why))
    converted = {id(m) for m in chosen.values()}
    kept = {
        id(p): name or type(m).__name__
        for name, m in model.named_modules()
        if id(m) not in converted
        for p in m._parameters.values()
    }
    for name, module in list(chosen.items()):
        if id(module.weight) in kept:
            del chosen[name]
            skipped.append((name, f"shares its weight with {kept[id(module.weight)]!r}, which is not converted"))
    return chosen, skipped


def _next_streams(model: nn.Module) -> dict[int, int]:
    """The first unused stream of each seed that the model's frozen tensors use."""
    following: dict[int, int] = {}
    for layer in frozen_layers(model).values():
        following[layer.seed] = max(following.get(layer.seed, 0), layer.stream + 1)
    return following


def _share(layer: FrozenLayer, first: FrozenLayer) -> None:
    """Make two layers of one torch Parameter one tensor: same header, same scores."""
    layer.scores = first.scores
    if layer.device.type != "meta":
        layer.set_supermask(first.packed_supermask())


def _chosen_configs(
    config_of: ConfigFn, chosen: dict[str, nn.Module], skipped: list[tuple[str, str]]
) -> dict[str, FreezeConfig]:
    """The config of each module by name; those without one join `skipped`."""
    configs: dict[str, FreezeConfig] = {}
    of_parameter: dict[int, FreezeConfig] = {}
    for name, module in chosen.items():
        config = config_of(module, name)
        if config is None:
            skipped.append((name, "config returned None"))
            continue
        if not isinstance(config, FreezeConfig):
            raise TypeError(f"config: a FreezeConfig or None for {name!r}, got {type(config).__name__}")
        if of_parameter.setdefault(id(module.weight), config) != config:
            raise ValueError(f"config: {name!r} shares its weight with another layer and needs the same config")
        configs[name] = config
    return configs


def _spread_ratios(configs: dict[str, FreezeConfig], chosen: dict[str, nn.Module]) -> dict[str, tuple[float, float]]:
    """prune_ratio and lock_ratio of each layer: those of equal ratios and distribution are one network.

    ValueError for a layer whose own sparsity cannot be reached within them.
    """
    networks: dict[tuple, dict[int, list[str]]] = {}
    for name, config in configs.items():
        network = networks.setdefault((config.distribution, config.ratio_rule, *config.ratios), {})
        network.setdefault(id(chosen[name].weight), []).append(name)
    found: dict[str, tuple[float, float]] = {}
    for settings, tensors in networks.items():
        shapes = [tuple(chosen[names[0]].weight.shape) for names in tensors.values()]  # type: ignore[arg-type]
        solved = layer_ratios(settings[0], settings[1], shapes, *settings[2:])
        for shape, names, ratios in zip(shapes, tensors.values(), solved, strict=True):
            for name in names:
                _check_local(name, configs[name], ratios, math.prod(shape))
                found[name] = ratios
    return found


def _check_local(name: str, config: FreezeConfig, ratios: tuple[float, float], count: int) -> None:
    prune, lock = ratios
    whole = 1 / max(count, 1)  # ratios become whole numbers of weights
    if config.scope == "global" or prune - whole <= config.sparsity <= 1 - lock + whole:
        return
    bound = f"below its prune_ratio {prune:.4g}" if config.sparsity < prune else f"above 1 - its lock_ratio {lock:.4g}"
    raise ValueError(
        f"sparsity: {config.sparsity} is {bound} in layer {name!r}, by distribution {config.distribution!r}; "
        "scope 'local' needs it within the bounds of every layer"
    )


def convert(
    model: nn.Module, config_of: ConfigFn, chosen: dict[str, nn.Module], streams: dict[int, int]
) -> tuple[dict[str, FrozenLayer], list[tuple[str, str]]]:
    """Frozen twins of the chosen modules by name, not yet in the model, and the names without a config."""
    built: dict[str, FrozenLayer] = {}
    skipped: list[tuple[str, str]] = []
    configs = _chosen_configs(config_of, chosen, skipped)
    ratios = _spread_ratios(configs, chosen)
    of_parameter: dict[int, FrozenLayer] = {}
    for name, config in configs.items():
        module = chosen[name]
        first = of_parameter.get(id(module.weight))
        if first is not None:
            stream = first.stream
        else:
            stream = streams.get(config.seed, 0)
            streams[config.seed] = stream + 1
        twin = TWINS[type(module)]
        layer = twin.from_module(module, config, stream=stream, ratios=ratios[name])  # type: ignore[attr-defined]
        if first is not None:
            _share(layer, first)
        of_parameter.setdefault(id(module.weight), layer)
        built[name] = layer
    return built, skipped


def freeze_(
    model: nn.Module, config: FreezeConfig | ConfigFn | None = None, filter_fn: FilterFn | None = None
) -> FreezeReport:
    """Convert Linear and convolution layers (embeddings where `filter_fn` says so) to frozen ones, in place.

    Weights are drawn from `config.seed`, one stream per weight tensor in traversal order; the old ones are dropped.
    Biases, hooks, train mode, dtype and device stay. Masks are valid afterwards, from the initial scores.

    Args:
        model: a module that contains the layers.
        config: settings for all layers, or a function (module, name) -> FreezeConfig, None to skip.
        filter_fn: (module, name) -> bool, whether to convert; all but embeddings by default.

    Returns:
        A report of what was converted, and what was skipped and why.

    Raises:
        ValueError: the model is itself a layer, or holds nothing that can be frozen; or a layer of scope local whose
            prune or lock ratio, by the distribution, rules the sparsity out. The model is unchanged.
    """
    if isinstance(model, tuple(TWINS)):
        twin = next(t for base, t in TWINS.items() if isinstance(model, base)).__name__
        raise ValueError(f"model: a bare {type(model).__name__} cannot be replaced in place; use {twin}.from_module")
    config = FreezeConfig() if config is None else config
    if not callable(config) and not isinstance(config, FreezeConfig):
        raise TypeError(f"config: a FreezeConfig or a function, got {type(config).__name__}")
    config_of: ConfigFn = config if callable(config) else lambda module, name: config
    chosen, skipped = candidates(model, filter_fn)
    built, without_config = convert(model, config_of, chosen, _next_streams(model))
    skipped += without_config
    if not built and not frozen_layers(model):
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "no linear, convolution or embedding layers"
        raise ValueError(f"model: nothing to freeze ({why})")
    with torch.no_grad():
        update_masks(m for m in built.values() if m.device.type != "meta")
    for name, layer in built.items():
        replace_module(model, chosen[name], layer)
    report = FreezeReport(skipped=skipped)
    for name, layer in built.items():
        c = layer.counts
        kind = type(layer).__name__
        report.converted.append(Converted(name, kind, layer.shape, layer.stream, c["pruned"], c["locked"], c["free"]))
    return report


def finalize_(model: nn.Module) -> None:
    """Drop the scores of every frozen layer and keep its supermask.

    ValueError for a model without frozen layers, RuntimeError where `fully_shard` holds the scores.
    """
    reshard(model)
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers to finalize")
    for layer in layers.values():
        layer.finalize()
