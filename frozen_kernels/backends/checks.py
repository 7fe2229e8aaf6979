"""The one checker of what an op is given. Errors name the argument and both values.

`Unsupported` sends the call to the next backend: of devices and dtypes that kernels do not take. A size or a dtype that
no backend takes is a ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..format import ALL_CODES, HEADER_WORDS, STORED, VALUE_DTYPES, Pack, chunks, matrix_shape, words
from .errors import Unsupported

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # that kernels read and write
# that some backend multiplies by a weight, as torch does
_MULTIPLIED = frozenset((*KERNEL_DTYPES, torch.float64, torch.complex64, torch.complex128))


def check_operand(name: str, t: Tensor, header: Tensor) -> None:
    """TypeError unless some backend takes this layout and dtype, Unsupported where the header lies elsewhere."""
    if t.layout is not torch.strided:
        raise TypeError(f"{name}: layout {t.layout}, expected torch.strided, which {name}.to_dense() gives")
    if t.dtype not in _MULTIPLIED:
        raise TypeError(f"{name}: {t.dtype}, expected float32, bfloat16, float16 or float64")
    if t.device != header.device:
        raise Unsupported(f"{name} is on {t.device}, the header on {header.device}")


def check_dtype(name: str, dtype: torch.dtype, taken: Sequence[torch.dtype] = KERNEL_DTYPES) -> None:
    """Unsupported unless kernels take this dtype."""
    if dtype not in taken:
        raise Unsupported(f"{name} is {dtype}, not {' or '.join(map(str, taken))}")


def check_size(name: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    """ValueError where sizes differ."""
    if tuple(got) != tuple(wanted):
        raise ValueError(f"{name}: size {list(got)}, expected {list(wanted)}")


def operand(
    name: str, t: Tensor, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] | None = None
) -> Tensor:
    """The tensor, contiguous; ValueError for another dtype or shape, Unsupported for another device."""
    if t.device != device:
        raise Unsupported(f"{name} is on {t.device}, other tensors on {device}")
    if t.dtype is not dtype:
        raise ValueError(f"{name}: {dtype} expected, got {t.dtype}")
    if shape is not None and t.shape != shape:
        raise ValueError(f"{name}: shape {shape} expected, got {tuple(t.shape)}")
    return t if t.is_contiguous() else t.contiguous()


def matrix(name: str, t: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of two dimensions."""
    if t.dim() != 2:
        raise ValueError(f"{name}: 2 dimensions expected, got {t.dim()}")
    return operand(name, t, device, dtype)


def keep_and_partition(keep: Tensor, partition: Tensor) -> tuple[Tensor, Tensor]:
    """Both contiguous, bool and int8 of one shape [rows, cols]."""
    keep = matrix("keep", keep, keep.device, torch.bool)
    partition = matrix("partition", partition, keep.device, torch.int8)
    if keep.shape != partition.shape:
        raise ValueError(f"keep: shape {tuple(partition.shape)} of the partition expected, got {tuple(keep.shape)}")
    return keep, partition


def checked_header(header: Tensor) -> Tensor:
    return operand("header", header, header.device, torch.int32, (HEADER_WORDS,))


def checked_offsets(offsets: Tensor, header: Tensor, rows: int, cols: int) -> Tensor:
    return operand("offsets", offsets, header.device, torch.int64, (rows * chunks(cols) + 1,))


def checked_bits(bits: Tensor) -> Tensor:
    """Bits to count: contiguous, of words or bytes."""
    if bits.dtype not in (torch.int32, torch.uint8):
        raise ValueError(f"bits: int32 or uint8 expected, got {bits.dtype}")
    return bits.contiguous()


def check_indices(indices: Tensor, header: Tensor) -> None:
    """ValueError unless int32 or int64, Unsupported where the header lies elsewhere."""
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices: int32 or int64 expected, got {indices.dtype}")
    if indices.device != header.device:
        raise Unsupported(f"indices are on {indices.device}, the header on {header.device}")


def checked_scores(scores: Tensor, header: Tensor) -> Tensor:
    """Scores that a gradient is made for, contiguous; Unsupported unless float32 or bfloat16 beside the header."""
    check_dtype("scores", scores.dtype, (torch.float32, torch.bfloat16))
    return operand("scores", scores, header.device, scores.dtype)


def checked_epilogue(
    bias: Tensor | None, gain: Tensor | None, channels: int, header: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and gain [channels], contiguous; Unsupported for a dtype that kernels do not add or multiply by."""
    if bias is not None:
        check_size("bias", bias.shape, (channels,))
        check_dtype("bias", bias.dtype)
        bias = operand("bias", bias, header.device, bias.dtype)
    if gain is not None:
        check_size("gain", gain.shape, (channels,))
        check_dtype("gain", gain.dtype, (torch.float32,))
        gain = operand("gain", gain, header.device, torch.float32)
    return bias, gain


def checked_pack(pack: Pack) -> tuple[Pack, int, int]:
    """The pack with contiguous tensors, and the rows and columns of its weight; Unsupported in the dense residency."""
    header, supermask, offsets, keep, draw, dense, values, row_scale, code, shape = pack
    if dense is not None:
        raise Unsupported("the tensor is in the dense residency, which torch's own kernels serve")
    if code not in ALL_CODES:
        raise Unsupported(f"code {code!r} is not one of {', '.join(ALL_CODES)}")
    rows, cols = matrix_shape(shape)
    plane, device = (rows, words(cols)), header.device
    header = operand("header", header, device, torch.int32, (HEADER_WORDS,))
    if supermask is not None:
        supermask = operand("supermask", supermask, device, torch.uint8)
    if offsets is not None:
        offsets = operand("offsets", offsets, device, torch.int64, (rows * chunks(cols) + 1,))
    if keep is not None:
        keep = operand("keep", keep, device, torch.int32, plane)
    if code == STORED:
        values, row_scale = _checked_values(values, row_scale, device, rows)
    if code in ("constant", STORED):
        draw = None
    elif draw is not None:
        bits = code == "sign"
        draw = operand("draw", draw, device, torch.int32 if bits else torch.uint8, plane if bits else (rows, cols))
    return Pack(header, supermask, offsets, keep, draw, None, values, row_scale, code, shape), rows, cols


def _checked_values(
    values: Tensor | None, row_scale: Tensor | None, device: torch.device, rows: int
) -> tuple[Tensor, Tensor | None]:
    """Packed values and the scales of their rows, contiguous; Unsupported for values that are not packed."""
    if values is None or values.dim() != 1:
        raise Unsupported("the stored weight is not packed: torch's own kernels serve it")
    if values.dtype not in VALUE_DTYPES.values():
        raise ValueError(f"values: {', '.join(VALUE_DTYPES)} expected, got {values.dtype}")
    values = operand("values", values, device, values.dtype)
    if (row_scale is None) == (values.dtype == torch.int8):
        raise ValueError(f"row_scale: with int8 values and with no others, got {values.dtype}")
    return values, None if row_scale is None else operand("row_scale", row_scale, device, torch.float32, (rows,))
