"""Packs, inputs and comparisons of the GPU cases, on the GPU where there is one and else for the interpreter."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import torch
from torch import Tensor

from frozen_kernels import format
from frozen_kernels.backends import reference

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETING else "cuda")

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "format_v1_vectors.json").read_text())

# 16 and 8 significant bits, 4 and 12, and both ends
THRESHOLDS = [(20011, 45003), (0x2F00, 0xA100), (0x1000, 0xB560), (0, 0), (30000, 65536), (0, 65536), (65536, 65536)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RESIDENCIES = ("seed", "mask", "planes")
CODES_AND_DTYPES = list(zip(format.CODES, [*DTYPES, torch.float32], strict=True))


def header(thresholds: tuple[int, int] = (20011, 45003), scale: float = 0.03125, **fields) -> Tensor:
    fields = {"seed": (1 << 63) + 7, "stream": 0xFFFFFFFE, "generation": 5, **fields}
    return format.make_header(**fields, tau_prune=thresholds[0], tau_freeze=thresholds[1], scale=scale)


def to(device: torch.device, args: Sequence) -> tuple:
    """The arguments of an op with their tensors on a device."""
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


def host(args: Sequence) -> tuple:
    """The same arguments for the reference."""
    return to(torch.device("cpu"), args)


def pack_of(h: Tensor, residency: str, code: str, shape: tuple[int, ...], keep: Tensor | None = None) -> tuple:
    """The pack of an op on the device under test, with a supermask from `keep` bool [rows, cols] or at random."""
    rows, cols = format.matrix_shape(shape)
    if keep is None:
        keep = torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) < 0.5
    supermask = reference.pack(keep, reference.partition(h, rows, cols, 0, 0))
    offsets = reference.offsets(h, rows, cols)
    if residency == "seed":
        # no padding in front or behind: a read past either end leaves the view
        supermask = torch.cat([supermask.new_tensor([255]), supermask, supermask.new_tensor([255])]).to(DEVICE)[1:-1]
        return to(DEVICE, (h, supermask, offsets, *[None] * 5, code, shape))
    plane = reference.keep_plane(h, supermask, offsets, rows, cols)
    stored = residency == "planes" and code != "constant"
    draw = reference.draw_plane(h, code, rows, cols) if stored else None
    return to(DEVICE, (h, None, None, plane, draw, None, None, None, code, shape))


def stored_pack(shape: tuple[int, ...], values: str, keep: Tensor | None = None) -> tuple[tuple, Tensor]:
    """A packed stored weight of small integers on the device under test, scaled by powers of two for int8; its weight.

    `keep` is bool of its shape, by default at random.
    """
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randint(1, 4, shape, generator=generator) * (1 - 2 * torch.randint(2, shape, generator=generator))
    keep = torch.rand(shape, generator=generator) < 0.5 if keep is None else keep
    row_scale = 2.0 ** (torch.arange(shape[0]) % 4 - 1) if values == "int8" else None
    plane = reference.planes(format.to_matrix(keep))
    kept = reference.pack_values(weight, plane).to(format.VALUE_DTYPES[values])
    # no padding in front or behind: a read past either end leaves the view
    kept = torch.cat([kept.new_tensor([77]), kept, kept.new_tensor([77])]).to(DEVICE)[1:-1]
    offsets = reference.plane_offsets(plane, format.matrix_shape(shape)[1])
    header = format.make_header(0, code=format.STORED)
    exact = torch.where(keep, weight.float(), 0.0)
    if row_scale is not None:
        exact *= row_scale.view(-1, *[1] * (len(shape) - 1))
    pack = (header, None, offsets, plane, None, None, kept, row_scale, format.STORED, shape)
    return to(DEVICE, pack), exact.to(DEVICE)


def dense(pack: Sequence, dtype: torch.dtype = torch.float32) -> Tensor:
    """The reference's weight of a pack, on the device under test."""
    return reference.weight(None, *host(pack), dtype).to(DEVICE)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of any devices have one dtype, one shape and the same bits."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.is_floating_point():
        integers = {4: torch.int32, 2: torch.int16}[a.element_size()]
        a, b = a.view(integers), b.view(integers)
    return torch.equal(a.cpu(), b.cpu())


def sha256(t: Tensor) -> str:
    return hashlib.sha256(t.cpu().contiguous().numpy().tobytes()).hexdigest()


def small_integers(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Exact in any order of summation, on the device under test."""
    return torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(sum(size))).to(DEVICE, dtype)


def scores_of(pack: Sequence, dtype: torch.dtype = torch.float32) -> Tensor:
    """A score for each free weight on the device under test, zeros of both signs and NaN among them."""
    header = pack[0].cpu()
    count = int((reference.partition(header, *format.matrix_shape(pack[-1]), 0, 0) == 0).sum())
    made = torch.randn(count, generator=torch.Generator().manual_seed(count))
    made[1::17], made[2::17], made[3::17] = 0.0, -0.0, float("nan")
    return made.to(DEVICE, dtype)


def expected(op: str, *args) -> Tensor:
    """The reference's result of an op, on the device under test."""
    return getattr(reference, op)(*host(args)).to(DEVICE)
