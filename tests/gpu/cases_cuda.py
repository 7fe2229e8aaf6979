"""The CUDA C++ kernels through their backend, on a GPU; without one on the emulator, where TRITON_INTERPRET is 1."""

from __future__ import annotations

import itertools

import pytest
import torch
from common import DEVICE, DTYPES, INTERPRETING, RESIDENCIES, dense, header, pack_of, small_integers, stored_pack
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format
from frozen_kernels.backends import Unsupported, cuda
from frozen_kernels.backends.cuda import extension

if INTERPRETING:
    import cuda_emulated

    from frozen_kernels.backends.cuda import product

    if why := cuda_emulated.lacking():
        pytest.skip(why, allow_module_level=True)
    EMULATED = cuda_emulated.load()
    extension.load = product.load = lambda: EMULATED
elif reasons := extension.reasons():
    pytest.skip("; ".join(reasons), allow_module_level=True)

on_gpu = pytest.mark.skipif(INTERPRETING, reason="needs a GPU")
HALVES = [torch.bfloat16, torch.float16]
SIZES = [(16, 512), (37, 1008), (8, 112), (64, 2048)]  # rows, columns: whole slices and not, one block and several


def aligned(pack, exact):
    """A stored weight whose values begin at a multiple of 16 bytes, as the kernels ask for."""
    return (*pack[:6], pack[6].clone(), *pack[7:]), exact


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    """No choice by the table: these kernels or none."""
    from frozen_kernels.backends import forced

    monkeypatch.setattr(forced, "name", "cuda")


def check_linear(code, dtype, pixel_counts, with_bias):
    """Exact on small integers, in every size."""
    for (rows, cols), residency in itertools.product(SIZES, ("mask", "planes")):
        pack = pack_of(header(scale=1.0), residency, code, (rows, cols))
        exact = dense(pack).double()
        for pixels in pixel_counts:
            x, bias = small_integers(pixels, cols, dtype=dtype), small_integers(rows) if with_bias else None
            want = (x.double() @ exact.T + (0.0 if bias is None else bias.double())).to(dtype)
            assert torch.equal(cuda.linear(x, bias, None, *pack), want), (rows, cols, residency, pixels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("code", ["sign", "constant"])
def test_linear_is_exact_on_small_integers(code, dtype):
    check_linear(code, dtype, (1, 3, 5) if dtype == torch.float32 else (1, 7, 8, 9, 16), True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("code", ["uniform", "normal"])
def test_codes_of_bytes_are_exact_on_small_integers(code, dtype):
    check_linear(code, dtype, (1, 2, 4), False)


@pytest.mark.parametrize("values", list(format.VALUE_DTYPES))
def test_packed_values_are_exact_on_small_integers(values):
    for (rows, cols), dtype in itertools.product([(5, 31), (40, 97), (33, 1500)], DTYPES):
        pack, exact = aligned(*stored_pack((rows, cols), values))
        for pixels in (1, 3, 8):
            x, grad = small_integers(pixels, cols, dtype=dtype), small_integers(pixels, rows, dtype=dtype)
            want = (x.double() @ exact.double().T).to(dtype)
            assert torch.equal(cuda.linear(x, None, None, *pack), want), (rows, cols, dtype, pixels)
            want = (grad.double() @ exact.double()).to(dtype)
            assert torch.equal(cuda.linear_grad_input(grad, *pack), want), (rows, cols, dtype, pixels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_inputs_are_exact_on_small_integers(dtype):
    for (rows, cols), residency in itertools.product(SIZES, ("mask", "planes")):
        pack = pack_of(header(scale=1.0), residency, "sign", (rows, cols))
        exact = dense(pack).double()
        grad = small_integers(2, rows, dtype=dtype)
        want = (grad.double() @ exact).to(dtype)
        assert torch.equal(cuda.linear_grad_input(grad, *pack), want), (rows, cols, residency)


@pytest.mark.parametrize("code", format.CODES)
def test_residencies_give_the_same_bits(code):
    """Or are refused alike: what serves a shape does not depend on them."""
    for cols, pixels in itertools.product((1024, 1000), (3, 6)):
        x = torch.randn(pixels, cols, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
        found = []
        for residency in RESIDENCIES:
            try:
                found.append(cuda.linear(x, None, None, *pack_of(header(), residency, code, (40, cols))))
            except Unsupported:
                found.append(None)
        assert all(y is None if found[0] is None else torch.equal(found[0], y) for y in found), (cols, pixels)
        assert found[0] is not None or code in ("uniform", "normal")


CONVOLUTIONS = [
    # weight, image, stride, padding, dilation
    ((32, 16, 3, 3), (2, 16, 7, 6), (1, 1), (1, 1), (1, 1)),
    ((20, 64, 3, 3), (1, 64, 5, 5), (2, 2), (1, 1), (1, 1)),
    ((40, 24, 1, 1), (3, 24, 4, 5), (1, 1), (0, 0), (1, 1)),
    ((16, 8, 3, 2), (1, 8, 9, 8), (2, 1), (2, 0), (1, 2)),
]
STEM = ((24, 3, 7, 7), (2, 3, 21, 20), (2, 2), (3, 3), (1, 1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", [*CONVOLUTIONS, STEM], ids=str)
def test_convolutions_are_exact_on_small_integers(case, dtype):
    shape, size, *rest = case
    for residency in ("mask", "planes"):
        pack = pack_of(header(scale=1.0), residency, "sign", shape)
        x = small_integers(*size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        bias, gain = small_integers(shape[0]), torch.full((shape[0],), 2.0, device=DEVICE)
        want = F.conv2d(x.double(), dense(pack).double(), None, *rest) * 2 + bias.double().view(-1, 1, 1)
        got = cuda.conv2d(x, bias, None, *pack, *rest, 1, gain=gain, relu=True)
        assert torch.equal(got, want.relu().to(dtype)), residency
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_errors_are_at_most_twice_torchs_own():
    for dtype, code in [(torch.float32, "sign"), *itertools.product(HALVES, ("sign", "uniform", "normal"))]:
        pack = pack_of(header(scale=format.scale_of(code, 0.03)), "mask", code, (48, 1536))
        plain = dense(pack)
        x = torch.randn(2, 1536, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
        exact = x.double() @ plain.double().T
        ours, torchs = cuda.linear(x, None, None, *pack) - exact, F.linear(x, plain.to(dtype)) - exact
        assert ours.abs().max() <= 2 * torchs.abs().max(), (dtype, code)
        assert ours.square().mean() <= 4 * torchs.square().mean(), (dtype, code)


def test_what_they_do_not_serve_is_refused_with_the_reason():
    with pytest.raises(Unsupported, match="more than four pixels"):
        uniform = pack_of(header(), "mask", "uniform", (16, 512))
        cuda.linear(small_integers(5, 512, dtype=torch.bfloat16), None, None, *uniform)
    with pytest.raises(Unsupported, match="one group, not 2"):
        conv = pack_of(header(), "mask", "sign", (16, 8, 3, 3))
        cuda.conv2d(small_integers(1, 16, 5, 5), None, None, *conv, [1, 1], [1, 1], [1, 1], 2)


@on_gpu
def test_calls_are_captured_in_a_graph():
    pack = pack_of(header(scale=1.0), "planes", "sign", (256, 1024))
    x = small_integers(4, 1024, dtype=torch.bfloat16)
    want, graph = cuda.linear(x, None, None, *pack), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = cuda.linear(x, None, None, *pack)
        z = cuda.linear(y.repeat(1, 4), None, None, *pack)  # reads what the kernel before it wrote
    for _ in range(3):
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, want) and torch.equal(z, cuda.linear(want.repeat(1, 4), None, None, *pack))


@on_gpu
def test_two_streams_at_once():
    packs = [pack_of(header(scale=1.0, seed=seed), "mask", "sign", (512, 2048)) for seed in (1, 2)]
    x = small_integers(1, 2048, dtype=torch.bfloat16)
    want = [cuda.linear(x, None, None, *pack) for pack in packs]
    streams = [torch.cuda.Stream() for _ in packs]
    torch.cuda.synchronize()
    for _ in range(50):
        found = []
        for stream, pack in zip(streams, packs, strict=True):
            with torch.cuda.stream(stream):
                found.append(cuda.linear(x, None, None, *pack))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@on_gpu
def test_under_torch_compile():
    layer = fk.nn.FrozenLinear(1024, 256, seed=3).to(DEVICE, torch.bfloat16).eval()
    x = torch.randn(2, 1024, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        want = layer(x)
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), want)
