"""Layers as functions of a `FrozenTensor`: argument checks here, one op call each.

The first argument x is float32, bfloat16, float16 or float64 (the last runs on the reference), on the device of the
frozen tensor, and the result has x's dtype; sums are accumulated in float32 and rounded once. Under autocast x and bias
are cast first, as torch's own layers do. Linear layers and convolutions give `relu(gain * W x + bias)`:

- `bias` [outputs], of x's dtype;
- `gain` [outputs], one float32 value per output channel, float64 where x is; it gets no gradient;
- `relu` True for the ReLU behind it.

TypeError where a dtype or a layout does not fit, ValueError where a shape, a device or a setting does not; the message
begins with the name of the argument. Integer settings are anything with `__index__`, NumPy's integers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import calls, derivatives, flops  # noqa: F401  (they register what torch asks about the ops)
from .ops import conv_output_size, conv_transpose_output_size
from .tensor import FrozenTensor

__all__ = [
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "embedding",
    "linear",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NAMES = "float32, bfloat16, float16 or float64"
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)

Integers = SupportsIndex | Sequence[SupportsIndex]
Padding = Integers | Literal["same", "valid"]

_ops: Any = torch.ops.frozen_kernels
_linear_op, _embedding_op = _ops.linear.default, _ops.embedding.default
_CONVOLUTIONS = {1: _ops.conv1d.default, 2: _ops.conv2d.default, 3: _ops.conv3d.default}
_TRANSPOSED = {
    1: _ops.conv_transpose1d.default,
    2: _ops.conv_transpose2d.default,
    3: _ops.conv_transpose3d.default,
}


def autocasting(x: Tensor) -> bool:
    """Whether torch's own layers would cast x: never float64 or integers, and the meta device has no autocast."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return False
    return x.dtype != torch.float64 and x.dtype.is_floating_point


def _autocast(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if not autocasting(x):
        return x, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), bias if bias is None else bias.to(dtype)


def _check(x: Tensor, frozen: FrozenTensor, bias: Tensor | None, gain: Tensor | None, outputs: int) -> None:
    """What every layer asks of its tensors, beside the shape of x."""
    dtype = x.dtype
    if dtype not in FLOATS:
        raise TypeError(f"x: {dtype}, expected {_NAMES}; cast it first")
    if x.layout is not torch.strided:
        raise TypeError(f"x: layout {x.layout}, expected torch.strided; pass x.to_dense()")
    if x.device != frozen.header.device:
        raise ValueError(f"x: on {x.device}, the frozen weight is on {frozen.header.device}")
    if gain is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if gain.dtype != wide:
            raise TypeError(f"gain: {gain.dtype}, expected {wide} for x {dtype}")
        if gain.shape != (outputs,):
            raise ValueError(f"gain: shape {tuple(gain.shape)}, expected ({outputs},)")
    if bias is not None:
        if bias.dtype != dtype:
            raise TypeError(f"bias: {bias.dtype} does not match x {dtype}")
        if bias.shape != (outputs,):
            raise ValueError(f"bias: shape {tuple(bias.shape)}, expected ({outputs},)")


def _trained(frozen: FrozenTensor, x: Tensor) -> Tensor | None:
    """The dense weight where gradients go to the kept values of a stored one: torch's own layers run."""
    values = frozen.values
    if values is None or not values.requires_grad or not torch.is_grad_enabled():
        return None
    return frozen.weight(x.dtype)


def _epilogue(y: Tensor, channel: int, bias: Tensor | None, gain: Tensor | None, relu: bool) -> Tensor:
    along = [-1, *[1] * (y.dim() - 1 - channel)]
    if gain is not None:
        y = (y * gain.view(along)).to(y.dtype)
        y = y if bias is None else y + bias.view(along)
    return y.relu() if relu else y


def _in_coats(
    call: Callable[[Tensor, FrozenTensor], Tensor],
    x: Tensor,
    frozen: FrozenTensor,
    channel: int,
    bias: Tensor | None,
    gain: Tensor | None,
    relu: bool,
) -> Tensor:
    """The sum of `call(x, record)` over coats, in float32 or float64, then the epilogue; rounded once to x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, *others = frozen.each_coat()
    y = call(wide, first)
    finite = calls.finite(wide)
    for coat in others:
        y = y + call(finite, coat)
    return calls.finished(y, y.dim() - 1 - channel, bias, gain, relu, x.dtype)


def linear(
    x: Tensor, frozen: FrozenTensor, bias: Tensor | None = None, *, gain: Tensor | None = None, relu: bool = False
) -> Tensor:
    """`x @ W.T + bias`: x [..., in] and `frozen`, a weight [out, in], give [..., out].

    A sparse x is made dense first, as torch's layer gives a dense result too. Dtypes, `gain`, `relu` and errors: see
    the module.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(linear, (x,), x, frozen, bias, gain=gain, relu=relu)
    if x.layout in _SPARSE:
        x = x.to_dense(masked_grad=False)  # a gradient of every entry, as torch's layer gives
    x, bias = _autocast(x, bias)
    if len(frozen.shape) != 2:
        raise ValueError(f"frozen: a linear weight has 2 dimensions, got shape {frozen.shape}")
    rows, cols = frozen.shape
    _check(x, frozen, bias, gain, rows)
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x: last dimension of shape {tuple(x.shape)} must be {cols}")
    weight = _trained(frozen, x)
    if weight is not None:
        return _epilogue(F.linear(x, weight, bias if gain is None else None), x.dim() - 1, bias, gain, relu)
    if frozen.in_coats():
        return _in_coats(_linear_of, x, frozen, x.dim() - 1, bias, gain, relu)
    return _linear_op(x, bias, frozen.scores, *frozen.pack(), gain, relu)


def _linear_of(x: Tensor, frozen: FrozenTensor) -> Tensor:
    return _linear_op(x, None, frozen.scores, *frozen.pack())


_INTEGERS = (int, torch.SymInt)  # a symbolic integer of a compiler is left symbolic


def _integer(value: Any) -> Any:
    return value if isinstance(value, _INTEGERS) else index(value)


def _per_dimension(name: str, value: Any, dims: int, least: int) -> tuple[int, ...]:
    """One integer for each spatial dimension."""
    single = isinstance(value, _INTEGERS) or hasattr(value, "__index__")
    try:
        values = tuple([_integer(v) for v in ((value,) if single else value)])
    except TypeError:
        values = ()
    if len(values) == 1:
        values *= dims
    if len(values) != dims or min(values) < least:
        raise ValueError(f"{name}: {dims} integers >= {least}, got {value!r}")
    return values


def _same_padding(
    shape: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], list[int] | None]:
    """Symmetric padding for padding='same', and the F.pad of what is left over on one side."""
    if any(s != 1 for s in stride):
        raise ValueError(f"padding: 'same' needs stride 1, got {list(stride)}")
    total = [d * (k - 1) for d, k in zip(dilation, shape[2:], strict=True)]
    extra = [v for t in reversed(total) for v in (0, t % 2)]
    return tuple(t // 2 for t in total), extra if any(extra) else None


def _check_convolution(
    x: Tensor, frozen: FrozenTensor, dims: int, channels: int, groups: int, transposed: bool = False
) -> None:
    if len(frozen.shape) != dims + 2:
        raise ValueError(f"frozen: a {dims}-d convolution's weight has {dims + 2} dimensions, got {frozen.shape}")
    if groups < 1 or frozen.shape[0] % groups:
        raise ValueError(f"groups: {groups} does not divide the {frozen.shape[0]} rows of the weight")
    if x.dim() != dims + 2:
        raise ValueError(f"x: {dims + 1} or {dims + 2} dimensions, got shape {tuple(x.shape)}")
    if x.shape[1] != channels:
        what = "rows" if transposed else f"columns x {groups} groups"
        raise ValueError(f"x: {x.shape[1]} channels, the weight's {what} take {channels}")


def _check_output(size: Sequence[int], x: Tensor, frozen: FrozenTensor) -> None:
    smallest = min(size[2:])
    if smallest < 0 or (smallest == 0 and x.numel()):
        sizes, kernel = list(x.shape[2:]), list(frozen.shape[2:])
        raise ValueError(f"x: output size {list(size[2:])} is too small for input {sizes} and kernel {kernel}")


def _convolution(
    dims: int,
    function: Callable[..., Tensor],
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None,
    stride: Integers,
    padding: Padding,
    dilation: Integers,
    groups: SupportsIndex,
    gain: Tensor | None,
    relu: bool,
) -> Tensor:
    if has_torch_function_unary(x):
        settings = (bias, stride, padding, dilation, groups)
        return handle_torch_function(function, (x,), x, frozen, *settings, gain=gain, relu=relu)
    x, bias = _autocast(x, bias)
    batched, in_groups = x.dim() != dims + 1, _integer(groups)
    x = x if batched else x.unsqueeze(0)
    _check_convolution(x, frozen, dims, frozen.shape[1] * in_groups, in_groups)
    _check(x, frozen, bias, gain, frozen.shape[0])
    stride = _per_dimension("stride", stride, dims, 1)
    dilation = _per_dimension("dilation", dilation, dims, 1)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding: an integer, 'same' or 'valid', got {padding!r}")
        if padding == "same":
            padding, extra = _same_padding(frozen.shape, stride, dilation)
            x = x if extra is None else F.pad(x, extra)
        else:
            padding = 0
    padding = _per_dimension("padding", padding, dims, 0)
    _check_output(conv_output_size(x.shape, frozen.shape, stride, padding, dilation), x, frozen)
    weight = _trained(frozen, x)
    if weight is not None:
        plain = getattr(F, f"conv{dims}d")
        y = plain(x, weight, bias if gain is None else None, stride, padding, dilation, in_groups)
        y = _epilogue(y, 1, bias, gain, relu)
    elif frozen.in_coats():

        def call(x: Tensor, one: FrozenTensor) -> Tensor:
            return _CONVOLUTIONS[dims](x, None, one.scores, *one.pack(), stride, padding, dilation, in_groups)

        y = _in_coats(call, x, frozen, 1, bias, gain, relu)
    else:
        y = _CONVOLUTIONS[dims](
            x, bias, frozen.scores, *frozen.pack(), stride, padding, dilation, in_groups, gain, relu
        )  # fmt: skip
    return y if batched else y.squeeze(0)


def conv1d(
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: SupportsIndex = 1,
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolution of x [B, C, L] or [C, L] with `frozen`, a weight [C_out, C / groups, k].

    Gives [B, C_out, L_out], or without B. Settings as of `torch.nn.functional.conv1d`. Dtypes, `gain`, `relu` and
    errors: see the module.
    """
    return _convolution(1, conv1d, x, frozen, bias, stride, padding, dilation, groups, gain, relu)


def conv2d(
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: SupportsIndex = 1,
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolution of x [B, C, H, W] or [C, H, W] with `frozen`, a weight [C_out, C / groups, kh, kw].

    Gives [B, C_out, H_out, W_out], or without B, channels_last where x is. Settings as of
    `torch.nn.functional.conv2d`. Dtypes, `gain`, `relu` and errors: see the module.
    """
    return _convolution(2, conv2d, x, frozen, bias, stride, padding, dilation, groups, gain, relu)


def conv3d(
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None = None,
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    groups: SupportsIndex = 1,
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolution of x [B, C, D, H, W] or [C, D, H, W] with `frozen`, a weight [C_out, C / groups, kd, kh, kw].

    Gives [B, C_out, D_out, H_out, W_out], or without B, channels_last_3d where x is. Settings as of
    `torch.nn.functional.conv3d`. Dtypes, `gain`, `relu` and errors: see the module.
    """
    return _convolution(3, conv3d, x, frozen, bias, stride, padding, dilation, groups, gain, relu)


def _transposed(
    dims: int,
    function: Callable[..., Tensor],
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None,
    stride: Integers,
    padding: Integers,
    output_padding: Integers,
    groups: SupportsIndex,
    dilation: Integers,
    gain: Tensor | None,
    relu: bool,
) -> Tensor:
    if has_torch_function_unary(x):
        settings = (bias, stride, padding, output_padding, groups, dilation)
        return handle_torch_function(function, (x,), x, frozen, *settings, gain=gain, relu=relu)
    x, bias = _autocast(x, bias)
    batched, in_groups = x.dim() != dims + 1, _integer(groups)
    x = x if batched else x.unsqueeze(0)
    _check_convolution(x, frozen, dims, frozen.shape[0], in_groups, transposed=True)
    _check(x, frozen, bias, gain, frozen.shape[1] * in_groups)
    stride = _per_dimension("stride", stride, dims, 1)
    dilation = _per_dimension("dilation", dilation, dims, 1)
    padding = _per_dimension("padding", padding, dims, 0)
    output_padding = _per_dimension("output_padding", output_padding, dims, 0)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(
            f"output_padding: {list(output_padding)} must be below stride {list(stride)} or dilation {list(dilation)}"
        )
    size = conv_transpose_output_size(x.shape, frozen.shape, stride, padding, output_padding, dilation, in_groups)
    _check_output(size, x, frozen)
    weight = _trained(frozen, x)
    if weight is not None:
        plain, inner = getattr(F, f"conv_transpose{dims}d"), bias if gain is None else None
        y = _epilogue(
            plain(x, weight, inner, stride, padding, output_padding, in_groups, dilation), 1, bias, gain, relu
        )
    elif frozen.in_coats():

        def call(x: Tensor, one: FrozenTensor) -> Tensor:
            settings = (stride, padding, output_padding, dilation, in_groups)
            return _TRANSPOSED[dims](x, None, one.scores, *one.pack(), *settings)

        y = _in_coats(call, x, frozen, 1, bias, gain, relu)
    else:
        y = _TRANSPOSED[dims](
            x, bias, frozen.scores, *frozen.pack(), stride, padding, output_padding, dilation, in_groups, gain, relu
        )  # fmt: skip
    return y if batched else y.squeeze(0)


def conv_transpose1d(
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: SupportsIndex = 1,
    dilation: Integers = 1,
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Transposed convolution of x [B, C, L] or [C, L] with `frozen`, a weight [C, C_out / groups, k].

    Gives [B, C_out, L_out], or without B. Settings as of `torch.nn.functional.conv_transpose1d`. Dtypes, `gain`, `relu`
    and errors: see the module.
    """
    return _transposed(
        1, conv_transpose1d, x, frozen, bias, stride, padding, output_padding, groups, dilation, gain, relu
    )


def conv_transpose2d(
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: SupportsIndex = 1,
    dilation: Integers = 1,
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Transposed convolution of x [B, C, H, W] or [C, H, W] with `frozen`, a weight [C, C_out / groups, kh, kw].

    Gives [B, C_out, H_out, W_out], or without B, channels_last where x is. Settings as of
    `torch.nn.functional.conv_transpose2d`. Dtypes, `gain`, `relu` and errors: see the module.
    """
    return _transposed(
        2, conv_transpose2d, x, frozen, bias, stride, padding, output_padding, groups, dilation, gain, relu
    )


def conv_transpose3d(
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None = None,
    stride: Integers = 1,
    padding: Integers = 0,
    output_padding: Integers = 0,
    groups: SupportsIndex = 1,
    dilation: Integers = 1,
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Transposed convolution of x [B, C, D, H, W] or [C, D, H, W] with `frozen`.

    Its weight is [C, C_out / groups, kd, kh, kw]. Gives [B, C_out, D_out, H_out, W_out], or without B, channels_last_3d
    where x is. Settings as of `torch.nn.functional.conv_transpose3d`. Dtypes, `gain`, `relu` and errors: see the
    module.
    """
    return _transposed(
        3, conv_transpose3d, x, frozen, bias, stride, padding, output_padding, groups, dilation, gain, relu
    )


def padding_row(rows: int, padding_idx: int) -> int:
    """The row of a padding_idx that may count from the end, as torch's; ValueError where there is none."""
    if not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx: within the {rows} rows of the table, got {padding_idx}")
    return padding_idx % rows


def embedding(
    indices: Tensor,
    frozen: FrozenTensor,
    padding_idx: SupportsIndex | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows of a weight [num, dim] for int64 or int32 `indices` of any shape; gives `dtype` [*indices.shape, dim].

    The row `padding_idx` is zero. TypeError for other indices, IndexError for one out of range; ValueError for a
    padding_idx that is no row, and for indices on another device than the frozen tensor.
    """
    if has_torch_function_unary(indices):
        return handle_torch_function(embedding, (indices,), indices, frozen, padding_idx, dtype=dtype)
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices: int64 or int32, got {indices.dtype}")
    if indices.layout is not torch.strided:
        raise TypeError(f"indices: layout {indices.layout}, expected torch.strided; pass indices.to_dense()")
    if dtype not in FLOATS:
        raise TypeError(f"dtype: {dtype}, expected {_NAMES}")
    if indices.device != frozen.header.device:
        raise ValueError(f"indices: on {indices.device}, the frozen weight is on {frozen.header.device}")
    if len(frozen.shape) != 2:
        raise ValueError(f"frozen: an embedding's weight has 2 dimensions, got shape {frozen.shape}")
    padding = -1 if padding_idx is None else padding_row(frozen.shape[0], index(padding_idx))
    if frozen.values is not None and frozen.values.requires_grad and torch.is_grad_enabled():
        return derivatives.look_up(indices, frozen.weight(dtype), padding)
    if frozen.in_coats():
        return frozen.counted(
            dtype, lambda one, kind: _embedding_op(indices, one.scores, *one.pack(), kind, padding)
        )  # fmt: skip
    return _embedding_op(indices, frozen.scores, *frozen.pack(), dtype, padding)
