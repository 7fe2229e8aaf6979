"""Every rule trains on digits, and its ticket has the bytes of its paper and the same outputs in a new process."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import compare_rules as compare
import pytest
import torch

import frozen_kernels as fk

ROOT = Path(__file__).parents[1]
AGAIN = """
import sys
from pathlib import Path
import torch
import compare_rules as compare
import frozen_kernels as fk

compare.CHANNELS, compare.BLOCKS = map(int, sys.argv[2:])
x = torch.load(Path(sys.argv[1]) / "x.pt")
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    model = fk.load_ticket(compare.plain(compare.RULES[path.stem]), path).eval()
    with torch.no_grad():
        assert torch.equal(model(x), torch.load(path.with_suffix(".pt"))), path
    print(path.stem)
"""


def accounted(name: str, model: torch.nn.Module) -> int:
    """Bytes of the weights by the papers: one bit a free weight, and what a rule has beside it."""
    layers = {layer.identity: layer for layer in model.modules() if isinstance(layer, fk.nn.FrozenLayer)}.values()
    total = sum(math.ceil(layer.free / 8) for layer in layers)
    if name in ("signed", "trichromatic"):
        total += sum(math.ceil(layer.counts["kept"] / 8) for layer in layers)
    if name in ("multicoated", "trichromatic"):
        # nested: one bit of each further coat for what the coat before keeps
        total += sum(math.ceil(kept / 8) for layer in layers for kept in layer.coat_kept()[:-1])
    if name == "iterand":
        drawn = [(int(layer.generations_of().max()), layer.free) for layer in layers]
        total += sum(highest.bit_length() * math.ceil(free / 8) for highest, free in drawn)
    return total


def checked(
    folder: Path, names: list[str], epochs: int, seed: int, data: compare.Split, random: float | None = None
) -> None:
    """Train each rule; at least 10 points above a random mask, of its bytes, and bitwise the same when read again.

    `random`: the accuracy of a random mask, that of each rule's own density by default.
    """
    for name in names:
        rule = compare.RULES[name]
        model, path = compare.train(rule, data, epochs, seed), folder / f"{name}.safetensors"
        assert compare.ticket(model, path)[0] == accounted(name, model), name
        least = compare.accuracy(compare.random_mask(rule, data, seed), data) if random is None else random
        assert compare.accuracy(model, data) >= least + 0.1, (name, least)
        with torch.no_grad():
            torch.save(model(data.test_x[:64]), path.with_suffix(".pt"))
    torch.save(data.test_x[:64], folder / "x.pt")
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AGAIN, str(folder), str(compare.CHANNELS), str(compare.BLOCKS)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path})
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(names)


def test_every_rule_trains_saves_and_reloads(tmp_path, monkeypatch):
    for name, value in (("BLOCKS", 2), ("BATCH", 32)):
        monkeypatch.setattr(compare, name, value)
    # few steps need long ones
    monkeypatch.setitem(compare.RULES, "sampled", replace(compare.RULES["sampled"], lr=200.0))
    data, names = (
        compare.load_split(),
        [name for name, rule in compare.RULES.items() if rule.ratios is None and name != "settled"],
    )
    small = compare.Split(data.train_x[:608], data.train_y[:608], data.test_x, data.test_y)
    random = compare.accuracy(compare.random_mask(compare.RULES["edge_popup"], small, 0), small)
    checked(tmp_path, names, 2, 0, small, random)


@pytest.mark.long
def test_every_rule_trains_in_full(tmp_path):
    checked(tmp_path, list(compare.RULES), 6, 0, compare.load_split())


def test_every_rule_has_a_preset_and_its_class_a_paper():
    presets = {rule.preset for rule in compare.RULES.values()}
    assert presets <= set(fk.config.PRESETS)
    searches = [getattr(fk.search, name) for name in fk.search.__all__ if isinstance(getattr(fk.search, name), type)]
    papers = {s.__module__: sys.modules[s.__module__].__doc__ for s in searches if not s.__module__.endswith(".rule")}
    assert len(papers) >= 8 and all(re.search(r"20\d\d|arXiv", str(text)) for text in papers.values())
