"""Selection and masks from scores against sorting and the reference, and a search step that waits for no device."""

from __future__ import annotations

import math

import pytest
import torch
from common import DEVICE, same_bits
from torch import Tensor

from frozen_kernels import reference
from frozen_kernels.backends import Unsupported, triton

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
    order = torch.cat([reference.masks._keys(s).flatten() for s in scores]).sort().values.long()
    n = order.numel()
    for rank in sorted({1, n, (n + 1) // 2, max(1, n // 3), max(1, n - 2)}):
        key = triton.select(held, rank)
        assert same_bits(key, order[rank - 1]), rank


def test_select_among_more_tensors_than_a_launch_reads():
    held = [normal(1 + n % 7).to(DEVICE) for n in range(70)]
    want = torch.cat(held).abs().sort().values[150].view(torch.int32).long()
    assert same_bits(triton.select(held, 151), want)


def test_select_over_every_rank():
    scores = [SPECIAL, ties(7), SPECIAL_BITS, normal(5).bfloat16()]
    order = torch.cat([reference.masks._keys(s) for s in scores]).sort().values.long()
    held = [s.to(DEVICE) for s in scores]
    assert same_bits(torch.stack([triton.select(held, r + 1) for r in range(order.numel())]), order)


def test_pack_above():
    for scores in (SPECIAL, SPECIAL_BITS, normal(4099), normal(4100).bfloat16(), normal(9).half(), normal(17).double()):
        keys = reference.masks._keys(scores).long()
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
