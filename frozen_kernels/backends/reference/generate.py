"""Generators of the weight format: words, then codes, draws and partitions per element."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ... import format as fmt

_LOW = 0xFFFFFFFF
_BLOCK = 1 << 20  # elements generated at once: int64 intermediates stay small


def _multiply(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, in int64 that never overflows."""
    low = (a & 0xFFFF) * m
    middle = (a >> 16) * m + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def philox(c0: Tensor, c1: Tensor, c2: int, c3: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 on int64 tensors that hold 32-bit words; c0 and c1 broadcast. Salmon et al., SC11."""
    c0, c1 = torch.broadcast_tensors(c0, c1)
    x = (c0, c1, torch.full_like(c0, c2), torch.full_like(c0, c3))
    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(fmt.PHILOX_ROUNDS):
        high0, low0 = _multiply(x[0], fmt.PHILOX_MULTIPLIERS[0])
        high1, low1 = _multiply(x[2], fmt.PHILOX_MULTIPLIERS[1])
        x = (high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0)
        k0, k1 = (k0 + fmt.PHILOX_WEYL[0]) & _LOW, (k1 + fmt.PHILOX_WEYL[1]) & _LOW
    return x


def _call(fields: dict, c0: Tensor, rows: Tensor, purpose: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generation = fields["generation"] if purpose in (fmt.SIGN, fmt.BYTE, fmt.SEARCH) else 0
    return philox(c0[None, :], rows[:, None], purpose | generation << 8, fields["stream"], fields["seed"])


def _pick(x: tuple[Tensor, ...], index: Tensor) -> Tensor:
    """Word `index[k]` of the four outputs, for each column k."""
    return torch.stack(x, -1).gather(-1, index.expand(x[0].shape).unsqueeze(-1)).squeeze(-1)


def _bit(word: Tensor, cols: Tensor) -> Tensor:
    j = cols & 31
    return word >> ((j >> 1) | ((j & 1) << 4)) & 1


def sign_bits(fields: dict, rows: Tensor, cols: Tensor) -> Tensor:
    word = cols >> 5
    return _bit(_pick(_call(fields, word >> 2, rows, fmt.SIGN), word & 3), cols)


def byte_draws(fields: dict, rows: Tensor, cols: Tensor) -> Tensor:
    word = _pick(_call(fields, cols >> 4, rows, fmt.BYTE), cols >> 2 & 3)
    return word >> 8 * (cols & 3) & 255


def _u16(fields: dict, rows: Tensor, cols: Tensor) -> Tensor:
    u = torch.zeros(len(rows), len(cols), dtype=torch.int64, device=rows.device)
    for q in range(fmt.PARTITION_CALLS):
        for i, plane in enumerate(_call(fields, cols >> 5, rows, fmt.PARTITION + q)):
            u |= _bit(plane, cols) << 15 - (4 * q + i)
    return u


def _score_draws(fields: dict, rows: Tensor, cols: Tensor, purpose: int = fmt.SCORE) -> Tensor:
    return _pick(_call(fields, cols >> 2, rows, purpose), cols & 3)


def _as_int32(x: Tensor) -> Tensor:
    return (x - ((x >> 31) << 32)).to(torch.int32)


def _normal_table(device: torch.device) -> Tensor:
    upper = torch.tensor(fmt.NORMAL_UPPER_HALF, dtype=torch.int16, device=device)
    return torch.cat((-upper.flip(0), upper))


def _code_values(code: str, fields: dict, rows: Tensor, cols: Tensor) -> Tensor:
    if code == "constant":
        return torch.ones(len(rows), len(cols), dtype=torch.int16, device=rows.device)
    return codes_of_draw(code, (sign_bits if code == "sign" else byte_draws)(fields, rows, cols))


def codes_of_draw(code: str, draw: Tensor) -> Tensor:
    """int16: the codes of int64 draws, sign bits or bytes."""
    if code == "sign":
        return (1 - 2 * draw).to(torch.int16)
    if code == "uniform":
        return (2 * draw - 255).to(torch.int16)
    return _normal_table(draw.device)[draw]


def _partition_values(fields: dict, rows: Tensor, cols: Tensor) -> Tensor:
    u = _u16(fields, rows, cols)
    return (u < fields["tau_freeze"]).to(torch.int8) - 2 * (u < fields["tau_prune"]).to(torch.int8)


def _blocks(rows: int, cols: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, cols))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def fill(out: Tensor, row0: int, col0: int, values: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    columns = torch.arange(col0, col0 + out.shape[1], device=out.device)
    for block in _blocks(*out.shape):
        rows = torch.arange(row0 + block.start, row0 + block.stop, device=out.device)
        out[block] = values(rows, columns)
    return out


def codes(header: Tensor, code: str, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    fields = fmt.header_fields(header)
    out = torch.empty(rows, cols, dtype=torch.int16, device=header.device)
    return fill(out, row0, col0, lambda r, c: _code_values(code, fields, r, c))


def draws(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    fields = fmt.header_fields(header)
    out = torch.empty(rows, cols, dtype=torch.int32, device=header.device)
    return fill(out, row0, col0, lambda r, c: _u16(fields, r, c))


def partition(header: Tensor, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    fields = fmt.header_fields(header)
    out = torch.empty(rows, cols, dtype=torch.int8, device=header.device)
    return fill(out, row0, col0, lambda r, c: _partition_values(fields, r, c))


def uniform_scores(header: Tensor, bound: float, rows: int, cols: int, row0: int, col0: int) -> Tensor:
    fields = fmt.header_fields(header)
    out = torch.empty(rows, cols, dtype=torch.float32, device=header.device)

    def values(r: Tensor, c: Tensor) -> Tensor:
        exact = (_as_int32(_score_draws(fields, r, c)) >> 8).to(torch.float32) * 2.0**-23
        return exact * torch.tensor(bound, dtype=torch.float32, device=out.device)

    return fill(out, row0, col0, values)


def free_draws(header: Tensor, offsets: Tensor, rows: int, cols: int, purpose: int) -> Tensor:
    """int32 [free]: the draws of a purpose, SCORE or SEARCH, of the free weights in stream order."""
    fields = fmt.header_fields(header)
    columns = torch.arange(cols, device=header.device)
    parts = [torch.empty(0, dtype=torch.int32, device=header.device)]
    for block in _blocks(rows, cols):
        r = torch.arange(block.start, block.stop, device=header.device)
        free = fmt.stream_order(_partition_values(fields, r, columns) == 0)
        parts.append(_as_int32(fmt.stream_order(_score_draws(fields, r, columns, purpose)))[free])
    return torch.cat(parts)


def histogram(header: Tensor, rows: int, cols: int) -> Tensor:
    fields = fmt.header_fields(header)
    columns = torch.arange(cols, device=header.device)
    counts = torch.zeros(65536, dtype=torch.int64, device=header.device)
    for block in _blocks(rows, cols):
        r = torch.arange(block.start, block.stop, device=header.device)
        counts += torch.bincount(_u16(fields, r, columns).flatten(), minlength=65536)
    return counts


def partition_counts(header: Tensor, rows: int, cols: int) -> Tensor:
    part = partition(header, rows, cols, 0, 0)
    return torch.stack([(part == kind).sum() for kind in (-1, 1, 0)])
