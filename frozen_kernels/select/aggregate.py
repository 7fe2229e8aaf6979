"""The mean of many packed masks, bit by bit, counted without unpacking any of them. Plain tensors alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import format as fmt

_BLOCK = 1 << 15  # bytes of each mask in a block: its counters, and the numbers they become, stay in a cache
_MOST = 1 << 53  # what a float64 counts exactly


def aggregate_masks(masks: Iterable[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """The mean of the clients' bits: the probability of each weight in federated mask training.

    FedPM (Isik et al. 2023, arXiv 2209.15328): a client sends one bit for each free weight, and the mean of the bits is
    the next probability. Bits are added in counters of one bit plane each, as carry-save adders do, so that a client
    costs five operations on words of 64 bits; float weights take a table lookup for each byte instead.

    Args:
        masks: packed masks of equal size, uint8 [bytes], on one device, as `fk.masks` gives them.
        weights: of each client, such as how many samples it has: integers are counted exactly; 1 each by default.

    Returns:
        float32 [8 * bytes]: of bit `i & 7` of byte `i >> 3`. Bits that pad a layer's last byte have 0.

    Raises:
        ValueError: no masks, one of another dtype, size or device than the first (its place and both values are named),
            another number of weights than masks, or weights that are negative, not finite, or sum to 0.
    """
    packed = list(masks)
    _check_masks(packed)
    shares = _checked_weights(weights, len(packed))
    mean = torch.empty(packed[0].numel() * 8, dtype=torch.float32, device=packed[0].device)
    exact = all(isinstance(w, int) for w in shares)
    total = math.fsum(shares)
    for first in range(0, packed[0].numel(), _BLOCK):
        blocks = [mask[first : first + _BLOCK] for mask in packed]
        sums = _counted(blocks, shares, total) if exact else _weighted(blocks, shares)  # type: ignore[arg-type]
        mean[8 * first : 8 * first + sums.numel()] = sums.div_(total)
    return mean


def majority_mask(mean: Tensor) -> Tensor:
    """The packed mask of the bits that more than half of the clients keep: uint8 [bytes].

    Args:
        mean: floating [8 * bytes], of `aggregate_masks`.

    Raises:
        ValueError: what is no mean: another dtype or size, or values out of [0, 1].
    """
    check_mean(mean)
    return fmt.pack_bits(mean > 0.5)


def check_mean(mean: Tensor) -> None:
    """ValueError for what `aggregate_masks` does not give."""
    if not isinstance(mean, Tensor) or not mean.is_floating_point() or mean.dim() != 1 or mean.numel() % 8:
        found = f"{mean.dtype} {list(mean.shape)}" if isinstance(mean, Tensor) else type(mean).__name__
        raise ValueError(f"mean: floating [8 * bytes], got {found}")
    outside = int((~((mean >= 0) & (mean <= 1))).sum())
    if outside:
        raise ValueError(f"mean: {outside} of {mean.numel()} values are out of [0, 1], expected none")


def _check_masks(packed: list[Tensor]) -> None:
    if not packed:
        raise ValueError("masks: at least one, got none")
    for place, mask in enumerate(packed):
        if not isinstance(mask, Tensor) or mask.dtype != torch.uint8 or mask.dim() != 1:
            found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"masks[{place}]: packed bits, uint8 [bytes], got {found}")
        if mask.shape != packed[0].shape or mask.device != packed[0].device:
            raise ValueError(
                f"masks[{place}]: {mask.numel()} bytes on {mask.device}, masks[0] has {packed[0].numel()} on "
                f"{packed[0].device}"
            )


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights as Python numbers: ints where all are integers."""
    if weights is None:
        return [1] * count
    given = weights.tolist() if isinstance(weights, Tensor) else list(weights)
    if len(given) != count:
        raise ValueError(f"weights: {len(given)} for {count} masks")
    whole = [fmt.as_integer(w) for w in given]
    found: list[float] = [float(w) for w in given] if None in whole else whole  # type: ignore[assignment]
    for place, weight in enumerate(found):
        if not 0 <= weight < math.inf:
            raise ValueError(f"weights[{place}]: 0 or more and finite, got {given[place]!r}")
    total = sum(found)
    if not 0 < total <= _MOST:
        raise ValueError(f"weights: they sum to {total}, expected more than 0 and at most 2^53")
    return found


def _words(block: Tensor) -> Tensor:
    """A block as int64 [ceil(bytes / 8)], padded with zeros."""
    if block.numel() % 8 == 0 and block.is_contiguous() and block.storage_offset() % 8 == 0:
        return block.view(torch.int64)
    padded = torch.zeros(-(-block.numel() // 8) * 8, dtype=torch.uint8, device=block.device)
    padded[: block.numel()] = block
    return padded.view(torch.int64)


def _counted(blocks: list[Tensor], weights: list[int], total: float) -> Tensor:
    """float [8 * bytes]: the sum of integer weights, which are `total` together, of the masks that have each bit."""
    planes: list[list[Tensor]] = []  # at place k: planes of bits that count 2^k each, at most two

    def put(plane: Tensor, place: int) -> None:
        while len(planes) <= place:
            planes.append([])
        here = planes[place]
        if len(here) < 2:
            here.append(plane)
            return
        a, b = here
        either = a ^ b
        here[:] = [either ^ plane]
        put((a & b) | (either & plane), place + 1)

    for block, weight in zip(blocks, weights, strict=True):
        plane = _words(block) if weight else None
        for place in range(weight.bit_length()):
            if weight >> place & 1:
                assert plane is not None
                put(plane, place)
    # below 2^24 a float32 is the count, and its quotient is rounded once
    return _summed(planes, blocks[0].numel(), torch.float32 if total < 1 << 24 else torch.float64)


def _summed(planes: list[list[Tensor]], count: int, dtype: torch.dtype) -> Tensor:
    """`dtype` [8 * count]: what planes of bits count together."""
    device = planes[0][0].device if planes[0] else next(p for here in planes for p in here).device
    spread = _spread(device)
    sums = None
    for first in range(0, len(planes), 7):  # two planes at each place: seven places fill a byte
        lanes = None
        for place, here in enumerate(planes[first : first + 7]):
            for plane in here:
                bits = spread.index_select(0, plane.view(torch.uint8)[:count].int()).bitwise_left_shift_(place)
                lanes = bits if lanes is None else lanes.add_(bits)
        if lanes is not None:
            part = lanes.view(torch.uint8).to(dtype)
            sums = part.mul_(2.0**first) if sums is None else sums.add_(part, alpha=2.0**first)
    assert sums is not None
    return sums


def _spread(device: torch.device) -> Tensor:
    """int64 [256]: the bits of a byte in the eight bytes of a word."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return bits.to(torch.uint8).contiguous().view(torch.int64).flatten()


def _weighted(blocks: list[Tensor], weights: list[float]) -> Tensor:
    """float64 [8 * bytes]: the sum of weights of the masks that have each bit."""
    bits = (torch.arange(256, device=blocks[0].device)[:, None] >> torch.arange(8, device=blocks[0].device)) & 1
    sums = torch.zeros(blocks[0].numel(), 8, dtype=torch.float64, device=blocks[0].device)
    table = bits.to(torch.float64)
    for block, weight in zip(blocks, weights, strict=True):
        sums += (table * weight).index_select(0, block.int())
    return sums.flatten()
