# ruff: noqa: F401  (a backend is a module that holds functions named like the ops)
"""CPU backend: checks and output tensors around the kernels of the compiled extension."""

from . import embeddings, product, score_gradient, weights
from .extension import _C, DEVICES, reasons
from .generate import codes, draws, free_draws, histogram, partition, partition_counts, uniform_scores
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
