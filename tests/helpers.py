"""Definitions that tests compare with, written apart from the package and straight from the format."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import frozen_kernels as fk
from frozen_kernels import format as fmt

RESIDENCIES = ("seed", "mask", "planes", "dense")
FUSED = RESIDENCIES[:3]
CODES = ("sign", "uniform", "normal", "constant")


def distinct_levels(available: list[str]) -> list[str]:
    """Instruction sets whose kernels differ: `vnni` compiles what `avx512` does, `zen4` has the kernels of `vnni`."""
    return [level for level in available if level not in ("avx512", "zen4") or "vnni" not in available]


def each_isa(extension: Any, levels: list[str], autouse: bool = False) -> Any:
    """A fixture `isa`: a test runs on each instruction set; the one in use and the number of threads are put back."""

    @pytest.fixture(params=levels, autouse=autouse, name="isa")
    def one_isa(request: pytest.FixtureRequest) -> Iterator[str]:
        before, threads = extension.isa(), torch.get_num_threads()
        extension.set_isa(request.param)
        yield request.param
        extension.set_isa(before)
        torch.set_num_threads(threads)

    return one_isa


def pairwise(*axes: Iterable) -> list[tuple]:
    """Rows, one value of each axis, that hold every pair of values of any two axes: far fewer than all products."""
    rows = list(itertools.product(*axes))

    def pairs(row: tuple) -> set:
        return set(itertools.combinations(enumerate(row), 2))

    left, found = set().union(*map(pairs, rows)), []
    while left:
        found.append(max(rows, key=lambda row: len(left & pairs(row))))
        left -= pairs(found[-1])
    return found


def stream_positions(partition: Tensor) -> list[tuple[int, int]]:
    """(row, column) of each free weight of int8 [rows, cols] in stream order: row, word, bit 0..31 of the word."""
    rows, cols = partition.shape
    values, found = partition.tolist(), []
    for row in range(rows):
        for first in range(0, cols, 32):
            for column in (first + (2 * bit if bit < 16 else 2 * bit - 31) for bit in range(32)):
                if column < cols and values[row][column] == 0:
                    found.append((row, column))
    return found


def matrix_of(weight: Tensor) -> Tensor:
    """A torch weight (d0, d1, *taps) as rows d0 and columns tap * d1 + d1 index."""
    return weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:])).transpose(1, 2).reshape(weight.shape[0], -1)


def weight_of(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The torch weight of a matrix of the format."""
    return matrix.reshape(shape[0], -1, shape[1]).transpose(1, 2).reshape(shape)


def gather_free(matrix: Tensor, partition: Tensor) -> Tensor:
    """The free weights of [rows, cols] in stream order."""
    where = stream_positions(partition)
    return torch.stack([matrix[p] for p in where]) if where else matrix.new_empty(0)


def codes_of(frozen: fk.FrozenTensor) -> Tensor:
    """float64 [rows, cols] of the codes, from the format functions on the reference."""
    fields, (rows, cols) = fmt.header_fields(frozen.header), fmt.matrix_shape(frozen.shape)
    with fk.backends.use("reference"):
        code = fmt.codes(rows, cols, seed=fields["seed"], stream=fields["stream"], code=frozen.code)
    return code.double()


def partition_of(frozen: fk.FrozenTensor) -> Tensor:
    """int8 [rows, cols] of a record, from the format functions on the reference."""
    fields, (rows, cols) = fmt.header_fields(frozen.header), fmt.matrix_shape(frozen.shape)
    names = ("seed", "stream", "tau_prune", "tau_freeze")
    with fk.backends.use("reference"):
        return fmt.partition(rows, cols, **{name: fields[name] for name in names})


def score_gradient(frozen: fk.FrozenTensor, grad_weight: Tensor, scores: Tensor) -> Tensor:
    """The straight-through formula: sign(S) * dL/dW * code * scale on the free weights in stream order, float64."""
    scale = fmt.header_fields(frozen.header)["scale"]
    local = matrix_of(grad_weight.double()) * codes_of(frozen) * scale
    return gather_free(local, partition_of(frozen)) * scores.double().sign()


def make_frozen(
    shape, code="sign", residency="mask", dtype=torch.float32, scale=0.5, seed=7, scores_dtype=torch.float32, **settings
) -> tuple[fk.FrozenTensor, Tensor]:
    """A record with a random supermask and random scores, and its float64 weight by the definition."""
    ratios = {"prune_ratio": 0.25, "lock_ratio": 0.25, **settings}
    with fk.backends.use("reference"):
        frozen = fk.FrozenTensor.create(shape, seed=seed, stream=3, code=code, scale=scale, residency="seed", **ratios)
        partition = partition_of(frozen)
        keep = torch.rand(partition.shape) < 0.5
        frozen = frozen._replace(supermask=fmt.pack(keep, partition))
        scores = torch.randn(int((partition == 0).sum())).to(scores_dtype)
        effective = codes_of(frozen) * scale * ((partition == 1) | ((partition == 0) & keep))
        record = frozen.hold(residency, dtype, with_offsets=True)._replace(scores=scores)
    return record, weight_of(effective, tuple(shape))


def check_table_passed_over(tables, path, text, warning):
    """A user's file of a module of tables is warned of, and the shipped table used."""
    path.parent.mkdir()
    path.write_text(text)
    with pytest.warns(UserWarning, match=warning):
        assert tables.in_use("default").path == tables.SHIPPED


def check_broken_table(tables, path, text, told):
    """The same, and reading it names the file and what is wrong."""
    check_table_passed_over(tables, path, text, "shipped table is used")
    with pytest.raises(ValueError, match=f"{path}.*{told}"):
        tables.read(path)
