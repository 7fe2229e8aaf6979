"""Launchers of the Triton kernels, named and typed like the ops they serve."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...format import CODES, HEADER_WORDS, NORMAL_UPPER_HALF, chunks, matrix_shape, words
from .. import Unsupported

DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MAX_COLS = (1 << 31) - 1024  # columns are counted in int32, elements in int64

WEIGHT_ROWS = 32
LINEAR_ROWS = 64
WORDS = 4  # a SIGN call makes four words


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of any device; read by triton when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def reasons() -> list[str]:
    """Why the backend is not live; empty where it is."""
    found = []
    if not _installed():
        found.append("triton is not installed")
    if not torch.cuda.is_available() and not interpreting():
        found.append("no CUDA device, and TRITON_INTERPRET is not 1")
    return found


@functools.cache
def _normal_table(device: torch.device) -> Tensor:
    half = torch.tensor(NORMAL_UPPER_HALF, dtype=torch.float32)
    return torch.cat([-half.flip(0), half]).to(device)


def _check_tensor(name: str, t: Tensor, like: Tensor, dtypes: Sequence[torch.dtype], numel: int | None) -> None:
    if t.device != like.device:
        raise Unsupported(f"{name} is on {t.device}, the header on {like.device}")
    if t.dtype not in dtypes:
        raise Unsupported(f"{name} is {t.dtype}, not {' or '.join(map(str, dtypes))}")
    if not t.is_contiguous():
        raise Unsupported(f"{name} is not contiguous")
    if numel is not None and t.numel() != numel:
        raise ValueError(f"{name}: {numel} elements expected, got {t.numel()}")


def _decode_args(
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
) -> dict[str, Any]:
    """The keyword arguments that both kernels take, from an op's pack; Unsupported where no tile decodes it."""
    why = reasons()
    if why:
        raise Unsupported("; ".join(why))
    if dense is not None:
        raise Unsupported("the dense residency has nothing to decode")
    if code not in CODES:
        raise Unsupported(f"code {code!r} is not one of {', '.join(CODES)}")
    if not header.is_cuda and not interpreting():
        raise Unsupported(f"tensors are on {header.device}")
    rows, cols = matrix_shape(shape)
    if cols > MAX_COLS:
        raise Unsupported(f"{cols} columns are more than {MAX_COLS}")
    _check_tensor("header", header, header, (torch.int32,), HEADER_WORDS)
    if keep is not None:
        _check_tensor("keep", keep, header, (torch.int32,), rows * words(cols))
        supermask = offsets = None
    elif supermask is None or offsets is None:
        raise Unsupported("neither a keep plane nor a supermask with its offsets")
    else:
        _check_tensor("supermask", supermask, header, (torch.uint8,), None)
        _check_tensor("offsets", offsets, header, (torch.int64,), rows * chunks(cols) + 1)
    if draw is not None and code == "sign":
        _check_tensor("draw", draw, header, (torch.int32,), rows * words(cols))
    elif draw is not None and code in ("uniform", "normal"):
        _check_tensor("draw", draw, header, (torch.uint8,), rows * cols)
    return {
        "header": header,
        "supermask": supermask,
        "offsets": offsets,
        "keep": keep,
        "draw": draw,
        "normal_table": _normal_table(header.device) if code == "normal" else None,
        "supermask_bytes": 0 if supermask is None else supermask.numel(),
        "rows": rows,
        "cols": cols,
        "CODE": CODES.index(code),
        "WORDS": WORDS,
    }


def batch_tile(batch: int, dtype: torch.dtype) -> int:
    """Samples per program: a tensor core takes 16 at least; more than the cap spills registers."""
    return min(16 if dtype == torch.float32 else 64, max(16, 1 << (batch - 1).bit_length()))


def _on(device: torch.device) -> contextlib.AbstractContextManager:
    # triton launches on the current device, which need not be the tensors'
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def weight(
    scores: Tensor | None,
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """The effective weight in torch's shape and order."""
    if dtype not in DTYPES:
        raise Unsupported(f"dtype {dtype} is not one of {', '.join(map(str, DTYPES))}")
    args = _decode_args(header, supermask, offsets, keep, draw, dense, code, shape)
    out = torch.empty(tuple(shape), dtype=dtype, device=header.device)
    if out.numel():
        from .kernels import weight_kernel

        programs = -(-args["rows"] // WEIGHT_ROWS) * chunks(args["cols"])
        with _on(out.device):
            weight_kernel[(programs,)](out, **args, TAPS=math.prod(shape[2:]), ROWS=WEIGHT_ROWS)
    return out


def linear(
    x: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
    *,
    gain: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu(gain * x @ weight^T + bias)` for x [..., cols], codes decoded in registers and no dense weight."""
    if x.dtype not in DTYPES:
        raise Unsupported(f"x is {x.dtype}, not {' or '.join(map(str, DTYPES))}")
    if len(shape) != 2:
        raise Unsupported(f"linear needs a weight of 2 dimensions, got shape {tuple(shape)}")
    args = _decode_args(header, supermask, offsets, keep, draw, dense, code, shape)
    rows, cols = args["rows"], args["cols"]
    if x.device != header.device:
        raise Unsupported(f"x is on {x.device}, the header on {header.device}")
    if x.dim() == 0 or x.shape[-1] != cols:
        raise ValueError(f"x: last dimension {cols} expected, got shape {tuple(x.shape)}")
    if bias is not None:
        _check_tensor("bias", bias, header, DTYPES, rows)
    if gain is not None:
        _check_tensor("gain", gain, header, (torch.float32,), rows)
    batch = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device=x.device)
    if y.numel():
        from .kernels import linear_kernel

        flat = x.reshape(batch, cols)
        tile = batch_tile(batch, x.dtype)
        programs = -(-rows // LINEAR_ROWS) * -(-batch // tile)
        with _on(y.device):
            linear_kernel[(programs,)](
                y, flat, bias, gain, **args, batch=batch, x_batch_stride=flat.stride(0), x_col_stride=flat.stride(1),
                ROWS=LINEAR_ROWS, BATCH=tile, RELU=relu,
            )  # fmt: skip
    return y
