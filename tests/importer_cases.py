"""Networks whose layers compute what each published code computes, written from its description, and their files."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune


class Net(nn.Module):
    """Convolutions, one of them grouped, batch norm, and a classifier; of torch's layers, or of masked ones."""

    def __init__(self, conv=nn.Conv2d, linear=nn.Linear):
        super().__init__()
        self.conv1 = conv(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = conv(8, 12, 3, stride=2, groups=2)
        self.fc = linear(12 * 3 * 3, 5)

    def forward(self, x):
        y = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.relu(y).flatten(1))


LAYERS = ("conv1", "conv2", "fc")


class HiddenNetworks:
    """The `int((1 - k) * n)` lowest |scores| are dropped."""

    k = 0.3

    def start(self):
        self.scores = nn.Parameter(torch.randn_like(self.weight))

    def effective(self):
        lowest = self.scores.abs().flatten().argsort(stable=True)[: int((1 - self.k) * self.scores.numel())]
        return self.weight * torch.ones(self.scores.numel()).index_fill(0, lowest, 0.0).view_as(self.weight)


class HiddenFixed:
    """The scores are the mask."""

    def start(self):
        self.scores = nn.Parameter((torch.rand_like(self.weight) > 0.6).float(), requires_grad=False)

    def effective(self):
        return self.weight * self.scores


class Jackpot2021:
    """The `int(rate * n)` lowest |mask| are dropped."""

    rate = 0.0

    def start(self):
        self.mask = nn.Parameter(torch.randn_like(self.weight))

    def effective(self):
        lowest = self.mask.abs().flatten().argsort(stable=True)[: int(self.rate * self.mask.numel())]
        return self.weight * torch.ones(self.mask.numel()).index_fill(0, lowest, 0.0).view_as(self.weight)


class Jackpot2023:
    """The mask is a parameter of its own."""

    def start(self):
        self.mask = nn.Parameter(torch.randn_like(self.weight))
        self.b_mask = nn.Parameter((torch.rand_like(self.weight) > 0.7).float(), requires_grad=False)

    def effective(self):
        return self.weight * self.b_mask


class Slt:
    """Locked weights and free ones above a threshold, times a scale; a forward notes mask, sparsity and scale."""

    scaling = "none"
    sparsity = 0.6

    def start(self):
        self.score = nn.Parameter(torch.randn_like(self.weight))
        for name, value in {
            "mask": torch.zeros_like(self.weight),
            "ternary_frozen_mask": torch.randint_like(self.weight, -1, 2),
            "local_sparsity": torch.tensor([self.sparsity]),
            "global_sparsity": torch.tensor([self.sparsity]),
            "scale": torch.tensor([1.0]),
            "kthvalue": torch.tensor([0.7]),
        }.items():
            self.register_buffer(name, value)

    def effective(self):
        free = (self.score.abs() > self.kthvalue[0]).float()
        self.mask = torch.where(self.ternary_frozen_mask == 0, free, (self.ternary_frozen_mask > 0).float())
        self.local_sparsity = 1 - self.mask.sum() / self.mask.numel()
        source = {"none": None, "static": self.global_sparsity, "dynamic": self.local_sparsity}[self.scaling]
        self.scale = torch.tensor([1]) if source is None else 1 / (1 - source) ** 0.5
        return self.mask * self.weight * self.scale.detach()


def masked_net(rule: type, **settings) -> nn.Module:
    """A net of layers under a rule, with random weights and statistics, whose forward has run once."""

    class Conv(rule, nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.effective(), self.bias)

    class Linear(rule, nn.Linear):
        def forward(self, x):
            return F.linear(x, self.effective(), self.bias)

    net = Net(Conv, Linear)
    for layer in (net.conv1, net.conv2, net.fc):
        vars(layer).update(settings)
        layer.start()
    return run_in(net)


def run_in(net: nn.Module) -> nn.Module:
    """The net in eval mode after a training batch, so that its statistics are its own."""
    with torch.no_grad():
        net.bn1.weight.uniform_(0.5, 2)
        net.bn1.bias.normal_()
        net(torch.randn(6, 3, 8, 8))
        return net.eval()


def pruned_net() -> nn.Module:
    """A net of torch's layers, pruned by torch: two weights, a bias, and the weight of a batch norm."""
    net = run_in(Net())
    prune.l1_unstructured(net.conv1, "weight", 0.6)
    prune.random_unstructured(net.conv2, "weight", 0.3)
    prune.l1_unstructured(net.conv2, "bias", 0.5)
    prune.l1_unstructured(net.bn1, "weight", 0.25)
    return net


RATES = [0.29, 0.7, 0.0]


def jackpot_2021() -> tuple[nn.Module, dict]:
    """A net of the layout of 2021 and its file: rates stand beside the state."""
    net = masked_net(Jackpot2021)
    for name, rate in zip(LAYERS, RATES, strict=True):
        getattr(net, name).rate = rate
    return net, {"state_dict": net.state_dict(), "cfg": RATES, "epoch": 3, "best_acc": torch.tensor(93.7)}


def written() -> dict[str, tuple]:
    """By name: layout, a net, what its code saves, and the keyword arguments that say what the file does not."""
    hidden, fixed = masked_net(HiddenNetworks), masked_net(HiddenFixed)
    old, old_file = jackpot_2021()
    slt = {scaling: masked_net(Slt, scaling=scaling) for scaling in ("none", "static", "dynamic")}
    new, pruned = masked_net(Jackpot2023), pruned_net()
    return {
        "hidden": ("hidden-networks", hidden, {"state_dict": hidden.state_dict()}, {"sparsity": 0.7}),
        "fixed": ("hidden-networks", fixed, {"state_dict": fixed.state_dict()}, {}),
        "jackpot-2021": ("jackpots-2021", old, old_file, {}),
        "jackpot-2023": ("jackpots-2023", new, {"state_dict": new.state_dict(), "cfg": RATES}, {}),
        "pruned": ("torch-prune", pruned, pruned.state_dict(), {}),
        **{f"slt-{name}": ("slt", net, net.state_dict(), {}) for name, net in slt.items()},
    }
