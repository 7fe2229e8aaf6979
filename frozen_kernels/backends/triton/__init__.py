"""Triton backend: seeds and planes decoded on the GPU, for the ops that `ops` holds.

Importing this package does not import triton; the first launch does.
"""

from .ops import DEVICES, linear, reasons, weight

__all__ = ["DEVICES", "linear", "reasons", "weight"]
