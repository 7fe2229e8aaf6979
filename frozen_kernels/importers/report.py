"""`ImportReport`: what a file gave, what was computed instead of read, and what in it was outdated."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..text import listed


@dataclass
class Imported:
    """One layer that became a frozen one.

    `name` and `kind` are the layer's, `shape` its weight's; `kept` of its `count` weights are not zero. `values` is the
    dtype that its kept weights have, or their scale.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    kept: int
    count: int
    values: str

    def __str__(self) -> str:
        share = self.kept / self.count if self.count else 0.0
        return f"{self.name}: {self.kind}{list(self.shape)}, {share:.1%} kept"


class Layers:
    """What reports of imported layers have in common."""

    layers: list[Imported]

    @property
    def kept(self) -> int:
        """Kept weights of the frozen layers; others are zero."""
        return sum(layer.kept for layer in self.layers)

    @property
    def weights(self) -> int:
        """All weights of the frozen layers."""
        return sum(layer.count for layer in self.layers)


@dataclass
class ImportReport(Layers):
    """What `load_` did; `print` it.

    `layout`: the layout, one of `LAYOUTS`. `source`: the file. `layers`: the frozen layers. `dense`: name and reason of
    each weight that the file masks and that no frozen layer can hold; it is loaded as a dense tensor with zeros.
    `loaded`: names of all other tensors, loaded as they are. `recomputed`: what the file does not hold, or not for
    certain, and what it was computed from. `stale`: what the file holds that its own scores contradict, which was not
    used.
    """

    layout: str
    source: str
    layers: list[Imported] = field(default_factory=list)
    dense: list[tuple[str, str]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: layout {self.layout}; {self.kept:,} of {self.weights:,} weights kept, layers frozen: "
            f"{len(self.layers)}"
        ]
        lines += [f"  {layer}, values in {layer.values}" for layer in self.layers]
        if self.loaded:
            lines.append(f"other tensors loaded as they are: {len(self.loaded)} ({listed(self.loaded)})")
        if self.dense:
            lines.append("masked in the file, loaded as dense tensors with zeros:")
            lines += [f"  {name}: {why}" for name, why in self.dense]
        for title, entries in (("computed", self.recomputed), ("outdated in the file and not used", self.stale)):
            if entries:
                lines.append(f"{title}:")
                lines += [f"  {entry}" for entry in entries]
        return "\n".join(lines)
