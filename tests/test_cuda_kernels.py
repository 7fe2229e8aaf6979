"""Kernels of csrc/cuda without a GPU: on the emulator of tests/cuda, under sanitizers, and with faults put in."""

from __future__ import annotations

import os

import pytest
from cuda_helpers import FAMILIES, PROGRAMS, compiled, lacking, run, with_choices

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

WRONG_RESULT, THROWN, DIFFERENT_ORDER, RACE = 1, 2, 3, 66
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
REPORTS = {"memory": ("runtime error", "AddressSanitizer"), "races": ("data race",)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cuda"
    shared.mkdir(exist_ok=True)
    return shared


def check(done) -> str:
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def program_of(family, folder, sanitizer="none"):
    """A family's program, and the places of what can be left out of its kernels."""
    csrc, places = with_choices(folder)
    return compiled(family, folder, sanitizer, csrc, ("-include", str(PROGRAMS / "mutants.h"))), places


def barriers(output: str) -> list[int]:
    """Those that a run with FK_MUTANT=list came past."""
    return [int(word) for word in output.rpartition("barriers:")[2].split()]


def test_the_emulator_catches_faults(folder):
    program = compiled("emulator", folder)
    check(run(program))
    for fault in (name for name, sanitizer in FAULTS.items() if sanitizer == "none"):
        assert run(program, fault).returncode in (THROWN, DIFFERENT_ORDER), fault


@pytest.mark.long
@pytest.mark.parametrize("sanitizer", REPORTS)
def test_the_emulator_catches_faults_with_sanitizers(folder, sanitizer):
    program = compiled("emulator", folder, sanitizer)
    check(run(program))
    for fault in (name for name, by in FAULTS.items() if by == sanitizer):
        done = run(program, fault)
        assert done.returncode != 0 and any(words in done.stderr for words in REPORTS[sanitizer]), fault


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_against_the_format(folder, family):
    check(run(program_of(family, folder)[0], "quick"))


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_against_the_format_in_full(folder, family):
    check(run(program_of(family, folder)[0], "all"))


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_keep_within_their_memory(folder, family):
    check(run(compiled(family, folder, "memory"), "quick"))


def test_faults_show_in_results(folder):
    program, places = program_of("bits", folder)
    for number, place in enumerate(places):
        if place.startswith("bits") and "__syncthreads" in place:
            assert run(program, "quick", FK_MUTANT=str(number)).returncode == WRONG_RESULT, place


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_have_no_races_and_faults_are_caught(folder, family):
    program, places = program_of(family, folder, "races")
    for number in barriers(check(run(program, "quick", FK_MUTANT="list"))):
        done = run(program, "quick", FK_MUTANT=str(number))
        assert done.returncode in (WRONG_RESULT, RACE), places[number]
    assert run(program, "quick", FK_MUTANT="rows").returncode == RACE


@pytest.mark.long
def test_every_barrier_is_passed(folder):
    passed, places = set(), []
    for family in FAMILIES:
        program, places = program_of(family, folder)
        passed.update(barriers(check(run(program, "quick", FK_MUTANT="list"))))
    assert {places[number] for number in passed} == set(places)
