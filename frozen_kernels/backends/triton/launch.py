"""What every launcher shares: liveness, checks of an op's arguments, and the device to launch on."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from ...format import ALL_CODES, NORMAL_UPPER_HALF, STORED, Pack, matrix_shape
from ..checks import checked_header, checked_pack
from ..errors import Unsupported

DEVICES = ("cuda",)
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


def check_live(t: Tensor) -> None:
    """Unsupported unless kernels run on this machine, on the device of `t`."""
    why = reasons()
    if why:
        raise Unsupported("; ".join(why))
    if not t.is_cuda and not interpreting():
        raise Unsupported(f"tensors are on {t.device}")


def header_of(header: Tensor) -> Tensor:
    """A contiguous header on a device where kernels run."""
    check_live(header)
    return checked_header(header)


def check_cols(cols: int) -> None:
    if cols > MAX_COLS:
        raise Unsupported(f"{cols} columns are more than {MAX_COLS}")


def _checked(pack: Pack) -> tuple[Pack, dict[str, Any]]:
    check_live(pack.header)
    check_cols(matrix_shape(pack.shape)[1])
    held, rows, cols = checked_pack(pack)
    return held, {
        "header": held.header,
        "draw": held.draw,
        "normal_table": normal_table(held.header.device) if held.code == "normal" else None,
        "rows": rows,
        "cols": cols,
        "CODE": ALL_CODES.index(held.code),
    }


def generator_args(pack: Pack) -> dict[str, Any]:
    """The keyword arguments of every kernel that reads codes of free weights, whose `offsets` may be None."""
    held, args = _checked(pack)
    if held.code == STORED:
        raise Unsupported("packed values have no scores")
    return {**args, "offsets": held.offsets}


def decode_args(pack: Pack) -> dict[str, Any]:
    """The keyword arguments of every kernel that decodes tiles; Unsupported where nothing says what is kept."""
    held, args = _checked(pack)
    if held.code == STORED:
        if held.keep is None or held.offsets is None:
            raise Unsupported("packed values without a keep plane and its offsets")
    elif held.keep is not None:
        held = held._replace(supermask=None, offsets=None)
    elif held.supermask is None or held.offsets is None:
        raise Unsupported("neither a keep plane nor a supermask with its offsets")
    supermask = held.supermask
    size = 0 if supermask is None else supermask.numel()
    return {
        **args, "supermask": supermask, "offsets": held.offsets, "keep": held.keep, "supermask_bytes": size,
        "values": held.values, "row_scale": held.row_scale,
    }  # fmt: skip


def on(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes the tensors' device current."""
    # triton launches on the current device, which need not be the tensors'
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
