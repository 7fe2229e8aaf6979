"""Prepared calls on the CPU: the extension holds pointers and geometry, Python makes the result and names it."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.dlpack import from_dlpack

from ... import calls
from ...calls import Geometry
from ...format import SIGNS, STORED, Pack, memory_format_of
from ...tensor import FrozenTensor
from ..native import DTYPES
from ..reference.product import goes_into_weight, times_gain, with_epilogue
from ..signs import as_sign, row_scale_of, scaled
from .extension import _C, pack_args
from .product import LARGE_RESULT
from .weights import weight_grad_scores

_threads = torch.get_num_threads
_strided = torch.strided
_linear = F.linear
_OWN_COUNT = (128 << 10) // 2  # elements, from the smallest block on that malloc would map
_unwatched = calls.unwatched


def _plain(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype is dtype and x.is_cpu and x.layout is _strided and not x.is_neg()


def _own(x: Tensor, size: Any, count: int, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A fresh result of that many elements in memory that the next one of its size finds again."""
    y: Tensor = from_dlpack(_C.block(count, DTYPES[x.dtype])).resize_(size, memory_format=memory_format)
    if y.nbytes >= LARGE_RESULT:
        _C.prefer_huge_pages(y.data_ptr(), y.nbytes)
    return y


def _fresh(like: Tensor, size: Any, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """A fresh result of any size."""
    count = prod(size)
    if count >= _OWN_COUNT:
        return _own(like, size, count, memory_format)
    return torch.empty(size, dtype=like.dtype, memory_format=memory_format)


class _Train(torch.autograd.Function):
    """A prepared call with gradients, for eager calls that nothing watches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, scores: Tensor | None, call: _Fused) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.call = call
        # the mask is among them, so that a backward after new masks is an error
        ctx.save_for_backward(x if scores is not None else None, scores, call.record.keep, call.record.supermask)
        ctx.size, ctx.bias_dtype = x.shape, None if bias is None else bias.dtype
        y = call.forward(x)
        y = call.forward(x.contiguous()) if y is None else y
        assert y is not None  # `serves` said so
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        call, (x, scores, _, _) = ctx.call, ctx.saved_tensors
        need_x, need_bias, need_scores, _ = ctx.needs_input_grad
        # a derivative of this one, somebody who watches, or signs, whose rows have scales, take the ops
        by_ops = call.signs or torch.is_grad_enabled()
        if by_ops or not (_plain(grad, call.dtype) and type(grad) is Tensor and calls.unwatched()):
            return *call.backward_by_ops(ctx, grad, x, scores), None
        grad_x = call.grad_input(grad, ctx.size) if need_x else None
        grad_bias = call.grad_bias(grad).to(ctx.bias_dtype) if need_bias else None
        grad_scores = call.grad_scores(grad, x, scores) if need_scores else None
        return grad_x, grad_bias, grad_scores, None


class _Fused:
    """A layer on the extension's kernels: what linear layers and convolutions have in common."""

    def __init__(
        self,
        record: FrozenTensor,
        geometry: Geometry,
        bias: Tensor | None,
        gain: Tensor | None,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        pack, spatial = record.pack(), len(record.shape) - 2
        self.trains, self.signs = gain is None and not relu, pack.code == SIGNS
        scale, self.input_scale = row_scale_of(pack), None
        self.factors: tuple[Tensor, Tensor] | None = None  # of the gain that the call reads
        if scale is not None and geometry.op.startswith("conv_transpose"):
            self.input_scale = scale
        elif scale is not None:
            if gain is not None:
                self.factors = gain, scale
            gain = scale if gain is None else gain * scale
        args, packed = pack_args(as_sign(pack), product=True)
        self.record, self.geometry, self.dtype = record, geometry, dtype
        self.shape, self.spatial = record.shape, spatial
        self.tensors = (packed, bias, gain)  # the call points into their memory
        numbers = (
            (record.shape[2:], 1), (geometry.stride, 1), (geometry.padding, 0),
            (geometry.output_padding or (0,) * spatial, 0), (geometry.dilation, 1),
        )  # fmt: skip
        self.call = _C.Call(
            args,
            DTYPES[dtype],
            geometry.op.startswith("conv_transpose"),
            spatial,
            geometry.groups,
            [(*[fill] * (3 - spatial), *values) for values, fill in numbers],
            (0, 0, 0) if bias is None else (bias.data_ptr(), DTYPES[bias.dtype], bias.stride(0)),
            (0, 0) if gain is None else (gain.data_ptr(), gain.stride(0)),
            relu,
        )

    def train(self, x: Tensor, bias: Tensor | None, scores: Tensor | None) -> Tensor | None:
        if not (self.trains and calls.unwatched() and self.call.current() and self.serves(x)):
            return None
        return _Train.apply(x, bias, scores, self)

    def serves(self, x: Tensor) -> bool:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | None:
        raise NotImplementedError

    def refresh(self) -> None:
        """Make a gain that is a product anew: its factors may have changed in place."""
        if self.factors is not None and self.tensors[2] is not None:
            torch.mul(*self.factors, out=self.tensors[2])

    def backward_by_ops(self, ctx: Any, grad: Tensor, x: Tensor | None, scores: Tensor | None) -> tuple[Any, ...]:
        """The same gradients through ops, which have derivatives of their own."""
        need_x, need_bias, need_scores, _ = ctx.needs_input_grad
        g, pack = self.geometry, self.record.pack()
        others: list[Any] = [] if g.op == "linear" else [list(g.stride), list(g.padding)]
        if g.op.startswith("conv_transpose"):
            others.append(list(g.output_padding))
        if others:
            others += [list(g.dilation), g.groups]
        op = getattr(torch.ops.frozen_kernels, f"{g.op}_grad_input")
        size = (list(ctx.size),) if others else ()
        grad_x = op(grad, *size, *pack, *others, scores=scores) if need_x else None
        grad_bias = self.grad_bias(grad).to(ctx.bias_dtype) if need_bias else None
        grad_scores = None
        if need_scores:
            grad_scores = getattr(torch.ops.frozen_kernels, f"{g.op}_grad_scores")(grad, x, scores, *pack, *others)
        return grad_x, grad_bias, grad_scores

    def grad_bias(self, grad: Tensor) -> Tensor:
        raise NotImplementedError

    def grad_input(self, grad: Tensor, size: torch.Size) -> Tensor:
        raise NotImplementedError

    def grad_scores(self, grad: Tensor, x: Tensor, scores: Tensor) -> Tensor:
        raise NotImplementedError


class _Linear(_Fused):
    def serves(self, x: Tensor) -> bool:
        return _plain(x, self.dtype) and x.dim() > 0 and x.shape[-1] == self.shape[1] and x.numel() > 0

    def forward(self, x: Tensor) -> Tensor | None:
        rows, cols = self.shape
        if (
            not _unwatched()
            or x.dtype is not self.dtype
            or not x.is_cpu
            or x.layout is not _strided
            or x.is_neg()
            or not x.is_contiguous()
        ):
            return None
        self.refresh()
        shape = x.shape
        if len(shape) == 2:
            pixels, width = shape
            if width != cols or not pixels:
                return None
            size: tuple[int, ...] = (pixels, rows)
        else:
            if not shape or shape[-1] != cols or not x.numel():
                return None
            pixels = x.numel() // cols
            size = (*shape[:-1], rows)
        count = pixels * rows
        y = x.new_empty(size) if count < _OWN_COUNT else _own(x, size, count)
        return y if self.call.rows(x.data_ptr(), pixels, y.data_ptr(), _threads()) else None

    def grad_bias(self, grad: Tensor) -> Tensor:
        dims = list(range(grad.dim() - 1))
        return grad.sum(dims) if dims else grad.clone()

    def grad_input(self, grad: Tensor, size: torch.Size) -> Tensor:
        grad = grad.contiguous()
        out = _fresh(grad, size)
        self.call.rows_back(grad.data_ptr(), grad.numel() // self.shape[0], out.data_ptr(), _threads())
        return out

    def grad_scores(self, grad: Tensor, x: Tensor, scores: Tensor) -> Tensor:
        grad, x, scores = grad.contiguous(), x.contiguous(), scores.contiguous()
        out = torch.empty_like(scores)
        self.call.rows_scores(
            x.data_ptr(), grad.data_ptr(), x.numel() // self.shape[1], scores.data_ptr(), scores.numel(),
            DTYPES[scores.dtype], out.data_ptr(), _threads(),
        )  # fmt: skip
        return out


def _layout(geometry: Geometry, x: Tensor) -> torch.memory_format:
    """Of a convolution's result."""
    return torch.channels_last if geometry.channels_last else memory_format_of(x)


class _Convolution(_Fused):
    def serves(self, x: Tensor) -> bool:
        return _plain(x, self.dtype) and self.call.size(x.shape) is not None

    def forward(self, x: Tensor) -> Tensor | None:
        if not _unwatched() or x.dtype is not self.dtype or not x.is_cpu or x.layout is not _strided or x.is_neg():
            return None
        shape = x.shape
        size = self.call.size(shape)
        if size is None:
            return None
        self.refresh()
        if self.input_scale is not None:
            x = scaled(x, self.input_scale, 1)
        y = _fresh(x, size, _layout(self.geometry, x))
        done = self.call.convolve(x.data_ptr(), shape, x.stride(), y.data_ptr(), size, y.stride(), _threads())
        return y if done else None

    def grad_bias(self, grad: Tensor) -> Tensor:
        return grad.sum([0, *range(2, grad.dim())])

    def grad_input(self, grad: Tensor, size: torch.Size) -> Tensor:
        out = _fresh(grad, size, memory_format_of(grad))
        self.call.convolve_back(
            grad.data_ptr(), grad.shape, grad.stride(), out.data_ptr(), size, out.stride(), _threads()
        )
        return out

    def grad_scores(self, grad: Tensor, x: Tensor, scores: Tensor) -> Tensor:
        scores = scores.contiguous()
        out = torch.empty_like(scores)
        self.call.convolve_scores(
            x.data_ptr(), x.shape, x.stride(), grad.data_ptr(), grad.shape, grad.stride(), scores.data_ptr(),
            scores.numel(), DTYPES[scores.dtype], out.data_ptr(), _threads(),
        )  # fmt: skip
        return out


class _StoredWeight(torch.autograd.Function):
    """The effective weight of a stored one while its mask is searched, as it is held; gradients go to the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dense: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        ctx.save_for_backward(scores, dense)
        return dense.view_as(dense)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        scores, _ = ctx.saved_tensors  # a mask made since then is an error here
        # a derivative of this one, or somebody who watches, takes the op
        plain = _C is not None and grad.dtype in DTYPES and scores.dtype in (torch.float32, torch.bfloat16)
        if plain and not torch.is_grad_enabled() and calls.unwatched():
            return weight_grad_scores(grad, scores, ctx.pack), None, None
        return torch.ops.frozen_kernels.weight_grad_scores(grad, scores, *ctx.pack), None, None


class _Dense:
    """The dense residency: torch's own layer on the effective weight, which every mode sees as such.

    With scores it takes eager calls of a stored weight that nothing watches, with a gain or a ReLU those without
    gradients.
    """

    def __init__(
        self,
        record: FrozenTensor,
        geometry: Geometry,
        bias: Tensor | None,
        gain: Tensor | None,
        relu: bool,
        dtype: torch.dtype,
    ) -> None:
        assert record.dense is not None
        self.stored = record.code == STORED
        self.pack = record._replace(dense=None).pack()  # a gradient of scores reads the values
        self.weight: Tensor = record.dense
        self.bias, self.gain, self.relu, self.dtype = bias, gain, relu, dtype
        self.folded = gain is not None or relu
        self.transposed, self.groups = geometry.op.startswith("conv_transpose"), geometry.groups
        self.function: Any = getattr(F, geometry.op)
        self.geometry = g = geometry
        self.numbers: tuple[Any, ...] = ()
        if g.op != "linear":
            self.numbers = (g.stride, g.padding, g.output_padding, g.groups, g.dilation) if self.transposed else (
                g.stride, g.padding, g.dilation, g.groups)  # fmt: skip

    def searched(self, scores: Tensor | None) -> Tensor | None:
        """The weight of a call with gradients; None for one that takes the ordinary way."""
        if scores is None:
            return self.weight
        if not self.stored or type(scores) is not nn.Parameter or not calls.unwatched():
            return None
        if not scores.requires_grad:
            return self.weight
        return _StoredWeight.apply(scores, self.weight, self.pack)

    def epilogued(self, x: Tensor) -> Tensor | None:
        """The result of a layer with a gain or a ReLU, as the op gives it; None for a call that somebody watches."""
        weight, gain = self.weight, self.gain
        if not _unwatched() or not x.dim():
            return None
        if gain is not None and goes_into_weight(x, weight, gain):
            weight, gain = times_gain(weight, gain, self.groups, self.transposed), None
        return with_epilogue(
            lambda bias: self.function(x, weight, bias, *self.numbers), self.bias, gain, self.relu, weight.dim() - 2
        )

    def train(self, x: Tensor, bias: Tensor | None, scores: Tensor | None) -> Tensor | None:
        raise NotImplementedError


class _DenseLinear(_Dense):
    def forward(self, x: Tensor) -> Tensor | None:
        try:
            return self.epilogued(x) if self.folded else _linear(x, self.weight, self.bias)
        except RuntimeError:
            return None  # the op says what does not fit

    def train(self, x: Tensor, bias: Tensor | None, scores: Tensor | None) -> Tensor | None:
        weight = None if self.folded else self.searched(scores)
        if weight is None:
            return None
        try:
            return _linear(x, weight, bias)
        except RuntimeError:
            return None  # the op says what does not fit


class _DenseConvolution(_Dense):
    def forward(self, x: Tensor) -> Tensor | None:
        if not self.folded:
            return self.train(x, self.bias, None)
        if x.dim() != self.weight.dim():
            return None
        try:
            y = self.epilogued(x)
        except RuntimeError:
            return None  # the op says what does not fit
        return None if y is None else y.contiguous(memory_format=_layout(self.geometry, x))

    def train(self, x: Tensor, bias: Tensor | None, scores: Tensor | None) -> Tensor | None:
        if self.folded or x.dim() != self.weight.dim():
            return None
        weight = self.searched(scores)
        if weight is None:
            return None
        try:
            y = self.function(x, weight, bias, *self.numbers)
        except RuntimeError:
            return None  # the op says what does not fit
        return y.contiguous(memory_format=_layout(self.geometry, x))


def prepare(
    record: FrozenTensor, geometry: Geometry, bias: Tensor | None, gain: Tensor | None, relu: bool, dtype: torch.dtype
) -> calls.Prepared | None:
    """A call of a layer on the CPU; None for what these kernels do not serve, or a state that is not whole."""
    if any(t is not None and t.device.type != "cpu" for t in (record.header, bias, gain)):
        return None
    if record.header.dim() != 1 or not calls.fits(record, geometry, bias, gain, dtype):
        return None
    linear = geometry.op == "linear"
    if isinstance(record.values, nn.Parameter):
        return None  # somebody trains it, and may give it other memory
    if record.dense is not None:
        if record.dense.dtype is not dtype:
            return None
        return (_DenseLinear if linear else _DenseConvolution)(record, geometry, bias, gain, relu, dtype)
    if _C is None or dtype not in DTYPES or (record.keep is None and record.supermask is None):
        return None
    scaled_inputs = record.code == SIGNS and record.row_scale is not None and geometry.op.startswith("conv_transpose")
    if scaled_inputs and dtype == torch.float16:
        return None  # scaled they become float32
    try:
        return (_Linear if linear else _Convolution)(record, geometry, bias, gain, relu, dtype)
    except (RuntimeError, ValueError):
        return None  # the op says what is wrong
