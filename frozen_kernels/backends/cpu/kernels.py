"""CPU kernels: checks and output tensors around the compiled extension; ops and signatures are the catalogue's."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import format as fmt
from ..errors import Unsupported

_C: Any = None
try:
    _C = importlib.import_module("frozen_kernels._C")
    _missing = ""
except ImportError as error:
    _missing = f"the extension is not built ({error})"

DEVICES = ("cpu",)
OFFSETS, SHAPE = 2, 7  # places in the pack
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def reasons() -> list[str]:
    """Why this backend is not live. RuntimeError where FROZEN_KERNELS_ISA asks for what this machine lacks."""
    if _C is None:
        return [_missing]
    _C.isa()
    return []


def _threads() -> int:
    return torch.get_num_threads()


def _dtype(dtype: torch.dtype, what: str) -> int:
    if dtype not in DTYPES:
        raise Unsupported(f"{what} is {dtype}; the CPU kernels take float32, bfloat16 and float16")
    return DTYPES[dtype]


def _code(code: str) -> int:
    return fmt.CODES.index(fmt.check_code(code))


def _checked(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int] | None, what: str) -> Tensor:
    """A contiguous CPU tensor of the wanted dtype and shape, or an error that names both."""
    if tensor.is_cpu and tensor.dtype is dtype and (shape is None or tensor.shape == shape):
        return tensor if tensor.is_contiguous() else tensor.contiguous()
    if tensor.device.type != "cpu":
        raise Unsupported(f"{what} is on {tensor.device}; the CPU kernels need cpu")
    if tensor.dtype != dtype:
        raise ValueError(f"{what}: {dtype} expected, got {tensor.dtype}")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{what}: shape {tuple(shape)} expected, got {tuple(tensor.shape)}")
    return tensor.contiguous()  # a shape that was given as another sequence


def _header(header: Tensor) -> Tensor:
    return _checked(header, torch.int32, (fmt.HEADER_WORDS,), "header")


def _matrix(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    if tensor.dim() != 2:
        raise ValueError(f"{what}: 2 dimensions expected, got {tensor.dim()}")
    return _checked(tensor, dtype, None, what)


class _Pack:
    """The arguments of a frozen tensor as the extension takes them; holds the tensors that they point into."""

    def __init__(self, rows: int, cols: int, args: tuple[int, ...], tensors: list[Tensor]) -> None:
        self.rows, self.cols, self.args, self.tensors = rows, cols, args, tensors


def _pack(
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
) -> _Pack:
    """Checks the PACK arguments of an op; `.args` is the extension's `pack`. The dense residency is not served here."""
    if dense is not None:
        raise Unsupported("the tensor is in the dense residency, which torch's own kernels serve")
    rows, cols = fmt.matrix_shape(shape)
    plane, code_id = (rows, fmt.words(cols)), _code(code)
    header = _header(header)
    tensors = [header]
    header_at = header.data_ptr()

    def address(tensor: Tensor, dtype: torch.dtype, wanted: tuple[int, ...] | None, what: str) -> int:
        tensor = _checked(tensor, dtype, wanted, what)
        tensors.append(tensor)
        # An empty tensor has no address, yet says which residency this is.
        return tensor.data_ptr() or header_at

    supermask_at = supermask_bytes = offsets_at = keep_at = draw_at = 0
    if supermask is not None:
        supermask_at, supermask_bytes = address(supermask, torch.uint8, None, "supermask"), supermask.numel()
    if offsets is not None:
        offsets_at = address(offsets, torch.int64, (rows * fmt.chunks(cols) + 1,), "offsets")
    if keep is not None:
        keep_at = address(keep, torch.int32, plane, "keep")
    if draw is not None and code != "constant":
        draw_dtype, draw_shape = (torch.int32, plane) if code == "sign" else (torch.uint8, (rows, cols))
        draw_at = address(draw, draw_dtype, draw_shape, "draw")
    args = (header_at, code_id, rows, cols, supermask_at, supermask_bytes, offsets_at, keep_at, draw_at)
    return _Pack(rows, cols, args, tensors)


def _scores(scores: Tensor) -> tuple[int, int, int]:
    """Address, count and dtype id of a contiguous score tensor."""
    if scores.dtype not in (torch.float32, torch.bfloat16):
        raise Unsupported(f"scores are {scores.dtype}; the CPU kernels take float32 and bfloat16")
    if scores.device.type != "cpu":
        raise Unsupported(f"scores are on {scores.device}; the CPU kernels need cpu")
    return scores.data_ptr(), scores.numel(), DTYPES[scores.dtype]


def codes(header: Tensor, code: str, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header, code_id = _header(header), _code(code)
    out = torch.empty(rows, cols, dtype=torch.int16)
    _C.codes(header.data_ptr(), code_id, (rows, cols, row0, col0), out.data_ptr(), _threads())
    return out


def draws(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header = _header(header)
    out = torch.empty(rows, cols, dtype=torch.int32)
    _C.draws(header.data_ptr(), (rows, cols, row0, col0), out.data_ptr(), _threads())
    return out


def partition(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header = _header(header)
    out = torch.empty(rows, cols, dtype=torch.int8)
    _C.partition(header.data_ptr(), (rows, cols, row0, col0), out.data_ptr(), _threads())
    return out


def uniform_scores(header: Tensor, bound: float, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    header = _header(header)
    out = torch.empty(rows, cols, dtype=torch.float32)
    _C.uniform_scores(header.data_ptr(), bound, (rows, cols, row0, col0), out.data_ptr(), _threads())
    return out


def histogram(header: Tensor, rows: int, cols: int) -> Tensor:
    header = _header(header)
    out = torch.empty(65536, dtype=torch.int64)
    _C.histogram(header.data_ptr(), rows, cols, out.data_ptr(), _threads())
    return out


def partition_counts(header: Tensor, rows: int, cols: int) -> Tensor:
    header = _header(header)
    out = torch.empty(3, dtype=torch.int64)
    _C.partition_counts(header.data_ptr(), rows, cols, out.data_ptr(), _threads())
    return out


def offsets(header: Tensor, rows: int, cols: int) -> Tensor:
    header = _header(header)
    out = torch.empty(rows * fmt.chunks(cols) + 1, dtype=torch.int64)
    _C.offsets(header.data_ptr(), rows, cols, out.data_ptr(), _threads())
    return out


def with_offsets(pack: Sequence) -> list:
    """A pack with the stream offsets that a score gradient needs; made where the tensor does not hold them."""
    pack = list(pack)
    if pack[OFFSETS] is None:
        pack[OFFSETS] = offsets(pack[0], *fmt.matrix_shape(pack[SHAPE]))
    return pack


def free_draws(header: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    header = _header(header)
    offsets = _checked(offsets, torch.int64, (rows * fmt.chunks(cols) + 1,), "offsets")
    out = torch.empty(int(offsets[-1]), dtype=torch.int32)
    _C.free_draws(header.data_ptr(), offsets.data_ptr(), rows, cols, out.data_ptr(), _threads())
    return out


def pack(keep: Tensor, partition: Tensor) -> Tensor:
    keep, partition = _matrix(keep, torch.bool, "keep"), _matrix(partition, torch.int8, "partition")
    if keep.shape != partition.shape:
        raise ValueError(f"keep: shape {tuple(partition.shape)} of the partition expected, got {tuple(keep.shape)}")
    rows, cols = keep.shape
    free = _C.count_free(partition.data_ptr(), partition.numel(), _threads())
    out = torch.empty(-(-free // 8), dtype=torch.uint8)
    _C.pack(keep.data_ptr(), partition.data_ptr(), rows, cols, out.data_ptr(), out.numel(), _threads())
    return out


def unpack(stream: Tensor, partition: Tensor) -> Tensor:
    stream = _checked(stream, torch.uint8, None, "stream")
    partition = _matrix(partition, torch.int8, "partition")
    rows, cols = partition.shape
    free = _C.count_free(partition.data_ptr(), partition.numel(), _threads())
    if stream.numel() != -(-free // 8):
        raise ValueError(f"stream: {-(-free // 8)} bytes expected for {free} free weights, got {stream.numel()}")
    out = torch.empty(rows, cols, dtype=torch.bool)
    address = stream.data_ptr()
    _C.unpack(address, stream.numel(), partition.data_ptr(), rows, cols, out.data_ptr(), _threads())
    return out


def planes(keep: Tensor) -> Tensor:
    keep = _matrix(keep, torch.bool, "keep")
    rows, cols = keep.shape
    out = torch.empty(rows, fmt.words(cols), dtype=torch.int32)
    _C.planes(keep.data_ptr(), rows, cols, out.data_ptr(), _threads())
    return out


def keep_plane(header: Tensor, supermask: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    packed = _pack(header, supermask, offsets, None, None, None, "constant", (rows, cols))
    out = torch.empty(rows, fmt.words(cols), dtype=torch.int32)
    _C.keep_plane(packed.args, out.data_ptr(), _threads())
    return out


def pack_plane(header: Tensor, keep: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    packed = _pack(header, None, offsets, keep, None, None, "constant", (rows, cols))
    out = torch.empty(-(-int(offsets[-1]) // 8), dtype=torch.uint8)
    _C.pack_plane(packed.args, out.data_ptr(), out.numel(), _threads())
    return out


def draw_plane(header: Tensor, code: str, rows: int, cols: int) -> Tensor:
    header, code_id = _header(header), _code(code)
    if code == "constant":
        raise ValueError("code: 'constant' has no draw to store")
    if code == "sign":
        out = torch.empty(rows, fmt.words(cols), dtype=torch.int32)
    else:
        out = torch.empty(rows, cols, dtype=torch.uint8)
    _C.draw_plane(header.data_ptr(), code_id, rows, cols, out.data_ptr(), _threads())
    return out


def popcount(bits: Tensor) -> Tensor:
    if bits.dtype not in (torch.int32, torch.uint8):
        raise ValueError(f"bits: int32 or uint8 expected, got {bits.dtype}")
    bits = _checked(bits, bits.dtype, None, "bits")
    return torch.tensor(_C.popcount(bits.data_ptr(), bits.numel() * bits.element_size(), _threads()), dtype=torch.int64)


def select(scores: Sequence[Tensor], rank: int) -> Tensor:
    held = [tensor.contiguous() for tensor in scores]
    key = _C.select([_scores(tensor) for tensor in held], int(rank), _threads())
    return torch.tensor(key, dtype=torch.int64)


def pack_above(scores: Tensor, key: Tensor) -> Tensor:
    scores = scores.contiguous()
    args = _scores(scores)
    out = torch.empty(-(-scores.numel() // 8), dtype=torch.uint8)
    _C.pack_above(args, int(key), out.data_ptr(), _threads())
    return out


def weight(scores: Tensor | None, *args) -> Tensor:
    *pack, dtype = args
    dtype_id, packed, shape = _dtype(dtype, "dtype"), _pack(*pack), pack[SHAPE]
    out = torch.empty(tuple(shape), dtype=dtype)
    _C.weight(packed.args, shape[1], math.prod(shape[2:]), dtype_id, out.data_ptr(), _threads())
    return out


def weight_grad_scores(grad: Tensor, scores: Tensor, *pack) -> Tensor:
    grad_id = _dtype(grad.dtype, "grad")
    scores = scores.contiguous()
    score_args = _scores(scores)
    packed, shape = _pack(*with_offsets(pack)), pack[SHAPE]
    if tuple(grad.shape) != tuple(shape):
        raise ValueError(f"grad: shape {tuple(shape)} expected, got {tuple(grad.shape)}")
    taps = [0]
    for size, stride in zip(grad.shape[2:], grad.stride()[2:], strict=True):
        taps = [start + i * stride for start in taps for i in range(size)]
    out = torch.empty_like(scores)
    row_stride, channel_stride = grad.stride()[:2]
    _C.weight_grad_scores(
        packed.args,
        grad.data_ptr(),
        grad_id,
        shape[1],
        row_stride,
        channel_stride,
        taps,
        score_args,
        out.data_ptr(),
        _threads(),
    )
    return out


def _indices(indices: Tensor) -> Tensor:
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices: int32 or int64 expected, got {indices.dtype}")
    return indices.to(torch.int64).contiguous()


def embedding(indices: Tensor, scores: Tensor | None, *args) -> Tensor:
    """Rows of the weight; `padding_idx` (negative: none) gives zeros."""
    *pack, dtype, padding_idx = args
    dtype_id, packed = _dtype(dtype, "dtype"), _pack(*pack)
    rows = _indices(indices)
    out = torch.empty(*indices.shape, packed.cols, dtype=dtype)
    _C.embedding(packed.args, rows.data_ptr(), rows.numel(), padding_idx, dtype_id, out.data_ptr(), _threads())
    return out


def embedding_grad_scores(grad: Tensor, indices: Tensor, scores: Tensor, *args) -> Tensor:
    *pack, padding_idx = args
    grad_id = _dtype(grad.dtype, "grad")
    scores = scores.contiguous()
    score_args = _scores(scores)
    packed = _pack(*with_offsets(pack))
    if tuple(grad.shape) != (*indices.shape, packed.cols):
        raise ValueError(f"grad: shape {(*indices.shape, packed.cols)} expected, got {tuple(grad.shape)}")
    rows = _indices(indices)
    grad = grad.reshape(rows.numel(), packed.cols)
    out = torch.empty_like(scores)
    _C.embedding_grad_scores(
        packed.args,
        grad.data_ptr(),
        grad_id,
        *grad.stride(),
        rows.data_ptr(),
        rows.numel(),
        padding_idx,
        score_args,
        out.data_ptr(),
        _threads(),
    )
    return out
