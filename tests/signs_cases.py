"""What tests of stored signs share: ternary weights by plain definitions, and layers of every kind that have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frozen_kernels as fk

# kind, arguments, size of an input without its batch: odd sizes, groups, strides, dilation, every dimension
LAYERS = {
    "linear": (nn.Linear, (33, 19), (33,)),
    "linear of one": (nn.Linear, (1, 1), (1,)),
    "conv1d": (nn.Conv1d, (5, 7, 3, 2, 1), (5, 9)),
    "conv2d": (nn.Conv2d, (6, 9, (3, 2), (2, 1), 1, 1, 3), (6, 7, 5)),
    "conv2d dilated": (nn.Conv2d, (35, 18, 3, 1, 2, 2), (35, 5, 6)),
    "depthwise": (nn.Conv2d, (8, 8, 3, 1, 1, 1, 8), (8, 5, 5)),
    "conv3d": (nn.Conv3d, (2, 5, 2), (2, 3, 4, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d, (5, 4, 3, 2, 1, 1), (5, 6)),
    "conv_transpose2d": (nn.ConvTranspose2d, (6, 9, 3, 2, 0, 0, 3), (6, 4, 3)),
    "conv_transpose3d": (nn.ConvTranspose3d, (3, 2, 2, 2), (3, 2, 3, 2)),
}


def whole(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small integers, of which every sum here is exact."""
    return torch.randint(-3, 4, shape).to(dtype)


def ternary(shape: torch.Size, by_row: bool) -> Tensor:
    """-a, 0 and a, with a power of two of the tensor or of each row: products with small integers are exact."""
    magnitudes = 2.0 ** torch.randint(-1, 2, (shape[0] if by_row else 1, *[1] * (len(shape) - 1)))
    return torch.randint(-1, 2, shape) * magnitudes


def plain(name: str, by_row: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """A ternary torch layer with whole biases, and the size of its inputs."""
    kind, arguments, size = LAYERS[name]
    layer = kind(*arguments)
    with torch.no_grad():
        layer.weight.copy_(ternary(layer.weight.shape, by_row))
        layer.bias.copy_(whole(*layer.bias.shape))
    return layer, size


def imported(layer: nn.Module) -> fk.nn.FrozenLayer:
    """The frozen layer that `ternary_` makes of a copy of a torch layer."""
    holder = nn.Sequential(type(layer)(*_arguments(layer)).to(layer.weight.dtype))
    holder[0].load_state_dict(layer.state_dict())
    report = fk.importers.ternary_(holder)
    assert [entry.name for entry in report.layers] == ["0"], report
    return holder[0]


def _arguments(layer: nn.Module) -> tuple:
    return next(arguments for kind, arguments, _ in LAYERS.values() if _made_by(layer, kind, arguments))


def _made_by(layer: nn.Module, kind: type, arguments: tuple) -> bool:
    return type(layer) is kind and repr(kind(*arguments)) == repr(layer)


def record(shape: tuple[int, ...], by_row: bool, residency: str = "planes") -> tuple[fk.FrozenTensor, Tensor]:
    """A tensor of stored signs, and its float32 weight by the definition."""
    keep, negative = torch.rand(shape) < 0.6, torch.rand(shape) < 0.5
    row_scale = 2.0 ** torch.randint(-1, 2, (shape[0],)) if by_row else None
    weight = torch.where(keep, torch.where(negative, -0.5, 0.5), 0.0)
    if row_scale is not None:
        weight = weight * row_scale.view(-1, *[1] * (len(shape) - 1))
    return fk.FrozenTensor.signs(keep, negative, 0.5, row_scale, residency=residency), weight
