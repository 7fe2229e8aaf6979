"""Products of few pixels on NVIDIA GPUs, hand-written in CUDA C++; csrc/cuda holds the kernels.

Where the number of pixels is small, decoding and launching bound a product, and these kernels take fewer instructions a
weight than generated ones. All else, gradients of scores among it, is Triton's.
"""

from __future__ import annotations

from . import product, score_gradient
from .extension import DEVICES, reasons

__all__ = ["DEVICES", "product", "reasons", "score_gradient"]
