"""Which frozen layer stands for a plain one, those of `TWINS` and of other places."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .attention import FrozenMultiheadAttention, FrozenProjection, Projection
from .conv1d import FrozenTransposedLinear, is_conv1d
from .layer import FrozenLayer
from .layers import TWINS, FrozenLinear

# what attention is made of
_PROJECTIONS: dict[type[nn.Module], type[FrozenLayer]] = {
    Projection: FrozenProjection,
    NonDynamicallyQuantizableLinear: FrozenLinear,
}


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer that has a twin, or of a class derived from one."""
    return isinstance(module, tuple(TWINS)) or is_conv1d(module)


def twin_of(module: nn.Module) -> Any:
    """The frozen class that stands for a module's, None where there is none: a derived class may do something else."""
    if is_conv1d(module, derived=False):
        return FrozenTransposedLinear
    return TWINS.get(type(module)) or _PROJECTIONS.get(type(module))


def like_twin(module: nn.Module) -> Any:
    """The frozen class to name for a layer or an attention, of a derived class too."""
    if isinstance(module, nn.MultiheadAttention):
        return FrozenMultiheadAttention
    return next((twin for base, twin in TWINS.items() if isinstance(module, base)), FrozenTransposedLinear)


def frozen_shape(module: Any) -> tuple[int, ...]:
    """The shape that the weight of a layer has in its twin."""
    shape = tuple(module.weight.shape)
    return shape[::-1] if is_conv1d(module) else shape


def weight_place(module: nn.Module) -> tuple[nn.Module, str]:
    """Which module of a model holds the weight of a layer, and under which name."""
    return module.place if isinstance(module, Projection) else (module, "weight")
