"""Kernels of csrc/cuda without a GPU: on the emulator of tests/cuda, under sanitizers, and with faults put in."""

from __future__ import annotations

import os
import shutil

import pytest
from cuda_helpers import FAMILIES, PROGRAMS, compiled, run, with_choices

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")

WRONG_RESULT, RACE, CAUGHT = 1, 66, 2
# What catches a fault of emulator.cpp: no sanitizer, or the one named.
FAULTS = {
    "missing_barrier": "none",
    "missing_warp_barrier": "races",
    "divergent_barrier": "none",
    "two_barriers": "none",
    "divergent_shuffle": "none",
    "part_of_warp": "none",
    "past_shared": "memory",
    "past_global": "memory",
    "misaligned": "none",
    "misaligned_cast": "memory",
    "two_blocks": "races",
    "early": "races",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cuda"
    shared.mkdir(exist_ok=True)
    return shared


def check(done) -> None:
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def test_the_emulator_catches_faults(folder):
    program = compiled("emulator", folder)
    check(run(program))
    for fault in (name for name, sanitizer in FAULTS.items() if sanitizer == "none"):
        assert run(program, fault).returncode in (CAUGHT, 3), fault


@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["memory", "races"])
def test_the_emulator_catches_faults_with_sanitizers(folder, sanitizer):
    program = compiled("emulator", folder, sanitizer)
    check(run(program))
    for fault, by in FAULTS.items():
        if by == "none":
            assert run(program, fault).returncode != 0, fault
        elif by == sanitizer:
            done = run(program, fault)
            words = "data race" if sanitizer == "races" else "runtime error|AddressSanitizer"
            assert any(word in done.stdout + done.stderr for word in words.split("|")) and done.returncode != 0, fault


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_against_the_format(folder, family):
    check(run(compiled(family, folder), "quick"))


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_against_the_format_in_full(folder, family):
    check(run(compiled(family, folder), "all"))


@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["memory", "races"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_under_sanitizers(folder, family, sanitizer):
    check(run(compiled(family, folder, sanitizer), "quick"))


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    return with_choices(tmp_path_factory.mktemp("mutants"))


def mutant(family, choices, sanitizer):
    """The family's program with choices, and the numbers of the barriers that it passes."""
    csrc, _ = choices
    program = compiled(family, csrc.parent, sanitizer, csrc, ("-include", str(PROGRAMS / "mutants.h")))
    done = run(program, "quick", FK_MUTANT="list")
    check(done)
    return program, {int(word) for word in done.stdout.rpartition("barriers:")[2].split()}


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_faults_in_kernels_are_caught(choices, family):
    program, passed = mutant(family, choices, "races")
    for number in passed:
        done = run(program, "quick", FK_MUTANT=str(number))
        assert done.returncode in (WRONG_RESULT, RACE), f"{family} without the barrier of {choices[1][number]}"
    assert run(program, "quick", FK_MUTANT="rows").returncode == RACE


@pytest.mark.long
def test_every_barrier_is_passed(choices):
    passed = set().union(*(mutant(family, choices, "none")[1] for family in FAMILIES))
    assert {choices[1][number] for number in passed} == set(choices[1])
