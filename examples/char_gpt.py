"""A small GPT over characters, found by a search for masks, beside its dense twin trained as long.

`python examples/char_gpt.py TEXT` reads a text file, by default the pages of this repository's docs, trains both on
the first nine tenths and prints the bits per character on the rest. The ticket's weights are random and stay so:
embeddings, attention, MLP and head. Only their masks are searched (Ramanujan et al., arXiv 1911.13299). It is written
to `--out` and read again. `--gain` is a factor on query and key weights.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frozen_kernels as fk

DOCS = Path(__file__).parent.parent / "docs"
CONTEXT, BATCH, HEADS = 64, 32, 4
# of 1e-3, 3e-3 and of 3e-3, 1e-2 those that were best after 300 steps on the docs, one seed
LR_DENSE, LR_SCORES = 3e-3, 1e-2


class Block(nn.Module):
    """Attention to what came before, and an MLP: x [B, T, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, attn_mask=future, need_weights=False, is_causal=True)[0]
        return x + self.mlp(self.norm2(x))


class CharGPT(nn.Module):
    """The logits [B, T, characters] of each next character, of int64 [B, T] with T <= CONTEXT."""

    def __init__(self, characters: int, width: int, layers: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        self.register_buffer("future", torch.ones(CONTEXT, CONTEXT).triu(1).bool(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token(tokens) + self.place(torch.arange(length, device=tokens.device))
        for block in self.blocks:
            x = block(x, self.future[:length, :length])
        logits: Tensor = self.head(self.norm(x))
        return logits


class Text:
    """A text as characters: `train`, nine tenths of it, and `held_out`, int64."""

    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        number = {c: i for i, c in enumerate(self.characters)}
        tokens = torch.tensor([number[c] for c in text])
        self.train, self.held_out = tokens.split([len(tokens) * 9 // 10, len(tokens) - len(tokens) * 9 // 10])
        if len(self.held_out) <= CONTEXT:
            raise SystemExit(f"text: more than {10 * CONTEXT} characters are needed, got {len(tokens)}")

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Characters to read and those that follow each of them, both [BATCH, CONTEXT]."""
        starts = torch.randint(len(self.train) - CONTEXT, (BATCH, 1), generator=generator)
        both = self.train[starts + torch.arange(CONTEXT + 1)]
        return both[:, :-1], both[:, 1:]


def read(path: Path | None) -> str:
    """The text of a file, or of all pages of the docs."""
    paths = sorted(DOCS.rglob("*.md")) if path is None else [path]
    return "\n".join(p.read_text(encoding="utf-8") for p in paths)


@torch.no_grad()
def bits_per_character(model: nn.Module, text: Text) -> float:
    """The mean of -log2 of the probability of each held-out character, read in pieces of CONTEXT."""
    count = (len(text.held_out) - 1) // CONTEXT * CONTEXT
    given, wanted = (text.held_out[i : i + count].view(-1, CONTEXT) for i in (0, 1))
    model.eval()
    losses = [
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        for x, y in zip(given.split(BATCH), wanted.split(BATCH), strict=True)
    ]
    model.train()
    return float(torch.stack(losses).sum()) / count / math.log(2)


def freeze(model: nn.Module, seed: int, sparsity: float, gain: float) -> fk.EdgePopup:
    """Give all weights of the model to the seed, and return the search for their masks."""

    def config(module: nn.Module, name: str) -> fk.FreezeConfig:
        # query, key and value are one weight
        parts = (gain, gain, 1.0) if gain != 1 and name.endswith("in_proj") else 1.0
        return fk.FreezeConfig(seed=seed, sparsity=sparsity, freeze_ratio=0.0, scaling="dynamic", gain=parts)

    fk.freeze_(model, config, filter_fn=lambda module, name: True)
    return fk.EdgePopup(model)


def train(model: nn.Module, text: Text, search: fk.EdgePopup | None, steps: int, seed: int) -> float:
    """Train all parameters, or the scores of a search alone; returns the seconds that it took."""
    parameters, lr = (model.parameters(), LR_DENSE) if search is None else (search.parameters(), LR_SCORES)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, began = torch.Generator().manual_seed(seed), time.monotonic()
    for step in range(1, steps + 1):
        given, wanted = text.batch(generator)
        loss = F.cross_entropy(model(given).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if search is not None:
            search.step()
        if step % 100 == 0:
            print(f"  step {step}: {loss.item() / math.log(2):.3f} bits per character of the batch", flush=True)
    return time.monotonic() - began


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Both trainings; returns the bits per character of each on the held-out text, and the bytes of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="a text file; the docs of this repository by default")
    parser.add_argument("--steps", type=int, default=400, metavar="N")
    parser.add_argument("--width", type=int, default=128, metavar="N", help=f"a multiple of {HEADS}")
    parser.add_argument("--layers", type=int, default=2, metavar="N")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--gain", type=float, default=1.0, help="on query and key weights; 1 is better here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/char_gpt.safetensors"))
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps: at least 1")
    text = Text(read(options.text))

    def build() -> CharGPT:
        torch.manual_seed(options.seed)
        return CharGPT(len(text.characters), options.width, options.layers)

    print(f"{len(text.train):,} characters to train on, {len(text.characters)} different ones")
    model, dense = build(), build()
    search = freeze(model, options.seed, options.sparsity, options.gain)
    found: dict[str, float] = {"untrained": bits_per_character(model, text)}
    for name, net, how in (("ticket", model, search), ("dense", dense, None)):
        print(f"{name}:")
        seconds = train(net, text, how, options.steps, options.seed)
        found[name] = bits_per_character(net, text)
        print(f"  {found[name]:.3f} bits per held-out character after {options.steps} steps, {seconds:.0f} s")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    fk.save_ticket(model, options.out)
    again = bits_per_character(fk.load_ticket(build(), options.out), text)
    found["ticket bytes"] = options.out.stat().st_size
    found["dense bytes"] = sum(4 * p.numel() for p in dense.parameters())
    print(f"the ticket read again: {again:.3f}; the untrained masks: {found['untrained']:.3f}")
    print(f"{found['ticket bytes']:,.0f} bytes against {found['dense bytes']:,.0f}; written: {options.out}")
    found["again"] = again
    return found


if __name__ == "__main__":
    main()
