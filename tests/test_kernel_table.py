"""The table by which the CPU chooses a kernel: what it lists, and what it chooses."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import each_isa

from frozen_kernels import cli
from frozen_kernels import format as fmt

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

ISAS = extension.isa_available()


isa = each_isa(extension, ISAS)


def choose(operation, rows, cols, pixels, *, code="sign", groups=1, taps=1, dtype=0):
    """The kernel of a convolution of `pixels` results in a line with `taps` taps; its channels are contiguous."""
    header = fmt.make_header(1, 0, tau_prune=0, tau_freeze=65536, scale=1.0, code=code)
    keep = torch.zeros(rows * fmt.words(cols), dtype=torch.int32)
    pack = [header.data_ptr(), fmt.ALL_CODES.index(code), rows, cols, 0, 0, 0, keep.data_ptr(), 0, 0, 0, 0, 0]
    wide = pixels + taps - 1
    channels = cols // taps * groups
    sizes = [1, groups, *[1, 1, 1, 1, 0, 1] * 2, wide, pixels, taps, 1, 0, 1]
    sides = [[0, dtype, 0, 1, 0, 0, channels], [0, dtype, 0, 1, 0, 0, rows]]
    return extension.kernel_of(operation, pack, sizes, *sides)


def test_every_operation_ends_with_a_kernel_that_serves_the_rest(isa):
    listed = extension.kernels()
    assert len({(operation, name) for operation, name, _ in listed}) == len(listed)
    for operation in ("convolve", "convolve_transposed", "score_gradient"):
        own = [(name, serves) for op, name, serves in listed if op == operation]
        assert own[-1] == ("fma", "everything else") and all(serves for _, serves in own)


CHOICES = [  # operation, rows, columns, pixels, options, kernels of portable, avx2, avx512, vnni and amx
    ("convolve", 64, 96, 1, {}, ("fma", "small_batch", "small_batch", "small_batch", "small_batch")),
    ("convolve", 64, 96, 4, {"code": "uniform"}, ("fma",) + ("small_batch",) * 4),
    ("convolve", 64, 96, 5, {"code": "uniform"}, ("fma", "fma", "fma", "small_batch", "amx")),
    ("convolve", 64, 96, 4, {"code": "normal"}, ("fma",) + ("small_batch",) * 4),
    ("convolve", 64, 96, 16, {"code": "normal"}, ("fma", "fma", "fma", "small_batch", "amx")),
    ("convolve", 64, 96, 17, {"code": "normal"}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve", 64, 96, 4, {}, ("fma", "fma", "fma", "fma", "small_batch")),
    ("convolve", 256, 1024, 10, {}, ("fma", "small_batch", "lookup", "small_batch", "amx")),
    ("convolve", 256, 1024, 11, {}, ("fma", "pixel_tables", "lookup", "small_batch", "amx")),
    ("convolve", 256, 768, 7, {}, ("fma", "small_batch", "lookup", "lookup", "amx")),
    ("convolve", 256, 1024, 16, {}, ("fma", "pixel_tables", "lookup", "small_batch", "amx")),
    ("convolve", 255, 1024, 16, {}, ("fma", "pixel_tables", "lookup", "lookup", "amx")),
    ("convolve", 256, 1025, 16, {}, ("fma", "pixel_tables", "lookup", "lookup", "amx")),
    ("convolve", 64, 70000, 1, {}, ("fma", "small_batch", "small_batch", "small_batch", "fma")),
    ("convolve", 128, 96, 5, {}, ("fma", "fma", "lookup", "lookup", "amx")),
    ("convolve", 112, 96, 5, {}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve", 192, 129, 128, {}, ("fma", *("pixel_tables",) * 3, "amx")),
    ("convolve", 192, 128, 128, {}, ("fma", "pixel_tables", "one_tap", "one_tap", "amx")),
    ("convolve", 128, 81, 128, {}, ("fma", "pixel_tables", "one_tap", "one_tap", "amx")),
    ("convolve", 128, 80, 128, {}, ("fma", *("one_tap",) * 3, "amx")),
    ("convolve", 66, 2000, 128, {}, ("fma", *("one_tap",) * 3, "amx")),
    ("convolve", 95, 96, 128, {"code": "constant"}, ("fma", *("one_tap",) * 3, "amx")),
    ("convolve", 128, 96, 31, {}, ("fma", "pixel_tables", "lookup", "lookup", "amx")),
    ("convolve", 128, 96, 32, {}, ("fma", *("pixel_tables",) * 3, "amx")),
    ("convolve", 128, 96, 97, {}, ("fma", "pixel_tables", "lookup", "lookup", "amx")),
    ("convolve", 128, 96, 98, {}, ("fma", *("pixel_tables",) * 3, "amx")),
    ("convolve", 64, 96, 64, {}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve", 1024, 1024, 128, {"code": "normal"}, ("fma", *("one_tap",) * 3, "amx")),
    ("convolve", 1024, 1025, 128, {"code": "normal"}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve", 112, 96, 127, {"code": "normal"}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve", 7, 96, 128, {"code": "normal"}, ("fma", "one_tap", "fma", "fma", "fma")),
    ("convolve", 64, 96, 127, {"taps": 3}, ("fma", "pixel_tables", "lookup", "lookup", "amx")),
    ("convolve", 64, 96, 128, {"taps": 3}, ("fma", *("pixel_tables",) * 3, "amx")),
    ("convolve", 7, 96, 64, {}, ("fma",) * 5),
    ("convolve", 16, 3, 64, {"groups": 16, "taps": 3}, ("depthwise",) * 5),
    ("convolve", 32, 3, 64, {"groups": 16, "taps": 3}, ("depthwise",) * 5),
    ("convolve_transposed", 16, 3, 64, {"groups": 16, "taps": 3}, ("depthwise",) * 5),
    ("convolve_transposed", 32, 3, 64, {"groups": 16, "taps": 3}, ("fma",) * 5),
    ("convolve_transposed", 64, 96, 4, {}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve_transposed", 64, 96, 1, {}, ("fma",) * 5),
    ("convolve_transposed", 96, 128, 5, {}, ("fma", "fma", "flipped", "flipped", "amx")),
    ("convolve_transposed", 96, 128, 64, {}, ("fma", "flipped", "flipped", "flipped", "amx")),
    ("convolve_transposed", 96, 64, 128, {}, ("fma", "flipped", "flipped", "flipped", "amx")),
    ("convolve_transposed", 96, 128, 64, {"code": "normal"}, ("fma", "fma", "fma", "fma", "amx")),
    ("convolve", 64, 96, 1, {"code": "stored"}, ("stored_vector",) * 5),
    ("convolve", 64, 96, 3, {"code": "stored"}, ("stored",) + ("stored_vector",) * 4),
    ("convolve", 64, 96, 4, {"code": "stored"}, ("stored",) * 2 + ("stored_vector",) * 3),
    ("convolve", 64, 96, 5, {"code": "stored"}, ("stored",) * 5),
    ("convolve", 64, 96, 2, {"code": "stored", "groups": 2}, ("stored",) * 5),
    ("convolve", 16, 3, 64, {"code": "stored", "groups": 16, "taps": 3}, ("stored",) * 5),
    ("convolve_transposed", 16, 3, 64, {"code": "stored", "groups": 16, "taps": 3}, ("stored",) * 5),
    ("convolve_transposed", 64, 96, 1, {"code": "stored"}, ("stored_scatter",) * 5),
    ("score_gradient", 96, 96, 64, {}, ("fma", "fma", "fma", "fma", "amx")),
    ("score_gradient", 95, 96, 64, {}, ("fma",) * 5),
    ("score_gradient", 16, 96, 64, {"dtype": 1}, ("fma", "fma", "fma", "fma", "amx")),
    ("score_gradient", 1, 96, 64, {}, ("along_pixels",) * 5),
]


# as above, on zen4: kernels of vnni, but tables of integers stand before those that share their shapes
ZEN4_CHOICES = [
    ("convolve", 64, 96, 1, {}, "small_batch"),
    ("convolve", 256, 1024, 4, {}, "small_batch"),
    ("convolve", 256, 1024, 5, {}, "integer_lookup"),
    ("convolve", 256, 2049, 7, {}, "small_batch"),
    ("convolve", 256, 2049, 8, {}, "integer_lookup"),
    ("convolve", 64, 32, 5, {}, "integer_lookup"),
    ("convolve", 64, 32, 4, {}, "fma"),
    ("convolve", 63, 32, 5, {}, "fma"),
    ("convolve", 64, 31, 5, {}, "fma"),
    ("convolve", 63, 96, 128, {}, "one_tap"),
    ("convolve", 4096, 4096, 128, {"code": "constant"}, "integer_lookup"),
    ("convolve", 33, 24, 128, {"taps": 3}, "integer_lookup"),
    ("convolve", 32, 24, 128, {"taps": 3}, "fma"),
    ("convolve", 33, 21, 128, {"taps": 3}, "lookup"),
    ("convolve", 64, 96, 128, {"taps": 3, "code": "normal"}, "fma"),
    ("convolve_transposed", 96, 64, 128, {}, "flipped"),
    ("convolve_transposed", 32, 64, 5, {}, "flipped"),
    ("score_gradient", 96, 96, 64, {}, "fma"),
]


def test_the_first_kernel_that_serves_a_shape(isa):
    if isa == "zen4":
        assert [choose(*shape, **options) for *shape, options, _ in ZEN4_CHOICES] == [name for *_, name in ZEN4_CHOICES]
        return
    same = "portable" if isa == "neon" else isa
    level = ("portable", "avx2", "avx512", "vnni", "amx").index(same)
    found = [choose(*shape, **options) for *shape, options, _ in CHOICES]
    assert found == [kernels[level] for *_, kernels in CHOICES]


def test_a_stored_weight_has_no_score_gradient(isa):
    with pytest.raises(ValueError, match="code id is 4, a stored weight, expected 0 to 3"):
        choose("score_gradient", 96, 96, 64, code="stored")


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="operation is fold"):
        choose("fold", 4, 4, 4)


def test_info_prints_the_table(isa, capsys):
    assert cli.main(["info", "--kernels"]) == 0
    out = capsys.readouterr().out
    assert isa in out and all(name in out and serves in out for _, name, serves in extension.kernels())


def test_info_without_the_extension(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "frozen_kernels._C", None)
    monkeypatch.delattr("frozen_kernels._C", raising=False)
    assert cli.main(["info", "--kernels"]) == 1
    assert "the extension is missing" in capsys.readouterr().err
