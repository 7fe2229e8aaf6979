"""All supermasks as one packed tensor, their means over clients, and what of them is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.nn.models import frozen_layers


class Net(nn.Module):
    """A convolution, a stored or drawn head, and two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.a, self.b, self.head = nn.Linear(45, 45), nn.Linear(45, 45), nn.Linear(45, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(self.conv(x).flatten(1))))


def frozen_net(**settings) -> Net:
    model = Net()
    fk.freeze_(model, fk.FreezeConfig(seed=3, freeze_ratio=0.4, **settings))
    return model


def shuffled(model: nn.Module, seed: int) -> None:
    """Other scores, and their masks."""
    draw = torch.Generator().manual_seed(seed)
    for layer in frozen_layers(model).values():
        layer.scores.data.copy_(torch.randn(layer.free, generator=draw))
    fk.EdgePopup(model).step()


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_masks_go_out_and_in(residency):
    model, other = frozen_net(scaling="dynamic"), frozen_net(scaling="dynamic")
    shuffled(model, 1)
    fk.set_residency(other, residency)
    packed = fk.masks(model)
    layers = frozen_layers(model)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [byte for n in ("conv", "a", "head") for byte in layers[n].packed_supermask().tolist()]
    free = sum(layers[n].free for n in ("conv", "a", "head"))
    assert 8 * packed.numel() < free + 3 * 8
    fk.load_masks(other, packed)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(fk.masks(other), packed)
    other.load_state_dict({n: p for n, p in model.state_dict().items() if "bias" in n}, strict=False)
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    before = packed.clone()
    shuffled(model, 2)
    assert torch.equal(packed, before)
    packed.zero_()  # nor does the model read the caller's memory
    assert torch.equal(fk.masks(other), before)


def test_masks_that_are_none_of_the_model_are_refused():
    model = frozen_net()
    packed = fk.masks(model)
    sizes = [-(-frozen_layers(model)[n].free // 8) for n in ("conv", "a", "head")]
    end = sizes[0] + sizes[1]
    wrong_bit = packed.clone()
    wrong_bit[end - 1] |= 128
    assert frozen_layers(model)["a"].free % 8
    for given, what in (
        (packed[:-1], rf"packed: 'head' with .* is at {end} to {sum(sizes)}, got {sum(sizes) - 1} in all"),
        (packed[: sizes[0]], rf"packed: 'a' .* got {sizes[0]} in all, the model has {sum(sizes)}"),
        (torch.cat([packed, packed[:2]]), f"packed: {sum(sizes) + 2} in all, the model has {sum(sizes)}"),
        (packed.to(torch.int32), r"packed: uint8 of 1 dimension, got torch.int32"),
        (packed[None], "packed: uint8 of 1 dimension"),
        (None, "packed: uint8 of 1 dimension, got NoneType"),
        (wrong_bit, "packed: 'a': bits are set after the last of"),
    ):
        with pytest.raises(ValueError, match=what):
            fk.load_masks(model, given)
        assert torch.equal(fk.masks(model), packed)
    with pytest.raises(ValueError, match="model: no frozen layers"):
        fk.masks(nn.Sequential(nn.Linear(2, 2)))
    with torch.device("meta"):
        empty = Net()
        fk.freeze_(empty)
    with pytest.raises(ValueError, match="'conv' is on the meta device"):
        fk.masks(empty)


def test_masks_of_stored_weights():
    model = Net()
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.5), lambda module, name: True)
    other = Net()
    other.load_state_dict({n: p for n, p in model.state_dict().items() if "bias" in n}, strict=False)
    packed = fk.masks(model)
    assert 8 * packed.numel() >= 5 * 27 + 45 * 45 + 3 * 45
    bits = torch.from_numpy(np.unpackbits(packed.numpy(), bitorder="little")).bool()
    flipped = fk.format.pack_bits(~bits)
    with pytest.raises(ValueError, match="'conv': bits are set after the last of 135"):
        fk.load_masks(model, flipped)
    flipped[16] &= 127
    flipped[17 + 253] &= 1
    flipped[-1] &= 127
    fk.load_masks(model, flipped)
    assert torch.equal(fk.masks(model), flipped) and model.a.values is model.b.values
    assert torch.equal(model.a.keep_mask(), model.b.keep_mask())
    fk.finalize_(model)
    with pytest.raises(RuntimeError, match="packed: 'conv' is finalized with"):
        fk.load_masks(model, packed)
    assert torch.equal(fk.masks(model), flipped)


@pytest.mark.parametrize("clients", [1, 2, 3, 10, 130, 300])
@pytest.mark.parametrize("kind", ["none", "integers", "floats"])
def test_means_equal_those_of_unpacked_bits(clients, kind):
    draw = np.random.default_rng(clients)
    packed = [torch.from_numpy(draw.integers(0, 256, 21, dtype=np.uint8)) for _ in range(clients)]
    weights = {
        "none": None,
        "integers": draw.integers(0, 5000, clients).tolist(),
        "floats": draw.uniform(0, 3, clients).tolist(),
    }[kind]
    bits = np.stack([np.unpackbits(mask.numpy(), bitorder="little") for mask in packed]).astype(np.float64)
    expected = np.average(bits, axis=0, weights=weights).astype(np.float32)
    found = fk.aggregate_masks(iter(packed), weights)
    assert found.dtype == torch.float32 and found.shape == (168,)
    if kind == "floats":
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    else:
        assert found.tolist() == expected.tolist()
    majority = np.unpackbits(fk.majority_mask(found).numpy(), bitorder="little")
    assert majority.tolist() == (found > 0.5).int().tolist()


def test_means_over_blocks_and_views():
    rows = torch.randint(0, 256, (4, (1 << 18) + 13), dtype=torch.uint8)
    found = fk.aggregate_masks(rows[:, 1:])  # no row begins on a word
    bits = np.unpackbits(rows[:, 1:].numpy(), axis=1, bitorder="little")
    assert np.array_equal(found.numpy(), bits.mean(0).astype(np.float32))
    assert fk.aggregate_masks([torch.empty(0, dtype=torch.uint8)]).shape == (0,)


def test_clients_that_do_not_agree_are_refused():
    one = torch.zeros(3, dtype=torch.uint8)
    for given, weights, what in (
        ([], None, "masks: at least one, got none"),
        ([one, one[:2]], None, r"masks\[1\]: 2 bytes on cpu, masks\[0\] has 3 on cpu"),
        ([one, one.bool()], None, r"masks\[1\]: packed bits, uint8 \[bytes\], got torch.bool \[3\]"),
        ([one, one], [1], "weights: 1 for 2 masks"),
        ([one, one], [1, -1], r"weights\[1\]: 0 or more and finite, got -1"),
        ([one, one], [0.5, float("nan")], r"weights\[1\]: 0 or more and finite, got nan"),
        ([one, one], [0, 0], "weights: they sum to 0, expected more than 0"),
    ):
        with pytest.raises(ValueError, match=what):
            fk.aggregate_masks(given, weights)
    for mean, what in (
        (torch.full((8,), 1.5), r"mean: 8 of 8 values are out of \[0, 1\]"),
        (torch.full((8,), float("nan")), "mean: 8 of 8 values"),
        (torch.zeros(7), r"mean: floating \[8 \* bytes\], got torch.float32 \[7\]"),
        (one, "mean: floating"),
    ):
        with pytest.raises(ValueError, match=what):
            fk.majority_mask(mean)


def test_a_mean_becomes_scores():
    model = frozen_net()
    clients = []
    for seed in range(4):
        shuffled(model, seed)
        clients.append(fk.masks(model))
    mean = fk.aggregate_masks(clients)
    fk.load_mean(model, mean, least=0.1)
    at = 0
    for name in ("conv", "a", "head"):
        layer = frozen_layers(model)[name]
        expected = mean[at : at + layer.free].clamp(0.1, 0.9)
        torch.testing.assert_close(layer.scores.sigmoid(), expected)
        at += 8 * -(-layer.free // 8)
    assert model.a.scores is model.b.scores
    before = [layer.scores.clone() for layer in frozen_layers(model).values()]
    for wrong, least, what in (
        (mean[:-8], 0.1, "mean: 'head' with .* free weights is at"),
        (mean + 1, 0.1, r"are out of \[0, 1\]"),
        (mean, 0.6, "least: above 0 and at most 0.5, got 0.6"),
    ):
        with pytest.raises(ValueError, match=what):
            fk.load_mean(model, wrong, least)
    assert all(torch.equal(a, m.scores) for a, m in zip(before, frozen_layers(model).values(), strict=True))
    fk.EdgePopup(model).step()
    fk.finalize_(model)
    with pytest.raises(ValueError, match="mean: 'conv' is finalized"):
        fk.load_mean(model, mean)
