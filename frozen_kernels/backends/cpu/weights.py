"""The effective weight on the CPU, and the score gradient of a gradient of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...format import STORED, Pack, matrix_shape, words
from ..checks import check_dtype, check_size, checked_pack, operand
from ..errors import Unsupported
from ..native import DTYPES
from .extension import _C, check_cpu, check_reach, pack_args, score_args, threads, weight_args
from .masks import keep_plane, offsets, plane_offsets, with_offsets


def weight(scores: Tensor | None, pack: Pack, dtype: torch.dtype) -> Tensor:
    """The effective weight in torch's shape and order."""
    check_dtype("dtype", dtype)
    if pack.code == STORED:
        return _stored_weight(pack, dtype)
    args, held = pack_args(pack)
    out = torch.empty(tuple(held.shape), dtype=dtype)
    _C.weight(args, held.shape[1], math.prod(held.shape[2:]), DTYPES[dtype], out.data_ptr(), threads())
    return out


def weight_grad_scores(grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
    """From the gradient of a weight of torch's shape and any strides."""
    check_dtype("grad", grad.dtype)
    check_size("grad", grad.shape, pack.shape)
    if pack.code == STORED:
        return _stored_grad_scores(grad, scores, pack)
    ends, scores = score_args(scores, pack.header)
    args, _held = pack_args(with_offsets(pack))
    (at, dtype, row_stride, channel_stride), taps = weight_args(grad, DTYPES[grad.dtype])
    out = torch.empty_like(scores)
    _C.weight_grad_scores(
        args, at, dtype, pack.shape[1], row_stride, channel_stride, taps, ends, out.data_ptr(), threads()
    )  # fmt: skip
    return out


def _values(pack: Pack) -> Tensor:
    """The values of a stored weight, all or the kept ones; Unsupported in the dense residency."""
    check_cpu("header", pack.header)
    if pack.dense is not None:
        raise Unsupported("the tensor is in the dense residency, which torch's own kernels serve")
    if pack.values is None:
        raise ValueError("values: a stored weight needs them, got none")
    check_cpu("values", pack.values)
    return pack.values


def _check_all(values: Tensor, pack: Pack) -> None:
    check_size("values", values.shape, pack.shape)
    check_dtype("values", values.dtype)
    check_reach("values", values)


def _stored_weight(pack: Pack, dtype: torch.dtype) -> Tensor:
    values = _values(pack)
    if values.dim() == 1:
        return _packed_weight(pack, dtype)
    _check_all(values, pack)
    rows, cols = matrix_shape(pack.shape)
    plane, stream = pack.keep, pack.supermask
    if plane is not None:
        plane, stream = operand("keep", plane, values.device, torch.int32, (rows, words(cols))), None
    elif stream is not None:
        stream = operand("supermask", stream, values.device, torch.uint8, (-(-rows * cols // 8),))
    else:
        raise ValueError("supermask: a stored weight needs a supermask or a keep plane, got none")
    kept = (rows, *(0 if t is None else t.data_ptr() for t in (plane, stream)))
    args, taps = weight_args(values, DTYPES[values.dtype])
    out = torch.empty(tuple(pack.shape), dtype=dtype)
    _C.stored_weight(args, pack.shape[1], taps, kept, DTYPES[dtype], out.data_ptr(), threads())
    return out


def _packed_weight(pack: Pack, dtype: torch.dtype) -> Tensor:
    rows, cols = matrix_shape(pack.shape)
    keep = pack.keep
    if keep is None:
        if pack.supermask is None:
            raise ValueError("supermask: a stored weight needs a supermask or a keep plane, got none")
        keep = keep_plane(pack.header, pack.supermask, offsets(pack.header, rows, cols), rows, cols)
    # those of a plane that has just been made, or that a caller changed, are not in the pack
    starts = plane_offsets(keep, cols)
    held, _, _ = checked_pack(pack._replace(keep=keep, offsets=starts, supermask=None))
    values, scale = held.values, held.row_scale
    assert values is not None and held.keep is not None
    check_size("values", values.shape, (int(starts[-1]),))
    # int8 values are told by their scales
    kind = DTYPES.get(values.dtype, 0)
    ends = (values.data_ptr(), kind, 0 if scale is None else scale.data_ptr(), starts.data_ptr())
    kept = (rows, held.keep.data_ptr(), 0)
    out = torch.empty(tuple(pack.shape), dtype=dtype)
    check_reach("shape", out)
    taps = math.prod(pack.shape[2:])
    _C.packed_weight(*ends, pack.shape[1], taps, kept, DTYPES[dtype], out.data_ptr(), threads())
    return out


def _stored_grad_scores(grad: Tensor, scores: Tensor, pack: Pack) -> Tensor:
    check_cpu("grad", grad)
    check_reach("grad", grad)
    values = _values(pack)
    if values.dim() == 1:
        raise ValueError("values: all of a stored weight are needed for a score gradient; it is packed")
    _check_all(values, pack)
    _ends, scores = score_args(scores, pack.header)
    rows, cols = matrix_shape(pack.shape)
    check_size("scores", scores.shape, (rows * cols,))
    ours, taps = weight_args(grad, DTYPES[grad.dtype])
    theirs, value_taps = weight_args(values, DTYPES[values.dtype])
    out = torch.empty_like(scores)
    kind = DTYPES[scores.dtype]
    _C.stored_grad_scores(rows, pack.shape[1], ours, taps, theirs, value_taps, kind, out.data_ptr(), threads())
    return out
