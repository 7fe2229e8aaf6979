"""The compiled extension: whether it is there, and what of tensors it takes."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...format import ALL_CODES, CODES, STORED, Pack, check_code, tap_offsets
from ...process import on_release
from ..checks import checked_header, checked_pack, checked_scores
from ..errors import Unsupported
from ..native import DTYPES, VALUE_DTYPES

CHECKOUT = Path(__file__).parents[3]


def _advice() -> str:
    """Python takes a checkout that it runs in before an installed package, which has the extension."""
    return f"; {CHECKOUT} is a checkout: `pip install -e .` there" if (CHECKOUT / "setup.py").exists() else ""


_C: Any
try:
    _C, _missing = importlib.import_module("frozen_kernels._C"), ""
    on_release(_C.release_results)
except ImportError as error:
    _C, _missing = None, f"the extension is not built ({error}){_advice()}"

DEVICES = ("cpu",)

threads = torch.get_num_threads


def reasons() -> list[str]:
    """Why this backend is not live. RuntimeError where FROZEN_KERNELS_ISA asks for what this machine lacks."""
    if _C is None:
        return [_missing]
    _C.isa()
    return []


def check_cpu(name: str, t: Tensor) -> None:
    if not t.is_cpu:
        raise Unsupported(f"{name} is on {t.device}; the CPU kernels need cpu")


def header_of(header: Tensor) -> Tensor:
    """A header that the extension reads: contiguous, on the CPU."""
    check_cpu("header", header)
    return checked_header(header)


def weight_args(t: Tensor, dtype: int) -> tuple[tuple[int, int, int, int], list[int]]:
    """Address, dtype id and the strides of rows and channels of a weight of torch's shape; the offsets of its taps."""
    return (t.data_ptr(), dtype, t.stride(0), t.stride(1)), tap_offsets(t.shape[2:], t.stride()[2:])


def check_reach(name: str, t: Tensor) -> None:
    """Unsupported where a row of a weight has 2^31 columns or more, or elements that lie as far apart."""
    reach = sum((n - 1) * stride for n, stride in zip(t.shape[1:], t.stride()[1:], strict=True))
    if max(reach, math.prod(t.shape[1:])) >= 1 << 31:
        raise Unsupported(f"{name}: a row reaches over {reach + 1} elements, the kernels over 2^31")


def code_id(code: str) -> int:
    return CODES.index(check_code(code))


def score_args(scores: Tensor, header: Tensor) -> tuple[tuple[int, int, int], Tensor]:
    """Address, count and dtype of scores, and the contiguous tensor that they point into."""
    scores = checked_scores(scores, header)
    return (scores.data_ptr(), scores.numel(), DTYPES[scores.dtype]), scores


def pack_args(pack: Pack, product: bool = False) -> tuple[tuple[int, ...], Pack]:
    """A frozen tensor as the extension takes it, and the contiguous tensors that it points into.

    `product`: whether a product takes it, which stored weights have.
    """
    check_cpu("header", pack.header)
    held, rows, cols = checked_pack(pack)
    header, supermask, offsets, keep, draw, _, values, row_scale, code, _ = held
    if code == STORED and not product:
        raise Unsupported("stored weights have no such kernel here")
    at = header.data_ptr()

    def address(t: Tensor | None) -> int:
        # an empty tensor has no address, yet says which residency this is
        return 0 if t is None else t.data_ptr() or at

    size = 0 if supermask is None else supermask.numel()
    stored = (0, 0, 0, 0)
    if code == STORED and values is not None:
        stored = (address(values), values.numel(), VALUE_DTYPES[values.dtype], address(row_scale))
    args = (
        at, ALL_CODES.index(code), rows, cols, address(supermask), size, address(offsets), address(keep),
        address(draw), *stored,
    )  # fmt: skip
    return args, held
