"""Is a result right: compared with float64, and with what torch itself makes of it in the same dtype."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

ALLOWED = 2.0  # times torch's own error
TINY = 1e-30  # torch may be exact by luck


class Verdict(NamedTuple):
    """`error` and `torch_error`: the largest, relative to the largest value; `why` it did not pass."""

    passed: bool
    error: float = 0.0
    torch_error: float = 0.0
    why: str = ""


def _errors(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root mean square error, each over that of the values."""
    off = found.double() - exact
    return tuple((of(off) / of(exact).clamp_min(TINY)).item() for of in (_largest, _root_mean_square))  # type: ignore[return-value]


def _largest(t: Tensor) -> Tensor:
    return t.abs().max()


def _root_mean_square(t: Tensor) -> Tensor:
    return t.square().mean().sqrt()


def judge(found: Tensor, torchs: Tensor, exact: Tensor, *, least: float = 0.0) -> Verdict:
    """Passes where shape and dtype are torch's, and both errors against float64 at most twice torch's and finite.

    `least`: what counts as torch's error where it is smaller: of few values, torch's may be right by luck.
    """
    if found.shape != torchs.shape or found.dtype != torchs.dtype:
        return Verdict(False, why=f"{found.dtype} {list(found.shape)}, torch {torchs.dtype} {list(torchs.shape)}")
    ours, theirs = _errors(found, exact), _errors(torchs, exact)
    pairs = zip(ours, theirs, strict=True)
    passed = all(math.isfinite(mine) and mine <= ALLOWED * max(other, least) + TINY for mine, other in pairs)
    kinds = zip(("largest", "rms"), ours, theirs, strict=True)
    why = "" if passed else ", ".join(f"{kind} error {mine:.2e}, torch {other:.2e}" for kind, mine, other in kinds)
    return Verdict(passed, ours[0], theirs[0], why)
