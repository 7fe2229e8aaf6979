"""What every launcher shares: liveness, checks of an op's arguments, and the device to launch on."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...format import CODES, HEADER_WORDS, NORMAL_UPPER_HALF, chunks, matrix_shape, words
from ..errors import Unsupported

DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

MAX_COLS = (1 << 31) - 1024  # columns are counted in int32, elements in int64

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
def normal_table(device: torch.device) -> Tensor:
    half = torch.tensor(NORMAL_UPPER_HALF, dtype=torch.float32)
    return torch.cat([-half.flip(0), half]).to(device)


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Unsupported unless kernels read and write this floating dtype."""
    if dtype not in DTYPES:
        raise Unsupported(f"{name} is {dtype}, not {' or '.join(map(str, DTYPES))}")


def check_operand(name: str, t: Tensor, header: Tensor) -> None:
    """Unsupported unless kernels read a floating tensor of any strides beside this header."""
    check_dtype(name, t.dtype)
    if t.device != header.device:
        raise Unsupported(f"{name} is on {t.device}, the header on {header.device}")


def check_size(name: str, got: Sequence[int], wanted: Sequence[int]) -> None:
    """ValueError where sizes differ."""
    if tuple(got) != tuple(wanted):
        raise ValueError(f"{name}: size {list(got)}, expected {list(wanted)}")


def check_tensor(name: str, t: Tensor, like: Tensor, dtypes: Sequence[torch.dtype], numel: int | None) -> None:
    if t.device != like.device:
        raise Unsupported(f"{name} is on {t.device}, the header on {like.device}")
    if t.dtype not in dtypes:
        raise Unsupported(f"{name} is {t.dtype}, not {' or '.join(map(str, dtypes))}")
    if not t.is_contiguous():
        raise Unsupported(f"{name} is not contiguous")
    if numel is not None and t.numel() != numel:
        raise ValueError(f"{name}: {numel} elements expected, got {t.numel()}")


def check_live(t: Tensor) -> None:
    """Unsupported unless kernels run on this machine, on the device of `t`."""
    why = reasons()
    if why:
        raise Unsupported("; ".join(why))
    if not t.is_cuda and not interpreting():
        raise Unsupported(f"tensors are on {t.device}")


def operand(name: str, t: Tensor, like: Tensor, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor, contiguous; ValueError where its dtype or shape is another one, Unsupported for its device."""
    if t.device != like.device:
        raise Unsupported(f"{name} is on {t.device}, other tensors on {like.device}")
    if t.dtype != dtype:
        raise ValueError(f"{name}: {dtype} expected, got {t.dtype}")
    if shape is not None and tuple(t.shape) != shape:
        raise ValueError(f"{name}: shape {shape} expected, got {tuple(t.shape)}")
    return t.contiguous()


def check_header(header: Tensor) -> Tensor:
    check_live(header)
    return operand("header", header, header, torch.int32, (HEADER_WORDS,))


def generator_args(header: Tensor, draw: Tensor | None, code: str, shape: Sequence[int]) -> dict[str, Any]:
    """The keyword arguments of every kernel that reads codes, from an op's pack; Unsupported where none does."""
    check_live(header)
    if code not in CODES:
        raise Unsupported(f"code {code!r} is not one of {', '.join(CODES)}")
    rows, cols = matrix_shape(shape)
    if cols > MAX_COLS:
        raise Unsupported(f"{cols} columns are more than {MAX_COLS}")
    check_tensor("header", header, header, (torch.int32,), HEADER_WORDS)
    if draw is not None and code == "sign":
        check_tensor("draw", draw, header, (torch.int32,), rows * words(cols))
    elif draw is not None and code in ("uniform", "normal"):
        check_tensor("draw", draw, header, (torch.uint8,), rows * cols)
    return {
        "header": header,
        "draw": draw,
        "normal_table": normal_table(header.device) if code == "normal" else None,
        "rows": rows,
        "cols": cols,
        "CODE": CODES.index(code),
    }


def decode_args(
    header: Tensor,
    supermask: Tensor | None,
    offsets: Tensor | None,
    keep: Tensor | None,
    draw: Tensor | None,
    dense: Tensor | None,
    code: str,
    shape: Sequence[int],
) -> dict[str, Any]:
    """The keyword arguments of every kernel that decodes tiles, from an op's pack; Unsupported where no tile does."""
    if dense is not None:
        raise Unsupported("the dense residency has nothing to decode")
    args = generator_args(header, draw, code, shape)
    rows, cols = args["rows"], args["cols"]
    if keep is not None:
        check_tensor("keep", keep, header, (torch.int32,), rows * words(cols))
        supermask = offsets = None
    elif supermask is None or offsets is None:
        raise Unsupported("neither a keep plane nor a supermask with its offsets")
    else:
        check_tensor("supermask", supermask, header, (torch.uint8,), None)
        check_tensor("offsets", offsets, header, (torch.int64,), rows * chunks(cols) + 1)
    return {
        **args,
        "supermask": supermask,
        "offsets": offsets,
        "keep": keep,
        "supermask_bytes": 0 if supermask is None else supermask.numel(),
    }


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes the tensors' device current."""
    # triton launches on the current device, which need not be the tensors'
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
