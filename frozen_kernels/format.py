"""Weight format, version 1 (docs/format.md): constants, and the generators as functions of torch tensors.

A weight is a pure function of (seed, stream, row, column); `csrc/frozen/format.h` states the same facts for kernels and
a test compares the two. Matrices are `[rows, cols]` with `row = d0 index` and `column = tap * d1 + d1 index` of a
PyTorch weight `(d0, d1, *taps)`; `row0` and `col0` select a shard that equals its part of the whole.
"""

from __future__ import annotations

import functools
import math
import numbers
import struct
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = [
    "ALL_CODES", "CODES", "HEADER_WORDS", "RMS", "VALUE_DTYPES", "VERSION", "Pack", "bit_of_column",
    "calibrate", "chunks", "codes", "draws", "from_matrix", "from_stream", "header_fields", "kaiming_sigma",
    "make_header", "matrix_shape", "pack", "pack_bits", "partition", "planes", "rms_of", "scale_of",
    "stream_columns", "stream_order", "threshold_for", "to_matrix", "uniform_scores", "unpack", "unpack_bits",
    "with_scale", "words",
]  # fmt: skip

VERSION = 1
"""The version of the weight format, which tickets say; it does not change."""

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10

SIGN, BYTE, PARTITION, SCORE, SEARCH = 0, 1, 16, 32, 33  # purposes of the generator
PARTITION_CALLS = 4
CHUNK_WORDS = 32  # words per entry of a stream offset table

_NAN_KEY = 0x7F800001  # see score_keys

DrawnCode = Literal["sign", "uniform", "normal", "constant"]
Code = Literal["sign", "uniform", "normal", "constant", "stored", "signs"]
CODES: tuple[DrawnCode, ...] = get_args(DrawnCode)
"""The codes that the generator draws."""
STORED: Literal["stored"] = "stored"  # values that are tensors, section 8
SIGNS: Literal["signs"] = "signs"  # signs that are stored bits, section 8
ALL_CODES: tuple[Code, ...] = get_args(Code)
"""All codes: those that are drawn, then stored values and stored signs; an id in a header is the place here."""
VALUE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""What kept values of stored weights can be, by name."""
RMS = {"sign": 1.0, "uniform": math.sqrt(21845.0), "normal": 87.72364276522038, "constant": 1.0}
"""The root mean square of each drawn code: a scale is `sigma / RMS`."""

NORMAL_UPPER_HALF = (
    1, 1, 3, 3, 3, 5, 5, 7, 7, 9, 9, 9, 11, 11, 13, 13,
    15, 15, 17, 17, 17, 19, 19, 21, 21, 23, 23, 23, 25, 25, 27, 27,
    29, 29, 31, 31, 33, 33, 35, 35, 35, 37, 37, 39, 39, 41, 41, 43,
    43, 45, 45, 47, 47, 49, 49, 51, 51, 53, 53, 55, 55, 57, 57, 59,
    59, 61, 63, 63, 65, 65, 67, 67, 69, 71, 71, 73, 73, 75, 77, 77,
    79, 81, 81, 83, 83, 85, 87, 89, 89, 91, 93, 95, 95, 97, 99, 101,
    103, 103, 105, 107, 109, 111, 113, 115, 117, 119, 121, 123, 125, 129, 131, 133,
    137, 139, 143, 145, 149, 153, 157, 161, 167, 171, 179, 185, 195, 205, 221, 253,
)  # fmt: skip

# words of the int32 header that travels with a tensor; they mean uint32
SEED_LO, SEED_HI, STREAM, GENERATION, TAU_PRUNE, TAU_FREEZE, SCALE, CODE = range(8)
HEADER_WORDS = 8
"""How many int32 words a header has."""


class Pack(NamedTuple):
    """What an op takes of a frozen tensor, in the order of its arguments: header, what is held, code, shape.

    `header` int32 [8]; `supermask` uint8, `offsets` int64 [rows * chunks + 1], `keep` int32 [rows, words], `draw` int32
    [rows, words] for signs or uint8 [rows, cols] for bytes; `dense`, the effective weight; `code`, its name; `shape` of
    the torch weight.
    Of a stored weight `values`: all of them in the torch weight's shape, or the kept ones, 1-D in stream order, times
    `row_scale` float32 [rows] where they are int8; its `offsets` count kept values. Of stored signs `keep` and `draw`,
    and `row_scale` float32 [rows] where rows have one.
    """

    header: Tensor
    supermask: Tensor | None
    offsets: Tensor | None
    keep: Tensor | None
    draw: Tensor | None
    dense: Tensor | None
    values: Tensor | None
    row_scale: Tensor | None
    code: str
    shape: Sequence[int]


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the matrix behind a torch weight shape `(d0, d1, *taps)`; ValueError below two dimensions."""
    if len(shape) < 2:
        raise ValueError(f"shape: a frozen weight needs at least 2 dimensions, got {tuple(shape)}")
    rows, cols = shape[0], math.prod(shape[1:])
    if rows > 1 << 32 or cols > 1 << 34:
        raise ValueError(f"shape: at most 2^32 rows and 2^34 columns, got {rows} x {cols}")
    return rows, cols


def words(cols: int) -> int:
    """32-bit words per row of a plane: `ceil(cols / 32)`."""
    return -(-cols // 32)


def chunks(cols: int) -> int:
    """Entries per row of a stream offset table, of a matrix of `cols` columns: one for each 32 words."""
    return -(-words(cols) // CHUNK_WORDS)


def bit_of_column(cols: int, device: torch.device | None = None) -> Tensor:
    """int64 [cols] on `device`: the bit of each column in its word; even ones fill the low half, odd ones the high."""
    j = torch.arange(cols, device=device) & 31
    return (j >> 1) | ((j & 1) << 4)


def to_matrix(weight: Tensor) -> Tensor:
    """A tensor of torch's weight shape `(d0, d1, *taps)` as `[rows, cols]` in the format's column order."""
    return weight if weight.dim() == 2 else weight.movedim(1, -1).reshape(matrix_shape(weight.shape))


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """`matrix` [rows, cols] as a tensor of torch's weight shape: the inverse of `to_matrix`, contiguous."""
    if len(shape) == 2:
        return matrix
    return matrix.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()


def stream_columns(cols: int, device: torch.device | None = None) -> Tensor:
    """int64 [cols] on `device`: the columns of a row in the order of a stream: word, then bit 0..31 of the word."""
    return (torch.arange(cols, device=device) // 32 * 32 + bit_of_column(cols, device)).argsort()


def stream_order(matrix: Tensor) -> Tensor:
    """`matrix` [rows, cols] in the order of a stream: row, then word, then bit 0..31 of the word; [rows * cols]."""
    return matrix[:, stream_columns(matrix.shape[1], matrix.device)].flatten()


def from_stream(values: Tensor, rows: int, cols: int) -> Tensor:
    """`values` [rows * cols] of a stream as the matrix [rows, cols]: the inverse of `stream_order`."""
    matrix = torch.empty(rows, cols, dtype=values.dtype, device=values.device)
    return matrix.index_copy(1, stream_columns(cols, values.device), values.view(rows, cols))


def weight_offsets(positions: Tensor, weight: Tensor) -> Tensor:
    """int64: offsets into the memory of a torch weight, for int64 positions in the stream of all its weights."""
    shape, stride = tuple(weight.shape), weight.stride()
    row = positions // math.prod(shape[1:])
    return row * stride[0] + _column_offsets(shape[1:], stride[1:], positions.device)[positions % math.prod(shape[1:])]


# a search asks for those of its layers at every step
@functools.lru_cache(maxsize=256)
def _column_offsets(sizes: tuple[int, ...], strides: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 [columns]: offsets of the columns of a row, in the order of a stream; sizes of channels and taps."""
    taps = torch.tensor(tap_offsets(sizes[1:], strides[1:]), device=device)
    column = stream_columns(math.prod(sizes), device)
    return column % sizes[0] * strides[0] + taps[column // sizes[0]]


def tap_offsets(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Where each tap of a weight lies in memory, from the first on; sizes and strides of the spatial dimensions."""
    taps = [0]
    for size, stride in zip(sizes, strides, strict=True):
        taps = [start + i * stride for start in taps for i in range(size)]
    return taps


def raw_keys(scores: Tensor) -> Tensor:
    """int64 keys that order scores of any float dtype, 0.0 and -0.0 alike, all NaN alike and above inf."""
    bits = (scores.detach().to(torch.float32) + 0.0).view(torch.int32).to(torch.int64)
    keys = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return torch.where(scores.isnan(), _NAN_KEY, keys)


def score_keys(scores: Tensor) -> Tensor:
    """int32 keys that order |score| of any float dtype, all NaN alike and above inf."""
    return scores.detach().to(torch.float32).abs().view(torch.int32).clamp(max=_NAN_KEY)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The layout a convolution's result takes: channels_last where its input is, else contiguous.

    An input of one channel, or of one pixel, is both; its strides say which it was made as, as in torch.
    """
    layout = _CHANNELS_LAST.get(x.dim())
    if layout is None or not x.is_contiguous(memory_format=layout):
        return torch.contiguous_format
    if x.is_contiguous():
        channels = x.shape[1]
        if x.stride(1) != 1 or x.stride(-1) != channels or x.shape[1:].numel() == 1:
            return torch.contiguous_format
    return layout


def check_code(code: str) -> str:
    """The code; ValueError where the generator does not draw it."""
    if code not in CODES:
        raise ValueError(f"code: one of {', '.join(CODES)}, got {code!r}")
    return code


def as_integer(value: object) -> int | None:
    """A Python int of an int or a numpy integer; None for anything else, bool included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    return int(value)


def check_seed(seed: int) -> int:
    found = as_integer(seed)
    if found is None or not 0 <= found < 1 << 64:
        raise ValueError(f"seed: an integer in [0, 2^64), got {seed!r}")
    return found


def _check_range(name: str, value: int, limit: int) -> int:
    found = as_integer(value)
    if found is None or not 0 <= found < limit:
        raise ValueError(f"{name}: an integer in [0, {limit}), got {value!r}")
    return found


def check_bits(name: str, bits: int) -> int:
    found = as_integer(bits)
    if found is None or not 1 <= found <= 16:
        raise ValueError(f"{name}: an integer from 1 to 16, got {bits!r}")
    return found


def kaiming_sigma(cols: int) -> float:
    """Standard deviation `sqrt(2 / cols)`, Kaiming's with torch's fan_in; 0.0 without columns."""
    return math.sqrt(2.0 / cols) if cols else 0.0


def rms_of(code: str) -> float:
    """Root mean square of a code; ValueError for one that has none."""
    return 1.0 if code == SIGNS else RMS[check_code(code)]


def scale_of(code: str, sigma: float, factor: float = 1.0) -> float:
    """The fp32 number that multiplies every code: `float32(factor * sigma / RMS[code])`, computed in float64.

    ValueError where it is not finite, and for a code that has none.
    """
    bits = float32_bits(factor * sigma / rms_of(code))
    return struct.unpack("<f", struct.pack("<i", bits))[0]


def dynamic_scale_bits(code: str, sigma: float, kept: Tensor, count: int) -> Tensor:
    """The bits of `scale_of(code, sigma, sqrt(count / kept))`, 0.0 where nothing is kept, from a count on a device.

    int32 scalar on that device, and nobody waits for it. ValueError for a sigma that is not finite.
    """
    scale_of(code, sigma)

    def number(value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=kept.device)

    # tensors all: a GPU divides by a host number as it multiplies by its rounded inverse
    factor = torch.sqrt(number(count) / kept.to(torch.float64))
    scale = (factor * number(sigma) / number(rms_of(code))).to(torch.float32)
    return scale.view(torch.int32) * (kept > 0)


def _int32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


def make_header(
    seed: int,
    stream: int = 0,
    *,
    generation: int = 0,
    tau_prune: int = 0,
    tau_freeze: int = 0,
    scale: float = 1.0,
    code: str = "sign",
    device: torch.device | str | None = None,
) -> Tensor:
    """int32 [8] record of one frozen tensor; a tensor, so that compiled graphs do not depend on its numbers.

    Args:
        seed: in [0, 2^64).
        stream: id of the tensor under its seed, in [0, 2^32).
        generation: in [0, 2^24).
        tau_prune: threshold of pruned weights, 0 to 65536.
        tau_freeze: threshold of frozen weights, `tau_prune` to 65536.
        scale: factor on every code, a finite float32.
        code: one of `ALL_CODES`.
        device: of the header.

    Raises:
        ValueError: a number out of its range; the message names it.
    """
    seed = check_seed(seed)
    stream = _check_range("stream", stream, 1 << 32)
    generation = _check_range("generation", generation, 1 << 24)
    tau_prune = _check_range("tau_prune", tau_prune, 65537)
    tau_freeze = _check_range("tau_freeze", tau_freeze, 65537)
    if tau_prune > tau_freeze:
        raise ValueError(f"thresholds: 0 <= tau_prune <= tau_freeze <= 65536, got {tau_prune} and {tau_freeze}")
    low, high = seed & 0xFFFFFFFF, seed >> 32
    values = [
        _int32(low),
        _int32(high),
        _int32(stream),
        generation,
        tau_prune,
        tau_freeze,
        float32_bits(scale),
        ALL_CODES.index(code if code in (STORED, SIGNS) else check_code(code)),  # type: ignore[arg-type]
    ]
    return torch.tensor(values, dtype=torch.int32, device=device)


def float32_bits(value: float) -> int:
    """The bits of a scale rounded to float32, as the int32 that a header holds; ValueError where it is not finite."""
    try:
        if math.isfinite(value):
            return struct.unpack("<i", struct.pack("<f", value))[0]
    except OverflowError:
        pass
    raise ValueError(f"scale: a finite float32, got {value!r}")


def with_scale(header: Tensor, scale: float) -> Tensor:
    """The `header` of the same tensor with another `scale`; ValueError where that is not a finite float32."""
    return header.index_fill(0, torch.tensor([SCALE], device=header.device), float32_bits(scale))


def header_fields(header: Tensor) -> dict:
    """The Python values of a header: seed, stream, generation, tau_prune, tau_freeze, scale, code.

    ValueError where it is not int32 [8] or holds values that no header can.
    """
    if header.dtype != torch.int32 or tuple(header.shape) != (HEADER_WORDS,):
        raise ValueError(f"header: int32 [{HEADER_WORDS}], got {header.dtype} {list(header.shape)}")
    raw = [v & 0xFFFFFFFF for v in header.tolist()]
    if not raw[TAU_PRUNE] <= raw[TAU_FREEZE] <= 65536:
        raise ValueError(f"header: tau_prune <= tau_freeze <= 65536, got {raw[TAU_PRUNE]} and {raw[TAU_FREEZE]}")
    if raw[CODE] >= len(ALL_CODES) or raw[GENERATION] >= 1 << 24:
        raise ValueError(f"header: unknown code {raw[CODE]} or generation {raw[GENERATION]} of 2^24 and more")
    return {
        "seed": raw[SEED_LO] | raw[SEED_HI] << 32,
        "stream": raw[STREAM],
        "generation": raw[GENERATION],
        "tau_prune": raw[TAU_PRUNE],
        "tau_freeze": raw[TAU_FREEZE],
        "scale": struct.unpack("<f", struct.pack("<I", raw[SCALE]))[0],
        "code": ALL_CODES[raw[CODE]],
    }


def _check_extent(rows: int, cols: int, row0: int, col0: int) -> None:
    for name, value in (("rows", rows), ("cols", cols), ("row0", row0), ("col0", col0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}: an integer >= 0, got {value!r}")
    if row0 + rows > 1 << 32 or col0 + cols > 1 << 34:
        raise ValueError(f"extent: at most 2^32 rows and 2^34 columns, got {row0 + rows} x {col0 + cols}")


def codes(
    rows: int,
    cols: int,
    *,
    seed: int,
    stream: int,
    code: str,
    generation: int = 0,
    row0: int = 0,
    col0: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """int16 [rows, cols]: the integer code of each weight, drawn from a seed (section 4 of the format).

    Args:
        rows: of the matrix, or of a shard of it, which equals its part of the whole.
        cols: likewise.
        seed: in [0, 2^64).
        stream: id of the tensor under its seed, in [0, 2^32).
        code: "sign" gives -1 and 1, "uniform" odd numbers -255 to 255, "normal" odd numbers of normal quantiles,
            "constant" 1.
        generation: 0, or how often the weights were drawn again, below 2^24.
        row0: the first row.
        col0: the first column.
        device: of the result, the CPU by default.

    Raises:
        ValueError: another code, or a number out of its range; the message names it.
    """
    check_code(code)
    _check_extent(rows, cols, row0, col0)
    header = make_header(seed, stream, generation=generation, device=device)
    return torch.ops.frozen_kernels.codes(header, code, rows, cols, row0, col0)


def draws(
    rows: int,
    cols: int,
    *,
    seed: int,
    stream: int,
    row0: int = 0,
    col0: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """int32 [rows, cols]: the 16-bit partition draw `u` of each weight, 0 to 65535 (section 5 of the format).

    `seed`, `stream`, `row0`, `col0`, `device` and errors are as of `codes`.
    """
    _check_extent(rows, cols, row0, col0)
    return torch.ops.frozen_kernels.draws(make_header(seed, stream, device=device), rows, cols, row0, col0)


def partition(
    rows: int,
    cols: int,
    *,
    seed: int,
    stream: int,
    tau_prune: int,
    tau_freeze: int,
    row0: int = 0,
    col0: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """int8 [rows, cols]: -1 pruned (`u < tau_prune`), +1 locked (`tau_prune <= u < tau_freeze`), 0 free.

    Thresholds are 0 to 65536, `tau_prune <= tau_freeze`; `calibrate` finds them. `seed`, `stream`, `row0`, `col0`,
    `device` and errors are as of `codes`.
    """
    _check_extent(rows, cols, row0, col0)
    header = make_header(seed, stream, tau_prune=tau_prune, tau_freeze=tau_freeze, device=device)
    return torch.ops.frozen_kernels.partition(header, rows, cols, row0, col0)


def uniform_scores(
    rows: int,
    cols: int,
    *,
    seed: int,
    stream: int,
    bound: float = 1.0,
    row0: int = 0,
    col0: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """float32 [rows, cols]: uniform scores in `[-bound, bound)`, exact multiples of 2^-23 before the bound.

    `seed`, `stream`, `row0`, `col0`, `device` and errors are as of `codes`.
    """
    _check_extent(rows, cols, row0, col0)
    header = make_header(seed, stream, device=device)
    return torch.ops.frozen_kernels.uniform_scores(header, bound, rows, cols, row0, col0)


def threshold_for(histogram: Tensor, count: int, bits: int = 16) -> int:
    """The smallest multiple of `2^(16 - bits)` whose `#(u < tau)` is nearest to `count`.

    Args:
        histogram: int64 [65536], how many weights draw each u.
        count: how many should lie below the threshold.
        bits: of the threshold, 1 to 16.

    Raises:
        ValueError: `bits` out of its range.
    """
    bits = check_bits("bits", bits)
    step = 1 << (16 - bits)
    below = torch.zeros(65537, dtype=torch.int64)
    torch.cumsum(histogram.cpu(), 0, out=below[1:])
    distance = (below[::step] - count).abs()
    return int((distance == distance.min()).nonzero()[0]) * step


def calibrate(
    rows: int,
    cols: int,
    *,
    seed: int,
    stream: int,
    count: int,
    bits: int = 16,
    device: torch.device | str | None = None,
) -> int:
    """The threshold that brings `#(u < tau)` over the tensor as near to `count` as it gets (section 5 of the format).

    Args:
        rows: of the whole matrix.
        cols: of the whole matrix.
        seed: as of `codes`.
        stream: as of `codes`.
        count: how many weights should lie below, 0 to `rows * cols`.
        bits: of the threshold, 1 to 16; 8 regenerates a partition twice as fast as 16.
        device: where the draws are counted.

    Returns:
        The threshold, 0 to 65536.

    Raises:
        ValueError: a number out of its range; the message names it.
    """
    _check_extent(rows, cols, 0, 0)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= rows * cols:
        raise ValueError(f"count: an integer from 0 to rows * cols = {rows * cols}, got {count!r}")
    header = make_header(seed, stream, device=device)
    return threshold_for(torch.ops.frozen_kernels.histogram(header, rows, cols), count, bits)


def _check_matrix(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if value.dtype != dtype or value.dim() != 2:
        raise ValueError(f"{name}: {dtype} of 2 dimensions, got {value.dtype} of {value.dim()}")


def pack(keep: Tensor, partition: Tensor) -> Tensor:
    """uint8 [ceil(free / 8)]: the supermask stream, one bit per free weight of bool `keep` [rows, cols].

    Free is where int8 `partition` [rows, cols] is 0; the order is that of section 6 of the format. ValueError for other
    dtypes, and where the shapes differ.
    """
    _check_matrix("keep", keep, torch.bool)
    _check_matrix("partition", partition, torch.int8)
    if keep.shape != partition.shape:
        raise ValueError(f"keep: shape {tuple(keep.shape)} does not match partition {tuple(partition.shape)}")
    return torch.ops.frozen_kernels.pack(keep, partition)


def unpack(stream: Tensor, partition: Tensor) -> Tensor:
    """bool [rows, cols]: which weights are kept: the locked ones, and the free ones whose bit of `stream` is set.

    The inverse of `pack`, for the same int8 `partition` [rows, cols]. ValueError where the stream has the wrong length,
    or bits set after the last free weight.
    """
    _check_matrix("partition", partition, torch.int8)
    check_supermask(stream, int((partition == 0).sum()))
    return torch.ops.frozen_kernels.unpack(stream.contiguous(), partition)


def pack_bits(bits: Tensor) -> Tensor:
    """uint8 [ceil(n / 8)]: a flat bool as a stream, bit `i & 7` of byte `i >> 3`; bits after the last are 0."""
    padded = torch.zeros(-(-bits.numel() // 8) * 8, dtype=torch.uint8, device=bits.device)
    padded[: bits.numel()] = bits
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (padded.view(-1, 8) << places).sum(1, dtype=torch.uint8)


def unpack_bits(stream: Tensor, count: int) -> Tensor:
    """bool [count]: the first `count` bits of a uint8 `stream`; the inverse of `pack_bits`."""
    places = torch.arange(8, dtype=torch.uint8, device=stream.device)
    return (stream[:, None] >> places & 1).flatten()[:count].bool()


def check_supermask(stream: Tensor, free: int, name: str = "supermask") -> None:
    """ValueError unless `stream` is uint8 [ceil(free / 8)] with no bit set after the last one."""
    if stream.dtype != torch.uint8 or stream.dim() != 1 or stream.numel() != -(-free // 8):
        raise ValueError(
            f"{name}: uint8 [{-(-free // 8)}] for {free} free weights, got {stream.dtype} {list(stream.shape)}"
        )
    if free % 8 and int(stream[-1]) >> (free % 8):
        raise ValueError(f"{name}: bits are set after the last of {free} free weights (last byte {int(stream[-1])})")


def planes(keep: Tensor) -> Tensor:
    """int32 [rows, ceil(cols / 32)]: bool `keep` [rows, cols] as a bit plane in the format's bit order."""
    _check_matrix("keep", keep, torch.bool)
    return torch.ops.frozen_kernels.planes(keep)
