"""Triton kernels against the reference, bit for bit, in the interpreter.

`test_triton.py` runs this file in a process of its own: the interpreter replaces `triton.language` for good, and
TRITON_INTERPRET must be set before triton is imported.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

import pytest
import torch
import triton
import triton.language as tl
import triton_interpreter
from torch import Tensor
from triton.runtime.errors import InterpreterError

import frozen_kernels as fk
from frozen_kernels import format, reference
from frozen_kernels.backends import Unsupported
from frozen_kernels.backends.triton import kernels, linear, ops, weight

triton_interpreter.mend()

VECTORS = json.loads((pathlib.Path(__file__).parent / "vectors" / "format_v1_vectors.json").read_text())

SMALL = [(1, 1), (3, 31), (5, 33)]
# 16 and 8 significant bits, 4 and 12, and both ends
THRESHOLDS = [(20011, 45003), (0x2F00, 0xA100), (0x1000, 0xB560), (0, 0), (30000, 65536), (0, 65536), (65536, 65536)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODES_AND_DTYPES = list(zip(format.CODES, [*DTYPES, torch.float32], strict=True))


def header(thresholds: tuple[int, int] = (20011, 45003), scale: float = 0.03125, **fields) -> Tensor:
    fields = {"seed": (1 << 63) + 7, "stream": 0xFFFFFFFE, "generation": 5, **fields}
    return format.make_header(**fields, tau_prune=thresholds[0], tau_freeze=thresholds[1], scale=scale)


def pack_of(h: Tensor, residency: str, code: str, shape: tuple[int, ...], keep: Tensor | None = None) -> tuple:
    """The pack of an op, with a supermask from `keep` bool [rows, cols] or at random."""
    rows, cols = format.matrix_shape(shape)
    if keep is None:
        keep = torch.rand(rows, cols, generator=torch.Generator().manual_seed(rows + cols)) < 0.5
    supermask = reference.pack(keep, reference.partition(h, rows, cols, 0, 0))
    # no padding in front or behind: a read past either end leaves the view
    supermask = torch.cat([supermask.new_tensor([255]), supermask, supermask.new_tensor([255])])[1:-1]
    offsets = reference.offsets(h, rows, cols)
    if residency == "seed":
        return h, supermask, offsets, None, None, None, code, shape
    plane = reference.keep_plane(h, supermask, offsets, rows, cols)
    stored = residency == "planes" and code != "constant"
    draw = reference.draw_plane(h, code, rows, cols) if stored else None
    return h, None, None, plane, draw, None, code, shape


def same_bits(a: Tensor, b: Tensor) -> bool:
    integers = {4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(integers), b.view(integers))


def sha256(t: Tensor) -> str:
    return hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()


@triton.jit
def philox_kernel(counters, keys, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    c = counters.to(tl.pointer_type(tl.uint32)) + 4 * i
    k = keys.to(tl.pointer_type(tl.uint32)) + 2 * i
    x0, x1, x2, x3 = kernels.philox(
        tl.load(k), tl.load(k + 1), tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    )
    o = out.to(tl.pointer_type(tl.uint32)) + 4 * i
    tl.store(o, x0)
    tl.store(o + 1, x1)
    tl.store(o + 2, x2)
    tl.store(o + 3, x3)


def test_philox_gives_the_published_answers():
    answers = (VECTORS["philox4x32_10"] * 2)[:4]

    def words(rows: list) -> Tensor:
        return torch.tensor([[int(v, 16) for v in row] for row in rows]).to(torch.int32)

    keys = words([(a["key"][8:], a["key"][:8]) for a in answers])
    out = torch.empty(4, 4, dtype=torch.int32)
    philox_kernel[(1,)](words([a["counter"] for a in answers]), keys, out, COUNT=4)
    assert torch.equal(out, words([a["out"] for a in answers]))


@triton.jit
def deposit_kernel(run, mask, out, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    m = tl.load(mask + i).to(tl.uint32, bitcast=True)
    r = tl.load(run + i).to(tl.uint32, bitcast=True)
    tl.store(out + i, kernels.deposit(r, m, kernels.byte_totals(m)).to(tl.int32, bitcast=True))


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
    out = torch.empty(4096, dtype=torch.int32)
    deposit_kernel[(1,)](run.to(torch.int32), mask.to(torch.int32), out, COUNT=4096)
    assert torch.equal(out, want.to(torch.int32))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: f"{c['rows']}x{c['cols']}-{c['code']}")
def test_golden_vectors(case, monkeypatch):
    rows, cols, code = case["rows"], case["cols"], case["code"]
    if rows > 100:
        monkeypatch.setattr(ops, "WEIGHT_ROWS", 8192)  # the interpreter pays per program
    fields = {"seed": int(case["seed"]), "stream": case["stream"], "generation": case["generation"], "scale": 1.0}
    if rows * cols < 40_000:
        everything = pack_of(header((0, 65536), **fields), "seed", code, (rows, cols))
        assert sha256(weight(None, *everything, torch.float32).to(torch.int16)) == case["codes_int16_sha256"]
    h = header((case["tau_prune"], case["tau_freeze"]), **fields)
    keep = (torch.arange(rows)[:, None] * cols + torch.arange(cols)) % 3 == 0
    pack = pack_of(h, "seed", code, (rows, cols), keep)
    assert sha256(pack[1]) == case["supermask_sha256"]
    assert sha256(weight(None, *pack, torch.float32).to(torch.int16)) == case["effective_int16_sha256"]


@pytest.mark.parametrize("code", format.CODES)
@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_seed_weight_at_every_threshold(thresholds, code):
    for shape in SMALL if code == "sign" else SMALL[-1:]:
        pack = pack_of(header(thresholds), "seed", code, shape)
        assert same_bits(weight(None, *pack, torch.float32), reference.weight(None, *pack, torch.float32)), shape


@pytest.mark.parametrize("residency", ["seed", "mask", "planes"])
@pytest.mark.parametrize(("code", "dtype"), CODES_AND_DTYPES, ids=str)
def test_weight_bitwise(code, dtype, residency):
    for shape, thresholds in [((33, 147), THRESHOLDS[0]), ((64, 576), THRESHOLDS[1])]:
        # a scale with a full significand, so that the rounding to the dtype is at work
        pack = pack_of(header(thresholds, scale=0.0371293), residency, code, shape)
        assert same_bits(weight(None, *pack, dtype), reference.weight(None, *pack, dtype)), shape


@pytest.mark.parametrize(
    ("residency", "code", "thresholds"),
    [("seed", "sign", (20011, 45003)), ("seed", "normal", (0x2F00, 0xA100)), ("mask", "uniform", (20011, 45003))],
    ids=str,
)
def test_weight_past_one_chunk(residency, code, thresholds):
    pack = pack_of(header(thresholds), residency, code, (70, 1025))
    assert same_bits(weight(None, *pack, torch.float32), reference.weight(None, *pack, torch.float32))


@pytest.mark.parametrize("shape", [(6, 5, 3, 2), (4, 7, 5), (2, 3, 2, 2, 2)], ids=str)
def test_weight_of_convolutions_in_torch_order(shape):
    for residency in ("seed", "planes"):
        pack = pack_of(header(), residency, "uniform", shape)
        got = weight(None, *pack, torch.float32)
        assert got.is_contiguous()
        assert same_bits(got, reference.weight(None, *pack, torch.float32))


def small_integers(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


@pytest.mark.parametrize("residency", ["seed", "mask", "planes"])
@pytest.mark.parametrize(("code", "dtype"), CODES_AND_DTYPES, ids=str)
def test_linear_exact_on_small_integers(code, dtype, residency):
    for rows, cols, batch in ((1, 1, 1), (3, 31, 19), (5, 33, 1), (33, 147, 19)):
        pack = pack_of(header(scale=1.0), residency, code, (rows, cols))
        exact = reference.weight(None, *pack, torch.float32).double()
        x, bias = small_integers(batch, cols, dtype=dtype), small_integers(rows)
        want = (x.double() @ exact.T + bias.double()).to(dtype)
        assert torch.equal(linear(x, bias, None, *pack), want), (rows, cols, batch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_several_tiles(dtype):
    pack = pack_of(header(scale=1.0), "mask", "sign", (70, 147))
    exact = reference.weight(None, *pack, torch.float32).double()
    x = small_integers(70, 147, dtype=dtype)
    assert torch.equal(linear(x, None, None, *pack), (x.double() @ exact.T).to(dtype))


def test_linear_from_the_seed_past_one_chunk():
    pack = pack_of(header((0x2F00, 0xA100), scale=1.0), "seed", "sign", (70, 1025))
    exact = reference.weight(None, *pack, torch.float32)
    x = small_integers(3, 1025)
    assert torch.equal(linear(x, None, None, *pack), x @ exact.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_error_within_twice_torch(dtype):
    for code, (rows, cols) in (("sign", (64, 576)), ("normal", (33, 147))):
        sigma = format.kaiming_sigma(cols)
        pack = pack_of(header(scale=format.scale_of(code, sigma)), "mask", code, (rows, cols))
        dense = reference.weight(None, *pack, torch.float32)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(24, cols, generator=generator).to(dtype)
        bias = torch.randn(rows, generator=generator).to(dtype)
        exact = x.double() @ dense.double().T + bias.double()
        ours = linear(x, bias, None, *pack).double() - exact
        torchs = torch.nn.functional.linear(x, dense.to(dtype), bias).double() - exact
        assert ours.abs().max() <= 2 * torchs.abs().max(), (code, ours.abs().max(), torchs.abs().max())
        assert ours.square().mean().sqrt() <= 2 * torchs.square().mean().sqrt(), code


def test_linear_takes_any_strides_and_leading_dimensions():
    pack = pack_of(header(scale=1.0), "planes", "sign", (5, 33))
    dense = reference.weight(None, *pack, torch.float32)
    for x in (
        small_integers(33, 4).T,
        small_integers(6, 66)[::2, 1::2],
        small_integers(1, 33).expand(3, 33),
        small_integers(2, 3, 33),
        small_integers(33),
    ):
        assert torch.equal(linear(x, None, None, *pack), x @ dense.T), x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_applies_gain_and_relu(dtype):
    pack = pack_of(header(scale=0.5), "mask", "sign", (70, 33))
    x, bias = small_integers(5, 33).to(dtype), small_integers(70).to(dtype)
    gain = torch.tensor([1.0, -2.0, 0.5, 0.0, -0.25])[torch.arange(70) % 5]
    product = x.float() @ reference.weight(None, *pack, torch.float32).T
    assert torch.equal(linear(x, None, None, *pack, relu=True), product.relu().to(dtype))
    assert torch.equal(linear(x, None, None, *pack, gain=gain), (product * gain).to(dtype))
    want = (product * gain + bias.float()).relu().to(dtype)
    assert torch.equal(linear(x, bias, None, *pack, gain=gain, relu=True), want)
    x[0, 3] = float("nan")
    assert linear(x, bias, None, *pack, gain=gain, relu=True)[0].isnan().all()
    with pytest.raises(Unsupported):
        linear(x, bias, None, *pack, gain=gain.double())


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_linear_passes_what_is_not_finite():
    pack = pack_of(header(scale=1.0), "mask", "sign", (5, 33))
    x = small_integers(4, 33)
    x[0, 3], x[1, 32], x[2, 0] = float("inf"), float("nan"), -float("inf")
    want = x @ reference.weight(None, *pack, torch.float32).T
    assert torch.equal(linear(x, None, None, *pack).nan_to_num(7.5), want.nan_to_num(7.5))


def test_empty():
    for rows, cols, batch in ((0, 3, 2), (3, 0, 2), (3, 4, 0)):
        pack = pack_of(header(), "seed", "sign", (rows, cols))
        assert weight(None, *pack, torch.float32).shape == (rows, cols)
        bias = torch.arange(rows).float()
        assert torch.equal(linear(torch.ones(batch, cols), bias, None, *pack), bias.expand(batch, rows))


def test_refusals():
    pack = pack_of(header(), "seed", "sign", (3, 31))
    x = torch.zeros(2, 31)
    dense = (*pack[:5], torch.zeros(3, 31), *pack[6:])
    bare = (pack[0], None, *pack[2:])
    for refused in (
        lambda: weight(None, *pack, torch.float64),
        lambda: weight(None, *dense, torch.float32),
        lambda: weight(None, *bare, torch.float32),
        lambda: weight(None, *pack[:6], "stored", (3, 31), torch.float32),
        lambda: linear(x.double(), None, None, *pack),
        lambda: linear(x, None, None, *pack[:7], (3, 31, 1)),
        lambda: linear(x, torch.zeros(6)[::2], None, *pack),
        lambda: weight(None, *pack[:7], (1, 1 << 31), torch.float32),
    ):
        with pytest.raises(Unsupported):
            refused()
    with pytest.raises(ValueError, match="31 expected"):
        linear(torch.zeros(2, 30), None, None, *pack)
    with pytest.raises(ValueError, match="keep: 3 elements expected, got 6"):
        weight(None, pack[0], None, None, torch.zeros(3, 2, dtype=torch.int32), *pack[4:], torch.float32)


def test_ops_reach_the_backend():
    pack = pack_of(header(scale=1.0), "seed", "sign", (3, 31))
    x = small_integers(2, 31)
    want = reference.weight(None, *pack, torch.float32)
    with fk.backends.use("triton"):
        assert torch.equal(torch.ops.frozen_kernels.weight(None, *pack, torch.float32), want)
        assert torch.equal(torch.ops.frozen_kernels.linear(x, None, None, *pack), x @ want.T)


@triton.jit
def copy_kernel(source, out, count, COUNT: tl.constexpr):
    i = tl.arange(0, COUNT)
    tl.store(out + i, tl.load(source + i), mask=i < count)


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


def test_the_interpreter_computes_bfloat16():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(16, 16, generator=generator).bfloat16() for _ in range(2))
    product, total = torch.empty(16, 16), torch.empty(16, 16, dtype=torch.bfloat16)
    bfloat16_kernel[(1,)](x, y, product, total, COUNT=16)
    torch.testing.assert_close(product, x.float() @ y.float())
    assert same_bits(total, (x.float() + y.float()).bfloat16())
