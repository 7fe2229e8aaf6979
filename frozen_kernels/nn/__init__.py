"""Drop-in frozen twins of `torch.nn` layers; see `FrozenLayer` for their state and residencies."""

from .attention import FrozenMultiheadAttention
from .conv1d import FrozenTransposedLinear
from .layer import FrozenLayer
from .layers import (
    TWINS,
    FrozenConv1d,
    FrozenConv2d,
    FrozenConv3d,
    FrozenConvTranspose1d,
    FrozenConvTranspose2d,
    FrozenConvTranspose3d,
    FrozenEmbedding,
    FrozenLinear,
)

__all__ = [
    "TWINS",
    "FrozenConv1d",
    "FrozenConv2d",
    "FrozenConv3d",
    "FrozenConvTranspose1d",
    "FrozenConvTranspose2d",
    "FrozenConvTranspose3d",
    "FrozenEmbedding",
    "FrozenLayer",
    "FrozenLinear",
    "FrozenMultiheadAttention",
    "FrozenTransposedLinear",
]
