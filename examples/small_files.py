"""The smallest plain files of nets without biases: weights in float32, in int8, as ternary digits, and pruned.

Every file is a `.safetensors`. A weight `name` is kept under one of these sets of names:

- `name`: float32;
- `name.int8` and `name.scale`: whole numbers from -127 to 127, and one float32 factor for each row;
- `name.trits` and `name.scale`: five digits of -1, 0 and 1 in a byte, 1.6 bits each;
- `name.bits` or `name.gaps`, with `name.int8` and `name.scale`: where a weight is not zero, and those values. `bits` is
  one bit for each weight; `gaps` is one byte for each value: how many zeros stand before it. The smaller one is taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

DIGITS = 5  # ternary digits in a byte: 3**5 = 243
FULL = 255  # a gap of this byte goes on in the next one, without a value
TERNARY_THRESHOLD = 0.7  # of the mean magnitude of a row, Li et al. 2016, arXiv 1605.04711


def ternary(weight: Tensor) -> Tensor:
    """The weight with each value as -a, 0 or a, one `a` for each row (Li et al., arXiv 1605.04711)."""
    rows = weight.flatten(1)
    size = rows.abs()
    kept = size > TERNARY_THRESHOLD * size.mean(1, keepdim=True)
    scale = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)
    return (scale * kept * rows.sign()).view_as(weight)


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(1).div(127).clamp(min=1e-12)
    return (rows / scale[:, None]).round().to(torch.int8), scale


def _to_gaps(kept: np.ndarray) -> np.ndarray:
    """Zeros before each value of a flat mask as bytes; a byte of 255 adds 255 zeros to the next."""
    where = np.flatnonzero(kept)
    found = []
    for gap in np.diff(where, prepend=-1) - 1:
        found += [FULL] * (gap // FULL) + [gap % FULL]
    return np.array(found, dtype=np.uint8)


def _from_gaps(gaps: np.ndarray, size: int) -> np.ndarray:
    places = np.cumsum(gaps.astype(np.int64) + (gaps != FULL)) - 1
    kept = np.zeros(size, dtype=bool)
    kept[places[gaps != FULL]] = True
    return kept


def _in_int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    values, scale = _to_int8(weight.flatten(1))
    return {f"{name}.int8": values, f"{name}.scale": scale}


def _in_trits(name: str, weight: Tensor) -> dict[str, Tensor]:
    rows = weight.flatten(1)
    digits = (rows.sign().flatten() + 1).to(torch.uint8).numpy()
    digits = np.pad(digits, (0, -len(digits) % DIGITS)).reshape(-1, DIGITS)
    packed = (digits * 3 ** np.arange(DIGITS)).sum(1).astype(np.uint8)
    return {f"{name}.trits": torch.from_numpy(packed), f"{name}.scale": rows.abs().amax(1)}


def _pruned(name: str, weight: Tensor) -> dict[str, Tensor]:
    values, scale = _to_int8(weight.flatten(1))
    kept = values.flatten().numpy() != 0
    bits, gaps = np.packbits(kept, bitorder="little"), _to_gaps(kept)
    where = {f"{name}.bits": bits} if len(bits) <= len(gaps) else {f"{name}.gaps": gaps}
    return {
        **{key: torch.from_numpy(value) for key, value in where.items()},
        f"{name}.int8": values.flatten()[torch.from_numpy(kept)],
        f"{name}.scale": scale,
    }


PACKED = {
    "float32": lambda name, weight: {name: weight},
    "int8": _in_int8,
    "ternary": _in_trits,
    "pruned": _pruned,
}


def _unpacked(name: str, shape: torch.Size, kept: dict[str, Tensor]) -> Tensor:
    """The weight of a name, float32 [*shape], from whichever names it has."""
    if name in kept:
        return kept[name]
    size, scale = shape.numel(), kept[f"{name}.scale"]
    if f"{name}.trits" in kept:
        powers = 3 ** np.arange(DIGITS)
        digits = (kept[f"{name}.trits"].numpy()[:, None] // powers % 3).flatten()[:size]
        values = torch.from_numpy(digits.astype(np.int8) - 1)
    elif f"{name}.bits" in kept or f"{name}.gaps" in kept:
        if f"{name}.bits" in kept:
            mask = np.unpackbits(kept[f"{name}.bits"].numpy(), bitorder="little")[:size].astype(bool)
        else:
            mask = _from_gaps(kept[f"{name}.gaps"].numpy(), size)
        values = torch.zeros(size, dtype=torch.int8)
        values[torch.from_numpy(mask)] = kept[f"{name}.int8"]
    else:
        values = kept[f"{name}.int8"]
    return (values.view(len(scale), -1) * scale[:, None]).view(shape)


@torch.no_grad()
def round_(model: nn.Module, kind: str) -> None:
    """Give a model the weights that a file of this kind can hold, in place."""
    for name, weight in model.named_parameters():
        weight.copy_(_unpacked(name, weight.shape, PACKED[kind](name, weight.detach())))


def save(model: nn.Module, path: Path, kind: str) -> None:
    """Write weights as `kind` (float32, int8, ternary, pruned) and float32 buffers; no counters of batches."""
    tensors: dict[str, Tensor] = {}
    for name, weight in model.named_parameters():
        tensors |= PACKED[kind](name, weight.detach())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@torch.no_grad()
def load_(model: nn.Module, path: Path) -> nn.Module:
    """Fill a plain model from a file of `save`, in place; returns it."""
    kept = load_file(path)
    for name, weight in model.named_parameters():
        weight.copy_(_unpacked(name, weight.shape, kept))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(kept[name])
    return model
