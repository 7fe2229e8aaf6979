"""Streams of bits at some positions of another stream, as section 8 of the format stores them; uint8 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_BLOCK = 1 << 20  # bits unpacked at once, a byte each; whole bytes of a stream


def _unpacked(stream: np.ndarray, first: int, count: int) -> np.ndarray:
    """uint8 0 and 1 of `count` bits from `first` on."""
    piece = np.unpackbits(stream[first >> 3 : (first + count + 7) >> 3], bitorder="little")
    return piece[first & 7 : (first & 7) + count]


def _blocks(chosen: np.ndarray, count: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """First position and length of each block, and a bool of which of its positions are chosen."""
    for first in range(0, count, _BLOCK):
        here = min(_BLOCK, count - first)
        yield first, here, _unpacked(chosen, first, here).view(bool)


def select_bits(stream: Tensor, chosen: Tensor, count: int) -> Tensor:
    """uint8: the bits of a stream at those of its `count` positions that the stream `chosen` has set, as a stream."""
    source, found, rest = stream.numpy(), [], np.zeros(0, np.uint8)
    for first, here, where in _blocks(chosen.numpy(), count):
        bits = np.concatenate((rest, _unpacked(source, first, here)[where]))
        whole = len(bits) // 8 * 8
        found.append(np.packbits(bits[:whole], bitorder="little"))
        rest = bits[whole:]
    found.append(np.packbits(rest, bitorder="little"))
    return torch.from_numpy(np.concatenate(found))


def deposit_bits(bits: Tensor, chosen: Tensor, count: int) -> Tensor:
    """uint8 [ceil(count / 8)]: the inverse of `select_bits`; 0 at the positions that are not chosen."""
    source, out, done = bits.numpy(), np.zeros(-(-count // 8), np.uint8), 0
    for first, here, where in _blocks(chosen.numpy(), count):
        found, taken = np.zeros(here, np.uint8), int(np.count_nonzero(where))
        found[where] = _unpacked(source, done, taken)
        out[first >> 3 : (first + here + 7) >> 3] = np.packbits(found, bitorder="little")
        done += taken
    return torch.from_numpy(out)
