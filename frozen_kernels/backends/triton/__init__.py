"""Triton backend: seeds, planes and kept values decoded on the GPU; one function for each op that it serves.

Importing this package does not import triton; the first launch does.
"""

# ruff: noqa: F401
from . import embeddings, product, score_gradient, weights
from .generate import codes, draws, free_draws, histogram, partition, partition_counts, uniform_scores
from .launch import DEVICES, reasons
from .masks import (
    draw_plane,
    keep_plane,
    offsets,
    pack,
    pack_plane,
    pack_values,
    plane_offsets,
    planes,
    popcount,
    unpack,
)
from .search import flip, pack_above, select, swap
