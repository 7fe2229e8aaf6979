"""What the process holds beside the tensors in use."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def release_memory() -> bool:
    """Give freed memory back to the system; False where nothing is known that does.

    glibc keeps what was freed for its next allocations, and after one large block was freed it keeps blocks of up to
    32 MB too: without this call a process goes on holding the weights that it dropped.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
            return True
    return False
