"""Packed stored weights: products, gradients of inputs and weights, exact on small integers, and the ops that pack."""

from __future__ import annotations

import pytest
import torch
from cases_contract import recording
from cases_convolution import Case
from common import DEVICE, DTYPES, same_bits, small_integers, stored_pack
from helpers import pairwise

import frozen_kernels as fk
from frozen_kernels import format
from frozen_kernels.backends import Unsupported, reference, triton

VALUES = tuple(format.VALUE_DTYPES)
SIZES = [(1, 1, 1), (3, 31, 19), (5, 33, 2), (7, 1025, 3)]
KEPT = {
    "none": lambda keep: torch.zeros_like(keep),
    "all": lambda keep: torch.ones_like(keep),
    "half": lambda keep: keep,
    "rows": lambda keep: keep & (torch.arange(len(keep)) % 3 > 0)[:, None] | (torch.arange(len(keep)) % 3 > 1)[:, None],
}


def kept(name: str, *shape: int) -> torch.Tensor:
    return KEPT[name](torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) < 0.5)


@pytest.mark.parametrize(("values", "dtype", "size", "keep"), pairwise(VALUES, DTYPES, SIZES, KEPT), ids=str)
def test_linear_exact_on_small_integers(values, dtype, size, keep):
    rows, cols, batch = size
    pack, weight = stored_pack((rows, cols), values, kept(keep, rows, cols))
    x, grad, bias = (small_integers(*n, dtype=dtype) for n in ((batch, cols), (batch, rows), (rows,)))
    want = (x.double() @ weight.double().T + bias.double()).to(dtype)
    assert torch.equal(triton.linear(x, bias, None, *pack), want)
    want = (grad.double() @ weight.double()).to(dtype)
    assert torch.equal(triton.linear_grad_input(grad, *pack), want)


def test_parts_of_a_sum_begin_anywhere(monkeypatch):
    pack, weight = stored_pack((5, 2100), "int8")
    x = small_integers(3, 2100)
    monkeypatch.setattr("frozen_kernels.backends.triton.tuning.split", lambda programs, steps: 7)
    assert torch.equal(triton.linear(x, None, None, *pack), x @ weight.T)


# every dtype of values and of inputs, and every layout: runs of channels or not, taps that share a step or not
CONVOLUTIONS = [
    ("wide", "bfloat16", torch.bfloat16, True),
    ("ragged", "float32", torch.float32, False),
    ("ragged", "int8", torch.float16, True),
    ("strided", "int8", torch.bfloat16, False),
    ("stem", "float16", torch.float16, True),
    ("wide-groups", "int8", torch.float32, False),
    ("groups", "float32", torch.bfloat16, False),
    ("depthwise", "bfloat16", torch.float32, False),
    ("depthwise-strided", "int8", torch.float16, True),
    ("one", "int8", torch.float32, False),
    ("three", "float16", torch.float32, False),
    ("empty", "int8", torch.bfloat16, False),
]


@pytest.mark.parametrize(("name", "values", "dtype", "channels_last"), CONVOLUTIONS)
def test_convolutions(name, values, dtype, channels_last):
    Case(name, format.STORED, dtype, values, channels_last).check()


@pytest.mark.parametrize(("name", "values"), [("strided", "float16"), ("gap", "int8"), ("depthwise-strided", "int8")])
def test_transposed_convolutions(name, values):
    Case(name, format.STORED, torch.bfloat16, values).check_transposed()


def test_depthwise_of_more_than_a_word_of_taps():
    pack, weight = stored_pack((4, 1, 35), "int8")
    x, bias = small_integers(1, 2, 20), small_integers(4)
    spatial = ((1,), (17,), (1,), 2)
    y = torch.nn.functional.conv1d(x, weight, bias, *spatial)
    assert torch.equal(triton.conv1d(x, bias, None, *pack, *spatial), y)
    want = torch.nn.grad.conv1d_input(x.shape, weight, y, *spatial)
    assert torch.equal(triton.conv1d_grad_input(y, x.shape, *pack, *spatial), want)


def test_gain_and_relu():
    for values in ("int8", "float32"):
        pack, weight = stored_pack((70, 33), values)
        x, bias = small_integers(5, 33), small_integers(70)
        gain = torch.tensor([1.0, -2.0, 0.5, 0.0, -0.25])[torch.arange(70) % 5].to(DEVICE)
        want = (x @ weight.T * gain + bias).relu()
        assert torch.equal(triton.linear(x, bias, None, *pack, gain=gain, relu=True), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_within_twice_torch(dtype):
    generator = torch.Generator().manual_seed(1)
    rows, cols = 33, 300
    keep = torch.rand(rows, cols, generator=generator) < 0.3
    values, x, grad = (torch.randn(n, generator=generator) for n in ((rows, cols), (8, cols), (8, rows)))
    for held in ("float32", "int8"):
        record = fk.FrozenTensor.stored(values, keep, values=held)
        pack = tuple(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in record.pack())
        weight = reference.weight(None, *record.pack(), torch.float32).to(DEVICE)
        for ours, inputs, matrix in (
            (triton.linear(x.to(DEVICE, dtype), None, None, *pack), x, weight.T),
            (triton.linear_grad_input(grad.to(DEVICE, dtype), *pack), grad, weight),
        ):
            inputs = inputs.to(DEVICE, dtype)
            exact = inputs.double() @ matrix.double()
            theirs = (inputs @ matrix.to(dtype)).double() - exact
            error = ours.double() - exact
            assert error.abs().max() <= 2 * theirs.abs().max(), held
            assert error.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt(), held


SHAPES = [(1, 1), (5, 33), (7, 1025), (6, 5, 3, 2), (4, 7, 5), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize(("values", "dtype", "shape"), pairwise(VALUES, DTYPES, SHAPES), ids=str)
def test_weight_bitwise(values, dtype, shape):
    pack, weight = stored_pack(shape, values, format.from_matrix(kept("rows", *format.matrix_shape(shape)), shape))
    if values == "int8":
        # scales with a full significand, so that the rounding to the dtype is at work
        pack = (*pack[:7], pack[7] * 0.0371293, *pack[8:])
        weight = reference.weight(None, *[a.cpu() if isinstance(a, torch.Tensor) else a for a in pack], torch.float32)
    got = triton.weight(None, *pack, dtype)
    assert got.is_contiguous() and same_bits(got, weight.to(dtype))


def test_embedding():
    pack, weight = stored_pack((11, 37), "int8")
    indices = torch.tensor([[3, 10, 3], [0, 7, 1]], device=DEVICE)
    want = weight[indices]
    want[1, 1] = 0
    assert torch.equal(triton.embedding(indices, None, *pack, torch.float32, 7), want)


@pytest.mark.parametrize(("dtype", "shape"), pairwise(DTYPES, [(0, 3), (3, 0), *SHAPES]), ids=str)
def test_values_are_packed_as_the_reference_does(dtype, shape):
    rows, cols = format.matrix_shape(shape)
    keep = reference.planes(kept("rows", rows, cols))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    moved = keep.to(DEVICE)
    assert torch.equal(triton.plane_offsets(moved, cols).cpu(), reference.plane_offsets(keep, cols))
    want = reference.pack_values(weight, keep)
    assert same_bits(triton.pack_values(weight.to(DEVICE), moved), want)
    assert same_bits(triton.pack_values(weight.mT.contiguous().mT.to(DEVICE), moved), want)


def test_no_weights():
    for rows, cols, batch in ((0, 3, 2), (3, 0, 2), (3, 4, 0)):
        pack, weight = stored_pack((rows, cols), "int8")
        bias = torch.arange(rows, device=DEVICE).float()
        got = triton.linear(torch.ones(batch, cols, device=DEVICE), bias, None, *pack)
        assert torch.equal(got, bias.expand(batch, rows))
        assert triton.linear_grad_input(torch.ones(batch, rows, device=DEVICE), *pack).shape == (batch, cols)
        assert triton.weight(None, *pack, torch.float32).shape == weight.shape


def test_refusals():
    pack, _ = stored_pack((3, 31), "int8")
    header, _, offsets, keep, _, _, values, scale, *rest = pack
    x, scores = torch.zeros(2, 31, device=DEVICE), torch.zeros(93, device=DEVICE)
    for refused in (
        lambda: triton.linear(x.double(), None, None, *pack),
        lambda: triton.weight(None, header, None, None, keep, None, None, values, scale, *rest, torch.float32),
        lambda: triton.weight(None, header, None, offsets, None, None, None, values, scale, *rest, torch.float32),
        lambda: triton.weight(None, *pack[:6], x[:1].expand(3, 31), None, *rest, torch.float32),
        lambda: triton.linear_grad_scores(torch.zeros(2, 3, device=DEVICE), x, scores, *pack),
        lambda: triton.pack_values(torch.zeros(3, 31, device=DEVICE, dtype=torch.float64), keep),
    ):
        with pytest.raises(Unsupported):
            refused()
    with pytest.raises(ValueError, match="row_scale: with int8 values and with no others"):
        triton.linear(x, None, None, *pack[:7], None, *rest)
    with pytest.raises(ValueError, match=r"keep: shape \(3, 2\) expected, got \(3, 1\)"):
        triton.pack_values(torch.zeros(3, 33, device=DEVICE), keep)


def test_launchers_wait_for_nothing_and_allocate_what_they_say():
    pack, _ = stored_pack((33, 147), "int8")
    x, grad = small_integers(5, 147), small_integers(5, 33)
    gains = 2 * 4 * 33
    for call, scratch in (
        (lambda: triton.linear(x, None, None, *pack, gain=grad[0]), gains),
        (lambda: triton.linear_grad_input(grad, *pack), 4 * 33 * format.words(147)),
        (lambda: triton.weight(None, *pack, torch.float32), 0),
    ):
        with recording([x, grad, *(a for a in pack if isinstance(a, torch.Tensor))]) as seen:
            result = call()
        assert not seen.waits and seen.bytes <= result.nbytes + scratch


def test_a_record_reaches_the_backend():
    _, weight = stored_pack((5, 33), "float32")
    x = small_integers(2, 33)
    with fk.backends.use("triton"):
        record = fk.FrozenTensor.stored(weight, weight != 0, values="float16")
        assert torch.equal(record.weight(), weight)
        assert torch.equal(torch.ops.frozen_kernels.linear(x, None, None, *record.pack()), x @ weight.T)
