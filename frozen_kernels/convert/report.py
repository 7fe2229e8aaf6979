"""`FreezeReport`: what `freeze_` did, what it passed over, and what share of the model that is."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..format import SIGNS, STORED
from ..text import listed


@dataclass
class Converted:
    """One converted layer; `shape` is the weight's, counts are of its weights."""

    name: str
    kind: str
    shape: tuple[int, ...]
    code: str
    stream: int
    pruned: int
    locked: int
    free: int
    kept: int

    @property
    def weights(self) -> int:
        return self.pruned + self.locked + self.free

    def __str__(self) -> str:
        named, total = f"{self.name}: {self.kind}{list(self.shape)}", max(self.weights, 1)
        if self.code == STORED:
            return f"{named} stored, {self.kept:,} kept, sparsity {1 - self.kept / total if self.weights else 0:.1%}"
        if self.code == SIGNS:
            return f"{named} signs, scores of stream {self.stream}, {self.kept:,} kept"
        pruned, locked, free = (f"{n / total:.1%}" for n in (self.pruned, self.locked, self.free))
        return f"{named} stream {self.stream}, {pruned} pruned, {locked} locked, {free} free"


@dataclass
class FreezeReport:
    """What `freeze_` converted, and what it passed over and why; `print` it.

    `converted`: the frozen layers. `skipped`: name and reason of every layer, and of every other module that itself
    holds a parameter of two or more dimensions, that stays as it was. `vectors`: name and type of modules whose own
    parameters have fewer dimensions, such as norms; they stay too. `frozen_bytes` of the `model_bytes` are weights that
    are frozen now, counted as the dense weights that they were. `trained`: signs that the replaced weights had been
    trained; empty where none is seen.
    """

    converted: list[Converted] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    vectors: list[tuple[str, str]] = field(default_factory=list)
    frozen_bytes: int = 0
    model_bytes: int = 0
    trained: list[str] = field(default_factory=list)

    @property
    def weights(self) -> int:
        """Frozen weights in all."""
        return sum(c.weights for c in self.converted)

    @property
    def free(self) -> int:
        """Free weights in all: the scores to train and the bits of the supermask."""
        return sum(c.free for c in self.converted)

    @property
    def share(self) -> float:
        """The part of the model's bytes that is frozen, 0 to 1."""
        return self.frozen_bytes / self.model_bytes if self.model_bytes else 0.0

    def __str__(self) -> str:
        lines = [f"{self.share:.1%} of the model's bytes are frozen: {self.frozen_bytes:,} of {self.model_bytes:,}"]
        if self.trained:
            lines.append(
                "its weights look trained; freeze_ replaced them by random ones from the seed and kept none of them ("
                + "; ".join(self.trained)
                + ")"
            )
        lines.append(
            f"{counted(len(self.converted), 'layer')} frozen: {self.weights:,} weights, {self.free:,} of them free"
        )
        stored = [c for c in self.converted if c.code == STORED]
        total = sum(c.weights for c in stored)
        if total:
            kept = sum(c.kept for c in stored)
            lines.append(
                f"{counted(len(stored), 'layer')} with stored weights: sparsity {1 - kept / total:.2%} over the "
                f"{total:,} weights searched, {kept:,} kept"
            )
        lines += [f"  {c}" for c in self.converted]
        if self.skipped:
            lines.append(f"{counted(len(self.skipped), 'module')} skipped")
            lines += [f"  {name or 'model'}: {why}" for name, why in self.skipped]
        if self.vectors:
            lines.append(f"{counted(len(self.vectors), 'module')} with vectors alone: {self._vectors_by_type()}")
        return "\n".join(lines)

    def _vectors_by_type(self) -> str:
        names: dict[str, list[str]] = {}
        for name, kind in self.vectors:
            names.setdefault(kind, []).append(name or "model")
        return "; ".join(f"{len(found)} {kind} ({listed(found)})" for kind, found in names.items())


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
