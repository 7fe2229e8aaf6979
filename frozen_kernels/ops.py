"""The catalogue of ops: schemas and shape functions. Derivatives are in `derivatives`; no implementation lives here.

Every op on a frozen tensor takes the same pack of arguments behind its own: `header` int32 [8] (see `format`), and of
`supermask`, `offsets`, `keep`, `draw`, `dense`, `values` and `row_scale` those that the tensor's residency holds.
`backends` registers what runs; `reference` is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .format import chunks, memory_format_of, words

__all__ = ["NAMESPACE", "SCHEMAS"]

NAMESPACE = "frozen_kernels"
"""Ops are `torch.ops.frozen_kernels.<name>`."""
library = torch.library.Library(NAMESPACE, "DEF")

PACK = (
    "Tensor header, Tensor? supermask, Tensor? offsets, Tensor? keep, Tensor? draw, Tensor? dense, "
    "Tensor? values, Tensor? row_scale, str code, int[] shape"
)
PACK_ARGS = 10
# of a layer's result y = relu(gain * W x + bias), one gain per output channel; left out where the default
_EPILOGUE = "Tensor? gain=None, bool relu=False"
# for the derivative of a gradient of the input; backends do not read them
_SCORES = "Tensor? scores=None"
_CONV = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, int groups"
_TRANSPOSED = "SymInt[] stride, SymInt[] padding, SymInt[] output_padding, SymInt[] dilation, int groups"

CONVOLUTIONS = {"conv1d": _CONV, "conv2d": _CONV, "conv3d": _CONV}
TRANSPOSED_CONVOLUTIONS = {
    "conv_transpose1d": _TRANSPOSED,
    "conv_transpose2d": _TRANSPOSED,
    "conv_transpose3d": _TRANSPOSED,
}

_EXTENT = "int rows, int cols"
_SHARD = "int rows, int cols, int row0, int col0"

SCHEMAS: dict[str, str] = {
    # format: generators and packing
    "codes": f"(Tensor header, str code, {_SHARD}) -> Tensor",
    "draws": f"(Tensor header, {_SHARD}) -> Tensor",
    "partition": f"(Tensor header, {_SHARD}) -> Tensor",
    "uniform_scores": f"(Tensor header, float bound, {_SHARD}) -> Tensor",
    "histogram": f"(Tensor header, {_EXTENT}) -> Tensor",
    "partition_counts": f"(Tensor header, {_EXTENT}) -> Tensor",
    "offsets": f"(Tensor header, {_EXTENT}) -> Tensor",
    "free_draws": f"(Tensor header, Tensor offsets, {_EXTENT}, int purpose) -> Tensor",
    "pack": "(Tensor keep, Tensor partition) -> Tensor",
    "unpack": "(Tensor stream, Tensor partition) -> Tensor",
    "planes": "(Tensor keep) -> Tensor",
    "keep_plane": f"(Tensor header, Tensor supermask, Tensor offsets, {_EXTENT}) -> Tensor",
    "pack_plane": f"(Tensor header, Tensor keep, Tensor offsets, {_EXTENT}) -> Tensor",
    "draw_plane": f"(Tensor header, str code, {_EXTENT}) -> Tensor",
    "popcount": "(Tensor bits) -> Tensor",
    # stored weights: kept values in stream order, and where those of a row begin
    "plane_offsets": "(Tensor keep, int cols) -> Tensor",
    "pack_values": "(Tensor weight, Tensor keep) -> Tensor",
    # search: selection of the supermask
    "select": "(Tensor[] scores, int rank) -> Tensor",
    "pack_above": "(Tensor scores, Tensor key) -> Tensor",
    "swap": "(Tensor scores, Tensor supermask, int kept, float rate) -> Tensor",
    "flip": "(Tensor supermask, Tensor positions) -> Tensor",
    # layers
    "weight": f"(Tensor? scores, {PACK}, ScalarType dtype) -> Tensor",
    "weight_grad_scores": f"(Tensor grad, Tensor scores, {PACK}) -> Tensor",
    "linear": f"(Tensor x, Tensor? bias, Tensor? scores, {PACK}, {_EPILOGUE}) -> Tensor",
    "linear_grad_input": f"(Tensor grad, {PACK}, {_SCORES}) -> Tensor",
    "linear_grad_scores": f"(Tensor grad, Tensor x, Tensor scores, {PACK}) -> Tensor",
    "embedding": f"(Tensor indices, Tensor? scores, {PACK}, ScalarType dtype, int padding_idx) -> Tensor",
    "embedding_grad_scores": f"(Tensor grad, Tensor indices, Tensor scores, {PACK}, int padding_idx) -> Tensor",
}
"""The schema of each op by name, in the words of `torch.library`; `backends/reference` says what each computes."""
for _name, _args in {**CONVOLUTIONS, **TRANSPOSED_CONVOLUTIONS}.items():
    SCHEMAS[_name] = f"(Tensor x, Tensor? bias, Tensor? scores, {PACK}, {_args}, {_EPILOGUE}) -> Tensor"
    SCHEMAS[f"{_name}_grad_input"] = f"(Tensor grad, SymInt[] input_size, {PACK}, {_args}, {_SCORES}) -> Tensor"
    SCHEMAS[f"{_name}_grad_scores"] = f"(Tensor grad, Tensor x, Tensor scores, {PACK}, {_args}) -> Tensor"

for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)


def conv_output_size(x: Sequence, shape: Sequence, stride: Sequence, padding: Sequence, dilation: Sequence) -> list:
    """Size [B, C_out, *spatial] of a convolution's result, from the sizes of x and of the weight."""
    spatial = [
        (x[i + 2] + 2 * padding[i] - dilation[i] * (shape[i + 2] - 1) - 1) // stride[i] + 1 for i in range(len(stride))
    ]
    return [x[0], shape[0], *spatial]


def conv_transpose_output_size(
    x: Sequence,
    shape: Sequence,
    stride: Sequence,
    padding: Sequence,
    output_padding: Sequence,
    dilation: Sequence,
    groups: int,
) -> list:
    """Size [B, C_out, *spatial] of a transposed convolution's result."""
    spatial = [
        (x[i + 2] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (shape[i + 2] - 1) + output_padding[i] + 1
        for i in range(len(stride))
    ]
    return [x[0], shape[1] * groups, *spatial]


def _free_count() -> torch.SymInt:
    # data dependent: only eager code and graph-free helpers call these ops
    return torch.library.get_ctx().new_dynamic_size()


def _shape(function: Callable) -> Callable:
    """Register `shape_<op>` as the shape function of <op>."""
    name = function.__name__.removeprefix("shape_")
    torch.library.register_fake(f"{NAMESPACE}::{name}", function, lib=library)
    return function


@_shape
def shape_codes(header: Tensor, code: str, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    return header.new_empty(rows, cols, dtype=torch.int16)


@_shape
def shape_draws(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    return header.new_empty(rows, cols, dtype=torch.int32)


@_shape
def shape_partition(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    return header.new_empty(rows, cols, dtype=torch.int8)


@_shape
def shape_uniform_scores(header: Tensor, bound: float, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    return header.new_empty(rows, cols, dtype=torch.float32)


@_shape
def shape_histogram(header: Tensor, rows: int, cols: int) -> Tensor:
    return header.new_empty(65536, dtype=torch.int64)


@_shape
def shape_partition_counts(header: Tensor, rows: int, cols: int) -> Tensor:
    return header.new_empty(3, dtype=torch.int64)


@_shape
def shape_offsets(header: Tensor, rows: int, cols: int) -> Tensor:
    return header.new_empty(rows * chunks(cols) + 1, dtype=torch.int64)


@_shape
def shape_free_draws(header: Tensor, offsets: Tensor, rows: int, cols: int, purpose: int) -> Tensor:
    return header.new_empty(_free_count(), dtype=torch.int32)


@_shape
def shape_pack(keep: Tensor, partition: Tensor) -> Tensor:
    return keep.new_empty(_free_count(), dtype=torch.uint8)


@_shape
def shape_unpack(stream: Tensor, partition: Tensor) -> Tensor:
    return partition.new_empty(partition.shape, dtype=torch.bool)


@_shape
def shape_planes(keep: Tensor) -> Tensor:
    return keep.new_empty(keep.shape[0], (keep.shape[1] + 31) // 32, dtype=torch.int32)


@_shape
def shape_keep_plane(header: Tensor, supermask: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    return header.new_empty(rows, words(cols), dtype=torch.int32)


@_shape
def shape_pack_plane(header: Tensor, keep: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    return header.new_empty(_free_count(), dtype=torch.uint8)


@_shape
def shape_draw_plane(header: Tensor, code: str, rows: int, cols: int) -> Tensor:
    if code == "sign":
        return header.new_empty(rows, words(cols), dtype=torch.int32)
    return header.new_empty(rows, cols, dtype=torch.uint8)


@_shape
def shape_popcount(bits: Tensor) -> Tensor:
    return bits.new_empty((), dtype=torch.int64)


@_shape
def shape_select(scores: list[Tensor], rank: int) -> Tensor:
    return scores[0].new_empty((), dtype=torch.int64)


@_shape
def shape_pack_above(scores: Tensor, key: Tensor) -> Tensor:
    return scores.new_empty((scores.shape[0] + 7) // 8, dtype=torch.uint8)


@_shape
def shape_plane_offsets(keep: Tensor, cols: int) -> Tensor:
    return keep.new_empty(keep.shape[0] * chunks(cols) + 1, dtype=torch.int64)


@_shape
def shape_pack_values(weight: Tensor, keep: Tensor) -> Tensor:
    return weight.new_empty(_free_count())


@_shape
def shape_swap(scores: Tensor, supermask: Tensor, kept: int, rate: float) -> Tensor:
    return scores.new_empty(2, _free_count(), dtype=torch.int64)


@_shape
def shape_flip(supermask: Tensor, positions: Tensor) -> Tensor:
    return torch.empty_like(supermask)


# `args` begin with the pack, or with what follows its header
@_shape
def shape_weight(scores: Tensor | None, header: Tensor, *args: Any) -> Tensor:
    shape, dtype = args[-2:]
    return header.new_empty(shape, dtype=dtype)


@_shape
def shape_linear(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args: Any) -> Tensor:
    rows, cols = args[PACK_ARGS - 1]
    torch._check(x.shape[-1] == cols, lambda: f"x: last dimension {x.shape[-1]}, the weight has {cols}")
    return x.new_empty(*x.shape[:-1], rows)


@_shape
def shape_linear_grad_input(grad: Tensor, *args: Any) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], args[PACK_ARGS - 1][1])


@_shape
def shape_embedding(indices: Tensor, scores: Tensor | None, header: Tensor, *args: Any) -> Tensor:
    shape, dtype, _ = args[-3:]
    return header.new_empty(*indices.shape, shape[1], dtype=dtype)


@_shape
def shape_embedding_grad_scores(grad: Tensor, indices: Tensor, scores: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(scores)


@_shape
def shape_weight_grad_scores(grad: Tensor, scores: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(scores)


@_shape
def shape_linear_grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(scores)


def _shape_convolution(name: str, geometry_args: int, output_size: Callable) -> None:
    def shape_forward(x: Tensor, bias: Tensor | None, scores: Tensor | None, *args: Any) -> Tensor:
        shape, geometry = args[PACK_ARGS - 1], args[PACK_ARGS : PACK_ARGS + geometry_args]
        return x.new_empty(output_size(x.shape, shape, *geometry)).to(memory_format=memory_format_of(x))

    def shape_grad_input(grad: Tensor, input_size: Sequence, *args: Any) -> Tensor:
        return grad.new_empty(input_size).to(memory_format=memory_format_of(grad))

    def shape_grad_scores(grad: Tensor, x: Tensor, scores: Tensor, *args: Any) -> Tensor:
        return torch.empty_like(scores)

    for suffix, function in (
        ("", shape_forward),
        ("_grad_input", shape_grad_input),
        ("_grad_scores", shape_grad_scores),
    ):
        torch.library.register_fake(f"{NAMESPACE}::{name}{suffix}", function, lib=library)


for _name in CONVOLUTIONS:
    _shape_convolution(_name, 4, lambda x, shape, s, p, d, groups: conv_output_size(x, shape, s, p, d))
for _name in TRANSPOSED_CONVOLUTIONS:
    _shape_convolution(_name, 5, conv_transpose_output_size)
