"""The example of a small GPT, for a few steps."""

import char_gpt as example
import pytest
import torch
from torch.nn import functional as F

import frozen_kernels as fk


def test_a_few_steps_bring_both_nets_down_and_the_ticket_back(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    out = tmp_path / "net.safetensors"
    settings = ["--steps", "15", "--width", "32", "--layers", "1", "--out", str(out)]
    found = example.main([str(path), *settings])
    assert found["ticket"] < found["untrained"] - 0.3 and found["dense"] < found["untrained"]
    assert found["again"] == found["ticket"] and found["ticket bytes"] == out.stat().st_size < found["dense bytes"] / 3
    assert "the ticket read again" in capsys.readouterr().out


def test_all_weights_are_frozen_and_the_future_is_not_seen():
    torch.manual_seed(0)
    model = example.CharGPT(20, 32, 2)
    search = example.freeze(model, seed=3, sparsity=0.5, gain=2.5)
    assert all(p.dim() < 2 for p in model.parameters()) and len(list(search.parameters())) == 2 + 2 * 4 + 1
    attention = model.blocks[0].attention
    assert isinstance(attention, fk.nn.FrozenMultiheadAttention)
    assert attention.in_proj.gain.unique().tolist() == [1.0, 2.5]
    tokens = torch.randint(20, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 20
    torch.testing.assert_close(model(tokens)[:, :7], model(changed)[:, :7])
    assert not torch.equal(model(tokens)[:, 7:], model(changed)[:, 7:])


def test_bits_are_those_of_a_uniform_guess_at_equal_logits():
    text = example.Text("abcdefgh" * 200)
    model = example.CharGPT(8, 32, 1)
    torch.nn.init.zeros_(model.head.weight), torch.nn.init.zeros_(model.head.bias)
    assert example.bits_per_character(model, text) == pytest.approx(3.0, rel=1e-5)
    x, y = text.batch(torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (example.BATCH, example.CONTEXT) and torch.equal(x[:, 1:], y[:, :-1])
    assert F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() == pytest.approx(3 * 0.6931472, rel=1e-5)


def test_the_docs_are_the_text_by_default_and_a_short_one_is_refused():
    assert (example.DOCS / "format.md").read_text(encoding="utf-8") in example.read(None)
    with pytest.raises(SystemExit, match="640 characters are needed, got 100"):
        example.Text("a" * 100)
