"""The papers' image models in plain torch: each is the dense baseline, and `fk.freeze_` makes the frozen network of it.

Models of random weights (Otsuka et al., arXiv 2402.14029): no bias anywhere, batch norm without affine parameters, the
first convolution and the classifier like all others. Models of pre-trained weights (Zhang et al., arXiv 2104.08700)
have affine batch norm and a bias in the classifier.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class Padded(nn.Module):
    """A shortcut without weights: every second row and column, and half of the new channels as zeros on each side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


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
    first: int = 64,
    wide: int = 1,
    padded: bool = False,
    affine: bool = False,
    bias: bool = False,
) -> nn.Sequential:
    """He et al. 2016, the stride of a bottleneck in its 3x3 convolution.

    Args:
        block: `basic` or `bottleneck`.
        depths: blocks per stage.
        classes: outputs of the classifier.
        small: for images of 32x32: a 3x3 stem of stride 1, and no max pool.
        first: width of the stem and of the first stage.
        wide: factor on the inner width of bottlenecks (Zagoruyko and Komodakis 2016).
        padded: shortcuts between stages have no weights.
        affine, bias: parameters of the batch norms, and a bias in the classifier; the paper has neither.
    """
    stem = unit(3, first, 3 if small else 7, 1 if small else 2, affine, nn.ReLU(inplace=True))
    layers: list[nn.Module] = [stem] if small else [stem, nn.MaxPool2d(3, 2, 1)]
    inputs, expansion = first, 4 if block is bottleneck else 1
    for stage, depth in enumerate(depths):
        width = first << stage
        for i in range(depth):
            stride, outputs = (2 if i == 0 and stage else 1), expansion * width
            shortcut: nn.Module = nn.Identity()
            if stride > 1 or inputs != outputs:
                shortcut = Padded(inputs, outputs) if padded else unit(inputs, outputs, 1, stride, affine, None)
            body = block(inputs, wide * width, outputs, stride, affine)
            layers.append(Residual(body, shortcut, nn.ReLU(inplace=True)))
            inputs = outputs
    pool = nn.AvgPool2d(32 >> (len(depths) - 1)) if small else nn.AdaptiveAvgPool2d(1)
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


def vgg19(classes: int) -> nn.Sequential:
    """VGG-19 with batch norm for images of 32x32 (Simonyan and Zisserman 2015): one linear layer after the pooling."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(depth):
            layers.append(unit(inputs, width, 3, 1, True, nn.ReLU(inplace=True)))
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, classes))


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


# resnet18, resnet34 and resnet32_wide are those for 32x32 images, the others of their family for ImageNet
MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{f"conv{depth}": functools.partial(conv_net, depth) for depth in (2, 4, 6, 8)},
    "resnet18": lambda classes: resnet(basic, (2, 2, 2, 2), classes, small=True),
    "resnet34": lambda classes: resnet(basic, (3, 4, 6, 3), classes, small=True),
    "resnet50": lambda classes: resnet(bottleneck, (3, 4, 6, 3), classes),
    "wide_resnet50_2": lambda classes: resnet(bottleneck, (3, 4, 6, 3), classes, wide=2),
    "vgg19": vgg19,
    "resnet32_wide": lambda classes: resnet(
        basic, (5, 5, 5), classes, small=True, first=32, padded=True, affine=True, bias=True
    ),
    "resnet50_affine": lambda classes: resnet(bottleneck, (3, 4, 6, 3), classes, affine=True, bias=True),
    "digits": digits_net,
    "digits_half": functools.partial(digits_net, width=0.5),
}


def build(name: str, classes: int) -> nn.Module:
    """A model of the papers by name, on the current default device, in train mode.

    Args:
        name: conv2, conv4, conv6, conv8, resnet18, resnet34, vgg19, resnet32_wide (inputs [B, 3, 32, 32]); resnet50,
            wide_resnet50_2, resnet50_affine ([B, 3, 224, 224]); digits, digits_half ([B, 1, 8, 8]).
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
