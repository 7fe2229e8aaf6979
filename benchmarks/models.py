"""ResNet-18, ResNet-50, MobileNetV2 and BERT-base in plain torch, and the distinct convolutions that they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from examples.training.models import Residual, basic, bottleneck, digits_net, resnet, unit

IMAGE = 224


def resnet18(affine: bool = True, classes: int = 1000) -> nn.Sequential:
    """He et al. 2016."""
    return resnet(basic, (2, 2, 2, 2), classes, affine=affine, bias=True)


def resnet50(affine: bool = True, classes: int = 1000) -> nn.Sequential:
    """He et al. 2016, the stride of a bottleneck in its 3x3 convolution."""
    return resnet(bottleneck, (3, 4, 6, 3), classes, affine=affine, bias=True)


def mobilenet_v2(affine: bool = True, classes: int = 1000) -> nn.Sequential:
    """Sandler et al. 2018, width 1."""
    layers: list[nn.Module] = [unit(3, 32, 3, 2, affine, nn.ReLU6(inplace=True))]
    inputs = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, outputs, depth, first_stride in stages:
        for i in range(depth):
            stride, hidden = (first_stride if i == 0 else 1), expand * inputs
            body = [unit(inputs, hidden, 1, 1, affine, nn.ReLU6(inplace=True))] if expand > 1 else []
            body.append(unit(hidden, hidden, 3, stride, affine, nn.ReLU6(inplace=True), groups=hidden))
            whole = nn.Sequential(*body, unit(hidden, outputs, 1, 1, affine, None))
            same = stride == 1 and inputs == outputs
            layers.append(Residual(whole, nn.Identity(), nn.Identity()) if same else whole)
            inputs = outputs
    layers += [unit(inputs, 1280, 1, 1, affine, nn.ReLU6(inplace=True)), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, classes))


def bert_base() -> nn.TransformerEncoder:
    """The 12 layers of BERT-base (Devlin et al. 2019), without its embeddings; inputs [B, T, 768]."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


MODELS = {"resnet18": resnet18, "resnet50": resnet50, "mobilenet_v2": mobilenet_v2}


def perceptron(width: int = 128, depth: int = 8) -> nn.Sequential:
    """Layers of `width` with a ReLU behind each: nothing but calls."""
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))


def lenet(classes: int = 10) -> nn.Sequential:
    """LeCun et al. 1998 with ReLU and max pooling, on 28 x 28 images in grey."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


class Net(NamedTuple):
    """A net, and the size of one of its inputs."""

    make: Callable[[], nn.Module]
    input: tuple[int, ...]


NETS = {
    "perceptron": Net(perceptron, (128,)),
    "digits": Net(digits_net, (1, 8, 8)),
    "lenet": Net(lenet, (1, 28, 28)),
    "resnet18-32": Net(lambda: resnet(basic, (2, 2, 2, 2), 10, small=True), (3, 32, 32)),
}


WHOLE = {
    "resnet18": Net(resnet18, (3, IMAGE, IMAGE)),
    "resnet50": Net(resnet50, (3, IMAGE, IMAGE)),
    "bert_base": Net(bert_base, (128, 768)),
}


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
    """Torch's own folding of each batch norm into the layer before it, in place; for a model in eval mode."""
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            for i in range(len(module) - 1):
                layer, norm = module[i], module[i + 1]
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[i] = nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
                elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                    if not norm.affine:  # which torch's function needs
                        norm.weight = nn.Parameter(torch.ones(norm.num_features))
                        norm.bias = nn.Parameter(torch.zeros(norm.num_features))
                    module[i] = nn.utils.fusion.fuse_linear_bn_eval(layer, norm)
                else:
                    continue
                module[i + 1] = nn.Identity()
    return model


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch norm statistics of one batch, as training would leave them; the model ends in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()
