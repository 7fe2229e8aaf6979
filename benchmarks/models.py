"""ResNet-18, ResNet-50 and MobileNetV2 in plain torch, and the distinct convolutions that they run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

IMAGE = 224


def _unit(inputs: int, outputs: int, kernel: int, stride: int, affine: bool, act: nn.Module | None, groups: int = 1):
    """A convolution that keeps the size but for its stride, batch norm, and the activation if there is one."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    parts: list[nn.Module] = [conv, nn.BatchNorm2d(outputs, affine=affine)]
    return nn.Sequential(*parts, *([act] if act else []))


class Residual(nn.Module):
    """`act(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.act = body, shortcut, act

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)  # in place, as torchvision's: a fresh sum would cost more in page faults than to add
        return self.act(y)


def _basic(inputs: int, width: int, stride: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(
        _unit(inputs, width, 3, stride, affine, nn.ReLU(inplace=True)), _unit(width, width, 3, 1, affine, None)
    )


def _bottleneck(inputs: int, width: int, stride: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(
        _unit(inputs, width, 1, 1, affine, nn.ReLU(inplace=True)),
        _unit(width, width, 3, stride, affine, nn.ReLU(inplace=True)),
        _unit(width, 4 * width, 1, 1, affine, None),
    )


def _resnet(block, expansion: int, depths: tuple[int, ...], affine: bool, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [_unit(3, 64, 7, 2, affine, nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for i in range(depth):
            stride, outputs = (2 if i == 0 and stage else 1), expansion * width
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else _unit(inputs, outputs, 1, stride, affine, None)
            layers.append(Residual(block(inputs, width, stride, affine), shortcut, nn.ReLU(inplace=True)))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def resnet18(affine: bool = True, classes: int = 1000) -> nn.Sequential:
    """He et al. 2016."""
    return _resnet(_basic, 1, (2, 2, 2, 2), affine, classes)


def resnet50(affine: bool = True, classes: int = 1000) -> nn.Sequential:
    """He et al. 2016, the stride of a bottleneck in its 3x3 convolution."""
    return _resnet(_bottleneck, 4, (3, 4, 6, 3), affine, classes)


def mobilenet_v2(affine: bool = True, classes: int = 1000) -> nn.Sequential:
    """Sandler et al. 2018, width 1."""
    layers: list[nn.Module] = [_unit(3, 32, 3, 2, affine, nn.ReLU6(inplace=True))]
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, outputs, depth, first_stride in stages:
        for i in range(depth):
            stride, hidden = (first_stride if i == 0 else 1), expand * inputs
            body = [_unit(inputs, hidden, 1, 1, affine, nn.ReLU6(inplace=True))] if expand > 1 else []
            body.append(_unit(hidden, hidden, 3, stride, affine, nn.ReLU6(inplace=True), groups=hidden))
            whole = nn.Sequential(*body, _unit(hidden, outputs, 1, 1, affine, None))
            same = stride == 1 and inputs == outputs
            layers.append(Residual(whole, nn.Identity(), nn.Identity()) if same else whole)
            inputs = outputs
    layers += [_unit(inputs, 1280, 1, 1, affine, nn.ReLU6(inplace=True)), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, classes))


MODELS = {"resnet18": resnet18, "resnet50": resnet50, "mobilenet_v2": mobilenet_v2}


class Convolution(NamedTuple):
    """A convolution as a model runs it: shape of the weight, spatial size of the input, geometry."""

    shape: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def convolutions(name: str, distinct: bool = True) -> list[Convolution]:
    """The convolutions that a model runs on one image, in the order of its calls; `distinct`: equal ones once."""
    found: list[Convolution] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        m, x = module, inputs[0]
        assert isinstance(m, nn.Conv2d) and isinstance(m.padding, tuple)
        found.append(Convolution(tuple(m.weight.shape), tuple(x.shape[2:]), m.stride, m.padding, m.dilation, m.groups))

    with torch.device("meta"), torch.no_grad():
        model = MODELS[name]().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
        model(torch.empty(1, 3, IMAGE, IMAGE))
    return list(dict.fromkeys(found)) if distinct else found


def weight_shapes(name: str) -> list[tuple[int, ...]]:
    """Shapes of all convolution and linear weights of a model."""
    with torch.device("meta"):
        model = MODELS[name]()
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """Torch's own folding of each batch norm into the convolution before it, in place; for a model in eval mode."""
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                conv, norm = module[i], module[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i] = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                    module[i + 1] = nn.Identity()
    return model


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch norm statistics of one batch, as training would leave them; the model ends in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()
