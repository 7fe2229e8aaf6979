"""The model card of a shared ticket: front matter for the hub, how to load it, its bytes and its layers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..format import SIGNS, STORED
from ..memory.footprint import Footprint
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers
from ..tickets.container import short
from .config import LIBRARY, Config

CARD = "README.md"
TAG = "frozen-kernels"
BEGIN, END = "<!-- frozen_kernels: begin, written by save_pretrained -->", "<!-- frozen_kernels: end -->"


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Fields of the front matter, None left out: text, and lists of text; ValueError for others, or for many lines."""
    found: dict[str, str | list[str]] = {"library_name": LIBRARY}
    for name, value in metadata.items():
        if value is None:
            continue
        several = isinstance(value, Sequence) and not isinstance(value, str)
        texts = list(value) if several else [value]
        if name == "tags" and not several:
            raise ValueError(f"tags: a list of texts, got {short(value)}")
        for text in texts:
            if not isinstance(text, str) or not text.strip() or not text.isprintable():
                raise ValueError(f"{name}: text of one line, got {short(text)}")
        found[name] = texts if several else value
    found["tags"] = list(dict.fromkeys([TAG, *found.get("tags", ())]))
    return found


def renewed(old: str, new: str) -> str:
    """The old card with the marked part of the new one; unchanged where it has no marks."""
    if BEGIN not in old or END not in old.partition(BEGIN)[2]:
        return old
    head, _, rest = old.partition(BEGIN)
    part = new.partition(BEGIN)[2].partition(END)[0]
    return head + BEGIN + part + END + rest.partition(END)[2]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; the first column on the left, the others on the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    cells = [[f"{c:,}" if isinstance(c, int) else str(c).replace("|", r"\|") for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *cells])


@dataclass
class Card:
    """What a card is made of; `transformers` where the model is one of that library."""

    model: nn.Module
    report: Footprint
    config: Config
    metadata: dict[str, str | list[str]]
    transformers: bool

    def text(self, name: str, ticket_bytes: int) -> str:
        """The whole README.md; `name` is the folder or repository that readers load."""
        # a text in JSON is one in YAML too
        front = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in self.metadata.items())
        parts = [self._what(ticket_bytes), "## Load", self._load(name)]
        parts += ["## Bytes", *self._bytes(), "## Layers", self._layers()]
        body = "\n\n".join(parts)
        return f"---\n{front}\n---\n\n# {name}\n\n{BEGIN}\n\n{body}\n\n{END}\n"

    def _what(self, ticket_bytes: int) -> str:
        layers = list(frozen_layers(self.model).values())
        sentences = [f"A frozen network, made and loaded by `{LIBRARY}`."]
        for said, chosen in (
            ("Of {} a seed draws the weights: `{}` holds one bit for each free weight.", _is_drawn),
            ("Of {} `{}` holds the weights that were kept, and one bit for each weight.", _is_stored),
            ("Of {} `{}` holds which weights count, and their signs: magnitudes are equal.", _is_signs),
        ):
            count = sum(map(chosen, layers))
            if count:
                sentences.append(said.format(f"{count} layer{'s' * (count > 1)}", self.config.ticket))
        dense = self.report.totals()["dense"]["total"]
        sentences.append(f"The file has {ticket_bytes:,} bytes; the same network with dense weights takes {dense:,}.")
        return " ".join(sentences)

    def _load(self, name: str) -> str:
        kind = type(self.model)
        if self.transformers:
            known = kind.__module__.startswith("transformers.")
            lines = [
                "import frozen_kernels as fk",
                f"from transformers import AutoConfig{f', {kind.__name__}' if known else ''}",
                "",
                f'config = AutoConfig.from_pretrained("{name}", subfolder="transformers")',
                f'model = fk.from_pretrained("{name}", build=lambda: {kind.__name__}(config))',
            ]
            return _code(lines)
        if self.config.build is None:
            loaded = f'model = fk.from_pretrained("{name}", build=build)'
            return _code(["import frozen_kernels as fk", "", loaded]) + (
                f"\n\n`build` is a function that returns the plain torch model, a `{kind.__name__}`{self._arguments()}."
            )
        module, _, callable_ = self.config.build.partition(":")
        loaded = f'model = fk.from_pretrained("{name}", build={callable_})'
        lines = ["import frozen_kernels as fk", f"from {module} import {callable_.partition('.')[0]}", "", loaded]
        return _code(lines) + (
            f"\n\n`{callable_}` makes the plain torch model{self._arguments()}. With `trust=True` in place of `build` "
            f"the library imports `{self.config.build}`, as `config.json` says."
        )

    def _arguments(self) -> str:
        given = ", ".join(f"`{name}={value!r}`" for name, value in self.config.build_kwargs.items())
        return f"; `config.json` gives it {given}" if given else ""

    def _bytes(self) -> list[str]:
        sums = self.report.totals()
        kinds = (("frozen weights", "frozen"), ("ordinary tensors", "ordinary"), ("metadata", "metadata"))
        rows = [
            [label, *("" if (c := sums[where].get(kind)) is None else c for where in ("disk", "resident", "dense"))]
            for label, kind in (*kinds, ("total", "total"))
        ]
        held = sorted({layer.residency for layer in self.report.layers})
        lines = [f"In memory: as saved, in residency {', '.join(f'`{name}`' for name in held)}."]
        bits = self.report.bits("disk")
        if bits is not None:
            lines.insert(0, f"{bits:.3f} bits on disk for each frozen weight.")
        scores = sum(layer.scores for layer in self.report.layers)
        if scores:
            lines.append(f"The search was not over: {scores:,} bytes in memory are scores, which no ticket holds.")
        peak = self.report.peak
        if peak.bytes is not None:
            lines.append(f"Peak of a forward: {peak.bytes:,} bytes ({peak.method}).")
        return [table(("bytes", "on disk", "in memory", "dense"), rows), " ".join(lines)]

    def _layers(self) -> str:
        head = ("layer", "kind", "weight", "code", "seed", "pruned", "locked", "free", "kept")
        return table(head, [_row(name, layer) for name, layer in frozen_layers(self.model).items()])


def _is_drawn(layer: FrozenLayer) -> bool:
    return layer.code not in (STORED, SIGNS)


def _is_stored(layer: FrozenLayer) -> bool:
    return layer.code == STORED


def _is_signs(layer: FrozenLayer) -> bool:
    return layer.code == SIGNS


def _row(name: str, layer: FrozenLayer) -> list[str]:
    counts, total = layer.counts, max(layer.rows * layer.cols, 1)
    shares = [f"{counts[kind] / total:.1%}" for kind in ("pruned", "locked", "free", "kept")]
    code = layer.code
    if layer.values is not None:
        code += f" {str(layer.values.dtype).removeprefix('torch.')}"
    if layer.coats is not None:
        code += f", {1 + layer.coats.shape[0]} coats"
    if layer.generations is not None:
        code += f", {1 + int(layer.generations_of().max())} generations"
    seed = str(layer.seed) if _is_drawn(layer) else ""
    return [f"`{name}`", type(layer).__name__, "x".join(map(str, layer.shape)), code, seed, *shares]


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
