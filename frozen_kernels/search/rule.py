"""What searches have in common: new masks from the scores as they are, checks of the model, and rules of one's own."""

from __future__ import annotations

import weakref
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import format as fmt
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, reshard
from ..select import sharded, swaps, thresholds

Adopt = Callable[[FrozenLayer, Tensor], None]
Ask = Callable[[str, Tensor], Tensor]
Change = Callable[[thresholds.Competitor], thresholds.Competitor]
_BLOCK = 1 << 18  # weights whose temporaries exist at once
# the hook on each scores' gradient, and whose it is: of two searches over one model the later one counts
_slopes: WeakIdKeyDictionary = WeakIdKeyDictionary()


@torch.inference_mode(False)
@torch.no_grad()
def update_masks(layers: Iterable[FrozenLayer], change: Change | None = None, adopt: Adopt | None = None) -> None:
    """New thresholds and masks from |scores| as they are: one for all global layers, one per local layer.

    `change` gives what competes in place of a layer as it is; `adopt` takes a mask over, without it the layer.
    """
    layers = list(layers)
    adopt = FrozenLayer.adopt_supermask if adopt is None else adopt
    groups = competing(layers)
    if any(sharded.is_sharded(layer.scores) for layer in layers):
        _update_sharded(groups, change, adopt)
        return
    for group in groups:
        key = thresholds.threshold(_competitors(group, change), group[0].device)
        for layer in group:
            adopt(layer, layer.mask_above(key))


def competing(layers: Sequence[FrozenLayer]) -> list[list[FrozenLayer]]:
    """The layers that share a threshold: all of scope global, and of scope local those that share scores."""
    together = [layer for layer in layers if layer.config.scope == "global"]
    by_scores: dict[int, list[FrozenLayer]] = {}
    for layer in layers:
        if layer.config.scope == "local":
            by_scores.setdefault(id(layer.scores), []).append(layer)
    return [*([together] if together else []), *by_scores.values()]


def _competitors(group: Sequence[FrozenLayer], change: Change | None) -> list[thresholds.Competitor]:
    every = [layer.competitor for layer in group]
    return every if change is None else [change(c) for c in every]


def _update_sharded(groups: list[list[FrozenLayer]], change: Change | None, adopt: Adopt) -> None:
    """The same masks from sharded scores, in four collective calls for all groups together."""
    asked = [thresholds.rank_of(_competitors(group, change)) for group in groups]
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
                adopt(layer, layer.mask_above(None))
    if searched:
        device = searched[0].device
        keys = sharded.select(selections, device)
        held = [layer.scores for layer in searched if layer.scores is not None]
        masks = sharded.pack_above(held, [keys[i] for i in place], device)
        for layer, mask in zip(searched, masks, strict=True):
            adopt(layer, mask)


def check_count(name: str, value: object, least: int) -> int:
    """The value as a Python int; ValueError where it is no integer, or less than `least`."""
    found = fmt.as_integer(value)
    if found is None or found < least:
        raise ValueError(f"{name}: an integer >= {least}, got {value!r}")
    return found


def check_state(state: Mapping[str, Any], *keys: str) -> None:
    """ValueError where a search's state has other keys."""
    if not isinstance(state, Mapping) or set(state) != set(keys):
        named = f"the key {keys[0]!r} and no other" if len(keys) == 1 else f"the keys {' and '.join(map(repr, keys))}"
        found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state: {named}, got {found}")


def check_buffers(layers: Mapping[str, FrozenLayer]) -> None:
    for name, layer in layers.items():
        try:
            layer.check_buffers()
        except ValueError as why:
            averaged = "averaging a model with use_buffers=True does this, use_buffers=False copies buffers"
            raise ValueError(f"model: {name!r} is no longer the layer it was; {averaged}: {why}") from None


class _Begun(ABCMeta):
    """A class whose instances begin where their constructor, a derived one too, has refused nothing."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        search = super().__call__(*args, **kwargs)
        search._begin()
        return search


class Search(metaclass=_Begun):
    """The layers of a model that a search goes over, and their scores: what all searches have.

    `steps` counts the calls of `step()`.

    Args:
        model: a model that `freeze_` has converted, bare or in a wrapper.

    Raises:
        ValueError: no layer that this search is for, or layers whose seeds were overwritten.
    """

    stored = False  # whether the layers hold stored weights, or drawn ones

    def __init__(self, model: nn.Module) -> None:
        self._model, self.steps = model, 0
        everything = frozen_layers(model)
        check_buffers(everything)
        self._found = {name: layer for name, layer in everything.items() if layer.stored == self.stored}
        self._others = len(everything) - len(self._found)
        self._check()

    def _begin(self) -> None:
        """Take the model over, after the whole constructor: from here on no other search's slope counts."""
        for scores in self._held():
            if scores in _slopes:
                _slopes.pop(scores)[0].remove()

    def _on_meta(self) -> bool:
        """Whether there are no scores yet, so that the first masks come with a state or a step."""
        return any(layer.device.type == "meta" for layer in self.layers)

    @property
    def layers(self) -> list[FrozenLayer]:
        """The layers that are searched now."""
        # a layer without free weights still counts in a global rank; a finalized one is no longer searched
        return [m for m in self._found.values() if m.scores is not None or m.free == 0]

    def _check(self) -> None:
        if self._held():
            return
        count, kind = len(self._found), "stored" if self.stored else "drawn"
        why = f"its {count} layers of {kind} weights are finalized or have no free weight"
        if not count:
            why = f"it has none of {kind} weights" + (f" ({self._others} of others)" if self._others else "")
        raise ValueError(f"model: a search needs frozen layers with scores, {why}")

    def parameters(self) -> list[nn.Parameter]:
        """The scores, shared ones once, and nothing else of the model; this process's parts where they are sharded."""
        return self._held()

    def _held(self) -> list[nn.Parameter]:
        """The scores of the layers, whatever a rule has beside them."""
        reshard(self._model)
        return list({id(layer.scores): layer.scores for layer in self.layers if layer.scores is not None}.values())

    def param_groups(self, **options: object) -> list[dict]:
        """One optimizer group with the scores and the options given, such as weight_decay."""
        return [{"params": self.parameters(), **options}]

    def state_dict(self) -> dict[str, Any]:
        """The steps counted so far; scores and masks are in the model's state."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state_dict` was taken; masks stay as they are until the next step makes new ones.

        ValueError where the state is not `{"steps": an integer >= 0}`.
        """
        check_state(state, "steps")
        self.steps = check_count("steps", state["steps"], 0)


class MaskRule(Search):
    """A rule of one's own: scores in, keys or masks out. Optimise `parameters()`, call `step()` after the optimizer's.

    A subclass overrides one of two methods, with `name` the layer's and `scores` float32 [free], all of its free
    weights in stream order (docs/format.md, section 6):

    - `keys(name, scores)` gives a floating [free]: the highest are kept, between equal ones the lower position, as many
      as the sparsity says: of all layers of scope global together, of a local one by itself;
    - `keep(name, scores)` gives a bool [free]: which are kept.

    It may override `count(name, free)`, how many of its free weights a layer keeps, and `slope(name, scores)`, the
    derivative of a mask bit by its score, floating [free]. Without a slope a score gets `sign(S) * dL/dW * code *
    scale`, which is right for rules of |score|; with one, `slope * dL/dW * code * scale`: of raw scores that pass
    straight through it is `torch.ones_like(scores)`. Of code "signs", whose sign is the score's, it is `dL/dW * scale`,
    and `slope * dL/dW * scale`. Where several layers share scores, the name is the first's.

    The first masks are the rule's: they are made where the constructor, a subclass's too, has ended, at 0 steps. Every
    rule of `fk.search` whose first masks are not those of `freeze_` does so. `load_state_dict` makes them again. On the
    meta device they wait for it, or for a step. Scores that a method gets are a copy.

    `self.steps` counts the steps, from 1 at the first. A subclass with a constructor calls this one's.

    Args:
        model: a model that `freeze_` has converted, bare or in a wrapper that `EdgePopup` takes.

    Raises:
        ValueError: no frozen layers with scores; `fully_shard` holds the scores of a rule with a slope; or what
            `refresh` refuses. The masks are unchanged then, and a search that runs goes on.
        TypeError: the class overrides both of `keys` and `keep`, or neither.
    """

    def __init__(self, model: nn.Module) -> None:
        own = [name for name in ("keys", "keep") if getattr(type(self), name) is not getattr(MaskRule, name)]
        if len(own) != 1:
            raise TypeError(
                f"{type(self).__name__}: one of keys and keep, overridden are {' and '.join(own) or 'none'}"
            )
        super().__init__(model)
        self._sloped = type(self).slope is not MaskRule.slope

    def _begin(self) -> None:
        if not self._on_meta():
            self.refresh()
        elif self._sloped:
            self._watch()
        if not self._sloped:
            super()._begin()

    def keys(self, name: str, scores: Tensor) -> Tensor:
        """Floating [free], the highest of which are kept; `scores` float32 [free] of the layer `name`."""
        raise NotImplementedError

    def keep(self, name: str, scores: Tensor) -> Tensor:
        """bool [free]: which free weights are kept; `scores` float32 [free] of the layer `name`."""
        raise NotImplementedError

    def count(self, name: str, free: int) -> int | None:
        """How many of the `free` weights of the layer `name` are kept; None where the sparsity, or `keep`, decides."""
        return None

    def slope(self, name: str, scores: Tensor) -> Tensor:
        """Floating [free]: the derivative of a mask bit by its score; `scores` float32 [free] of the layer `name`."""
        raise NotImplementedError

    def step(self) -> None:
        """Counts one step of the optimizer, and `refresh()`; where that raises, the step is not counted."""
        self._at(self.steps + 1)

    def _at(self, steps: int) -> None:
        """Masks of a number of steps; where that raises, the number stays what it was."""
        before, self.steps = self.steps, steps
        try:
            self.refresh()
        except BaseException:
            self.steps = before
            raise

    def _go_on(self, steps: int) -> None:
        """The masks and the number of steps of a state that was loaded."""
        if self._on_meta():
            self.steps = steps
        else:
            self._at(steps)

    def refresh(self) -> None:
        """New masks from the scores as they are, uncounted. Collective where the scores are sharded.

        ValueError, with no mask changed, where scores are NaN; where the rule gives another shape or dtype, NaN, or
        another number of kept weights than it counts; or where no layer has scores any more.
        """
        self._make(None if type(self).keep is MaskRule.keep else self.keep)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, and `refresh()`; a rule with a state of its own sets that first.

        ValueError where the state is not `{"steps": an integer >= 0}`, or for what `refresh` refuses.
        """
        check_state(state, "steps")
        self._go_on(check_count("steps", state["steps"], 0))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(self, keep: Ask | None) -> None:
        """Adopt the masks that `keep` gives, or where it is None those of the highest keys."""
        self._check()
        self._check_scores()
        first = self._by_scores()
        masks = self._best(first) if keep is None else {i: self._asked(*first[i], keep) for i in first}
        # nothing above has changed a mask, or the slope of another search
        if self._sloped:
            self._watch()
        for i, (_, layer) in first.items():
            if self._sloped and layer.scores is not None:
                # kernels give a score the sign of itself, and at 0 none
                layer.scores.masked_fill_(layer.scores == 0, torch.finfo(layer.scores.dtype).tiny)
            for other in self.layers:
                if id(other.scores) == i:
                    self._adopt(other, masks[i])

    def _adopt(self, layer: FrozenLayer, keep: Tensor) -> None:
        """Take over bool [free] as a layer's mask."""
        layer.adopt_supermask(fmt.pack_bits(keep))

    def _by_scores(self) -> dict[int, tuple[str, FrozenLayer]]:
        """The first name and layer of each scores, by their id."""
        found: dict[int, tuple[str, FrozenLayer]] = {}
        for name, layer in self._found.items():
            if layer.scores is not None:
                found.setdefault(id(layer.scores), (name, layer))
        return found

    def _scores(self, layer: FrozenLayer) -> Tensor:
        assert layer.scores is not None
        # a copy: a rule may work in place
        return sharded.whole(layer.scores.detach()).to(torch.float32, copy=True)

    def _check_scores(self) -> None:
        """ValueError where a rule with a slope has scores that are NaN, or in parts; others are checked when asked."""
        for name, layer in self._by_scores().values():
            assert layer.scores is not None
            if self._sloped and sharded.is_sharded(layer.scores):
                raise ValueError(
                    f"scores: fully_shard holds those of {name!r}, and a rule with a slope needs them whole"
                )
            if self._sloped:
                check_numbers("scores", name, layer.scores)

    def _asked(self, name: str, layer: FrozenLayer, ask: Ask, kind: str = "keep") -> Tensor:
        """What a method of the rule gives for a layer, checked, on the layer's device."""
        scores, free = self._scores(layer), layer.free
        if not self._sloped:
            check_numbers("scores", name, scores)
        given = ask(name, scores)
        floating = kind != "keep"
        expected = f"{'floating' if floating else 'torch.bool'} [{free}]"
        if not isinstance(given, Tensor):
            raise ValueError(f"{kind}: of layer {name!r} {type(given).__name__}, expected {expected}")
        if tuple(given.shape) != (free,) or given.is_floating_point() != floating or given.dtype.is_complex:
            raise ValueError(f"{kind}: of layer {name!r} {given.dtype} {list(given.shape)}, expected {expected}")
        if not floating and given.dtype != torch.bool:
            raise ValueError(f"{kind}: of layer {name!r} {given.dtype} {list(given.shape)}, expected {expected}")
        if floating:
            check_numbers(kind, name, given)
        wanted = None if floating else self._count(name, free)
        if wanted is not None and int(given.sum()) != wanted:
            raise ValueError(f"{kind}: of layer {name!r} {int(given.sum())} weights kept, expected {wanted}")
        return given.detach().to(layer.device)

    def _count(self, name: str, free: int) -> int | None:
        wanted = self.count(name, free)
        if wanted is not None and not 0 <= check_count("count", wanted, 0) <= free:
            raise ValueError(f"count: of layer {name!r} {wanted}, expected 0 to its {free} free weights")
        return wanted

    def _best(self, first: Mapping[int, tuple[str, FrozenLayer]]) -> dict[int, Tensor]:
        """bool [free] of each scores: the highest keys of each group of layers that compete."""
        keys = {i: self._asked(*first[i], self.keys, "keys") for i in first}
        groups: list[tuple[list[int], int]] = []
        together = []
        for i, (name, layer) in first.items():
            wanted = self._count(name, layer.free)
            if wanted is None and layer.config.scope == "global":
                together.append(i)
            else:
                groups.append(([i], kept_of([layer]) if wanted is None else wanted))
        if together:
            rest = [m for m in self.layers if m.config.scope == "global" and (m.free == 0 or id(m.scores) in together)]
            groups.append((together, kept_of(rest)))
        return {i: mask for ids, kept in groups for i, mask in highest({i: keys[i] for i in ids}, kept).items()}

    def _watch(self) -> None:
        """Let the gradients of the scores, as they are now, be those of the slope."""
        for name, layer in self._by_scores().values():
            scores = layer.scores
            assert scores is not None
            if scores in _slopes:
                handle, rule = _slopes[scores]
                if rule() is self:
                    continue
                handle.remove()
            _slopes[scores] = (scores.register_hook(self._gradient_of(name, layer)), weakref.ref(self))

    def _gradient_of(self, name: str, layer: FrozenLayer) -> Callable[[Tensor], Tensor]:
        def hook(grad: Tensor) -> Tensor:
            slope = self._asked(name, layer, self.slope, "slope")
            # of drawn codes kernels give sign(S) * dL/dW * code * scale, of stored signs dL/dW * scale
            return grad * (slope if layer.signed else slope * self._scores(layer).sign()).to(grad.dtype)

        return hook


def check_numbers(kind: str, name: str, values: Tensor) -> None:
    """ValueError where values of a layer are NaN."""
    bad = int(values.isnan().sum())
    if bad:
        raise ValueError(f"{kind}: of layer {name!r} NaN at {bad} of {values.numel()}, expected none")


def kept_of(layers: Sequence[FrozenLayer]) -> int:
    """How many free weights the sparsity keeps of layers that compete."""
    scores, rank = thresholds.rank_of([layer.competitor for layer in layers])
    return sum(s.numel() for s in scores) - rank


def highest(keys: Mapping[int, Tensor], kept: int) -> dict[int, Tensor]:
    """bool of each tensor of keys: the `kept` highest of all, between equal ones those of lower positions."""
    every = torch.cat([k if k.dtype == torch.float64 else k.to(torch.float32) for k in keys.values()])
    if kept > every.numel():
        raise ValueError(f"keys: {kept} to keep of {every.numel()}")
    if every.dtype == torch.float64:
        keep = torch.zeros(every.shape, dtype=torch.bool, device=every.device)
        keep[every.sort(descending=True, stable=True).indices[:kept]] = True
    else:
        keep = fmt.unpack_bits(swaps.best(every, kept), every.numel())
    return dict(zip(keys, keep.split([k.numel() for k in keys.values()]), strict=True))


def by_chance(draws: Tensor, probability: Tensor) -> Tensor:
    """bool: where int32 draws of the generator fall below a probability (docs/format.md, section 3)."""
    keep = torch.empty(draws.shape, dtype=torch.bool, device=draws.device)
    for start in range(0, draws.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        drawn = ((draws[block].to(torch.int64) & 0xFFFFFFFF).to(torch.float64) + 0.5) * 2.0**-32
        keep[block] = drawn < probability[block]
    return keep


__all__ = ["MaskRule", "Search"]
