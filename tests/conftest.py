"""Fixtures shared by all tests: uninitialised memory is NaN, one seed per test, one run per live backend.

With TRITON_INTERPRET=1 every test that asks for a backend runs on Triton's kernels in the interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch

import frozen_kernels as fk

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETING:
    from gpu import interpreter

    interpreter.mend()


def live_backends(device: str = "cpu") -> list[str]:
    """Backends that run on this machine for tensors of `device`: the reference among them, or Triton interpreted."""
    if INTERPRETING and device == "cpu":
        return ["triton"]
    return [
        name
        for name, status in fk.backends.report().items()
        if status == "live" and device in fk.backends.choice._module(name).DEVICES
    ]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty holds NaN (or the largest integer), so that what a kernel forgets to write is seen."""
    was_on = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_on, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests are small: threads would only wait for each other. Those about threads set their own number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded():
    """The same random inputs in every run and in any order of the tests; the caller's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=live_backends())
def backend(request):
    """Each live backend of the CPU in turn, forced for the whole test."""
    with fk.backends.use(request.param):
        yield request.param
