"""Linear layers against float64 products with the reference's weight, exact on small integers."""

from __future__ import annotations

import pytest
import torch
from common import CODES_AND_DTYPES, DEVICE, DTYPES, RESIDENCIES, dense, header, pack_of, small_integers
from helpers import pairwise

import frozen_kernels as fk
from frozen_kernels import format
from frozen_kernels.backends import Unsupported
from frozen_kernels.backends.triton import linear, linear_grad_input, weight

SIZES = [(1, 1, 1), (3, 31, 19), (5, 33, 1), (33, 147, 19)]


@pytest.mark.parametrize(("kind", "residency", "size"), pairwise(CODES_AND_DTYPES, RESIDENCIES, SIZES), ids=str)
def test_linear_exact_on_small_integers(kind, residency, size):
    (code, dtype), (rows, cols, batch) = kind, size
    pack = pack_of(header(scale=1.0), residency, code, (rows, cols))
    exact = dense(pack).double()
    x, bias = small_integers(batch, cols, dtype=dtype), small_integers(rows)
    want = (x.double() @ exact.T + bias.double()).to(dtype)
    assert torch.equal(linear(x, bias, None, *pack), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_several_tiles(dtype):
    pack = pack_of(header(scale=1.0), "mask", "sign", (70, 147))
    exact = dense(pack).double()
    x = small_integers(70, 147, dtype=dtype)
    assert torch.equal(linear(x, None, None, *pack), (x.double() @ exact.T).to(dtype))


def test_linear_from_the_seed_past_one_chunk():
    pack = pack_of(header((0x2F00, 0xA100), scale=1.0), "seed", "sign", (70, 1025))
    exact = dense(pack)
    x = small_integers(3, 1025)
    assert torch.equal(linear(x, None, None, *pack), x @ exact.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_error_within_twice_torch(dtype):
    for code, (rows, cols) in (("sign", (64, 576)), ("normal", (33, 147))):
        sigma = format.kaiming_sigma(cols)
        pack = pack_of(header(scale=format.scale_of(code, sigma)), "mask", code, (rows, cols))
        plain = dense(pack)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(24, cols, generator=generator).to(DEVICE, dtype)
        bias = torch.randn(rows, generator=generator).to(DEVICE, dtype)
        exact = x.double() @ plain.double().T + bias.double()
        ours = linear(x, bias, None, *pack).double() - exact
        torchs = torch.nn.functional.linear(x, plain.to(dtype), bias).double() - exact
        assert ours.abs().max() <= 2 * torchs.abs().max(), (code, ours.abs().max(), torchs.abs().max())
        assert ours.square().mean().sqrt() <= 2 * torchs.square().mean().sqrt(), code


def test_linear_takes_any_strides_and_leading_dimensions():
    pack = pack_of(header(scale=1.0), "planes", "sign", (5, 33))
    plain = dense(pack)
    for x in (
        small_integers(33, 4).T,
        small_integers(6, 66)[::2, 1::2],
        small_integers(1, 33).expand(3, 33),
        small_integers(2, 3, 33),
        small_integers(33),
        # leading dimensions that no single stride walks
        small_integers(2, 3, 33).transpose(0, 1),
        small_integers(2, 1, 33).expand(2, 3, 33),
        small_integers(2, 3, 2, 33).permute(2, 0, 1, 3),
        small_integers(1, 2, 1, 2, 3, 33).permute(4, 1, 2, 3, 0, 5),
    ):
        assert torch.equal(linear(x, None, None, *pack), x @ plain.T), x.shape
    for grad in (small_integers(2, 3, 5).transpose(0, 1), small_integers(2, 1, 5).expand(2, 3, 5)):
        assert torch.equal(linear_grad_input(grad, *pack), grad @ plain), grad.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_applies_gain_and_relu(dtype):
    pack = pack_of(header(scale=0.5), "mask", "sign", (70, 33))
    x, bias = small_integers(5, 33).to(dtype), small_integers(70).to(dtype)
    gain = torch.tensor([1.0, -2.0, 0.5, 0.0, -0.25])[torch.arange(70) % 5].to(DEVICE)
    product = x.float() @ dense(pack).T
    assert torch.equal(linear(x, None, None, *pack, relu=True), product.relu().to(dtype))
    assert torch.equal(linear(x, None, None, *pack, gain=gain), (product * gain).to(dtype))
    want = (product * gain + bias.float()).relu().to(dtype)
    assert torch.equal(linear(x, bias, None, *pack, gain=gain, relu=True), want)
    apart = [v.repeat_interleave(2)[::2] for v in (bias, gain)]
    assert torch.equal(linear(x, apart[0], None, *pack, gain=apart[1], relu=True), want)
    x[0, 3] = float("nan")
    assert linear(x, bias, None, *pack, gain=gain, relu=True)[0].isnan().all()
    with pytest.raises(Unsupported):
        linear(x, bias, None, *pack, gain=gain.double())


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_linear_passes_what_is_not_finite():
    pack = pack_of(header(scale=1.0), "mask", "sign", (5, 33))
    x = small_integers(4, 33)
    x[0, 3], x[1, 32], x[2, 0] = float("inf"), float("nan"), -float("inf")
    want = x @ dense(pack).T
    assert torch.equal(linear(x, None, None, *pack).nan_to_num(7.5), want.nan_to_num(7.5))


def test_empty():
    for rows, cols, batch in ((0, 3, 2), (3, 0, 2), (3, 4, 0)):
        pack = pack_of(header(), "seed", "sign", (rows, cols))
        assert weight(None, *pack, torch.float32).shape == (rows, cols)
        bias = torch.arange(rows, device=DEVICE).float()
        assert torch.equal(linear(torch.ones(batch, cols, device=DEVICE), bias, None, *pack), bias.expand(batch, rows))


def test_refusals():
    pack = pack_of(header(), "seed", "sign", (3, 31))
    x = torch.zeros(2, 31, device=DEVICE)
    held = (*pack[:5], torch.zeros(3, 31, device=DEVICE), *pack[6:])
    bare = (pack[0], None, *pack[2:])
    for refused in (
        lambda: weight(None, *pack, torch.float64),
        lambda: weight(None, *held, torch.float32),
        lambda: weight(None, *bare, torch.float32),
        lambda: weight(None, *pack[:-2], "stored", (3, 31), torch.float32),
        lambda: linear(x.double(), None, None, *pack),
        lambda: linear(x, None, None, *pack[:-1], (3, 31, 1)),
        lambda: linear_grad_input(x, *pack[:-1], (31, 31, 1)),
        lambda: weight(None, *pack[:-1], (1, 1 << 31), torch.float32),
    ):
        with pytest.raises(Unsupported):
            refused()
    with pytest.raises(ValueError, match=r"bias: size \[4\], expected \[3\]"):
        linear(x, torch.zeros(4, device=DEVICE), None, *pack)
    with pytest.raises(ValueError, match=r"size \[30\], expected \[31\]"):
        linear(torch.zeros(2, 30, device=DEVICE), None, None, *pack)
    with pytest.raises(ValueError, match=r"keep: shape \(3, 1\) expected, got \(3, 2\)"):
        weight(None, pack[0], None, None, torch.zeros(3, 2, dtype=torch.int32, device=DEVICE), *pack[4:], torch.float32)


def test_ops_reach_the_backend():
    pack = pack_of(header(scale=1.0), "seed", "sign", (3, 31))
    x = small_integers(2, 31)
    want = dense(pack)
    with fk.backends.use("triton"):
        assert torch.equal(torch.ops.frozen_kernels.weight(None, *pack, torch.float32), want)
        assert torch.equal(torch.ops.frozen_kernels.linear(x, None, None, *pack), x @ want.T)
