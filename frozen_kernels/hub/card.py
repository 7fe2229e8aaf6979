"""The model card of a shared ticket: front matter for the hub, how to load it, its bytes and its layers."""

from __future__ import annotations

import json
import re
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
# the last of them begins a line, which no name or value in between does
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


def renewed(old: bytes, new: bytes) -> bytes:
    """The old card with the marked part of the new one; unchanged where it has no marks, whatever its encoding."""
    marked = re.compile(re.escape(BEGIN).encode() + b".*?^" + re.escape(END).encode(), re.DOTALL | re.MULTILINE)
    (part,) = marked.findall(new)

    def put(found: re.Match[bytes]) -> bytes:
        return part.replace(b"\n", b"\r\n") if b"\r\n" in found[0] else part

    return marked.sub(put, old, count=1)


def span(text: str) -> str:
    """Text as code within a line of Markdown, whatever is in it."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    runs = re.findall("`+", text)
    fence, space = "`" * (1 + max(map(len, runs), default=0)), " " if runs else ""
    return f"{fence}{space}{text}{space}{fence}"


def _heading(text: str) -> str:
    """Text as a line of Markdown that shows it."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"[\\`*<>\[\]|&#~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def _quoted(text: str) -> str:
    """Text as a literal of Python; bytes of a folder's name that are no text are written as escapes."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; the first column on the left, the others on the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    cells = [[f"{c:,}" if isinstance(c, int) else str(c).replace("|", r"\|") for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *cells])


@dataclass
class Card:
    """What a card is made of."""

    model: nn.Module
    report: Footprint
    config: Config
    metadata: dict[str, str | list[str]]

    def front(self) -> dict[str, str]:
        """The lines of the front matter; a text in JSON is one in YAML too."""
        return {key: f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in self.metadata.items()}

    def not_in(self, old: bytes) -> list[str]:
        """The fields that the caller has given, and that an old card has not, or otherwise."""
        given = {key: line for key, line in self.front().items() if self.metadata[key] not in (LIBRARY, [TAG])}
        return [key for key, line in given.items() if line.encode() not in old]

    def text(self, name: str, ticket_bytes: int) -> str:
        """The whole README.md; `name` is the folder or repository that readers load."""
        front = "\n".join(self.front().values())
        parts = [self._what(ticket_bytes), "## Load", self._load(name)]
        parts += ["## Bytes", *self._bytes(), "## Layers", self._layers()]
        body = "\n\n".join(parts)
        return f"---\n{front}\n---\n\n# {_heading(name)}\n\n{BEGIN}\n\n{body}\n\n{END}\n"

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
        kind, name = type(self.model), _quoted(name)
        if self.config.transformers:
            known = kind.__module__.startswith("transformers.")
            lines = [
                "import frozen_kernels as fk",
                f"from transformers import AutoConfig{f', {kind.__name__}' if known else ''}",
                "",
                f'config = AutoConfig.from_pretrained({name}, subfolder="transformers")',
                f"model = fk.from_pretrained({name}, build=lambda: {kind.__name__}(config))",
            ]
            return _code(lines)
        if self.config.build is None:
            loaded = f"model = fk.from_pretrained({name}, build=build)"
            return _code(["import frozen_kernels as fk", "", loaded]) + (
                f"\n\n`build` is a function that returns the plain torch model, a `{kind.__name__}`{self._arguments()}."
            )
        module, _, callable_ = self.config.build.partition(":")
        loaded = f"model = fk.from_pretrained({name}, build={callable_})"
        lines = ["import frozen_kernels as fk", f"from {module} import {callable_.partition('.')[0]}", "", loaded]
        return _code(lines) + (
            f"\n\n`{callable_}` makes the plain torch model{self._arguments()}. With `trust=True` in place of `build` "
            f"the library imports `{self.config.build}`, as `config.json` says."
        )

    def _arguments(self) -> str:
        texts = [f"{name}={value!r}" for name, value in self.config.build_kwargs.items()]
        given = ", ".join(span(text if len(text) <= 200 else f"{text[:200]}...") for text in texts)
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
    return [span(name), type(layer).__name__, "x".join(map(str, layer.shape)), code, seed, *shares]


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])
