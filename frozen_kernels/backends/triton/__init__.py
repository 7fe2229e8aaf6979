"""Triton backend: seeds and planes decoded on the GPU.

Importing this package does not import triton; the first launch does.
"""

from .generate import codes, draw_plane, draws, histogram, partition, partition_counts, uniform_scores
from .launch import DEVICES, reasons
from .layers import linear
from .masks import free_draws, keep_plane, offsets, pack, pack_plane, planes, popcount, unpack
from .search import pack_above, select
from .weights import weight

__all__ = [
    "DEVICES",
    "codes",
    "draw_plane",
    "draws",
    "free_draws",
    "histogram",
    "keep_plane",
    "linear",
    "offsets",
    "pack",
    "pack_above",
    "pack_plane",
    "partition",
    "partition_counts",
    "planes",
    "popcount",
    "reasons",
    "select",
    "uniform_scores",
    "unpack",
    "weight",
]
