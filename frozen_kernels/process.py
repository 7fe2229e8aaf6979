"""The memory of this process, as the system sees it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function of that name; None in a process with another allocator."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        return trim  # type: ignore[no-any-return]
    return None


_keepers: list[Callable[[], None]] = []


def on_release(give_back: Callable[[], None]) -> None:
    """Have `release_memory` call this too, which gives back memory that its owner keeps."""
    _keepers.append(give_back)


def release_memory() -> None:
    """Give freed blocks back to the system: those of large results, which are kept for the next ones, and glibc's.

    glibc keeps blocks since a large one that is freed raises its threshold: without it a process that has dropped dense
    weights holds their memory to its end. Another C library's stay.
    """
    for give_back in _keepers:
        give_back()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
