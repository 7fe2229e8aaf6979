"""The paper's image models in plain torch: each is the dense baseline, and `fk.freeze_` makes the frozen network of it.

The paper's setting (Otsuka et al., arXiv 2402.14029): no bias anywhere, batch norm without affine parameters, the
first convolution and the classifier like all others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn


def unit(
    inputs: int, outputs: int, kernel: int, stride: int, affine: bool, act: nn.Module | None, groups: int = 1
) -> nn.Sequential:
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


def basic(inputs: int, width: int, outputs: int, stride: int, affine: bool) -> nn.Sequential:
    """Two 3x3 convolutions, the stride in the first."""
    return nn.Sequential(
        unit(inputs, width, 3, stride, affine, nn.ReLU(inplace=True)), unit(width, outputs, 3, 1, affine, None)
    )


def bottleneck(inputs: int, width: int, outputs: int, stride: int, affine: bool) -> nn.Sequential:
    """1x1 to `width`, 3x3 with the stride, 1x1 to `outputs`."""
    return nn.Sequential(
        unit(inputs, width, 1, 1, affine, nn.ReLU(inplace=True)),
        unit(width, width, 3, stride, affine, nn.ReLU(inplace=True)),
        unit(width, outputs, 1, 1, affine, None),
    )


def resnet(
    block: Callable[..., nn.Sequential],
    depths: tuple[int, ...],
    classes: int,
    *,
    small: bool = False,
    wide: int = 1,
    affine: bool = False,
    bias: bool = False,
) -> nn.Sequential:
    """He et al. 2016, the stride of a bottleneck in its 3x3 convolution.

    Args:
        block: `basic` or `bottleneck`.
        depths: blocks per stage.
        classes: outputs of the classifier.
        small: for images of 32x32: a 3x3 stem of stride 1, no max pool, and 4x4 average pooling at the end.
        wide: factor on the inner width of bottlenecks (Zagoruyko and Komodakis 2016).
        affine, bias: parameters of the batch norms, and a bias in the classifier; the paper has neither.
    """
    stem = unit(3, 64, 3 if small else 7, 1 if small else 2, affine, nn.ReLU(inplace=True))
    layers: list[nn.Module] = [stem] if small else [stem, nn.MaxPool2d(3, 2, 1)]
    inputs, expansion = 64, 4 if block is bottleneck else 1
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for i in range(depth):
            stride, outputs = (2 if i == 0 and stage else 1), expansion * width
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else unit(inputs, outputs, 1, stride, affine, None)
            body = block(inputs, wide * width, outputs, stride, affine)
            layers.append(Residual(body, shortcut, nn.ReLU(inplace=True)))
            inputs = outputs
    pool = nn.AvgPool2d(4) if small else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(inputs, classes, bias=bias))


def conv_net(depth: int, classes: int) -> nn.Sequential:
    """Conv2, Conv4, Conv6 or Conv8 for images of 32x32 (Frankle and Carbin 2019; Zhou et al. 2019): no batch norm."""
    layers: list[nn.Module] = []
    inputs, size = 3, 32
    for stage in range(depth // 2):
        width = 64 << stage
        for source in (inputs, width):
            layers += [nn.Conv2d(source, width, 3, padding=1, bias=False), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
        inputs, size = width, size // 2
    layers.append(nn.Flatten())
    for source in (inputs * size * size, 256):
        layers += [nn.Linear(source, 256, bias=False), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(256, classes, bias=False))


def digits_net(classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """A CNN for 8x8 images in grey, not of the paper: 389,600 weights, or those of layers `width` times as wide."""
    first, second, third, fourth, hidden = (round(width * channels) for channels in (32, 64, 128, 144, 224))

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs, affine=False), nn.ReLU()]

    return nn.Sequential(
        *block(1, first),
        *block(first, second),
        nn.MaxPool2d(2),
        *block(second, third),
        *block(third, fourth),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * fourth, hidden, bias=False),
        nn.BatchNorm1d(hidden, affine=False),
        nn.ReLU(),
        nn.Linear(hidden, classes, bias=False),
    )


# resnet18 and resnet34 are those for 32x32 images, the others of their family for ImageNet
MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{f"conv{depth}": functools.partial(conv_net, depth) for depth in (2, 4, 6, 8)},
    "resnet18": lambda classes: resnet(basic, (2, 2, 2, 2), classes, small=True),
    "resnet34": lambda classes: resnet(basic, (3, 4, 6, 3), classes, small=True),
    "resnet50": lambda classes: resnet(bottleneck, (3, 4, 6, 3), classes),
    "wide_resnet50_2": lambda classes: resnet(bottleneck, (3, 4, 6, 3), classes, wide=2),
    "digits": digits_net,
    "digits_half": functools.partial(digits_net, width=0.5),
}


def build(name: str, classes: int) -> nn.Module:
    """A model of the paper by name, on the current default device, in train mode.

    Args:
        name: conv2, conv4, conv6, conv8, resnet18, resnet34 (inputs [B, 3, 32, 32]); resnet50, wide_resnet50_2
            ([B, 3, 224, 224]); digits ([B, 1, 8, 8]).
        classes: width of the output.

    Raises:
        ValueError: another name.
    """
    if name not in MODELS:
        raise ValueError(f"model.name: one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](classes)


@torch.no_grad()
def initialise_(model: nn.Module, seed: int) -> None:
    """Weights of the dense baseline: Kaiming uniform with the gain of a ReLU, as the paper's, in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=generator)
