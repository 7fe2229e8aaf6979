"""What every search has in common: new masks from the scores as they are, and checks of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..format import as_integer
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, reshard
from ..select import sharded, thresholds


@torch.inference_mode(False)
@torch.no_grad()
def update_masks(layers: Iterable[FrozenLayer]) -> None:
    """New thresholds and masks from the scores as they are: one for all global layers, one per local layer."""
    layers = list(layers)
    together = [layer for layer in layers if layer.config.scope == "global"]
    groups = [together] if together else []
    by_scores: dict[int, list[FrozenLayer]] = {}
    for layer in layers:
        if layer.config.scope == "local":
            by_scores.setdefault(id(layer.scores), []).append(layer)
    groups += by_scores.values()
    if any(sharded.is_sharded(layer.scores) for layer in layers):
        _update_sharded(groups)
        return
    for group in groups:
        key = thresholds.threshold([layer.competitor for layer in group], group[0].device)
        for layer in group:
            layer.apply_threshold(key)


def _update_sharded(groups: list[list[FrozenLayer]]) -> None:
    """The same masks from sharded scores, in four collective calls for all groups together."""
    asked = [thresholds.rank_of([layer.competitor for layer in group]) for group in groups]
    searched: list[FrozenLayer] = []
    place: list[int] = []
    selections: list[tuple[list[Tensor], int]] = []
    for group, (scores, rank) in zip(groups, asked, strict=True):
        here = [layer for layer in group if rank and layer.scores is not None]
        if here:
            searched += here
            place += [len(selections)] * len(here)
            selections.append((scores, rank))
        for layer in group:
            if layer not in here:
                layer.apply_threshold(None)
    if searched:
        device = searched[0].device
        keys = sharded.select(selections, device)
        held = [layer.scores for layer in searched if layer.scores is not None]
        masks = sharded.pack_above(held, [keys[i] for i in place], device)
        for layer, mask in zip(searched, masks, strict=True):
            layer.adopt_supermask(mask)


def check_count(name: str, value: object, least: int) -> int:
    """The value as a Python int; ValueError where it is no integer, or less than `least`."""
    found = as_integer(value)
    if found is None or found < least:
        raise ValueError(f"{name}: an integer >= {least}, got {value!r}")
    return found


def check_buffers(layers: Mapping[str, FrozenLayer]) -> None:
    for name, layer in layers.items():
        try:
            layer.check_buffers()
        except ValueError as why:
            averaged = "averaging a model with use_buffers=True does this, use_buffers=False copies buffers"
            raise ValueError(f"model: {name!r} is no longer the layer it was; {averaged}: {why}") from None


class Search:
    """The layers of a model that a search goes over, and their scores."""

    stored = False  # whether the layers hold stored weights, or drawn ones

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        everything = frozen_layers(model)
        check_buffers(everything)
        self._found = {name: layer for name, layer in everything.items() if layer.stored == self.stored}
        self._others = len(everything) - len(self._found)
        self._check()

    @property
    def layers(self) -> list[FrozenLayer]:
        """The layers that are searched now."""
        # a layer without free weights still counts in a global rank; a finalized one is no longer searched
        return [m for m in self._found.values() if m.scores is not None or m.free == 0]

    def _check(self) -> None:
        if self.parameters():
            return
        count, kind = len(self._found), "stored" if self.stored else "drawn"
        why = f"its {count} layers of {kind} weights are finalized or have no free weight"
        if not count:
            why = f"it has none of {kind} weights" + (f" ({self._others} of others)" if self._others else "")
        raise ValueError(f"model: a search needs frozen layers with scores, {why}")

    def parameters(self) -> list[nn.Parameter]:
        """The scores, shared ones once, and nothing else of the model; this process's parts where they are sharded."""
        reshard(self._model)
        return list({id(layer.scores): layer.scores for layer in self.layers if layer.scores is not None}.values())

    def param_groups(self, **options: object) -> list[dict]:
        """One optimizer group with the scores and the options given, such as weight_decay."""
        return [{"params": self.parameters(), **options}]
