"""Triton backend: seeds and planes decoded on the GPU; one function for each op that it serves.

Importing this package does not import triton; the first launch does.
"""

# ruff: noqa: F401
from .embeddings import embedding, embedding_grad_scores
from .generate import codes, draw_plane, draws, histogram, partition, partition_counts, uniform_scores
from .launch import DEVICES, reasons
from .layers import (
    conv1d,
    conv1d_grad_input,
    conv2d,
    conv2d_grad_input,
    conv3d,
    conv3d_grad_input,
    conv_transpose1d,
    conv_transpose1d_grad_input,
    conv_transpose2d,
    conv_transpose2d_grad_input,
    conv_transpose3d,
    conv_transpose3d_grad_input,
    linear,
    linear_grad_input,
)
from .masks import free_draws, keep_plane, offsets, pack, pack_plane, planes, popcount, unpack
from .scores import (
    conv1d_grad_scores,
    conv2d_grad_scores,
    conv3d_grad_scores,
    conv_transpose1d_grad_scores,
    conv_transpose2d_grad_scores,
    conv_transpose3d_grad_scores,
    linear_grad_scores,
    weight_grad_scores,
)
from .search import pack_above, select
from .weights import weight
