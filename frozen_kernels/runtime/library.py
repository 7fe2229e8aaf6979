"""libfrozen through ctypes: its structures, its functions, and its errors as Python's."""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

NAME = "libfrozen.dylib" if sys.platform == "darwin" else "libfrozen.so"
VERSION = 1  # FROZEN_VERSION of frozen.h

RESIDENCIES = ("default", "seed", "mask", "planes", "packed")  # by their number in frozen.h


class TicketError(ValueError):
    """No ticket, one that is cut short or was changed, or one that needs what this release lacks."""


class Tensor(ctypes.Structure):
    """frozen_tensor."""

    _fields_ = (
        ("name", c_char_p), ("kind", c_int32), ("dims", c_int32), ("shape", POINTER(c_int64)), ("code", c_char_p),
        ("residency", c_int32), ("dtype", c_char_p), ("data", c_void_p), ("bytes", c_int64),
    )  # fmt: skip


class Epilogue(ctypes.Structure):
    """frozen_epilogue."""

    _fields_ = (
        ("bias", c_void_p), ("bias_count", c_int64), ("gain", c_void_p), ("gain_count", c_int64), ("relu", c_int32),
        ("no_bias", c_int32), ("no_gain", c_int32),
    )  # fmt: skip


class Conv(ctypes.Structure):
    """frozen_conv."""

    _fields_ = (
        ("dims", c_int32), ("groups", c_int64), ("stride", c_int64 * 3), ("padding", c_int64 * 3),
        ("dilation", c_int64 * 3),
    )  # fmt: skip


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "frozen_version": (c_int32, []),
    "frozen_last_error": (c_char_p, []),
    "frozen_isa": (c_char_p, []),
    "frozen_open": (c_int32, [c_char_p, c_int32, c_int64, POINTER(c_void_p)]),
    "frozen_open_memory": (c_int32, [c_char_p, c_size_t, c_int32, c_int64, POINTER(c_void_p)]),
    "frozen_close": (None, [c_void_p]),
    "frozen_count": (c_int64, [c_void_p]),
    "frozen_get": (c_int32, [c_void_p, c_int64, POINTER(Tensor)]),
    "frozen_linear": (
        c_int32,
        [c_void_p, c_char_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, POINTER(Epilogue), c_int32],
    ),
    "frozen_conv_shape": (c_int32, [c_void_p, c_char_p, POINTER(Conv), POINTER(c_int64), POINTER(c_int64)]),
    "frozen_convolve": (
        c_int32,
        [
            c_void_p, c_char_p, POINTER(Conv), c_void_p, POINTER(c_int64), c_void_p, c_int64, POINTER(Epilogue),
            c_int32,
        ],
    ),
    "frozen_embedding": (
        c_int32,
        [c_void_p, c_char_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int32],
    ),
}  # fmt: skip

# by frozen_status; what a name stands for is looked up, so an unknown one is a LookupError
_ERRORS: dict[int, type[Exception]] = {
    1: ValueError, 2: OSError, 3: TicketError, 4: TicketError, 5: LookupError, 6: MemoryError, 7: RuntimeError,
}  # fmt: skip


def load(path: Path) -> Any:
    """The library in a file. OSError where there is none, or one of another version."""
    if not path.exists():
        raise OSError(f"{path}: not there; it is made at installation where there is a C++ compiler, not on Windows")
    loaded = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if loaded.frozen_version() != VERSION:
        raise OSError(f"{path}: version {loaded.frozen_version()}, expected {VERSION}")
    return loaded


@functools.cache
def library() -> Any:
    """The library that came with the package, loaded once."""
    return load(Path(__file__).resolve().parent.parent / NAME)


def last_error() -> str:
    return str(library().frozen_last_error().decode("utf-8", "replace"))


def check(status: int, what: str = "") -> None:
    """Raise what a frozen_status stands for; `what` comes before its message."""
    if status:
        raise _ERRORS.get(status, RuntimeError)(f"{what}: {last_error()}" if what else last_error())
