"""Triton backend: seeds and planes decoded on the GPU.

Importing this package does not import triton; the first launch does.
"""

from .embeddings import embedding, embedding_grad_scores
from .launch import DEVICES, reasons
from .layers import linear
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
from .weights import weight

__all__ = [
    "DEVICES",
    "conv1d_grad_scores",
    "conv2d_grad_scores",
    "conv3d_grad_scores",
    "conv_transpose1d_grad_scores",
    "conv_transpose2d_grad_scores",
    "conv_transpose3d_grad_scores",
    "embedding",
    "embedding_grad_scores",
    "linear",
    "linear_grad_scores",
    "reasons",
    "weight",
    "weight_grad_scores",
]
