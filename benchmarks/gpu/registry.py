"""What is measured on a GPU, most important first, and the targets that cases count towards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from frozen_kernels.tensor import resident_bytes

from ..models import Convolution, convolutions
from ..registry import FREE, SHORT, Case, output_size
from ..targets import Target

SQUARE = (8192, 8192)
BATCHES = (256, 4096, 1024, 512, 2048)
IMAGES = 64
SCORES = 25_500_000

TARGETS = (
    Target("vector-planes", "linear 8192 x 8192, batch 1 to 8, bf16, sign, `planes`, over cuBLAS bf16", "minimum", 4.5),
    Target("vector-mask", "the same in `mask`", "minimum", 4.0),
    Target("vector-16", "batch 16, `planes` and `mask`", "minimum", 3.5),
    Target("vector-fp32", "batch 1 in fp32, over cuBLAS fp32", "minimum", 6.0),
    Target("vector-uniform", "batch 1 in bf16, uniform codes, `mask`", "minimum", 2.0),
    Target("vector-seed", "the same in `seed`, 16 threshold bits", "minimum", 1.0),
    Target("vector-seed-8", "the same in `seed`, 8 threshold bits", "minimum", 1.4),
    Target("batch", "linear 8192 x 8192, batch 256 to 4096, bf16, sign, `planes`, over cuBLAS bf16", "minimum", 0.9),
    Target("conv", "conv2d of ResNet-50, batch 64, bf16, channels last, sign, `planes`, over cuDNN", "geomean", 0.9),
    Target("fp32", "linear 8192 x 8192, batch 256 to 4096, fp32, sign, `planes`, over cuBLAS fp32", "minimum", 3.0),
    Target("select", "threshold over 25.5 M scores, over torch.sort", "minimum", 10.0),
)


@dataclass(frozen=True)
class GpuCase(Case):
    """A case whose targets are those of a GPU; `backend` is the one that our calls are forced to."""

    backend: str = "triton"

    @property
    def target(self) -> float | None:
        return next((t.goal for t in TARGETS if t.line == self.line), None)


def _layer(setting: str, group: str, op: str, shape: tuple[int, ...], input: tuple[int, ...], **fields: Any) -> GpuCase:
    code, residency, bits = fields.pop("kind", ("sign", "planes", 16))
    dtype = fields.get("dtype", "bfloat16")
    itemsize = 2 if dtype == "bfloat16" else 4
    pixels = fields.pop("pixels", 1)
    values = {
        "name": f"{setting}/{code}/{residency}" + (f"{bits}" if bits != 16 else ""),
        "dtype": dtype,
        "bytes": resident_bytes(shape, code, round(FREE * math.prod(shape)), residency, itemsize),
        "operations": input[0] * math.prod(shape) * pixels,
        **fields,
    }
    return GpuCase(
        setting=setting, group=group, op=op, shape=shape, input=input, code=code, residency=residency,
        threshold_bits=bits, batch=input[0], **values,
    )  # fmt: skip


def _linear(
    batch: int,
    dtype: str = "bfloat16",
    kinds: tuple[tuple[str, str, int], ...] = (("sign", "planes", 16),),
    line: str = "",
    other: str = "",
) -> Iterator[GpuCase]:
    setting = f"gpu/linear/{SQUARE[0]}x{SQUARE[1]}/b{batch}/{SHORT[dtype]}"
    for kind in kinds:
        _, residency, bits = kind
        mine = f"vector-{residency}" + ("-8" if bits == 8 else "") if residency == "seed" else line
        yield _layer(setting, "linear", "linear", SQUARE, (batch, SQUARE[1]), dtype=dtype, kind=kind, other=other,
                     baseline="cuBLAS", line=mine if residency in ("planes", "seed") else "")  # fmt: skip


def _vector_line(batch: int, dtype: str, code: str, residency: str) -> str:
    if dtype == "float32":
        return "vector-fp32"
    if code == "uniform":
        return "vector-uniform"
    return "vector-16" if batch > 8 else f"vector-{residency}"


def _vectors(batch: int, dtype: str, *kinds: tuple[str, str]) -> Iterator[GpuCase]:
    """Few pixels, by the CUDA C++ kernels."""
    setting = f"gpu/linear/{SQUARE[0]}x{SQUARE[1]}/b{batch}/{SHORT[dtype]}/cuda"
    for code, residency in kinds:
        yield _layer(setting, "linear", "linear", SQUARE, (batch, SQUARE[1]), dtype=dtype, kind=(code, residency, 16),
                     backend="cuda", baseline="cuBLAS", line=_vector_line(batch, dtype, code, residency))  # fmt: skip


def _convolution(conv: Convolution) -> GpuCase:
    size = "x".join(map(str, conv.shape))
    setting = f"gpu/conv2d/{size}/{conv.size[0]}/s{conv.stride[0]}/b{IMAGES}/bf16"
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return _layer(setting, "resnet", "conv2d", conv.shape, (IMAGES, conv.shape[1] * conv.groups, *conv.size),
                  geometry=geometry, pixels=math.prod(output_size(conv)), baseline="cuDNN", line="conv")  # fmt: skip


def _gradients() -> Iterator[GpuCase]:
    conv = Convolution((256, 256, 3, 3), (14, 14), (1, 1), (1, 1), (1, 1), 1)
    layers: tuple = (
        ("linear", (4096, 4096), (1024, 4096), (), 1),
        ("conv2d", conv.shape, (IMAGES, 256, *conv.size), tuple(conv[2:]), math.prod(output_size(conv))),
    )
    for op, shape, size, geometry, pixels in layers:
        for kind in ("grad_input", "grad_scores"):
            setting = f"gpu/{op}_{kind}/{'x'.join(map(str, shape))}/b{size[0]}/bf16"
            yield _layer(setting, "gradient", f"{op}_{kind}", shape, size, geometry=geometry, pixels=pixels,
                         baseline="torch")  # fmt: skip


def _select(count: int, name: str, line: str) -> GpuCase:
    return GpuCase(
        name=name, setting=name, group="select", op="select", shape=(count,), input=(), dtype="float32", code="sign",
        residency="", batch=0, baseline="torch.sort", line=line,
    )  # fmt: skip


@cache
def cases() -> tuple[GpuCase, ...]:
    """All cases, those of one setting beside each other, most important first."""
    signs = (("sign", "planes", 16), ("sign", "mask", 16))
    planes, mask = ("sign", "planes"), ("sign", "mask")
    found: list[GpuCase] = [
        *_vectors(1, "bfloat16", planes, mask, ("uniform", "mask")),
        *_vectors(8, "bfloat16", planes, mask),
        *_vectors(16, "bfloat16", planes, mask),
        *_vectors(1, "float32", planes),
        *_linear(1, kinds=(*signs, ("sign", "seed", 16), ("sign", "seed", 8)), other="compiled masked dense"),
        *_linear(BATCHES[0], kinds=signs, line="batch", other="compiled masked dense"),
        *_linear(BATCHES[1], kinds=signs, line="batch"),
        _select(SCORES, "gpu/select/25.5M", "select"),
        *_linear(BATCHES[1], "float32", line="fp32"),
        *map(_convolution, convolutions("resnet50")),
        *_gradients(),
    ]
    for batch in BATCHES[2:]:
        found += _linear(batch, kinds=signs, line="batch")
    for batch in (BATCHES[0], BATCHES[2]):
        found += _linear(batch, "float32", line="fp32")
    return tuple(found)


def dry_cases() -> tuple[GpuCase, ...]:
    """The code of every group once, so small that Triton's interpreter can run it."""
    conv = (33, 16, 3, 3)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    return (
        _layer("dry/linear", "linear", "linear", (40, 160), (3, 160), baseline="cuBLAS"),
        _select(1000, "dry/select", ""),
        _layer("dry/conv2d", "resnet", "conv2d", conv, (2, 16, 5, 5), geometry=geometry, pixels=25, baseline="cuDNN"),
        _layer("dry/linear_grad_scores", "gradient", "linear_grad_scores", (40, 160), (3, 160), baseline="torch"),
    )


def choose(pattern: str, dry: bool) -> list[GpuCase]:
    """The cases whose name the pattern is found in; ValueError where there is none."""
    found = [case for case in (dry_cases() if dry else cases()) if re.search(pattern, case.name)]
    if not found:
        raise ValueError(f"filter: no case matches {pattern!r}")
    return found
