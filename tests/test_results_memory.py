"""Memory of large results: kept for the next one, never more than was in use at once, and given back when asked for."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.dlpack import from_dlpack

import frozen_kernels as fk
from frozen_kernels.backends.native import DTYPES
from frozen_kernels.process import release_memory

extension = pytest.importorskip("frozen_kernels._C")

MIB = 1 << 20
LARGE = 40 * MIB  # above what malloc keeps itself


def result(size: int = LARGE) -> torch.Tensor:
    return from_dlpack(extension.block(size // 4, DTYPES[torch.float32]))


def address(size: int = LARGE) -> int:
    """Of a result that is freed at once."""
    return result(size).data_ptr()


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    release_memory()
    yield
    release_memory()


def mapped() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096


def test_a_large_result_takes_the_memory_of_the_last_one():
    first = address()
    assert first % 64 == 0
    assert [address() for _ in range(3)] == [first] * 3
    assert address(LARGE - 5 * MIB) == first  # a little smaller: the same block


def test_two_results_never_share_memory():
    """Nor with what was freed between them."""
    one, two = result(), result()
    places = {one.data_ptr(), two.data_ptr()}
    assert abs(one.data_ptr() - two.data_ptr()) >= LARGE
    del one, two
    three, four = result(), result()
    assert {three.data_ptr(), four.data_ptr()} == places
    three.fill_(3.0), four.fill_(4.0)
    assert bool((three == 3.0).all())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_kept_was_in_use_at_once_and_goes_when_asked_for():
    before = mapped()
    for _ in range(6):
        held = [result() for _ in range(3)]
        del held
    # three of a size; others of other sizes take their place
    assert mapped() - before < 4 * LARGE
    for size in (2, 3, 4, 5):
        held = [result(size * LARGE // 2)]
        del held
    assert mapped() - before < 6 * LARGE
    release_memory()
    assert mapped() - before < LARGE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_layer_finds_the_pages_of_its_last_result():
    layer = fk.nn.FrozenConv2d(3, 64, 1, bias=False)
    fk.finalize_(layer)
    x = torch.randn(4, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer(x)
        assert y.nbytes > LARGE and y.is_contiguous(memory_format=torch.channels_last)
        want, place = y.clone(), y.data_ptr()
        del y
        for _ in range(2):
            y = layer(x)
            assert y.data_ptr() == place
            assert torch.equal(y, want)
            y.zero_()
            del y


def test_a_result_of_a_size_beyond_memory_is_an_error():
    with pytest.raises(MemoryError):
        extension.block(1 << 60, DTYPES[torch.float32])
    assert address() % 64 == 0


def test_results_are_freed_from_any_thread():
    """Blocks are passed around without a lock."""

    def work(seed: int) -> bool:
        for i in range(20):
            size = LARGE + (seed + i) % 3 * 8 * MIB
            y = result(size)
            y[:: 1 << 16] = seed
            if not bool((y[:: 1 << 16] == seed).all()):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
