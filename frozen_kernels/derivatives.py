"""Derivatives of the ops of `ops`, registered with torch: backward and forward mode of any order, and `vmap`.

A layer `y = relu(gain * W x + bias)` is linear in x, and each of its gradients is linear in what it is given: the
formulas below are made of the same ops again. Scores take the straight-through gradient
`sign(S) * dL/dW * code * scale`, in which sign(S) counts as a constant. The derivative of a score gradient, and forward
mode in the scores, need a product with a weight that changes with the scores. No kernel makes that weight: these two
materialise it, dense.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.nn import functional as F

from . import format as fmt
from .ops import CONVOLUTIONS, NAMESPACE, PACK_ARGS, TRANSPOSED_CONVOLUTIONS, library

# of the pack: how many lead, then places
_TENSORS, _KEEP, _DRAW, _VALUES, _CODE, _SHAPE = PACK_ARGS - 2, 3, 4, PACK_ARGS - 4, PACK_ARGS - 2, PACK_ARGS - 1
_ROW_SCALE = _VALUES + 1

_LEVEL = 0  # of forward mode: torch has one, and torch.func nests by wrapping tensors

Grads = tuple[Tensor | None, ...]
Tangents = dict[int, Tensor]  # by the argument's position


def _op(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def weight_change(v: Tensor, scores: Tensor, pack: Sequence) -> Tensor:
    """How the weight changes where the scores change by v: `v * sign(S) * code * scale`, dense, of torch's shape.

    v and scores: 1-D of the free weights in stream order. Of a stored weight `v * value`, of stored signs
    `v * scale * row_scale`. Gives float32, or float64 where v is.
    """
    header, shape = pack[0], pack[_SHAPE]
    rows, cols = fmt.matrix_shape(shape)
    if pack[_CODE] == fmt.STORED:
        values = fmt.from_stream(v.to(torch.promote_types(v.dtype, torch.float32)), rows, cols)
        return fmt.from_matrix(values, shape) * pack[_VALUES]
    if pack[_CODE] == fmt.SIGNS:
        values = fmt.from_stream(v.to(torch.promote_types(v.dtype, torch.float32)), rows, cols)
        values = values * header[fmt.SCALE].view(torch.float32)
        row_scale = pack[_ROW_SCALE]
        return fmt.from_matrix(values if row_scale is None else values * row_scale[:, None], shape)
    free = _op("partition")(header, rows, cols, 0, 0) == 0
    places = fmt.stream_order(torch.arange(rows * cols, device=header.device).view(rows, cols))
    entries = fmt.stream_order(free).cumsum(0) - 1
    entries = torch.empty_like(entries).index_copy(0, places, entries).view(rows, cols)
    values = v.to(torch.promote_types(v.dtype, torch.float32)) * scores.sign()
    # weights that are not free read a zero behind the last entry
    values = torch.cat((values, values.new_zeros(1)))[torch.where(free, entries, scores.shape[0])]
    codes = _codes(pack, rows, cols)
    return fmt.from_matrix(values * codes * header[fmt.SCALE].view(torch.float32), shape)


def _codes(pack: Sequence, rows: int, cols: int) -> Tensor:
    """[rows, cols], from the draws where the tensor holds them: a header gives those of one generation."""
    header, draw = pack[0], pack[_DRAW]
    if draw is None:
        return _op("codes")(header, pack[_CODE], rows, cols, 0, 0)
    every = _op("planes")(torch.ones(rows, cols, dtype=torch.bool, device=header.device))
    whole = fmt.with_scale(header, 1.0), None, None, every, draw, None, None, None, pack[_CODE], (rows, cols)
    return _op("weight")(None, *whole, torch.float32)


class _Rule:
    """What torch asks about one op. Positions are those of the op's schema."""

    batched: tuple[str, ...] = ()  # arguments that vmap may hand over with a batch dimension
    constant: tuple[str, ...] = ("gain", "dense", "values", "row_scale")  # floating, and nothing is derived by them

    def __init__(self, name: str) -> None:
        self.op = _op(name)
        arguments = self.op._schema.arguments
        self.name, self.names = name, [a.name for a in arguments]
        self.defaults = [a.default_value for a in arguments]

    def whole(self, args: tuple) -> tuple:
        """The arguments with the defaults that the dispatcher leaves out."""
        return (*args, *self.defaults[len(args) :])

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        """Keep what `backward` reads."""
        raise NotImplementedError

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], grad: Tensor) -> Grads:
        """Gradients of the first arguments; the rest have none."""
        raise NotImplementedError

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        """The tangent of the result y; None where it is zero."""
        raise NotImplementedError

    def vmap(self, n: int, dims: Sequence, args: tuple) -> Tensor:
        """The results of n calls, stacked: one by one, where no single call can give them."""
        return torch.stack([self.op(*_entry(i, dims, args)) for i in range(n)])


def _entry(i: int, dims: Sequence, args: tuple) -> list:
    return [a.select(d, i) if isinstance(a, Tensor) and d is not None else a for a, d in zip(args, dims, strict=True)]


def _sum(*terms: Tensor | None) -> Tensor | None:
    found = [t for t in terms if t is not None]
    return sum(found[1:], found[0]) if found else None


def _save(ctx: Any, pack: Sequence, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors, *pack[:_TENSORS])
    ctx.static = pack[_TENSORS:]


def _restore(ctx: Any, saved: tuple, count: int) -> tuple[tuple, tuple]:
    return saved[:count], (*saved[count:], *ctx.static)


class _Layer:
    """The three ops of a linear layer or convolution, and what torch gives for a weight that lies in memory.

    `geometry` is what an op takes between the pack and the epilogue.
    """

    def __init__(self, name: str) -> None:
        self.linear, self.transposed = name == "linear", name in TRANSPOSED_CONVOLUTIONS
        self.product, self.grad_scores = _op(name), _op(f"{name}_grad_scores")
        self._grad_input = _op(f"{name}_grad_input")

    def grad_input(self, grad: Tensor, size: Sequence, scores: Tensor | None, pack: Sequence, geometry: Any) -> Tensor:
        """The op, with the size of the input where it takes it."""
        sizes = () if self.linear else (size,)
        return self._grad_input(grad, *sizes, *pack, *geometry, scores)

    def by_channel(self, values: Tensor, y: Tensor) -> Tensor:
        """One value per output channel, broadcast to y."""
        return values if self.linear else values.view(-1, *[1] * (y.dim() - 2))

    def _convolution(self, geometry: Sequence) -> tuple:
        stride, padding, *output_padding, dilation, groups = geometry
        return stride, padding, dilation, self.transposed, *(output_padding or [[0] * len(stride)]), groups

    def plain_product(self, x: Tensor, weight: Tensor, geometry: Sequence) -> Tensor:
        """W x."""
        weight = weight.to(x.dtype)
        if self.linear:
            return F.linear(x, weight)
        return torch.ops.aten.convolution(x, weight, None, *self._convolution(geometry))

    def plain_grad_input(self, grad: Tensor, size: Sequence, weight: Tensor, geometry: Sequence) -> Tensor:
        """W^T grad."""
        weight = weight.to(grad.dtype)
        if self.linear:
            return grad @ weight
        x, only_input = grad.new_empty(1).expand(size), (True, False, False)  # the size of x alone is read
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *self._convolution(geometry), only_input)[0]


class _Product(_Rule):
    """x, bias, scores, pack, geometry, gain, relu."""

    batched = ("x",)

    def __init__(self, name: str, layer: _Layer) -> None:
        super().__init__(name)
        self.layer = layer

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        x, bias, scores, *rest, gain, relu = args
        ctx.geometry, ctx.input_size = rest[PACK_ARGS:], x.shape
        ctx.bias_dtype = bias.dtype if bias is not None else None
        # x is read by the score gradient alone, the result by the gradient of relu
        _save(ctx, rest[:PACK_ARGS], x if needs[2] else None, scores, gain, y if relu else None)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], grad: Tensor) -> Grads:
        (x, scores, gain, y), pack = _restore(ctx, saved, 4)
        layer, geometry = self.layer, ctx.geometry
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad_x = grad_bias = grad_scores = None
        if needs[1]:
            channel = grad.dim() - 1 if layer.linear else 1
            dims = [d for d in range(grad.dim()) if d != channel]
            grad_bias = (grad.sum(dims) if dims else grad.clone()).to(ctx.bias_dtype)
        if gain is not None:
            grad = (grad * layer.by_channel(gain, grad)).to(grad.dtype)
        if needs[0]:
            grad_x = layer.grad_input(grad, ctx.input_size, scores, pack, geometry)
        if needs[2]:
            grad_scores = layer.grad_scores(grad, x, scores, *pack, *geometry)
        return grad_x, grad_bias, grad_scores

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        x, _, scores, *rest, gain, relu = args
        pack, geometry = rest[:PACK_ARGS], rest[PACK_ARGS:]
        dx, dbias, dscores = (tangents.get(i) for i in range(3))
        by_x = by_scores = by_bias = None
        if dx is not None:
            by_x = self.op(dx, None, scores, *rest, gain)
        if dscores is not None:
            by_scores = self.layer.plain_product(x, weight_change(dscores, scores, pack), geometry)
            if gain is not None:
                by_scores = (by_scores * self.layer.by_channel(gain, y)).to(y.dtype)
        if dbias is not None:
            by_bias = self.layer.by_channel(dbias, y).expand_as(y)
        dy = _sum(by_x, by_scores, by_bias)
        return torch.ops.aten.threshold_backward(dy, y, 0) if relu and dy is not None else dy

    def vmap(self, n: int, dims: Sequence, args: tuple) -> Tensor:
        x, *rest = args
        x = x.movedim(dims[0], 0)
        if self.layer.linear:
            return self.op(x, *rest)
        return self.op(x.flatten(0, 1), *rest).unflatten(0, x.shape[:2])


class _GradInput(_Rule):
    """grad, the size of the input where it is a convolution, pack, geometry, scores."""

    batched = ("grad",)

    def __init__(self, name: str, layer: _Layer) -> None:
        super().__init__(name)
        self.layer = layer

    def _split(self, args: tuple) -> tuple[Sequence, tuple, tuple]:
        """Size, pack and geometry."""
        first = 1 if self.layer.linear else 2
        return args[first - 1], args[first : first + PACK_ARGS], args[first + PACK_ARGS : -1]

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        _, pack, ctx.geometry = self._split(args)
        grad, scores = args[0], args[-1]
        _save(ctx, pack, grad if needs[-1] else None, scores)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], v: Tensor) -> Grads:
        (grad, scores), pack = _restore(ctx, saved, 2)
        layer = self.layer
        grad_grad = layer.product(v, None, scores, *pack, *ctx.geometry) if needs[0] else None
        grad_scores = layer.grad_scores(grad, v, scores, *pack, *ctx.geometry) if needs[-1] else None
        return grad_grad, *[None] * (len(needs) - 2), grad_scores

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        size, pack, geometry = self._split(args)
        scores, dgrad, dscores = args[-1], tangents.get(0), tangents.get(len(args) - 1)
        by_grad = self.op(dgrad, *args[1:]) if dgrad is not None else None
        by_scores = None
        if dscores is not None:
            weight = weight_change(dscores, scores, pack)
            by_scores = self.layer.plain_grad_input(args[0], size, weight, geometry)
        return _sum(by_grad, by_scores)

    def vmap(self, n: int, dims: Sequence, args: tuple) -> Tensor:
        grad, *rest = args
        grad = grad.movedim(dims[0], 0)
        if self.layer.linear:
            return self.op(grad, *rest)
        size, *rest = rest
        return self.op(grad.flatten(0, 1), [n * size[0], *size[1:]], *rest).unflatten(0, grad.shape[:2])


class _GradScores(_Rule):
    """grad, x, scores, pack, geometry: linear in grad and in x."""

    batched = ("grad", "x")

    def __init__(self, name: str, layer: _Layer) -> None:
        super().__init__(name)
        self.layer = layer

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        grad, x, scores, *rest = args
        ctx.geometry, ctx.input_size = rest[PACK_ARGS:], x.shape
        _save(ctx, rest[:PACK_ARGS], grad if needs[1] else None, x if needs[0] else None, scores)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], v: Tensor) -> Grads:
        (grad, x, scores), pack = _restore(ctx, saved, 3)
        weight = weight_change(v, scores, pack)
        grad_grad = self.layer.plain_product(x, weight, ctx.geometry) if needs[0] else None
        grad_x = self.layer.plain_grad_input(grad, ctx.input_size, weight, ctx.geometry) if needs[1] else None
        return grad_grad, grad_x

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        grad, x, *rest = args
        dgrad, dx = tangents.get(0), tangents.get(1)
        return _sum(
            self.op(dgrad, x, *rest) if dgrad is not None else None,
            self.op(grad, dx, *rest) if dx is not None else None,
        )


class _Weight(_Rule):
    """scores, pack, dtype; packed values of a stored weight have gradients too."""

    constant = ("dense", "row_scale")

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        scores, *pack, _ = args
        if needs[1 + _VALUES] and pack[_VALUES].dim() != 1:
            raise ValueError("values: requires_grad, but all values get no gradient; pass values.detach()")
        _save(ctx, pack, scores)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], grad: Tensor) -> Grads:
        (scores,), pack = _restore(ctx, saved, 1)
        grad_scores = _op("weight_grad_scores")(grad, scores, *pack) if needs[0] else None
        if not needs[1 + _VALUES]:
            return (grad_scores,)
        kept = _op("pack_values")(grad.to(pack[_VALUES].dtype), pack[_KEEP])
        return grad_scores, *[None] * _VALUES, kept

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        scores, *pack, dtype = args
        by_values = None
        if 1 + _VALUES in tangents:
            by_values = self.op(None, *pack[:_VALUES], tangents[1 + _VALUES], *pack[_VALUES + 1 :], dtype)
        by_scores = weight_change(tangents[0], scores, pack).to(y.dtype) if 0 in tangents else None
        return _sum(by_values, by_scores)


class _PackValues(_Rule):
    """weight, keep."""

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        weight, keep = args
        ctx.save_for_backward(keep)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], v: Tensor) -> Grads:
        (keep,), cols = saved, fmt.matrix_shape(ctx.shape)[1]
        header = fmt.make_header(0, code=fmt.STORED, device=keep.device)
        pack = (header, None, _op("plane_offsets")(keep, cols), keep, None, None, v, None, fmt.STORED, list(ctx.shape))
        return (_op("weight")(None, *pack, ctx.dtype),)

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        return self.op(tangents[0], args[1])


class _WeightGradScores(_Rule):
    """grad, scores, pack."""

    batched = ("grad",)

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        grad, scores, *pack = args
        ctx.dtype = grad.dtype
        _save(ctx, pack, scores)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], v: Tensor) -> Grads:
        (scores,), pack = _restore(ctx, saved, 1)
        return (weight_change(v, scores, pack).to(ctx.dtype) if needs[0] else None,)

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        return self.op(tangents[0], *args[1:]) if 0 in tangents else None


def look_up(indices: Tensor, weight: Tensor, padding_idx: int) -> Tensor:
    """Rows of a dense table, of which row `padding_idx` is zero; -1 for none."""
    if padding_idx >= 0:
        weight = weight.index_fill(0, torch.tensor([padding_idx], device=weight.device), 0.0)
    return F.embedding(indices, weight)


class _Embedding(_Rule):
    """indices, scores, pack, dtype, padding_idx."""

    batched = ("indices",)

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        indices, scores, *pack, _, ctx.padding_idx = args
        _save(ctx, pack, indices, scores)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], grad: Tensor) -> Grads:
        (indices, scores), pack = _restore(ctx, saved, 2)
        return None, _op("embedding_grad_scores")(grad, indices, scores, *pack, ctx.padding_idx)

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        indices, scores, *pack, dtype, padding_idx = args
        return look_up(indices, weight_change(tangents[1], scores, pack).to(dtype), padding_idx)

    def vmap(self, n: int, dims: Sequence, args: tuple) -> Tensor:
        indices, *rest = args
        return self.op(indices.movedim(dims[0], 0), *rest)


class _EmbeddingGradScores(_Rule):
    """grad, indices, scores, pack, padding_idx."""

    batched = ("grad", "indices")

    def save(self, ctx: Any, needs: Sequence[bool], args: tuple, y: Tensor) -> None:
        grad, indices, scores, *pack, ctx.padding_idx = args
        ctx.dtype = grad.dtype
        _save(ctx, pack, indices, scores)

    def backward(self, ctx: Any, saved: tuple, needs: Sequence[bool], v: Tensor) -> Grads:
        (indices, scores), pack = _restore(ctx, saved, 2)
        if not needs[0]:
            return ()
        return (look_up(indices, weight_change(v, scores, pack).to(ctx.dtype), ctx.padding_idx),)

    def tangent(self, args: tuple, tangents: Tangents, y: Tensor) -> Tensor | None:
        return self.op(tangents[0], *args[1:]) if 0 in tangents else None


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def _may_carry_tangents() -> bool:
    if forward_ad._current_level >= 0:
        return True
    # a compiler enters the level unseen by `forward_ad`: inside a layer of torch.func, or while it traces under a mode
    return torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0


# torch 2.6 has no call that asks this of all arguments at once
_any_requires_grad = getattr(
    torch._C, "_any_requires_grad", lambda *args: any(isinstance(a, Tensor) and a.requires_grad for a in args)
)


def _differentiating() -> bool:
    """Whether a call may be recorded or carry tangents."""
    return torch.is_grad_enabled() or _may_carry_tangents()


def _below_autograd(op: Any, keys: Any, args: tuple) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keys & torch._C._after_autograd_keyset, *args)


def _function(rule: _Rule) -> Any:
    """The autograd function of an op: before the op's arguments the dispatcher's keys, and what to save in their place.

    In forward mode the arguments carry no tangents, and what is saved does: a backward has tangents too.
    """

    def forward(ctx: Any, keys: Any, held: tuple, *args: Any) -> Tensor:
        # an outer transform of torch.func records the same call one level below
        with _recording() if torch._C._are_functorch_transforms_active() else contextlib.nullcontext():
            y = _below_autograd(rule.op, keys, args)
        for name, a in zip(rule.names, args, strict=False):
            if name in rule.constant and a is not None and a.requires_grad:
                raise ValueError(f"{name}: requires_grad, but it gets no gradient; pass {name}.detach()")
        rule.save(ctx, ctx.needs_input_grad[2:], rule.whole(held), y)
        return y

    def backward(ctx: Any, grad: Tensor) -> Grads:
        needs, saved = ctx.needs_input_grad[2:], ctx.saved_tensors
        # an ordinary backward records nothing: its ops need not ask again
        with contextlib.nullcontext() if _differentiating() else torch._C._AutoDispatchBelowAutograd():
            grads = rule.backward(ctx, saved, needs, grad)
        return None, None, *grads, *[None] * (len(needs) - len(grads))

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"FrozenKernels_{rule.name}_", (_SingleLevelFunction,), members)


def _unpack(rule: _Rule, args: tuple) -> tuple[tuple, Tangents]:
    """Arguments without their tangents of forward mode, and the tangents."""
    primals, tangents = list(args), {}
    for i, a in enumerate(args):
        if isinstance(a, Tensor) and a.is_floating_point():
            primals[i], tangent = forward_ad.unpack_dual(a, level=_LEVEL)
            if tangent is not None:
                tangents[i] = tangent
                if rule.names[i] in rule.constant:
                    raise ValueError(f"{rule.names[i]}: has a tangent, but nothing is derived by it")
    return tuple(primals), tangents


def _register(rule: _Rule) -> None:
    function = _function(rule)

    def record(keys: Any, args: tuple, held: tuple) -> Tensor:
        if not (torch.is_grad_enabled() and _any_requires_grad(*args)):
            return _below_autograd(rule.op, keys, args)
        transforming = torch._C._are_functorch_transforms_active()
        with enable_single_level_autograd_function() if transforming else contextlib.nullcontext():
            return function.apply(keys, held, *args)

    def differentiate(keys: Any, *args: Any) -> Tensor:
        if _may_carry_tangents():
            primals, tangents = _unpack(rule, args)
            if tangents:
                y = record(keys, primals, args)
                tangent = rule.tangent(rule.whole(primals), tangents, y)
                return y if tangent is None else forward_ad.make_dual(y, tangent, level=_LEVEL)
        return record(keys, args, args)

    def batch(info: Any, dims: tuple, *args: Any) -> tuple[Tensor, int]:
        for name, a, d in zip(rule.names, args, dims, strict=False):
            if isinstance(a, Tensor) and d is not None and name not in rule.batched:
                raise RuntimeError(
                    f"{name}: vmap gives {rule.name} a batch of them, but a call takes one; loop over the models"
                )
        return rule.vmap(info.batch_size, dims, args), 0

    library.impl(rule.name, differentiate, "Autograd", with_keyset=True)
    torch.library.register_vmap(f"{NAMESPACE}::{rule.name}", batch, lib=library)


_register(_Weight("weight"))
_register(_PackValues("pack_values"))
_register(_WeightGradScores("weight_grad_scores"))
_register(_Embedding("embedding"))
_register(_EmbeddingGradScores("embedding_grad_scores"))
for _name in ("linear", *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS):
    _layer = _Layer(_name)
    _register(_Product(_name, _layer))
    _register(_GradInput(f"{_name}_grad_input", _layer))
    _register(_GradScores(f"{_name}_grad_scores", _layer))
