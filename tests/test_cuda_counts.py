"""What nvcc made of the kernels in the CUDA extension, for every GPU: spills, registers, and instructions a weight."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.cuda import counts

EXTENSION = importlib.util.find_spec("frozen_kernels._cuda")
pytestmark = [
    pytest.mark.skipif(EXTENSION is None, reason="the CUDA extension is not built: there is no nvcc"),
    pytest.mark.skipif(counts.cuobjdump() is None, reason="cuobjdump is not installed"),
]
TARGETS = {"sm_80", "sm_90", "sm_100", "sm_120"}
REGISTERS, SHARED_RESERVED = 65536, 1024
# Kernel and arguments of its template, weights of a lane for each product of matrices, most instructions for a weight.
# bits<BFLOAT, DRAWN, EIGHTS>, multiply_digits<CODE, DRAWN, PAIRS>: of 8 columns of inputs.
LIMITS = [
    ("bits", (1, 0, 1), 8, 1.45),
    ("bits", (1, 1, 1), 8, 1.85),
    pytest.param("bits", (0, 0, 1), 8, 1.45, marks=pytest.mark.long),
    pytest.param("bits", (0, 1, 1), 8, 1.85, marks=pytest.mark.long),
    ("multiply_digits", (0, 1, 1), 16, 1.3),
    ("multiply_digits", (1, 1, 1), 8, 3.8),
]


@pytest.fixture(scope="module")
def file():
    return Path(EXTENSION.origin)


@pytest.fixture(scope="module")
def kernels(file):
    return counts.kernels(file)


def test_nothing_is_spilled_and_every_block_fits(file, kernels):
    assert {kernel.target for kernel in kernels} == TARGETS
    threads = counts.most_threads(file)
    for kernel in kernels:
        assert kernel.stack == kernel.local == 0, kernel
        assert kernel.shared <= SHARED_RESERVED, kernel  # the rest is of the launch, which the plan bounds
        allocated = -(-kernel.registers // 8) * 8
        assert allocated * threads[kernel.target, kernel.symbol] <= REGISTERS, kernel


@pytest.mark.parametrize(("name", "arguments", "weights", "limit"), LIMITS)
def test_instructions_for_a_weight(file, kernels, name, arguments, weights, limit):
    wanted = [kernel for kernel in kernels if (kernel.name, kernel.arguments) == (name, arguments)]
    assert {kernel.target for kernel in wanted} == TARGETS
    loops = counts.main_loops(file, wanted)
    for kernel in wanted:
        loop = loops[kernel.target, kernel.symbol]
        assert loop.instructions / (loop.products * weights) <= limit, (kernel, loop)
