"""The comparison of the README's picture: its files hold what they say, and its command runs."""

from __future__ import annotations

import csv

import compare_all
import pytest
import small_files
import torch
from torch import nn


def net() -> nn.Sequential:
    conv = nn.Conv2d(3, 8, 3, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(8, affine=False), nn.Flatten(), nn.Linear(77, 13, bias=False))


def sparse_net(kept: float) -> nn.Module:
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(torch.rand(weight.shape) < kept)
    return model


@pytest.mark.parametrize("kept", [0.0, 0.004, 0.05, 0.5])
@pytest.mark.parametrize("kind", ["float32", "int8", "ternary", "pruned"])
def test_a_file_gives_back_what_was_rounded(kind, kept, tmp_path):
    model = sparse_net(kept)
    small_files.round_(model, kind)
    small_files.save(model, tmp_path / "net.safetensors", kind)
    loaded = small_files.load_(net(), tmp_path / "net.safetensors")
    for mine, other in zip(model.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-6, atol=0)
    assert torch.equal(loaded[1].running_var, model[1].running_var)


@pytest.mark.parametrize("gaps", [[0], [254], [255], [256, 0, 511], [1024]])
def test_gaps_of_any_length_come_back(gaps):
    kept = torch.zeros(sum(gaps) + len(gaps) + 3, dtype=torch.bool)
    kept[torch.tensor(gaps).add(1).cumsum(0) - 1] = True
    packed = small_files._to_gaps(kept.numpy())
    assert torch.equal(torch.from_numpy(small_files._from_gaps(packed, kept.numel())), kept)


def test_files_are_as_small_as_their_bits():
    torch.manual_seed(0)
    weight = torch.randn(64, 100)
    sizes = {
        kind: {name.partition(".")[2]: t.nbytes for name, t in pack("w", weight).items()}
        for kind, pack in small_files.PACKED.items()
    }
    assert sizes["float32"] == {"": 25600} and sizes["int8"] == {"int8": 6400, "scale": 256}
    assert sizes["ternary"] == {"trits": 1280, "scale": 256}
    few = weight * (torch.rand(64, 100) < 0.02)
    many = weight * (torch.rand(64, 100) < 0.3)
    assert set(small_files.PACKED["pruned"]("w", few)) == {"w.gaps", "w.int8", "w.scale"}
    bits = small_files.PACKED["pruned"]("w", many)
    assert bits["w.bits"].nbytes == 800 and bits["w.int8"].nbytes == int((bits["w.int8"] != 0).sum()) > 1800


def test_ternary_weights_are_those_of_the_paper():
    weight = torch.tensor([[1.0, -0.1, 0.8, -1.2], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(small_files.ternary(weight), expected)


def test_a_wrong_number_is_told_in_a_line(capsys):
    with pytest.raises(SystemExit) as end:
        compare_all.main(["--seeds", "0"])
    assert end.value.code == 2 and "--seeds: at least 1, got 0" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_of_the_picture_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert compare_all.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(method.label in printed for method in compare_all.METHODS.values())
    with (tmp_path / "results.csv").open() as file:
        bytes_of = {row["method"]: int(row["bytes"]) for row in csv.DictReader(file)}
    assert list(bytes_of) == list(compare_all.METHODS)
    assert bytes_of["dense"] > 3.5 * bytes_of["int8"] > 10 * bytes_of["frozen"]
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "all.svg").stat().st_size > 1000
