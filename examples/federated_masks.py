"""Federated search of a supermask: ten clients send one bit for each weight, and get one bit for each weight back.

`python examples/federated_masks.py` needs scikit-learn and no download. FedPM (Isik et al. 2023, arXiv 2209.15328):
each client trains the probabilities of a sampled supermask on its own digits and sends a mask drawn from them; the mean
of the clients' masks is the next probability of each weight. Here the server sends no probabilities either but a mask
drawn from them: a client moves its own halfway towards it. Beside it federated averaging of the same net with dense
weights, which sends 32 bits for each weight both ways. See `--help`.
"""

from __future__ import annotations

import argparse
import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training.images import digits

import frozen_kernels as fk
from frozen_kernels.nn.models import frozen_layers

CLIENTS, ROUNDS, EPOCHS, BATCH, SEED = 10, 20, 3, 32, 0
LEARNING_RATE, DENSE_LEARNING_RATE = 0.1, 0.1
TRUST = 0.5  # how far a client moves its probabilities towards the bits that it gets


class Client(NamedTuple):
    """Pixels [B, 64] and labels [B] that stay where they are."""

    x: Tensor
    y: Tensor


class Round(NamedTuple):
    """Accuracy on held-out digits after a round, and bytes that one client sent and got."""

    accuracy: float
    up: int
    down: int


def build_net() -> nn.Sequential:
    """Three layers without biases, 84,480 weights."""
    return nn.Sequential(
        nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 256, bias=False), nn.ReLU(),
        nn.Linear(256, 10, bias=False),
    )  # fmt: skip


def clients_of(count: int = CLIENTS, seed: int = SEED) -> tuple[list[Client], Client]:
    """1437 digits, split evenly by a seeded generator, and the 360 that are held out."""
    train, test = digits()
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    x, y = train.images.flatten(1), train.labels
    return [Client(x[part], y[part]) for part in order.chunk(count)], Client(test.images.flatten(1), test.labels)


@torch.no_grad()
def accuracy(model: nn.Module, data: Client) -> float:
    """Share of the digits that the model gets right."""
    return (model(data.x).argmax(1) == data.y).float().mean().item()


def probabilities(model: nn.Module) -> Tensor:
    """float32 [8 * bytes]: what the scores say, in the order of `fk.masks`."""
    parts = [F.pad(torch.sigmoid(m.scores.detach()), (0, -m.free % 8)) for m in frozen_layers(model).values()]
    return torch.cat(parts)


def train_locally(
    model: nn.Module, optimizer: torch.optim.Optimizer, client: Client, epochs: int, draw: torch.Generator, after=None
) -> None:
    for _ in range(epochs):
        for batch in torch.randperm(len(client.y), generator=draw).split(BATCH):
            loss = F.cross_entropy(model(client.x[batch]), client.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after is not None:
                after()


class Masks:
    """FedPM with one bit each way: one frozen net stands for server and clients, for all have its seed."""

    def __init__(self, clients: list[Client], seed: int = SEED) -> None:
        self.model, self.clients = build_net(), clients
        fk.freeze_(self.model, fk.FreezeConfig.preset("sampled", seed=seed, sparsity=0.5, scaling="static"))
        self.search = fk.search.Sampled(self.model)
        self.mean = torch.full((8 * fk.masks(self.model).numel(),), 0.5)
        self.own = [self.mean.clone() for _ in clients]  # each client's probabilities, which nobody sends
        self.draw = torch.Generator().manual_seed(seed)

    def sampled(self, mean: Tensor) -> Tensor:
        """A packed mask drawn from probabilities, by the format's generator."""
        fk.load_mean(self.model, mean)
        self.search.step()
        return fk.masks(self.model)

    def round(self, epochs: int = EPOCHS) -> tuple[int, int]:
        """Every client trains; bytes that one of them sent and got."""
        down = self.sampled(self.mean)
        bits = fk.aggregate_masks([down])
        sent = []
        for number, client in enumerate(self.clients):
            fk.load_mean(self.model, (1 - TRUST) * self.own[number] + TRUST * bits)
            self.search.refresh()
            optimizer = torch.optim.Adam(self.search.parameters(), lr=LEARNING_RATE)
            train_locally(self.model, optimizer, client, epochs, self.draw, self.search.step)
            self.own[number] = probabilities(self.model)
            sent.append(fk.masks(self.model))
        self.mean = fk.aggregate_masks(sent, [len(client.y) for client in self.clients])
        return sent[0].nbytes, down.nbytes

    def accuracy(self, test: Client) -> float:
        """Of the likeliest mask: what more than half of the clients keep."""
        fk.load_masks(self.model, fk.majority_mask(self.mean))
        return accuracy(self.model, test)


class Averaging:
    """FedAvg (McMahan et al. 2017) of the same net with trained weights."""

    def __init__(self, clients: list[Client], seed: int = SEED) -> None:
        torch.manual_seed(seed)
        self.model, self.clients = build_net(), clients
        self.draw = torch.Generator().manual_seed(seed)

    def round(self, epochs: int = EPOCHS) -> tuple[int, int]:
        """Every client trains; bytes that one of them sent and got."""
        total = sum(len(client.y) for client in self.clients)
        mean = {name: torch.zeros_like(p) for name, p in self.model.state_dict().items()}
        for client in self.clients:
            local = copy.deepcopy(self.model)
            optimizer = torch.optim.SGD(local.parameters(), lr=DENSE_LEARNING_RATE)
            train_locally(local, optimizer, client, epochs, self.draw)
            for name, p in local.state_dict().items():
                mean[name] += p * (len(client.y) / total)
        self.model.load_state_dict(mean)
        size = sum(p.nbytes for p in mean.values())
        return size, size

    def accuracy(self, test: Client) -> float:
        return accuracy(self.model, test)


def run(side: Masks | Averaging, test: Client, rounds: int = ROUNDS, epochs: int = EPOCHS) -> list[Round]:
    """Accuracy and bytes of every round."""
    found = []
    for _ in range(rounds):
        up, down = side.round(epochs)
        found.append(Round(side.accuracy(test), up, down))
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clients", type=int, default=CLIENTS)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--epochs", type=int, default=EPOCHS, help="of each client in a round")
    options.add_argument("--seed", type=int, default=SEED)
    chosen = options.parse_args()
    clients, test = clients_of(chosen.clients, chosen.seed)
    sides = [run(side(clients, chosen.seed), test, chosen.rounds, chosen.epochs) for side in (Masks, Averaging)]
    print("round | masks    | dense averaging | bytes of a client up and down: masks | dense")
    for number, (mask, dense) in enumerate(zip(*sides, strict=True), 1):
        print(
            f"{number:5} | {100 * mask.accuracy:6.2f} % | {100 * dense.accuracy:13.2f} % | "
            f"{mask.up:>16,} and {mask.down:<14,} | {dense.up:,} and {dense.down:,}"
        )
    both = [sum(r.up + r.down for r in side) * len(clients) for side in sides]
    times = both[1] / both[0]
    print(f"\nall rounds and clients: {both[0]:,} bytes of masks, {both[1]:,} dense, {times:.1f} times as many")


if __name__ == "__main__":
    main()
