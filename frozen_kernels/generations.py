"""Weights drawn again one by one (IteRand, Chijiwa et al. 2021): each free weight has a generation of its own.

SIGN and BYTE of a weight are drawn with its generation (docs/format.md, sections 3 and 8). Generations are kept as bit
planes over the free weights, uint8 [ceil(log2 G), ceil(free / 8)].
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import format as fmt

MOST = 256  # generations: eight planes


def bits_of(count: int) -> int:
    """Bit planes of `count` generations."""
    return (count - 1).bit_length()


def planes_of(numbers: Tensor) -> Tensor | None:
    """Bit planes of uint8 [free] generations; None where all are 0. Waits for the device."""
    highest = int(numbers.max()) if numbers.numel() else 0
    if not highest:
        return None
    return torch.stack([fmt.pack_bits(numbers >> bit & 1) for bit in range(bits_of(highest + 1))])


def numbers_of(planes: Tensor | None, free: int, device: torch.device) -> Tensor:
    """uint8 [free]: the inverse of `planes_of`."""
    numbers = torch.zeros(free, dtype=torch.uint8, device=device)
    for bit, plane in enumerate(() if planes is None else planes.unbind()):
        numbers |= fmt.unpack_bits(plane, free).to(torch.uint8) << bit
    return numbers


def check_generations(planes: Tensor, free: int, name: str = "generations") -> None:
    """ValueError unless uint8 [1 to 8, ceil(free / 8)] without bits after the last, and a bit set in the last plane."""
    size = planes.shape[0] if planes.dim() else 0
    if planes.dtype != torch.uint8 or tuple(planes.shape) != (size, -(-free // 8)) or not 1 <= size <= bits_of(MOST):
        raise ValueError(
            f"{name}: uint8 [1 to {bits_of(MOST)}, {-(-free // 8)}] for {free} free weights, got {planes.dtype} "
            f"{list(planes.shape)}"
        )
    for plane in planes.unbind():
        fmt.check_supermask(plane, free, name)
    if not planes[-1].any():
        raise ValueError(f"{name}: {size} planes, and no bit is set in the last one")


def check_redrawn(code: str, generation: int) -> None:
    """ValueError where weights of this code, or with this generation in their header, have none of their own."""
    if code not in fmt.CODES or code == "constant":
        raise ValueError(f"generations: of weights that are drawn, and nothing is drawn for code {code!r}")
    if generation:
        raise ValueError(f"generations: beside generation 0 in the header, got {generation}")


def own_draws(header: Tensor, code: str, planes: Tensor, offsets: Tensor, rows: int, cols: int) -> Tensor:
    """The draw plane of weights with generations of their own: int32 [rows, words], or uint8 [rows, cols] for bytes.

    One draw for each generation that there is. Weights that are not free have that of the header. Waits for the device.
    """
    ops = torch.ops.frozen_kernels
    draw: Tensor = ops.draw_plane(header, code, rows, cols)
    nothing = torch.zeros_like(planes[0])
    if code == "sign":
        locked = ops.keep_plane(header, nothing, offsets, rows, cols)
    else:
        partition = ops.partition(header, rows, cols, 0, 0)
        free = partition == 0
    place = torch.tensor([fmt.GENERATION], device=header.device)
    for number in range(1, 1 << planes.shape[0]):
        stream = _of_generation(planes, number)
        if not stream.any():
            continue
        again = ops.draw_plane(header.index_fill(0, place, number), code, rows, cols)
        if code == "sign":
            here = ops.keep_plane(header, stream, offsets, rows, cols) ^ locked
            draw = draw & ~here | again & here
        else:
            draw = torch.where(ops.unpack(stream, partition) & free, again, draw)
    return draw


def _of_generation(planes: Tensor, number: int) -> Tensor:
    """uint8 stream: which free weights have this generation, at least 1: so bits after the last one are 0."""
    found = torch.full_like(planes[0], 255)
    for bit, plane in enumerate(planes.unbind()):
        found &= plane if number >> bit & 1 else ~plane
    return found
