"""Layers as functions of a `FrozenTensor`: argument checks here, one op call each.

All take float32, bfloat16, float16 or float64 inputs (the last on the reference) and return the input's dtype; sums are
accumulated in float32 and rounded once. Under autocast the input is cast first, as torch's own layers do.

Linear layers and convolutions give `relu(gain * W x + bias)` where `gain` and `relu=True` are passed: one float32 value
per output channel (float64 for float64 inputs), which gets no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import derivatives, flops  # noqa: F401  (they register what torch asks about the ops)
from .ops import conv_output_size, conv_transpose_output_size
from .tensor import FrozenTensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def autocasting(x: Tensor) -> bool:
    """Whether torch's own layers would cast x: never float64 or integers, and the meta device has no autocast."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return False
    return x.dtype != torch.float64 and x.dtype.is_floating_point


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    x = tensors[0]
    assert x is not None
    if not autocasting(x):
        return list(tensors)
    dtype = torch.get_autocast_dtype(x.device.type)
    return [t if t is None else t.to(dtype) for t in tensors]


def _check(x: Tensor, frozen: FrozenTensor, bias: Tensor | None, gain: Tensor | None, outputs: int) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"x: a floating dtype, got {x.dtype}")
    if x.device != frozen.header.device:
        raise ValueError(f"x: on {x.device}, the frozen weight is on {frozen.header.device}")
    if gain is not None:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if gain.dtype != wide:
            raise TypeError(f"gain: {gain.dtype}, expected {wide} for x {x.dtype}")
        if tuple(gain.shape) != (outputs,):
            raise ValueError(f"gain: shape {tuple(gain.shape)}, expected ({outputs},)")
    if bias is None:
        return
    if bias.dtype != x.dtype:
        raise TypeError(f"bias: {bias.dtype} does not match x {x.dtype}")
    if bias.shape != (outputs,):
        raise ValueError(f"bias: shape {tuple(bias.shape)}, expected ({outputs},)")


def linear(
    x: Tensor, frozen: FrozenTensor, bias: Tensor | None = None, *, gain: Tensor | None = None, relu: bool = False
) -> Tensor:
    """`x @ W.T + bias` for x [..., in], W [out, in], bias [out]; returns [..., out]. `gain` and `relu`: see above.

    Raises ValueError or TypeError where shapes, dtypes or devices do not fit.
    """
    x, bias = _autocast(x, bias)  # type: ignore[assignment]
    if len(frozen.shape) != 2:
        raise ValueError(f"frozen: a linear weight has 2 dimensions, got shape {frozen.shape}")
    _check(x, frozen, bias, gain, frozen.shape[0])
    if x.dim() == 0 or x.shape[-1] != frozen.shape[1]:
        raise ValueError(f"x: last dimension of shape {tuple(x.shape)} must be {frozen.shape[1]}")
    return torch.ops.frozen_kernels.linear.default(x, bias, frozen.scores, *frozen.pack(), gain, relu)


def _per_dimension(name: str, value: int | Sequence[int], dims: int, least: int) -> list[int]:
    values = [value] * dims if isinstance(value, int) else list(value)
    if len(values) == 1:
        values *= dims
    if len(values) != dims or min(values) < least:
        raise ValueError(f"{name}: {dims} integers >= {least}, got {value!r}")
    return values


def _same_padding(shape: Sequence[int], stride: list[int], dilation: list[int]) -> tuple[list[int], list[int] | None]:
    """Symmetric padding for padding='same', and the F.pad of what is left over on one side."""
    if any(s != 1 for s in stride):
        raise ValueError(f"padding: 'same' needs stride 1, got {stride}")
    total = [d * (k - 1) for d, k in zip(dilation, shape[2:], strict=True)]
    extra = [v for t in reversed(total) for v in (0, t % 2)]
    return [t // 2 for t in total], extra if any(extra) else None


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
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    gain: Tensor | None,
    relu: bool,
) -> Tensor:
    x, bias = _autocast(x, bias)  # type: ignore[assignment]
    batched = x.dim() != dims + 1
    x = x if batched else x.unsqueeze(0)
    _check_convolution(x, frozen, dims, frozen.shape[1] * groups, groups)
    _check(x, frozen, bias, gain, frozen.shape[0])
    stride = _per_dimension("stride", stride, dims, 1)
    dilation = _per_dimension("dilation", dilation, dims, 1)
    if padding == "same":
        padding, extra = _same_padding(frozen.shape, stride, dilation)
        x = x if extra is None else F.pad(x, extra)
    elif isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"padding: an integer, 'same' or 'valid', got {padding!r}")
        padding = 0
    padding = _per_dimension("padding", padding, dims, 0)
    _check_output(conv_output_size(x.shape, frozen.shape, stride, padding, dilation), x, frozen)
    op = getattr(torch.ops.frozen_kernels, f"conv{dims}d").default
    y = op(x, bias, frozen.scores, *frozen.pack(), stride, padding, dilation, groups, gain, relu)
    return y if batched else y.squeeze(0)


def conv1d(x, frozen, bias=None, stride=1, padding=0, dilation=1, groups=1, *, gain=None, relu=False) -> Tensor:
    """Convolution of x [B, C, L] or [C, L] with a weight [C_out, C / groups, k]; as `torch.nn.functional.conv1d`."""
    return _convolution(1, x, frozen, bias, stride, padding, dilation, groups, gain, relu)


def conv2d(x, frozen, bias=None, stride=1, padding=0, dilation=1, groups=1, *, gain=None, relu=False) -> Tensor:
    """Convolution of x [B, C, H, W] or [C, H, W]; arguments as `torch.nn.functional.conv2d`, any memory format.

    The result is channels_last where x is. Raises ValueError or TypeError where shapes, dtypes or devices do not fit.
    """
    return _convolution(2, x, frozen, bias, stride, padding, dilation, groups, gain, relu)


def conv3d(x, frozen, bias=None, stride=1, padding=0, dilation=1, groups=1, *, gain=None, relu=False) -> Tensor:
    """Convolution of x [B, C, D, H, W] or [C, D, H, W]; arguments as `torch.nn.functional.conv3d`."""
    return _convolution(3, x, frozen, bias, stride, padding, dilation, groups, gain, relu)


def _transposed(
    dims: int,
    x: Tensor,
    frozen: FrozenTensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    output_padding: int | Sequence[int],
    groups: int,
    dilation: int | Sequence[int],
    gain: Tensor | None,
    relu: bool,
) -> Tensor:
    x, bias = _autocast(x, bias)  # type: ignore[assignment]
    batched = x.dim() != dims + 1
    x = x if batched else x.unsqueeze(0)
    _check_convolution(x, frozen, dims, frozen.shape[0], groups, transposed=True)
    _check(x, frozen, bias, gain, frozen.shape[1] * groups)
    stride = _per_dimension("stride", stride, dims, 1)
    dilation = _per_dimension("dilation", dilation, dims, 1)
    padding = _per_dimension("padding", padding, dims, 0)
    output_padding = _per_dimension("output_padding", output_padding, dims, 0)
    for o, s, d in zip(output_padding, stride, dilation, strict=True):
        if o >= max(s, d):
            raise ValueError(f"output_padding: {output_padding} must be below stride {stride} or dilation {dilation}")
    size = conv_transpose_output_size(x.shape, frozen.shape, stride, padding, output_padding, dilation, groups)
    _check_output(size, x, frozen)
    op = getattr(torch.ops.frozen_kernels, f"conv_transpose{dims}d").default
    y = op(x, bias, frozen.scores, *frozen.pack(), stride, padding, output_padding, dilation, groups, gain, relu)
    return y if batched else y.squeeze(0)


def conv_transpose1d(
    x, frozen, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, gain=None, relu=False
) -> Tensor:
    """Transposed convolution of x [B, C, L], W [C, C_out / groups, k]; as `torch.nn.functional.conv_transpose1d`."""
    return _transposed(1, x, frozen, bias, stride, padding, output_padding, groups, dilation, gain, relu)


def conv_transpose2d(
    x, frozen, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, gain=None, relu=False
) -> Tensor:
    """Transposed convolution of x [B, C, H, W]; arguments as `torch.nn.functional.conv_transpose2d`."""
    return _transposed(2, x, frozen, bias, stride, padding, output_padding, groups, dilation, gain, relu)


def conv_transpose3d(
    x, frozen, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, gain=None, relu=False
) -> Tensor:
    """Transposed convolution of x [B, C, D, H, W]; arguments as `torch.nn.functional.conv_transpose3d`."""
    return _transposed(3, x, frozen, bias, stride, padding, output_padding, groups, dilation, gain, relu)


def padding_row(rows: int, padding_idx: int) -> int:
    """The row of a padding_idx that may count from the end, as torch's; ValueError where there is none."""
    if not -rows <= padding_idx < rows:
        raise ValueError(f"padding_idx: within the {rows} rows of the table, got {padding_idx}")
    return padding_idx % rows


def embedding(
    indices: Tensor, frozen: FrozenTensor, padding_idx: int | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows of W [num, dim] for integer `indices` of any shape; returns [*indices.shape, dim]. The padding row is zero.

    Raises TypeError for other indices, IndexError for one out of range.
    """
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices: int64 or int32, got {indices.dtype}")
    if len(frozen.shape) != 2:
        raise ValueError(f"frozen: an embedding's weight has 2 dimensions, got shape {frozen.shape}")
    padding = -1 if padding_idx is None else padding_row(frozen.shape[0], padding_idx)
    return torch.ops.frozen_kernels.embedding(indices, frozen.scores, *frozen.pack(), dtype, padding)
