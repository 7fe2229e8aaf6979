"""Triton backend: seeds and planes decoded on the GPU.

Importing this package does not import triton; the first launch does.
"""

from .launch import DEVICES, reasons
from .layers import linear
from .weights import weight

__all__ = ["DEVICES", "linear", "reasons", "weight"]
