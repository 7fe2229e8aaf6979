"""Arguments and outputs of a forward: their tensors in any nest, other draws, and what is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .verdict import Verdict, judge

ENOUGH, MOST_TURNS = 1000, 8  # values that are compared of an output; inputs that are made of one for them
LUCK = 4.0  # times eps: of fewer values, torch's may be right by luck
ROUNDING = 8.0  # times eps of the largest value: two calls of one model may be so far apart
Args = tuple[Any, ...]


class Right(NamedTuple):
    """What is right for an input: of each output float64 values and torch's; and of how many inputs they are."""

    exact: list[Tensor]
    torchs: list[Tensor]
    turns: int


def text_of(args: Args) -> str:
    """The arguments of a forward in short: sizes, and dtypes but float32."""

    def one(value: Any) -> str:
        if not isinstance(value, Tensor):
            return type(value).__name__
        dtype = "" if value.dtype == torch.float32 else " " + str(value.dtype).split(".")[-1]
        return ("x".join(map(str, value.shape)) or "scalar") + dtype

    return " + ".join(map(one, args))


def cloned(args: Args) -> Args:
    """The same arguments in tensors of their own: a forward may write into them."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(), args)


def outputs(model: nn.Module, args: Args, turns: int = 1) -> list[Tensor]:
    """The values of each floating output as a vector, of an input and of what is made of it."""
    draws = [[t.flatten() for t in _tensors(model(*_turned(args, turn)))] for turn in range(turns)]
    return [torch.cat(parts) for parts in zip(*draws, strict=True)]


def right_for(plain: nn.Module, exact: nn.Module, args: Args) -> Right:
    """The outputs of the same weights in float64 and in torch. ValueError where they cannot judge others."""
    try:
        first = outputs(plain, args)
        again = outputs(plain, args)
    except Exception as why:  # whatever a user's forward raises
        raise ValueError(f"x: the model refuses {text_of(args)}: {type(why).__name__}: {why}") from why
    if not first:
        raise ValueError("model: its output holds no floating tensor to compare")
    if _finite(first) and not _alike(first, again):
        raise ValueError(
            f"model: dense torch gives other values for {text_of(args)} at a second call: its forward draws random "
            "numbers or keeps something from call to call, so that results cannot be compared"
        )
    try:
        wide = outputs(exact, _doubled(args))
    except Exception as why:
        raise ValueError(
            f"model: its forward does not run in float64, with which results are compared: {type(why).__name__}: {why}"
        ) from why
    if not _finite([*first, *again, *wide]):
        raise ValueError(f"model: its values for {text_of(args)} are not all finite, and cannot be compared")
    right = _with_more(plain, exact, args, Right(wide, again, 1))
    if judged([torch.zeros_like(t) for t in right.torchs], right).passed:
        raise ValueError(
            f"model: zeros would pass as its output for {text_of(args)}: the values are zero, or dense torch is as far "
            "from float64 as they are large"
        )
    return right


def judged(found: list[Tensor], right: Right) -> Verdict:
    """The verdict on the output that is off the most, or on the first that is wrong."""
    if len(found) != len(right.exact):
        return Verdict(False, why=f"{len(found)} outputs, torch {len(right.exact)}")
    worst = Verdict(True)
    for number, (ours, torchs, exact) in enumerate(zip(found, right.torchs, right.exact, strict=True), 1):
        luck = 1.0 if exact.numel() >= ENOUGH else LUCK
        verdict = judge(ours, torchs, exact, least=luck * torch.finfo(torchs.dtype).eps)
        if not verdict.passed:
            return verdict._replace(why=f"output {number}: {verdict.why}" if len(found) > 1 else verdict.why)
        worst = max(worst, verdict, key=lambda v: v.error)
    return worst


def _tensors(output: Any) -> Iterator[Tensor]:
    """Floating tensors of an output: of tuples, lists and mappings, as of transformers, too."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, (Mapping, Sequence)) and not isinstance(output, str):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _turned(args: Args, turn: int) -> Args:
    """Other arguments of the same sizes and dtypes: floating values, moved on by some places. Ids and masks stay."""

    def moved(value: Tensor) -> Tensor:
        if not turn or not value.is_floating_point():
            return value
        return value.flatten().roll(turn * (value.numel() // MOST_TURNS + 1)).view_as(value)

    return tree_map_only(Tensor, moved, cloned(args))


def _doubled(args: Args) -> Args:
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, args)


def _finite(values: list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in values)


def _alike(first: list[Tensor], again: list[Tensor]) -> bool:
    """Do two calls agree? On a GPU but for the order in which a kernel adds up."""
    if [t.shape for t in first] != [t.shape for t in again]:
        return False
    return all(
        torch.allclose(a, b, rtol=0, atol=ROUNDING * torch.finfo(a.dtype).eps * a.abs().max().item(), equal_nan=True)
        for a, b in zip(first, again, strict=True)
    )


def _with_more(plain: nn.Module, exact: nn.Module, args: Args, once: Right) -> Right:
    """Values of more inputs where one gives few. The one alone where others give none that are finite."""
    turns = min(-(-ENOUGH // min(t.numel() for t in once.exact)), MOST_TURNS)
    floating: list[Tensor] = []
    tree_map_only(Tensor, lambda t: floating.append(t) if t.is_floating_point() else None, args)
    if turns == 1 or not floating:
        return once
    try:
        more = Right(outputs(exact, _doubled(args), turns), outputs(plain, args, turns), turns)
    except Exception:  # an input that is turned around may be none to the model
        return once
    return more if _finite([*more.exact, *more.torchs]) else once
