"""Lottery jackpots: a mask searched in stored, pre-trained weights (Zhang et al., arXiv 2104.08700)."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, warn_of_stale_masks
from ..select.swaps import short_restriction
from .rule import Search, check_count, check_state

Restriction = Literal["short"] | Callable[[float], float] | None


class Jackpot(Search):
    """Searches the masks of stored weights: optimise `parameters()`, and call `step()` after the optimizer's.

    Every layer keeps the number of weights that it keeps now, at each step. The mask that the scores want is that of
    the highest raw scores; of equal ones the weight that is kept now wins, then the lower position in stream order (NaN
    is above all). The weights that are wanted and dropped, and those that are kept and not wanted, are equally many:
    `ceil(pairs * rate)` of them are swapped, the best that enter for the worst that leave. With a `pattern`, pairs are
    of one group of columns, and those of the largest gain in score come first. Scores get `dL/dW * w`.

    Only scores are optimised: batch norm's parameters and biases stay, its running statistics move in train mode. With
    a restriction a mask is no function of the scores, so that the masks are in `state_dict()` too.

    Args:
        model: a model that `freeze_` has converted with code "stored", bare or in `torch.compile`, `DataParallel`,
            `DistributedDataParallel` or `fully_shard`.
        epochs: how many the search takes; after them the rate stays that of the last.
        steps_per_epoch: calls of `step()` in each, `len(loader)`.
        restriction: "short", the rate `(1 - progress)^4`; None, the rate 1, plain top-k of each layer; or a function of
            `progress`, the epochs that have passed over all of them, 0 to below 1, that gives a rate in (0, 1].

    Raises:
        ValueError: the model has no stored layer with scores, or layers that something else wrote; a count is no
            integer >= 1; another restriction.
    """

    stored = True

    def __init__(
        self, model: nn.Module, *, epochs: int, steps_per_epoch: int, restriction: Restriction = "short"
    ) -> None:
        self.epochs = check_count("epochs", epochs, 1)
        self.steps_per_epoch = check_count("steps_per_epoch", steps_per_epoch, 1)
        if restriction not in ("short", None) and not callable(restriction):
            raise ValueError(f"restriction: 'short', None or a function of progress, got {restriction!r}")
        self.restriction = restriction
        super().__init__(model)
        self._kept = {name: layer.counts["kept"] for name, layer in self._found.items() if layer.scores is not None}

    @property
    def rate(self) -> float:
        """The share of the wanted swaps that the next step makes; ValueError where the restriction gives no rate."""
        if self.restriction is None:
            return 1.0
        progress = min(self.steps // self.steps_per_epoch, self.epochs - 1) / self.epochs
        given = short_restriction if self.restriction == "short" else self.restriction
        rate = given(progress)  # type: ignore[operator]
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 < float(rate) <= 1:
            raise ValueError(f"restriction: a rate in (0, 1], got {rate!r} at progress {progress:g}")
        return float(rate)

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self) -> int:
        """New masks from the scores as they are; returns how many weights were swapped for others.

        ValueError where no layer has scores any more, or a mask keeps another number of weights than when the search
        began: no mask is changed then. Collective where the scores are sharded.
        """
        self._check()
        rate = self.rate
        first_of: dict[int, FrozenLayer] = {}
        wanted: dict[FrozenLayer, Tensor] = {}
        for name, layer in self._found.items():
            if layer.scores is None or first_of.setdefault(id(layer.scores), layer) is not layer:
                continue
            try:
                wanted[layer] = layer.wanted_swaps(self._kept[name], rate)
            except ValueError as why:
                raise ValueError(f"{name or 'model'}: {why}") from None
        # nothing above has changed a mask
        swaps = sum(layer.swap_(positions) for layer, positions in wanted.items())
        for layer in self._found.values():
            if layer.scores is not None:
                first_of[id(layer.scores)].share_with(layer)
        self.steps += 1
        return swaps

    def state_dict(self) -> dict[str, Any]:
        """`steps`, and `masks`: the packed supermask of each layer by name, uint8 [ceil(weights / 8)]."""
        masks = {name: self._found[name].packed_supermask().clone() for name in self._kept}
        return {"steps": self.steps, "masks": masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with its masks; the scores are in the model's state.

        ValueError where the state is another, or a mask of it has another size or keeps another number of weights than
        the layer: nothing is changed then.
        """
        check_state(state, "masks", "steps")
        steps, masks = check_count("steps", state["steps"], 0), state["masks"]
        if not isinstance(masks, Mapping):
            raise ValueError(f"masks: a mapping of names to masks, got {type(masks).__name__}")
        if set(masks) != set(self._kept):
            raise ValueError(f"masks: of {sorted(self._kept)}, got {sorted(map(str, masks))}")
        for name, mask in masks.items():
            _check_mask(name, mask, self._found[name], self._kept[name])
        for name, mask in masks.items():
            self._found[name].set_supermask(mask)
        self.steps = steps


def _check_mask(name: str, mask: Any, layer: FrozenLayer, kept: int) -> None:
    if not isinstance(mask, Tensor):
        raise ValueError(f"masks: {name!r} is {type(mask).__name__}, expected a tensor")
    size = -(-layer.rows * layer.cols // 8)
    if mask.dtype != torch.uint8 or tuple(mask.shape) != (size,):
        raise ValueError(f"masks: {name!r} is {mask.dtype} {list(mask.shape)}, expected torch.uint8 [{size}]")
    fmt.check_supermask(mask, layer.rows * layer.cols, f"masks: {name!r}")
    found = int(torch.ops.frozen_kernels.popcount(mask))
    if found != kept:
        raise ValueError(f"masks: {name!r} keeps {found} weights, the layer {kept}")


def tune_weights_(model: nn.Module) -> list[nn.Parameter]:
    """Make the kept values of every stored layer trainable, for search-then-tune; the masks stay as they are.

    Returns the parameters, float 1-D in stream order; dropped weights have none and stay 0. Layers still searched drop
    their scores, with a warning where those changed since the masks were made. `finalize_` ends it. The paper tunes 10
    epochs at a learning rate of 0.01, without weight decay.

    Raises:
        ValueError: a model without stored layers, or one with int8 or float64 values.
        RuntimeError: `fully_shard` holds the scores.
    """
    stored = {name: layer for name, layer in frozen_layers(model).items() if layer.stored}
    if not stored:
        raise ValueError("model: no stored weights to tune")
    of_weight: dict[tuple[object, ...], list[FrozenLayer]] = {}
    for name, layer in stored.items():
        values = layer.values
        if values is None or values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"{name or 'model'}: float32, float16 or bfloat16 values can be tuned, got {layer}")
        of_weight.setdefault(layer.identity, []).append(layer)
    warn_of_stale_masks(stored)
    tuned = []
    for first, *others in of_weight.values():
        tuned.append(first.tune_weights())
        for other in others:
            first.share_with(other)
    return tuned
