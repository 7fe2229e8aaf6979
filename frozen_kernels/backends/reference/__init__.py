# ruff: noqa: F401  (a backend is a module that holds functions named like the ops)
"""Every op in plain torch, written to be read. The default implementation where no kernel serves.

Nothing here is fused: the layer ops build the effective weight and call torch with it.
"""

from . import embeddings, product, score_gradient, weights
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

DEVICES = ("cpu", "cuda", "mps", "xpu")


def reasons() -> list[str]:
    """Why this backend is not live: it always is."""
    return []
