"""Selection and masks from scores against sorting and the reference, and a search step that waits for no device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from common import DEVICE, INTERPRETING, same_bits
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import frozen_kernels as fk
from frozen_kernels import format
from frozen_kernels.backends import Unsupported, reference, triton

NAN = math.nan
SPECIAL = torch.tensor([0.0, -0.0, math.inf, -math.inf, NAN, -NAN, 1e-45, -1e-45, 3.4e38, 1.0, 1.0, -1.0])
SPECIAL_BITS = torch.tensor([-1, 0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)


def normal(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


def ties(count: int) -> Tensor:
    return torch.randint(-3, 4, (count,), generator=torch.Generator().manual_seed(count)).float()


GROUPS = {
    "normal": [normal(70001)],
    "special": [SPECIAL, SPECIAL_BITS],
    "dtypes": [ties(5003), ties(301).bfloat16(), torch.empty(0), normal(77).half(), normal(99).double()],
    "bfloat16": [normal(40009).bfloat16(), SPECIAL.bfloat16(), normal(33)],
    "equal": [torch.full((4099,), 0.25)],
    "two close": [torch.tensor([0.25, 0.2500001]).repeat(2100)],
    "strides": [normal(999)[::3], normal(10)[1:2], normal(64).view(8, 8).T],
    "nan": [torch.tensor([NAN])],
    "many": [normal(n) for n in (1, 0, 2, 40000, 0, 3, 33, 5)],
}


@pytest.mark.parametrize("name", GROUPS)
def test_select_is_the_sorted_key(name):
    scores = GROUPS[name]
    held = [s.to(DEVICE) for s in scores]
    order = torch.cat([format.score_keys(s).flatten() for s in scores]).sort().values.long()
    n = order.numel()
    for rank in sorted({1, n, (n + 1) // 2, max(1, n // 3), max(1, n - 2)}):
        key = triton.select(held, rank)
        assert same_bits(key, order[rank - 1]), rank


def test_select_among_more_tensors_than_a_launch_reads():
    held = [normal(1 + n % 7).to(DEVICE) for n in range(37)]
    want = torch.cat(held).abs().sort().values[80].view(torch.int32).long()
    assert same_bits(triton.select(held, 81), want)


def test_select_over_every_rank():
    scores = [SPECIAL, ties(7), SPECIAL_BITS, normal(5).bfloat16()]
    order = torch.cat([format.score_keys(s) for s in scores]).sort().values.long()
    held = [s.to(DEVICE) for s in scores]
    assert same_bits(torch.stack([triton.select(held, r + 1) for r in range(order.numel())]), order)


def test_pack_above():
    for scores in (SPECIAL, SPECIAL_BITS, normal(4099), normal(4100).bfloat16(), normal(9).half(), normal(17).double()):
        keys = format.score_keys(scores).long()
        for key in (keys.min() - 1, keys.min(), keys.median(), keys.max(), torch.tensor(1 << 40)):
            assert same_bits(triton.pack_above(scores.to(DEVICE), key.to(DEVICE)), reference.pack_above(scores, key))
    assert triton.pack_above(torch.empty(0, device=DEVICE), torch.tensor(3, device=DEVICE)).shape == (0,)


def test_refusals():
    scores, key = normal(9).to(DEVICE), torch.tensor(3, device=DEVICE)
    for rank in (0, 10):
        with pytest.raises(ValueError, match=f"9, got {rank}"):
            triton.select([scores], rank)
    with pytest.raises(ValueError, match=r"key: torch.int64 expected, got torch.int32"):
        triton.pack_above(scores, key.int())
    with pytest.raises(Unsupported):
        triton.select([scores.long()], 1)
    with pytest.raises(Unsupported):
        triton.pack_above(scores, key.to("meta"))


class NoReading(TorchDispatchMode):
    """Refuses to read values, and sizes that depend on them."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert not name.startswith(self.WAITS), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


class NoHostTensors(TorchFunctionMode):
    """Refuses tensors made without a word about the device, on the host then, and copies to the host."""

    MAKES = (torch.empty, torch.full, torch.zeros, torch.ones, torch.arange, torch.tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func not in self.MAKES or kwargs.get("device") is not None, f"{func.__name__} on the host"
        assert func not in (Tensor.cpu, Tensor.numpy, Tensor.tolist), f"{func.__name__} waits for the device"
        return func(*args, **kwargs)


@contextmanager
def no_waiting() -> Iterator[None]:
    """For code that must not wait for a GPU: what is seen without one, and what CUDA says where there is one."""
    with NoReading(), NoHostTensors():
        if INTERPRETING:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_what_waits_is_refused():
    x = torch.ones(3, device=DEVICE)
    for waiting in (lambda: x[0].item(), lambda: int(x.sum()), lambda: x.nonzero(), lambda: torch.full((3,), 1)):
        with pytest.raises((AssertionError, RuntimeError)), no_waiting():
            waiting()


def searched(scaling: str, scope: str, residency: str, sparsity: float = 0.5) -> nn.ModuleList:
    model = nn.ModuleList([nn.Linear(33, 5), nn.Linear(70, 19), nn.Conv2d(3, 5, 3)])
    fk.freeze_(model, fk.FreezeConfig(scope=scope, sparsity=sparsity, scaling=scaling))
    fk.set_residency(model, residency)
    with torch.no_grad():
        for i, layer in enumerate(model):
            layer.scores.copy_(normal(layer.scores.numel() + i)[i:])
    return model


@pytest.mark.parametrize(
    ("scaling", "scope", "residency"),
    [
        ("dynamic", "global", "seed"),
        ("none", "local", "mask"),
        ("dynamic", "local", "mask"),
        ("static", "global", "planes"),
        ("dynamic", "global", "dense"),
    ],
)
def test_a_search_step_waits_for_no_device(scaling, scope, residency):
    model, twin = (searched(scaling, scope, residency) for _ in range(2))
    model.to(DEVICE)
    with fk.backends.use("reference"):
        fk.EdgePopup(twin).step()
    search = fk.EdgePopup(model)
    with fk.backends.use("triton"):
        with no_waiting():
            search.step()
        for mine, theirs in zip(model, twin, strict=True):
            assert same_bits(mine.header, theirs.header) and mine.counts == theirs.counts
            assert same_bits(mine.packed_supermask(), theirs.packed_supermask())


def test_the_dynamic_scale_of_every_count():
    for code, sigma, count in (("sign", math.sqrt(2 / 33), 165), ("uniform", 0.1, 997), ("normal", 3.7e-5, 1 << 20)):
        for kept in (0, 1, 2, 3, 7, count // 3, count - 1, count):
            factor = fk.FreezeConfig(scaling="dynamic").factor(kept, count)
            got = format.dynamic_scale_bits(code, sigma, torch.tensor(kept, device=DEVICE), count)
            assert int(got) == format.float32_bits(format.scale_of(code, sigma, factor)), (code, kept)
    with pytest.raises(ValueError, match="finite"):
        format.dynamic_scale_bits("sign", math.inf, torch.tensor(1, device=DEVICE), 2)


def test_a_step_that_keeps_all_waits_for_no_device():
    model = searched("dynamic", "global", "mask", 0.0).to(DEVICE)
    search = fk.EdgePopup(model)
    with fk.backends.use("triton"):
        with no_waiting():
            search.step()
        assert all(layer.counts["kept"] == layer.rows * layer.cols for layer in model)
