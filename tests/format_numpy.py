"""The weight format in plain numpy, written from its definition alone: slow, independent of the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

VECTORS = json.loads((Path(__file__).parent / "vectors" / "format_v1_vectors.json").read_text())
SIGN, BYTE, PARTITION, SCORE = 0, 1, 16, 32
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.array(VECTORS["normal_table_positive_half"], dtype=np.int16)
NORMAL_TABLE = np.concatenate((-_HALF[::-1], _HALF))


def philox(c0, c1, c2, c3, seed: int) -> list[np.ndarray]:
    """Four uint64 arrays holding 32-bit words."""
    x = list(np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in (c0, c1, c2, c3))))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [
            (b >> np.uint64(32)) ^ x[1] ^ np.uint64(k0),
            b & _LOW,
            (a >> np.uint64(32)) ^ x[3] ^ np.uint64(k1),
            a & _LOW,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x


def beta(k):
    return ((k & 31) >> 1) | ((k & 1) << 4)


def _grid(rows, cols, row0, col0):
    return np.arange(row0, row0 + rows)[:, None], np.arange(col0, col0 + cols)[None, :]


def _pick(x, index):
    return np.choose(np.broadcast_to(index, x[0].shape), x).astype(np.int64)


def codes(rows, cols, *, seed, stream, code, generation=0, row0=0, col0=0):
    r, k = _grid(rows, cols, row0, col0)
    if code == "sign":
        word = _pick(philox(k >> 7, r, SIGN | generation << 8, stream, seed), (k >> 5) & 3)
        return (1 - 2 * (word >> beta(k) & 1)).astype(np.int16)
    if code == "constant":
        return np.ones((rows, cols), dtype=np.int16)
    byte = draw_bytes(rows, cols, seed=seed, stream=stream, generation=generation, row0=row0, col0=col0)
    return (2 * byte - 255).astype(np.int16) if code == "uniform" else NORMAL_TABLE[byte]


def draw_bytes(rows, cols, *, seed, stream, generation=0, row0=0, col0=0):
    r, k = _grid(rows, cols, row0, col0)
    return _pick(philox(k >> 4, r, BYTE | generation << 8, stream, seed), (k >> 2) & 3) >> (8 * (k & 3)) & 255


def draws(rows, cols, *, seed, stream, row0=0, col0=0):
    r, k = _grid(rows, cols, row0, col0)
    u = np.zeros((rows, cols), dtype=np.int64)
    for q in range(4):
        for i, plane in enumerate(philox(k >> 5, r, PARTITION + q, stream, seed)):
            u |= (plane.astype(np.int64) >> beta(k) & 1) << (15 - (4 * q + i))
    return u.astype(np.int32)


def partition(rows, cols, *, seed, stream, tau_prune, tau_freeze, row0=0, col0=0):
    u = draws(rows, cols, seed=seed, stream=stream, row0=row0, col0=col0)
    return np.where(u < tau_prune, -1, np.where(u < tau_freeze, 1, 0)).astype(np.int8)


def score_draws(rows, cols, *, seed, stream, row0=0, col0=0):
    r, k = _grid(rows, cols, row0, col0)
    return _pick(philox(k >> 2, r, SCORE, stream, seed), k & 3).astype(np.uint32).view(np.int32)


def uniform_scores(rows, cols, *, seed, stream, bound=1.0, row0=0, col0=0):
    x = score_draws(rows, cols, seed=seed, stream=stream, row0=row0, col0=col0)
    return (x >> 8).astype(np.float32) * np.float32(2.0**-23) * np.float32(bound)


def stream_order(matrix):
    """Values of a [rows, cols] matrix in the order of a stream, flat."""
    cols = matrix.shape[1]
    k = np.arange(cols)
    return matrix[:, np.argsort((k >> 5) * 32 + beta(k))].reshape(-1)


def pack(keep, part):
    bits = stream_order(keep)[stream_order(part) == 0]
    return np.packbits(bits, bitorder="little")


def planes(keep):
    rows, cols = keep.shape
    words = np.zeros((rows, -(-cols // 32)), dtype=np.uint32)
    for k in range(cols):
        words[:, k >> 5] |= keep[:, k].astype(np.uint32) << np.uint32(beta(k))
    return words


def calibrate(u, count, bits):
    """The smallest multiple of 2^(16 - bits) whose #(u < tau) is nearest to count."""
    below = np.concatenate(([0], np.cumsum(np.bincount(u.reshape(-1), minlength=65536))))
    taus = np.arange(0, 65537, 1 << (16 - bits))
    return int(taus[np.argmin(np.abs(below[taus] - count))])
