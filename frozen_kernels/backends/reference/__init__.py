# ruff: noqa: F401  (a backend is a module that holds functions named like the ops)
"""Every op in plain torch, written to be read. The default implementation where no kernel serves.

Nothing here is fused: the layer ops build the effective weight and call torch with it.
"""

from .generate import codes, draws, free_draws, histogram, partition, partition_counts, uniform_scores
from .layers import (
    conv1d,
    conv1d_grad_input,
    conv1d_grad_scores,
    conv2d,
    conv2d_grad_input,
    conv2d_grad_scores,
    conv3d,
    conv3d_grad_input,
    conv3d_grad_scores,
    conv_transpose1d,
    conv_transpose1d_grad_input,
    conv_transpose1d_grad_scores,
    conv_transpose2d,
    conv_transpose2d_grad_input,
    conv_transpose2d_grad_scores,
    conv_transpose3d,
    conv_transpose3d_grad_input,
    conv_transpose3d_grad_scores,
    embedding,
    embedding_grad_scores,
    linear,
    linear_grad_input,
    linear_grad_scores,
    weight,
    weight_grad_scores,
)
from .masks import draw_plane, keep_plane, offsets, pack, pack_above, pack_plane, planes, popcount, select, unpack

DEVICES = ("cpu", "cuda", "mps", "xpu")


def reasons() -> list[str]:
    """Why this backend is not live: it always is."""
    return []
