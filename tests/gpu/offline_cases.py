"""Launches to compile for GPUs that are not here: each op of the Triton backend, as its users call it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frozen_kernels import format as fmt
from frozen_kernels import ops
from frozen_kernels.backends import triton as backend
from frozen_kernels.format import HEADER_WORDS, chunks, matrix_shape, words

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
ROWS, COLS = 4096, 4096


class Case(NamedTuple):
    op: str
    detail: str
    call: Callable[[], Any]
    product: str = ""  # "": none; "tile": on matrix units where they take the dtype; "large": asynchronous on sm_90
    everywhere: bool = True  # else for sm_90 alone: its kernels reach the other targets by other cases

    @property
    def name(self) -> str:
        return f"{self.op}/{self.detail}".rstrip("/")


def zeros(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Aligned as a GPU's memory; nothing runs, so that its pages are never touched."""
    return torch.zeros(size, dtype=dtype)


def header() -> Tensor:
    return zeros(HEADER_WORDS)


def offsets(rows: int, cols: int) -> Tensor:
    """As if every second weight were free."""
    return torch.arange(rows * chunks(cols) + 1) * 512


def pack(residency: str, code: str, *shape: int) -> tuple:
    rows, cols = matrix_shape(shape)
    stream = (zeros(rows * cols // 16, dtype=torch.uint8), offsets(rows, cols)) if residency == "seed" else (None, None)
    keep = None if residency == "seed" else zeros(rows, words(cols))
    draw = None
    if residency == "planes":
        draw = zeros(rows, words(cols)) if code == "sign" else zeros(rows, cols, dtype=torch.uint8)
    return (header(), *stream, keep, draw, None, None, None, code, list(shape))


def stored(values: torch.dtype, *shape: int) -> tuple:
    """As if every second weight were kept."""
    rows, cols = matrix_shape(shape)
    row_scale = zeros(rows, dtype=F32) if values == torch.int8 else None
    kept = zeros(rows * cols // 2, dtype=values)
    keep = zeros(rows, words(cols))
    return (header(), None, offsets(rows, cols), keep, None, None, kept, row_scale, "stored", list(shape))


def run(op: str, *args: Any, **named: Any) -> Callable[[], Any]:
    return lambda: getattr(backend, op)(*args, **named)


def name_of(dtype: torch.dtype) -> str:
    return {BF16: "bf16", F16: "f16", F32: "f32", torch.int8: "int8"}[dtype]


def weights() -> Iterator[Case]:
    for residency, code, dtype in (("seed", "normal", BF16), ("mask", "sign", BF16), ("planes", "uniform", F32)):
        call = run("weight", None, *pack(residency, code, ROWS, COLS), dtype)
        yield Case("weight", f"{residency}-{code}-{name_of(dtype)}", call)


# batch, dtype, residency, code, whether on every target
LINEAR = (
    (4096, BF16, "planes", "sign", True),
    (4096, BF16, "mask", "sign", True),
    (4096, BF16, "seed", "sign", True),
    (4096, F32, "planes", "sign", True),
    (4096, BF16, "planes", "normal", True),
    (64, F16, "planes", "sign", True),
    (1, BF16, "planes", "sign", True),
    (1, BF16, "seed", "uniform", False),
    (1, F32, "mask", "sign", True),
)
LINEAR_GRADIENT = (
    (4096, BF16, "planes", "sign", True),
    (4096, BF16, "mask", "sign", False),
    (4096, F32, "mask", "sign", False),
    (64, BF16, "planes", "uniform", True),
)


def kind(batch: int, dtype: torch.dtype, code: str) -> str:
    return "large" if batch >= 1024 and dtype != F32 and code == "sign" else "tile"


def linears() -> Iterator[Case]:
    for batch, dtype, residency, code, everywhere in LINEAR:
        x, vector = zeros(batch, COLS, dtype=dtype), zeros(ROWS, dtype=F32)
        call = run("linear", x, vector, None, *pack(residency, code, ROWS, COLS), gain=vector, relu=True)
        yield Case("linear", f"{batch}-{name_of(dtype)}-{residency}-{code}", call, kind(batch, dtype, code), everywhere)
    for batch, dtype, residency, code, everywhere in LINEAR_GRADIENT:
        call = run("linear_grad_input", zeros(batch, ROWS, dtype=dtype), *pack(residency, code, ROWS, COLS))
        yield Case(
            "linear_grad_input",
            f"{batch}-{name_of(dtype)}-{residency}-{code}",
            call,
            kind(batch, dtype, code),
            everywhere,
        )


SPACE = {1: (1024,), 2: (32, 32), 3: (8, 16, 16)}


class Shape(NamedTuple):
    """Of a convolution: channels of its two sides, taps and stride along each axis."""

    wide: int = 256
    narrow: int = 256
    taps: int = 3
    stride: int = 1
    groups: int = 1
    dims: int = 2


# what to call it, shape, dtype, residency, channels last, whether tiles are large
CONVOLUTIONS = (
    ("3x3", Shape(), BF16, "planes", True, "large"),
    ("3x3-128", Shape(wide=128, narrow=128), BF16, "planes", True, "large"),
    ("3x3-64", Shape(wide=64, narrow=64), BF16, "planes", True, "large"),
    ("3x3-contiguous", Shape(), BF16, "mask", False, "tile"),
    ("3x3-f32", Shape(), F32, "planes", True, "tile"),
    ("strided", Shape(stride=2), F16, "seed", True, "tile"),
    ("image", Shape(wide=3, taps=7, stride=2), BF16, "planes", True, "tile"),
    ("depthwise", Shape(wide=256, groups=256), BF16, "planes", True, ""),
    ("1x1", Shape(taps=1), BF16, "planes", True, "large"),
    ("1d", Shape(dims=1), BF16, "planes", False, "tile"),
    ("3d", Shape(dims=3), BF16, "planes", True, "tile"),
)
EVERYWHERE = ("3x3", "image", "depthwise")


def convolution(prefix: str, label: str, shape: Shape, dtype: torch.dtype, residency: str, last: bool) -> tuple:
    """Name of the op, tensors of the wide and the narrow side, pack and spatial arguments."""
    weight = (shape.narrow, shape.wide // shape.groups, *[shape.taps] * shape.dims)
    pad = shape.taps // 2
    spatial = [[n] * shape.dims for n in (shape.stride, pad, 1)]
    wide = (16, shape.wide, *SPACE[shape.dims])
    narrow = ops.conv_output_size(wide, weight, *spatial)
    layout = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[shape.dims if last else 1]
    tensors = [torch.empty(size, dtype=dtype, memory_format=layout) for size in (wide, narrow)]
    return f"{prefix}{shape.dims}d", *tensors, pack(residency, "sign", *weight), spatial


def convolutions() -> Iterator[Case]:
    for label, shape, dtype, residency, last, product in CONVOLUTIONS:
        op, wide, narrow, weight, spatial = convolution("conv", label, shape, dtype, residency, last)
        vector = zeros(shape.narrow, dtype=F32)
        call = run(op, wide, vector, None, *weight, *spatial, shape.groups, relu=True)
        yield Case(op, label, call, product, label in EVERYWHERE)
        back = f"{op}_grad_input"
        call = run(back, narrow, list(wide.shape), *weight, *spatial, shape.groups)
        yield Case(back, label, call, product, label in EVERYWHERE)


TRANSPOSED = (
    ("strided", Shape(stride=2), BF16, "planes", True, "tile"),
    ("1d", Shape(stride=2, dims=1), BF16, "mask", False, "tile"),
    ("3d", Shape(stride=2, dims=3), BF16, "planes", True, "tile"),
)


def transposed_convolutions() -> Iterator[Case]:
    for label, shape, dtype, residency, last, product in TRANSPOSED:
        op, wide, narrow, weight, (stride, padding, dilation) = convolution(
            "conv_transpose", label, shape, dtype, residency, last
        )
        spatial = (stride, padding, [1] * shape.dims, dilation, shape.groups)
        yield Case(op, label, run(op, narrow, None, None, *weight, *spatial), product, everywhere=False)
        back = f"{op}_grad_input"
        yield Case(back, label, run(back, wide, list(narrow.shape), *weight, *spatial), product, everywhere=False)


# batch, dtype, values, whether on every target
STORED_LINEAR = (
    (4096, BF16, torch.int8, True),
    (4096, F32, F32, True),
    (64, F16, F32, False),
    (1, BF16, BF16, False),
)
# as above, dtypes of inputs and of values
STORED_CONVOLUTIONS = (
    ("3x3", Shape(), BF16, BF16, True, "large"),
    ("image", Shape(wide=3, taps=7, stride=2), BF16, BF16, True, "tile"),
    ("image-f32", Shape(wide=3, taps=7, stride=2), F32, F32, False, "tile"),
    ("depthwise", Shape(wide=256, groups=256), BF16, torch.int8, True, ""),
)


def stored_weights() -> Iterator[Case]:
    """Of packed stored weights: each product forward and back."""
    for batch, dtype, values, everywhere in STORED_LINEAR:
        product = "large" if batch >= 1024 and dtype != F32 else "tile"
        detail = f"{batch}-{name_of(dtype)}-stored-{name_of(values)}"
        weight, vector = stored(values, ROWS, COLS), zeros(ROWS, dtype=F32)
        call = run("linear", zeros(batch, COLS, dtype=dtype), vector, None, *weight, gain=vector, relu=True)
        yield Case("linear", detail, call, product, everywhere)
        call = run("linear_grad_input", zeros(batch, ROWS, dtype=dtype), *weight)
        yield Case("linear_grad_input", detail, call, product, everywhere)
    for label, shape, dtype, values, last, product in STORED_CONVOLUTIONS:
        op, wide, narrow, drawn, spatial = convolution("conv", label, shape, dtype, "mask", last)
        weight = stored(values, *drawn[-1])
        call = run(op, wide, None, None, *weight, *spatial, shape.groups)
        yield Case(op, f"stored-{label}", call, product, label == "3x3")
        back = f"{op}_grad_input"
        call = run(back, narrow, list(wide.shape), *weight, *spatial, shape.groups)
        yield Case(back, f"stored-{label}", call, product, label == "3x3")
    yield Case("weight", "stored-int8-bf16", run("weight", None, *stored(torch.int8, ROWS, COLS), dtype=BF16))
    indices = zeros(4096, dtype=torch.int64)
    call = run("embedding", indices, None, *stored(F32, ROWS, COLS), BF16, -1)
    yield Case("embedding", "stored-f32-bf16", call, everywhere=False)
    yield Case("pack_values", "", run("pack_values", zeros(256, 256, 3, 3, dtype=F32), zeros(256, words(9 * 256))))
    yield Case("plane_offsets", "", run("plane_offsets", zeros(ROWS, words(COLS)), COLS))


def score_gradients() -> Iterator[Case]:
    free = zeros(ROWS * COLS // 2, dtype=F32)
    for label, batch, dtype in (("bf16", 4096, BF16), ("f32", 512, F32)):
        grad, x = zeros(batch, ROWS, dtype=dtype), zeros(batch, COLS, dtype=dtype)
        call = run("linear_grad_scores", grad, x, free, *pack("seed", "sign", ROWS, COLS))
        yield Case("linear_grad_scores", label, call, "tile")
    grad = zeros(ROWS, COLS, dtype=BF16)
    yield Case("weight_grad_scores", "", run("weight_grad_scores", grad, free, *pack("seed", "normal", ROWS, COLS)))
    for prefix, table in (("conv", CONVOLUTIONS), ("conv_transpose", TRANSPOSED)):
        for label, shape, dtype, _, last, product in table:
            op, wide, narrow, weight, spatial = convolution(prefix, label, shape, dtype, "seed", last)
            grad, x = (narrow, wide) if prefix == "conv" else (wide, narrow)
            between = [[1] * shape.dims] if prefix == "conv_transpose" else []
            scores = zeros(math.prod(weight[-1]) // 2, dtype=F32)
            stride, padding, dilation = spatial
            spatial = [stride, padding, *between, dilation, shape.groups]
            op = f"{op}_grad_scores"
            call = run(op, grad, x, scores, *weight, *spatial)
            yield Case(op, label, call, product and "tile", label in EVERYWHERE and prefix == "conv")


def embeddings() -> Iterator[Case]:
    indices = zeros(4096, dtype=torch.int64)
    free = zeros(ROWS * COLS // 2, dtype=F32)
    for residency, code, dtype in (("seed", "sign", BF16), ("planes", "uniform", F32)):
        call = run("embedding", indices, None, *pack(residency, code, ROWS, COLS), dtype, -1)
        yield Case("embedding", f"{residency}-{code}-{name_of(dtype)}", call)
    grad = zeros(4096, COLS, dtype=BF16)
    call = run("embedding_grad_scores", grad, indices, free, *pack("seed", "sign", ROWS, COLS), -1)
    yield Case("embedding_grad_scores", "", call)


def formats() -> Iterator[Case]:
    extent, shard = (ROWS, COLS), (ROWS, COLS, 16, 256)
    for code in ("sign", "normal"):
        yield Case("codes", code, run("codes", header(), code, *shard))
        yield Case("draw_plane", code, run("draw_plane", header(), code, *extent))
    yield Case("draws", "", run("draws", header(), *shard))
    yield Case("partition", "", run("partition", header(), *shard))
    yield Case("uniform_scores", "", run("uniform_scores", header(), 0.5, *shard))
    yield Case("histogram", "", run("histogram", header(), *extent))
    yield Case("partition_counts", "", run("partition_counts", header(), *extent))
    yield Case("offsets", "", run("offsets", header(), *extent))
    yield Case("free_draws", "", run("free_draws", header(), offsets(*extent), *extent, fmt.SCORE))


def masks() -> Iterator[Case]:
    extent = (ROWS, COLS)
    stream = zeros(ROWS * COLS // 16, dtype=torch.uint8)
    partition, keep = zeros(*extent, dtype=torch.int8), zeros(*extent, dtype=torch.bool)
    plane = zeros(ROWS, words(COLS))
    yield Case("pack", "", run("pack", keep, partition))
    yield Case("unpack", "", run("unpack", stream, partition))
    yield Case("planes", "", run("planes", keep))
    yield Case("keep_plane", "", run("keep_plane", header(), stream, offsets(*extent), *extent))
    yield Case("pack_plane", "", run("pack_plane", header(), plane, offsets(*extent), *extent))
    for dtype in (torch.int32, torch.uint8):
        yield Case("popcount", str(dtype).removeprefix("torch."), run("popcount", zeros(1 << 20, dtype=dtype)))


def search() -> Iterator[Case]:
    for dtype in (F32, BF16):
        scores = [zeros(1 << 20, dtype=dtype), zeros(1000, dtype=dtype)]
        yield Case("select", name_of(dtype), run("select", scores, 1 << 19))
        call = run("pack_above", scores[0], zeros(dtype=torch.int64))
        yield Case("pack_above", name_of(dtype), call)


CASES = (
    weights,
    linears,
    convolutions,
    transposed_convolutions,
    stored_weights,
    score_gradients,
    embeddings,
    formats,
    masks,
    search,
)


def cases(target: str) -> list[Case]:
    found = [case for make in CASES for case in make() if hasattr(backend, case.op)]
    # but for those two, which launch torch's own kernels
    exported = {name for name in ops.SCHEMAS if hasattr(backend, name)} - {"swap", "flip"}
    missing = exported - {case.op for case in found}
    assert not missing, f"ops without a case here: {sorted(missing)}"
    return [case for case in found if case.everywhere or target == "sm_90"]
