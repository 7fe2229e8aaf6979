"""Prepared calls: a layer's pointers and geometry, held by what runs it, for eager calls that nothing watches.

An op goes through the dispatcher, which serves autograd, compilation, autocast and modes, and costs more than the
kernel of a small layer. A prepared call skips it where it can change nothing. Whoever prepares calls registers here, so
that layers know no backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from .tensor import FrozenTensor


class Geometry(NamedTuple):
    """What a layer does beside its weight: the op's name, and a convolution's arguments as tuples of its dimensions.

    `channels_last`: its results are laid out so, whatever its input is.
    """

    op: str
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    channels_last: bool = False


class Prepared(Protocol):
    """A call of one layer in one state. `bias` and `scores` are the layer's, checked when the call was prepared."""

    def forward(self, x: Tensor) -> Tensor | None:
        """The layer's result without gradients; None where this input has to take the ordinary way."""

    def train(self, x: Tensor, bias: Tensor | None, scores: Tensor | None) -> Tensor | None:
        """The same with gradients of whatever of the three requires them."""


def finite(x: Tensor) -> Tensor:
    """The input of the coats after the first: 0 where x is infinite or NaN, which the first coat has carried.

    A weight that counts once has a zero there, and zero times infinity would make NaN of it.
    """
    return torch.nan_to_num(x, 0.0, 0.0, 0.0)


def finished(y: Tensor, later: int, bias: Tensor | None, gain: Tensor | None, relu: bool, dtype: torch.dtype) -> Tensor:
    """`relu(gain * y + bias)` of the sum over coats, rounded once; `later`: dimensions behind that of the outputs."""
    along = [-1, *[1] * later]
    y = y if gain is None else y * gain.view(along)
    y = y if bias is None else y + bias.to(y.dtype).view(along)
    return (y.relu() if relu else y).to(dtype)


class Coats:
    """A layer in several coats, without gradients: the sum of a prepared call of each, as `functional` sums ops."""

    def __init__(
        self,
        each: Sequence[Prepared],
        spatial: int,
        bias: Tensor | None,
        gain: Tensor | None,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        self.each, self.spatial, self.relu, self.dtype = each, spatial, relu, dtype
        self.bias, self.gain = bias, gain

    def forward(self, x: Tensor) -> Tensor | None:
        if x.dtype is not self.dtype:
            return None
        wide = x if x.itemsize >= 4 else x.to(torch.float32)
        first, *others = self.each
        y, others_of = first.forward(wide), finite(wide)
        for call in others:
            part = call.forward(others_of)
            if y is None or part is None:
                return None
            y += part
        if y is None:
            return None
        return finished(y, self.spatial, self.bias, self.gain, self.relu, self.dtype)

    def train(self, x: Tensor, bias: Tensor | None, scores: Tensor | None) -> Tensor | None:
        return None


Prepare = Callable[[FrozenTensor, Geometry, "Tensor | None", "Tensor | None", bool, torch.dtype], "Prepared | None"]

_makers: list[Prepare] = []
_skipped = 0  # how many blocks force an implementation that prepares no calls


def register(maker: Prepare) -> None:
    """Ask `maker(record, geometry, bias, gain, relu, dtype)` for the calls of every state made from now on."""
    _makers.append(maker)


def fits(
    record: FrozenTensor, geometry: Geometry, bias: Tensor | None, gain: Tensor | None, dtype: torch.dtype
) -> bool:
    """Whether bias and gain are what the op takes, which says of others what is wrong: kernels read memory."""
    transposed = geometry.op.startswith("conv_transpose")
    outputs = record.shape[1] * geometry.groups if transposed else record.shape[0]
    if bias is not None and (bias.dtype is not dtype or bias.shape != (outputs,)):
        return False
    if gain is None:
        return True
    wide = torch.promote_types(dtype, torch.float32)
    return gain.dtype is wide and gain.shape == (outputs,) and not gain.requires_grad


def prepare(
    record: FrozenTensor, geometry: Geometry, bias: Tensor | None, gain: Tensor | None, relu: bool, dtype: torch.dtype
) -> Prepared | None:
    """A call of a layer whose state these tensors are, None where nobody prepares one."""
    if record.in_coats():
        if not fits(record, geometry, bias, gain, dtype):
            return None
        wide = torch.promote_types(dtype, torch.float32)
        each = [prepare(one, geometry, None, None, False, wide) for one in record.each_coat()]
        return None if None in each else Coats(each, len(record.shape) - 2, bias, gain, relu, dtype)  # type: ignore[arg-type]
    for maker in _makers:
        found = maker(record, geometry, bias, gain, relu, dtype)
        if found is not None:
            return found
    return None


def skip(more: int) -> None:
    """Take the ordinary way in every thread while the sum of what was given is above 0."""
    global _skipped
    _skipped += more


_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
transformed = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_autocast = torch._C._is_any_autocast_enabled
_profiling = torch._C._autograd._profiler_enabled


def unwatched() -> bool:
    """Whether nothing sees or changes the calls of this thread: a mode, transform, trace, autocast or profiler."""
    return not (
        _skipped
        or _autocast()
        or _dispatch_modes()
        or _function_modes()
        or transformed()
        or _profiling()
        or forward_ad._current_level >= 0
        or _tracing() is not None
    )
