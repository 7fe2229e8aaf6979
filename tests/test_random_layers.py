"""A hundred small random layers, every kind with every code and dtype: what `random_layers.py` does with thousands."""

from __future__ import annotations

import pytest

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from random_layer_cases import COMBINATIONS, DTYPES, KINDS, draw_layer  # noqa: E402
from random_layers import THREADS, run_layer, settings  # noqa: E402

from frozen_kernels import format as fmt  # noqa: E402

SEED, MOST_WORK = 14, 1 << 16


def test_every_kind_meets_every_code_and_dtype():
    drawn = [draw_layer(number, SEED, MOST_WORK) for number in range(len(COMBINATIONS))]
    met = {(layer.kind, layer.code, layer.dtype) for layer in drawn}
    assert {(kind, code, dtype) for kind in KINDS for code in fmt.CODES for dtype in DTYPES} <= met
    assert all(("embedding", code) in {m[:2] for m in met} for code in fmt.CODES)
    assert all((kind, fmt.STORED) in {m[:2] for m in met} for kind in KINDS)


def test_random_layers():
    levels = extension.isa_available()
    with settings():
        for number in range(len(COMBINATIONS)):
            threads = THREADS[number % len(THREADS)]
            for level, checked in run_layer(number, SEED, levels, MOST_WORK, [threads]).items():
                assert not checked.failures, (level, draw_layer(number, SEED, MOST_WORK), *checked.failures)
