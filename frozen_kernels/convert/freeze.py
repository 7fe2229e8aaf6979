"""`freeze_`: convert a model's layers to frozen ones in place."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from ..config import FreezeConfig
from ..format import STORED
from ..nn.attention import input_projections, open_attentions
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, replace_module, reshard, unwrapped, warn_of_stale_masks
from ..nn.twins import frozen_shape, is_layer, like_twin, twin_of
from ..process import release_memory
from ..search.rule import update_masks
from ..tensor import FrozenTensor
from ..text import listed
from .choose import FilterFn, candidates, check_wrappers, model_bytes, passed_over
from .distribution import layer_ratios
from .rates import kept_counts, leave_dense
from .report import Converted, FreezeReport
from .trained import signs_of_training

ConfigFn = Callable[[nn.Module, str], FreezeConfig | None]


def _next_streams(model: nn.Module) -> dict[int, int]:
    """The first unused stream of each seed that the model's frozen tensors use."""
    following: dict[int, int] = {}
    for layer in frozen_layers(model).values():
        if layer.stored or (layer.signed and layer.scores is None):
            continue  # nothing of it is drawn
        following[layer.seed] = max(following.get(layer.seed, 0), layer.stream + 1)
    return following


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

    ValueError for a layer whose own sparsity cannot be reached within them, or that a dict of densities does not name,
    and for a name in it that is no such layer.
    """
    networks: dict[tuple, dict[int, list[str]]] = {}
    for name, config in configs.items():
        spread = config.distribution
        key = spread if isinstance(spread, str) else tuple(sorted(spread.items()))
        network = networks.setdefault((key, config.ratio_rule, *config.ratios), {})
        network.setdefault(id(chosen[name].weight), []).append(name)
    found: dict[str, tuple[float, float]] = {}
    for settings, tensors in networks.items():
        shapes = [frozen_shape(chosen[names[0]]) for names in tensors.values()]
        known = settings[0]
        if not isinstance(known, str):
            densities = _densities_of(dict(known), [name for names in tensors.values() for name in names])
            known = [densities[names[0]] for names in tensors.values()]
        solved = layer_ratios(known, settings[1], shapes, *settings[2:])
        for shape, names, ratios in zip(shapes, tensors.values(), solved, strict=True):
            for name in names:
                _check_local(name, configs[name], ratios, math.prod(shape))
                found[name] = ratios
    return found


def _densities_of(given: dict[str, float], names: list[str]) -> dict[str, float]:
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        what = f"no density of {listed(missing)}" if missing else f"a density of {listed(unknown)}"
        raise ValueError(f"distribution: {what}, the layers that are converted with it are {listed(names)}")
    return given


def _check_local(name: str, config: FreezeConfig, ratios: tuple[float, float], count: int) -> None:
    prune, lock = ratios
    whole = 1 / max(count, 1)  # ratios become whole numbers of weights
    if config.scope == "global" or prune - whole <= config.sparsity <= 1 - lock + whole:
        return
    bound = f"below its prune_ratio {prune:.4g}" if config.sparsity < prune else f"above 1 - its lock_ratio {lock:.4g}"
    raise ValueError(
        f"sparsity: {config.sparsity} is {bound} in layer {name!r}, by distribution {_named(config)}; "
        "scope 'local' needs it within the bounds of every layer"
    )


def _named(config: FreezeConfig) -> str:
    return repr(config.distribution) if isinstance(config.distribution, str) else "the dict given"


def _planned_streams(
    configs: dict[str, FreezeConfig], chosen: dict[str, nn.Module], streams: dict[int, int]
) -> dict[str, int]:
    """The stream of each layer, one for each weight; ValueError where a seed has none left."""
    found: dict[str, int] = {}
    of_parameter: dict[int, int] = {}
    for name, config in configs.items():
        if config.code == STORED:
            found[name] = 0  # nothing is drawn
            continue
        weight = id(chosen[name].weight)
        if weight not in of_parameter:
            of_parameter[weight] = streams.get(config.seed, 0)
            streams[config.seed] = of_parameter[weight] + 1
        found[name] = of_parameter[weight]
        if found[name] >= 1 << 32:
            raise ValueError(f"model: {name!r} would need stream {found[name]} of seed {config.seed}, at most 2^32 - 1")
    return found


def _check_gains(configs: dict[str, FreezeConfig], chosen: dict[str, nn.Module]) -> None:
    """ValueError where a gain is several that the outputs of a layer do not divide into, or of an embedding."""
    for name, config in configs.items():
        module = chosen[name]
        try:
            if isinstance(module, nn.Embedding) and config.row_gains(0) is not None:
                raise ValueError(f"gain: one factor for an embedding, got {config.gain}")
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                config.row_gains(module.out_channels)
            else:
                config.row_gains(frozen_shape(module)[0])
        except ValueError as why:
            raise ValueError(f"{name!r}: {why}") from None


def _convert(
    model: nn.Module, chosen: dict[str, nn.Module], configs: dict[str, FreezeConfig]
) -> dict[str, FrozenLayer]:
    """Put frozen twins in the places of the chosen modules, and empty `chosen`: each weight goes as its twin comes.

    Everything that can be refused is checked before the first one is replaced. Twins have scores; drawn ones no masks.
    """
    ratios = _spread_ratios(configs, chosen)
    _check_gains(configs, chosen)
    streams = _planned_streams(configs, chosen, _next_streams(model))
    kept = kept_counts(configs, {name: chosen[name].weight for name in configs})  # type: ignore[misc]
    weight_of = {name: id(chosen[name].weight) for name in configs}
    built: dict[str, FrozenLayer] = {}
    first_of: dict[int, FrozenLayer] = {}
    open_attentions(model, chosen.values())
    for name, config in configs.items():
        module = chosen.pop(name)
        layer = twin_of(module).from_module(
            module, config, stream=streams[name], ratios=ratios[name], masks=False, kept=kept.get(name)
        )
        # layers of one torch Parameter are one tensor
        first_of.setdefault(weight_of[name], layer).share_with(layer)
        replace_module(model, module, layer)
        built[name] = layer
    return built


def _lost_training(model: nn.Module, chosen: dict[str, nn.Module], configs: dict[str, FreezeConfig]) -> list[str]:
    """Signs that weights which are replaced had been trained."""
    replaced = {name: module for name, module in chosen.items() if configs[name].code != STORED}
    return signs_of_training(model, replaced) if replaced else []


@torch.inference_mode(False)
@torch.no_grad()
def freeze_(
    model: nn.Module, config: FreezeConfig | ConfigFn | None = None, filter_fn: FilterFn | None = None
) -> FreezeReport:
    """Convert Linear and convolution layers (embeddings where `filter_fn` says so) to frozen ones, in place.

    So too the projections of `nn.MultiheadAttention`, by the names `in_proj` (or `q_proj`, `k_proj`, `v_proj`) and
    `out_proj`, and the `Conv1D` of GPT-2 in transformers.

    Weights are drawn from `config.seed`, one stream per weight tensor in traversal order. Each old weight is dropped as
    its layer is converted, so that memory does not rise; what a model had learned in it is gone. Biases, hooks, train
    mode, dtype and device stay. Masks are valid afterwards, from the initial scores.

    With code "stored" a model keeps its weights (Zhang et al., arXiv 2104.08700): masks begin with the largest
    magnitudes, and the sparsity is that of all layers converted together. The classifier stays dense, unless there is
    a `filter_fn` or a dict of rates: that is the last layer in traversal order, where it is linear or a 1 x 1
    convolution.

    Args:
        model: a module that contains the layers, or one in `torch.compile` or `DataParallel`.
        config: settings for all layers, or a function (module, name) -> FreezeConfig, None to skip.
        filter_fn: (module, name) -> bool, whether to convert; all but embeddings by default.

    Returns:
        A report: the share of the model's bytes that is frozen, what was converted, every module with parameters that
        was passed over and why, and signs that the model had been trained.

    Raises:
        ValueError: the model is itself a layer, is in `DistributedDataParallel` or `FullyShardedDataParallel`, or holds
            nothing that can be frozen; or a layer of scope local whose prune or lock ratio, by the distribution, rules
            the sparsity out. The model is unchanged.
    """
    check_wrappers(model)
    model = unwrapped(model)
    if is_layer(model) or input_projections(model):
        twin = like_twin(model).__name__
        raise ValueError(f"model: a bare {type(model).__name__} cannot be replaced in place; use {twin}.from_module")
    config = FreezeConfig() if config is None else config
    if not callable(config) and not isinstance(config, FreezeConfig):
        raise TypeError(f"config: a FreezeConfig or a function, got {type(config).__name__}")
    config_of: ConfigFn = config if callable(config) else lambda module, name: config
    chosen, skipped = candidates(model, filter_fn)
    configs = _chosen_configs(config_of, chosen, skipped)
    others, vectors = passed_over(model)
    skipped += others + leave_dense(configs, chosen, filter_fn is not None)
    if not configs and not frozen_layers(model):
        why = "; ".join(f"{name or 'model'}: {reason}" for name, reason in skipped)
        raise ValueError(f"model: nothing to freeze ({why or 'no linear, convolution or embedding layers'})")
    chosen = {name: chosen[name] for name in configs}
    report = FreezeReport([], skipped, vectors, *model_bytes(model, chosen), _lost_training(model, chosen, configs))
    built = _convert(model, chosen, configs)
    update_masks(layer for layer in built.values() if layer.device.type != "meta" and not layer.stored)
    for name, layer in built.items():
        c, kind = layer.counts, type(layer).__name__
        counts = (c["pruned"], c["locked"], c["free"], c["kept"])
        report.converted.append(Converted(name, kind, layer.shape, layer.code, layer.stream, *counts))
    release_memory()
    return report


def finalize_(model: nn.Module, values: str | None = None) -> None:
    """Drop the scores of every frozen layer and keep its supermask.

    Warns where scores changed since the masks were made of them: the last search step is then not in the masks.

    Args:
        model: with frozen layers, bare or in a wrapper.
        values: of stored layers, what the values that their masks keep are rounded to: float32, float16, bfloat16, or
            int8 with a scale for each row; their own dtype by default.

    Raises:
        ValueError: a model without frozen layers, another name, or a kept value that is not finite in it. Nothing is
            changed then.
        RuntimeError: `fully_shard` holds the scores.
    """
    reshard(model)
    layers = frozen_layers(model)
    if not layers:
        raise ValueError("model: no frozen layers to finalize")
    warn_of_stale_masks(layers)
    packed: dict[tuple[object, ...], FrozenTensor] = {}
    for name, layer in layers.items():
        if layer.stored and layer.identity not in packed and not layer.is_finalized_as(values):
            try:
                packed[layer.identity] = layer.packed_record(values)
            except ValueError as why:
                raise ValueError(f"{name or 'model'}: {why}") from None
    for layer in layers.values():
        if not layer.stored:
            layer.finalize()
        elif layer.identity in packed:
            layer.take_packed(packed[layer.identity])
    release_memory()
