"""The generator and the bit movements of the kernels, and the mends of the interpreter that checks them."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from common import DEVICE, INTERPRETING, VECTORS, same_bits
from torch import Tensor
from triton.runtime.errors import InterpreterError

from frozen_kernels.backends.triton.kernels import words

needs_interpreter = pytest.mark.skipif(not INTERPRETING, reason="of the interpreter alone")


@triton.jit
def philox_kernel(counters, keys, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    c = counters.to(tl.pointer_type(tl.uint32)) + 4 * i
    k = keys.to(tl.pointer_type(tl.uint32)) + 2 * i
    x0, x1, x2, x3 = words.philox(
        tl.load(k), tl.load(k + 1), tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    )
    o = out.to(tl.pointer_type(tl.uint32)) + 4 * i
    tl.store(o, x0)
    tl.store(o + 1, x1)
    tl.store(o + 2, x2)
    tl.store(o + 3, x3)


def test_philox_gives_the_published_answers():
    answers = (VECTORS["philox4x32_10"] * 2)[:4]

    def tensor(rows: list) -> Tensor:
        return torch.tensor([[int(v, 16) for v in row] for row in rows]).to(torch.int32).to(DEVICE)

    keys = tensor([(a["key"][8:], a["key"][:8]) for a in answers])
    out = torch.empty(4, 4, dtype=torch.int32, device=DEVICE)
    philox_kernel[(1,)](tensor([a["counter"] for a in answers]), keys, out, COUNT=4)
    assert torch.equal(out, tensor([a["out"] for a in answers]))


@triton.jit
def deposit_kernel(run, mask, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    m = tl.load(mask + i).to(tl.uint32, bitcast=True)
    r = tl.load(run + i).to(tl.uint32, bitcast=True)
    tl.store(out + i, words.deposit(r, m, words.byte_totals(m)).to(tl.int32, bitcast=True))


def test_deposit_is_pdep():
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 1 << 32, (4096,), generator=generator)
    mask[::4] &= torch.randint(0, 1 << 32, (1024,), generator=generator)
    mask[1::4] |= torch.randint(0, 1 << 32, (1024,), generator=generator)
    mask[:34] = torch.tensor([0, 0xFFFFFFFF] + [1 << b for b in range(32)])
    run = torch.randint(0, 1 << 32, (4096,), generator=generator)
    want = torch.zeros_like(mask)
    taken = torch.zeros_like(mask)
    for b in range(32):
        bit = mask >> b & 1
        want |= (run >> taken & bit) << b
        taken += bit
    out = torch.empty(4096, dtype=torch.int32, device=DEVICE)
    deposit_kernel[(1,)](run.to(DEVICE, torch.int32), mask.to(DEVICE, torch.int32), out, COUNT=4096)
    assert torch.equal(out.cpu(), want.to(torch.int32))


@triton.jit
def copy_kernel(source, out, count, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, tl.load(source + i), mask=i < count)


@needs_interpreter
def test_stray_lanes_are_trapped():
    storage = torch.zeros(64)
    copy_kernel[(1,)](storage[:32], storage[32:], 32, COUNT=32)
    with pytest.raises(InterpreterError, match=r"StrayLane.*load: 1 of 32"):
        copy_kernel[(1,)](storage[:31], storage[32:], 32, COUNT=32)
    with pytest.raises(InterpreterError, match=r"StrayLane.*store: 2 of 32"):
        copy_kernel[(1,)](storage[:32], storage[32:62], 32, COUNT=32)


@triton.jit
def bfloat16_kernel(x, y, product, sum_, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    at = i[:, None] * COUNT + i[None, :]
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(product + at, tl.dot(a, b))
    tl.store(sum_ + at, (a.to(tl.float32) + b.to(tl.float32)).to(tl.bfloat16))


@needs_interpreter
def test_the_interpreter_computes_bfloat16():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(16, 16, generator=generator).bfloat16() for _ in range(2))
    product, total = torch.empty(16, 16), torch.empty(16, 16, dtype=torch.bfloat16)
    bfloat16_kernel[(1,)](x, y, product, total, COUNT=16)
    torch.testing.assert_close(product, x.float() @ y.float())
    assert same_bits(total, (x.float() + y.float()).bfloat16())
