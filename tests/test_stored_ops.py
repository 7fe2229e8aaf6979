"""Ops of stored weights on the CPU kernels: bit for bit what the reference gives, on every instruction set here."""

from __future__ import annotations

import itertools
import math
import mmap

import pytest
import torch
from helpers import distinct_levels, each_isa, pairwise
from torch import Tensor

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.backends import Unsupported, cpu, reference

if cpu.reasons():
    pytest.skip("; ".join(cpu.reasons()), allow_module_level=True)

from frozen_kernels import _C

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCORE_DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [
    (5, 1), (3, 31), (4, 33), (2, 1025), (1, 20000), (300, 7), (0, 3), (3, 0), (2, 3, 1), (33, 5, 3), (7, 32, 3, 3),
    (40, 3, 7, 7), (3, 64, 2, 1, 3), (2, 1, 3, 3), (2, 600, 3, 5), (9, 34, 1, 1),
]  # fmt: skip


isa = each_isa(_C, distinct_levels(_C.isa_available()))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in dtype, shape and, but for which NaN it is, every bit."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    nan = theirs.isnan()
    return torch.equal(ours.isnan(), nan) and torch.equal(
        *(t.masked_fill(nan, 0).contiguous().view(torch.uint8) for t in (ours, theirs))
    )


SPECIAL = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, math.inf, -math.inf, math.nan, -math.nan])
KINDS = {
    "normal": lambda n: torch.randn(n),
    "ties": lambda n: (torch.randn(n) * 10).round() / 10,
    "all equal": lambda n: torch.full((n,), -0.25),
    "zeros": lambda n: torch.where(torch.rand(n) < 0.5, 0.0, -0.0),
    "special": lambda n: SPECIAL[torch.randint(len(SPECIAL), (n,))],
    "nan": lambda n: torch.full((n,), math.nan).copysign(torch.randn(n)),
    "two": lambda n: torch.where(torch.rand(n) < 0.3, 0.005, -0.005),
    "ascending": lambda n: torch.arange(n) / 7.0 - 100,
}
RATES = (1.0, 0.5, 0.07, 1e-9, 0.0)


def mask_of(kept: Tensor) -> Tensor:
    return reference.masks.pack_bits(kept)


def best(scores: Tensor, kept: int, wrong: float) -> Tensor:
    """bool: the `kept` best scores, of which about a share `wrong` is traded for others."""
    keep = torch.zeros(scores.numel(), dtype=torch.bool)
    noise = torch.where(torch.rand(scores.numel()) < wrong, torch.randn(scores.numel()), 0.0)
    keep[(scores.float().nan_to_num(9.0) + 9 * noise).argsort(descending=True)[:kept]] = True
    return keep


def check_swap(scores: Tensor, keep: Tensor, rate: float) -> None:
    """On every instruction set, and for many scores with several numbers of threads."""
    mask, kept = mask_of(keep), int(keep.sum())
    wanted, before = reference.swap(scores, mask, kept, rate), (_C.isa(), torch.get_num_threads())
    levels = distinct_levels(_C.isa_available())
    for isa, threads in itertools.product(levels, (1, 2, 3) if scores.numel() > 1000 else (1,)):
        _C.set_isa(isa)
        torch.set_num_threads(threads)
        assert same(cpu.swap(scores, mask, kept, rate), wanted), (isa, threads, scores.numel(), kept, rate)
    _C.set_isa(before[0])
    torch.set_num_threads(before[1])


@pytest.mark.parametrize("dtype", SCORE_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_swap_of_few_scores(kind, dtype):
    for n in (0, 1, 7, 8, 9, 31, 33, 64, 65, 257):
        scores = KINDS[kind](n).to(dtype)
        for kept in sorted({0, min(1, n), n // 3, max(0, n - 1), n}):
            for rate in RATES:
                check_swap(scores, torch.randperm(n) < kept, rate)
            check_swap(scores, best(scores, kept, 0.1), 1.0)


@pytest.mark.parametrize("dtype", SCORE_DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_swap_of_many_scores(kind, dtype):
    n = 140_003
    scores = KINDS[kind](n).to(dtype)
    for kept, wrong, rate in ((1, 0.1, 1.0), (14_011, 0.01, 1.0), (70_000, 0.001, 0.07), (n - 1, 0.1, 0.5)):
        check_swap(scores, best(scores, kept, wrong), rate)
    check_swap(scores, torch.randperm(n) < n // 3, 1.0)


def test_swap_where_a_sample_misleads():
    """The scores that a sample reads are all high: the threshold lies outside the bracket that it gives."""
    n, step = 16 * 3000, 16
    scores, part = torch.randn(n) - 5, torch.arange(3000)
    scores[part * step + (part * 2654435761 % (1 << 32) >> 8) % step] += 10
    for kept in (100, n // 2, n - 100):
        check_swap(scores, best(scores, kept, 0.01), 1.0)


def test_swap_by_hand():
    scores = torch.cat((torch.full((100,), 1.0), torch.full((100,), 2.0)))
    mask = mask_of(torch.arange(200) < 100)
    for rate, swaps in ((1.0, 100), (0.07, 8), (0.5, 50), (1e-9, 1), (0.0, 0)):
        found = cpu.swap(scores, mask, 100, rate)
        assert found.tolist() == [list(range(100, 100 + swaps)), list(range(99, 99 - swaps, -1))]
    after = cpu.flip(mask, cpu.swap(scores, mask, 100, 1.0))
    assert cpu.swap(scores, after, 100, 1.0).shape == (2, 0)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_swap_and_flip_refuse(backend):
    scores, mask = torch.randn(20), torch.tensor([255, 3, 0], dtype=torch.uint8)
    with pytest.raises(ValueError, match="supermask: 10 weights kept, expected 9"):
        backend.swap(scores, mask, 9, 1.0)
    with pytest.raises(ValueError, match=r"supermask: uint8 \[3\]"):
        backend.swap(scores, mask[:2], 10, 1.0)
    with pytest.raises(ValueError, match="supermask: bits are set"):
        backend.swap(scores, torch.tensor([0, 0, 16], dtype=torch.uint8), 1, 1.0)
    for rate in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"rate: 0 to 1, got {rate}"):
            backend.swap(scores, mask, 10, rate)
    for position in (-1, 24, 1 << 40):
        with pytest.raises(IndexError, match=f"positions: .*{position}"):
            backend.flip(mask, torch.tensor([3, position]))


def test_swap_serves_float32_and_bfloat16_alone():
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(Unsupported, match="scores is"):
            cpu.swap(torch.randn(8).to(dtype), torch.tensor([1], dtype=torch.uint8), 1, 1.0)


def test_flip_changes_the_bits_of_a_copy():
    for n in (0, 1, 9, 1000):
        mask = torch.randint(256, (n,), dtype=torch.uint8)
        positions = torch.randperm(8 * n)[: 2 * n].view(2, -1)
        before = mask.clone()
        for given in (positions, positions.T, positions[:, ::2]):
            assert same(cpu.flip(mask, given), reference.flip(mask, given))
        assert torch.equal(mask, before)


LAYOUTS = ("contiguous", "reversed", "padded", "channels last")
GRADIENTS = pairwise(KERNEL_DTYPES, KERNEL_DTYPES, SCORE_DTYPES, LAYOUTS, LAYOUTS, (1, 2, 3))


def laid_out(weight: Tensor, layout: str) -> Tensor:
    """The same weight at other strides."""
    if layout == "reversed":
        dims = tuple(reversed(range(weight.dim())))
        return weight.permute(dims).contiguous().permute(dims)
    if layout == "padded":
        padded = weight.new_zeros([2 * n + 1 for n in weight.shape])
        return padded[tuple(slice(1, 2 * n + 1, 2) for n in weight.shape)].copy_(weight)
    return weight.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels last" else weight


def plane_of(shape, share=0.4) -> tuple[Tensor, Tensor]:
    """A keep plane and the supermask of the same weights."""
    keep = torch.rand(fmt.matrix_shape(shape)) < share
    return reference.planes(keep), reference.pack(keep, torch.zeros_like(keep, dtype=torch.int8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_offsets_and_values_of_a_plane(isa, threads, shape):
    cols, dtypes = fmt.matrix_shape(shape)[1], (*KERNEL_DTYPES, torch.float64, torch.int8)
    for share, dtype, layout, count in pairwise((0.0, 0.4, 1.0), dtypes, LAYOUTS, (1, 2, 3)):
        threads(count)
        plane, _ = plane_of(shape, share)
        assert same(cpu.plane_offsets(plane, cols), reference.plane_offsets(plane, cols))
        weight = laid_out((torch.randn(shape) * 50).to(dtype), layout)
        assert same(cpu.pack_values(weight, plane), reference.pack_values(weight, plane))


def pack_of(shape, values, plane=None, supermask=None, row_scale=None) -> fmt.Pack:
    header = fmt.make_header(0, code="stored")
    return fmt.Pack(header, supermask, None, plane, None, None, values, row_scale, "stored", shape)


def extreme(shape, dtype) -> Tensor:
    """Normal values, some of them zeros, infinite, NaN, tiny or huge."""
    weight = torch.randn(shape)
    return torch.where(torch.rand(shape) < 0.1, SPECIAL[torch.randint(len(SPECIAL), shape)], weight).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_of_all_values(isa, threads, shape):
    plane, supermask = plane_of(shape)
    sources = {"plane": plane}, {"supermask": supermask}
    for dtype, out, layout, n in pairwise(KERNEL_DTYPES, KERNEL_DTYPES, LAYOUTS, range(2)):
        threads(n + 1)
        pack = pack_of(shape, laid_out(extreme(shape, dtype), layout), **sources[n])
        ours = cpu.weights.weight(None, pack, out)
        assert ours.is_contiguous() and same(ours, reference.weights.weight(None, pack, out).contiguous())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weight_of_packed_values(isa, threads, shape):
    plane, supermask = plane_of(shape)
    sources = {"plane": plane}, {"supermask": supermask}
    for dtype, out, n in pairwise((*KERNEL_DTYPES, torch.int8), KERNEL_DTYPES, range(2)):
        threads(n + 1)
        weight = extreme(shape, dtype) if dtype.is_floating_point else torch.randint(-127, 128, shape, dtype=dtype)
        scale = None if dtype.is_floating_point else torch.rand(shape[0]) / 127
        pack = pack_of(shape, reference.pack_values(weight, plane), row_scale=scale, **sources[n])
        assert same(cpu.weights.weight(None, pack, out), reference.weights.weight(None, pack, out))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_score_gradient_of_all_values(isa, threads, shape):
    def check(grad: Tensor, values: Tensor, out: torch.dtype, count: int) -> None:
        threads(count)
        pack, scores = pack_of(shape, values), torch.zeros(math.prod(shape), dtype=out)
        ours = cpu.weights.weight_grad_scores(grad, scores, pack)
        assert same(ours, reference.weights.weight_grad_scores(grad, scores, pack))

    for dtype, other, out, layout, other_layout, count in GRADIENTS:
        grad, values = laid_out(extreme(shape, dtype), layout), laid_out(extreme(shape, other), other_layout)
        check(grad, values, out, count)
    for layout, dtype, out in pairwise(LAYOUTS, KERNEL_DTYPES, SCORE_DTYPES):
        check(laid_out(extreme(shape, dtype), layout), laid_out(extreme(shape, dtype), layout), out, 2)
        check(torch.tensor(3.0, dtype=dtype).expand(shape), laid_out(extreme(shape, dtype), layout), out, 1)
        check(torch.tensor(3.0, dtype=dtype).expand(shape), torch.tensor(0.3, dtype=dtype).expand(shape), out, 1)


def test_what_the_kernels_do_not_serve_runs_on_the_reference():
    shape = (3, 5)
    plane, supermask = plane_of(shape)
    doubles, scores = torch.randn(shape, dtype=torch.float64), torch.zeros(15)
    ops, pack = torch.ops.frozen_kernels, pack_of(shape, doubles, supermask=supermask)
    for backend_call, call in (
        (lambda: cpu.weights.weight(None, pack, torch.float32), lambda: ops.weight(None, *pack, torch.float32)),
        (
            lambda: cpu.weights.weight_grad_scores(doubles.float(), scores, pack),
            lambda: ops.weight_grad_scores(doubles.float(), scores, *pack),
        ),
        (lambda: cpu.pack_values(doubles.cfloat(), plane), lambda: ops.pack_values(doubles.cfloat(), plane)),
    ):
        with pytest.raises(Unsupported):
            backend_call()
        with fk.backends.use("reference"):
            wanted = call()
        assert torch.equal(call(), wanted)


def test_rows_that_reach_too_far_run_on_the_reference():
    far = torch.frombuffer(mmap.mmap(-1, (1 << 31) + 1), dtype=torch.int8).as_strided((1, 2), (1, 1 << 31))
    far[0, 1] = 5
    plane = reference.planes(torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(Unsupported, match="weight: a row reaches over 2147483649 elements"):
        cpu.pack_values(far, plane)
    assert torch.ops.frozen_kernels.pack_values(far, plane).tolist() == [0, 5]


def test_stored_weights_refuse_what_does_not_fit():
    shape = (3, 40)
    plane, supermask = plane_of(shape)
    values = reference.pack_values(torch.randn(shape), plane)
    cases = [
        (pack_of(shape, None, plane), "values: a stored weight needs them"),
        (pack_of(shape, values), "supermask: .* got none"),
        (pack_of(shape, torch.randn(shape)), "supermask: .* got none"),
        (pack_of(shape, torch.randn(40, 3), plane), r"values: size \[40, 3\], expected \[3, 40\]"),
        (pack_of(shape, torch.randn(shape), supermask=supermask[:-1]), "supermask: shape"),
        (pack_of(shape, torch.randn(shape), plane[:2]), "keep: shape"),
        (pack_of(shape, values[:-1], plane), f"values: size .{len(values) - 1}., expected .{len(values)}."),
        (pack_of(shape, values, plane, row_scale=torch.ones(3)), "row_scale: with int8 values"),
        (pack_of(shape, values.to(torch.int8), plane), "row_scale: with int8 values"),
    ]
    for pack, message in cases:
        with pytest.raises(ValueError, match=message):
            cpu.weights.weight(None, pack, torch.float32)
    for pack, scores, message in (
        (pack_of(shape, values, plane), torch.zeros(120), "it is packed"),
        (pack_of(shape, torch.randn(shape), plane), torch.zeros(119), r"scores: size \[119\], expected \[120\]"),
    ):
        with pytest.raises(ValueError, match=message):
            cpu.weights.weight_grad_scores(torch.randn(shape), scores, pack)
    with pytest.raises(ValueError, match="keep: shape"):
        cpu.pack_values(torch.randn(3, 70), plane)
    with pytest.raises(ValueError, match="keep: shape"):
        cpu.plane_offsets(plane, 70)
