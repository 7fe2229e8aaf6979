"""The CPU kernels of the format against its golden vectors, a numpy twin and torch, on every instruction set here."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import subprocess
import sys

import format_numpy as ref
import numpy as np
import pytest
import torch
from helpers import distinct_levels, each_isa

from frozen_kernels import format as fmt
from frozen_kernels.backends import Unsupported, cpu

if cpu.reasons():
    pytest.skip("; ".join(cpu.reasons()), allow_module_level=True)

from frozen_kernels import _C

CASES = ref.VECTORS["cases"]
NAN = math.nan


isa = each_isa(_C, distinct_levels(_C.isa_available()), autouse=True)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Outputs start as NaN and not as whatever memory held, so an element left unwritten shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@functools.cache
def make(rows, cols, *, seed=7, stream=3, code="sign", generation=0, tau=(20000, 40001), scale=0.37):
    """A header, and the partition and keep matrix of the numpy twin, which every instruction set is compared with."""
    header = fmt.make_header(
        seed, stream, generation=generation, tau_prune=tau[0], tau_freeze=tau[1], scale=scale, code=code
    )
    part = ref.partition(rows, cols, seed=seed, stream=stream, tau_prune=tau[0], tau_freeze=tau[1])
    chosen = (np.arange(rows)[:, None] * cols + np.arange(cols)[None, :]) % 3 == 0
    keep = (part == 1) | ((part == 0) & chosen)
    return header, part, keep


def residencies(header, part, keep, code):
    rows, cols = keep.shape
    supermask, offsets = torch.from_numpy(ref.pack(keep, part)), cpu.offsets(header, rows, cols)
    plane = torch.from_numpy(ref.planes(keep).view(np.int32))
    yield "seed", (supermask, offsets, *[None] * 5)
    yield "mask", (None, offsets, plane, *[None] * 4)
    if code != "constant":
        yield "planes", (None, offsets, plane, cpu.draw_plane(header, code, rows, cols), *[None] * 3)


def sha(array) -> str:
    array = array.numpy() if isinstance(array, torch.Tensor) else array
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_the_normative_header_per_weight():
    rng = np.random.default_rng(0)
    for code_id, code in enumerate(fmt.CODES):
        seed, stream, generation = int(rng.integers(1 << 63)) * 2 + 1, 4294967295 - code_id, code_id
        rows, cols, tau = 9, 300, (20000, 40001)
        where = {"seed": seed, "stream": stream}
        codes = ref.codes(rows, cols, code=code, generation=generation, **where)
        u = ref.draws(rows, cols, **where)
        scores = ref.uniform_scores(rows, cols, **where)
        for _ in range(100):
            r, c = int(rng.integers(rows)), int(rng.integers(cols))
            got = _C.position(r, c, seed, stream, generation, code_id, tau)
            part = -1 if u[r, c] < tau[0] else 1 if u[r, c] < tau[1] else 0
            assert got[:3] == (codes[r, c], u[r, c], part)
            assert np.float32(np.int32(np.uint32(got[3])) >> 8) * np.float32(2**-23) == scores[r, c]


def test_philox_published_answers():
    for case in ref.VECTORS["philox4x32_10"]:
        key = int(case["key"], 16)
        got = _C.philox([int(c, 16) for c in case["counter"]], [key & 0xFFFFFFFF, key >> 32])
        assert [f"{word:08x}" for word in got] == case["out"]


def test_tables_and_order():
    assert list(fmt.NORMAL_UPPER_HALF) == ref.VECTORS["normal_table_positive_half"]
    assert [ref.beta(k) for k in range(32)] == ref.VECTORS["beta"]
    keep = torch.eye(32, dtype=torch.bool)
    words = cpu.planes(keep).flatten().numpy().view(np.uint32)
    assert [int(word).bit_length() - 1 for word in words] == ref.VECTORS["beta"]
    byte = cpu.draw_plane(fmt.make_header(5, code="normal"), "normal", 40, 64)
    table = np.array(ref.NORMAL_TABLE)
    assert np.array_equal(cpu.codes(fmt.make_header(5), "normal", 40, 64, 0, 0).numpy(), table[byte.numpy()])
    assert len(np.unique(byte.numpy())) == 256
    for code, rms in ref.VECTORS["rms"].items():
        assert fmt.RMS[code] == pytest.approx(rms, rel=1e-15)
    assert math.sqrt((table.astype(np.float64) ** 2).mean()) == pytest.approx(ref.VECTORS["rms"]["normal"], rel=1e-15)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['rows']}x{c['cols']}-{c['code']}-{c['seed']}")
def test_vectors(case):
    rows, cols, code = case["rows"], case["cols"], case["code"]
    tau = (case["tau_prune"], case["tau_freeze"])
    header = fmt.make_header(
        int(case["seed"]),
        case["stream"],
        generation=case["generation"],
        tau_prune=tau[0],
        tau_freeze=tau[1],
        scale=1.0,
        code=code,
    )
    codes = cpu.codes(header, code, rows, cols, 0, 0)
    assert codes[0, :16].tolist() == case["codes_row0_first16"]
    assert codes[-1, -8:].tolist() == case["codes_last_row_last8"]
    assert sha(codes) == case["codes_int16_sha256"]
    u = cpu.draws(header, rows, cols, 0, 0)
    assert u[0, :8].tolist() == case["u16_row0_first8"]
    assert sha(u) == case["u16_uint32_sha256"]
    scores = cpu.uniform_scores(header, 1.0, rows, cols, 0, 0)
    assert sha(scores) == case["uniform_scores_float32_sha256"]
    assert scores[0, :4].tolist() == case["uniform_scores_row0_first4"]

    histogram = cpu.histogram(header, rows, cols)
    assert np.array_equal(histogram.numpy(), np.bincount(u.numpy().reshape(-1), minlength=65536))
    total, bits = rows * cols, case["threshold_bits"]
    wanted = (round(case["prune_ratio"] * total), round((case["prune_ratio"] + case["lock_ratio"]) * total))
    assert tuple(ref.calibrate(u.numpy(), count, bits) for count in wanted) == tau

    part = cpu.partition(header, rows, cols, 0, 0)
    assert sha(part) == case["partition_int8_sha256"]
    assert cpu.partition_counts(header, rows, cols).tolist() == [case["pruned"], case["locked"], case["free"]]
    position = torch.arange(total).reshape(rows, cols)
    keep = (part == 1) | ((part == 0) & (position % 3 == 0))
    supermask = cpu.pack(keep, part)
    assert (supermask.numel(), sha(supermask)) == (case["supermask_bytes"], case["supermask_sha256"])
    assert supermask[:16].numpy().tobytes().hex() == case["supermask_first16_hex"]
    assert torch.equal(cpu.unpack(supermask, part), keep)
    assert int(keep.sum()) == case["kept"]

    offsets = cpu.offsets(header, rows, cols)
    plane = cpu.keep_plane(header, supermask, offsets, rows, cols)
    assert int(offsets[-1]) == case["free"] and int(cpu.popcount(plane)) == case["kept"]
    assert torch.equal(plane, cpu.planes(keep))
    assert torch.equal(cpu.pack_plane(header, plane, offsets, rows, cols), supermask)
    words = plane.numpy().view(np.uint32)
    assert [f"{word:08x}" for word in words[0, : len(case["keep_words_row0"])]] == case["keep_words_row0"]
    assert sha(words) == case["keep_words_sha256"]
    pack = (header, supermask, offsets, *[None] * 5, code, [rows, cols])
    effective = cpu.weight(None, *pack, torch.float32)
    assert sha(effective.to(torch.int16)) == case["effective_int16_sha256"]


@pytest.mark.parametrize("rows,cols", [(1, 1), (3, 31), (17, 33), (2, 1025), (33, 147), (16, 2100), (1, 9000)])
@pytest.mark.parametrize("tau", [(0, 0), (0, 65536), (65536, 65536), (256, 33024), (12345, 54321), (0, 4096)])
def test_partition_and_streams(rows, cols, tau, threads):
    header, part, keep = make(rows, cols, tau=tau, seed=2**64 - 3, stream=2**32 - 1)
    results = []
    for count in (1, 2, 7):
        threads(count)
        offsets = cpu.offsets(header, rows, cols)
        supermask = cpu.pack(torch.from_numpy(keep), torch.from_numpy(part))
        plane = cpu.keep_plane(header, supermask, offsets, rows, cols)
        results.append(
            [
                cpu.partition(header, rows, cols, 0, 0),
                cpu.histogram(header, rows, cols),
                cpu.partition_counts(header, rows, cols),
                offsets,
                supermask,
                plane,
                cpu.unpack(supermask, torch.from_numpy(part)),
                cpu.pack_plane(header, plane, offsets, rows, cols),
                cpu.free_draws(header, offsets, rows, cols, fmt.SCORE),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    got_part, _, counts, offsets, supermask, plane, unpacked, again, free_draws = results[0]
    assert np.array_equal(got_part.numpy(), part)
    assert counts.tolist() == [int((part == kind).sum()) for kind in (-1, 1, 0)]
    chunks = fmt.chunks(cols)
    free = np.zeros((rows, chunks * 1024), dtype=np.int64)
    free[:, :cols] = part == 0
    assert np.array_equal(offsets.numpy()[1:], free.reshape(-1, 1024).sum(1).cumsum()) and offsets[0] == 0
    assert np.array_equal(supermask.numpy(), ref.pack(keep, part)) and torch.equal(again, supermask)
    assert np.array_equal(plane.numpy().view(np.uint32), ref.planes(keep))
    assert np.array_equal(unpacked.numpy(), keep)
    scores = ref.score_draws(rows, cols, seed=2**64 - 3, stream=2**32 - 1)
    assert np.array_equal(free_draws.numpy(), ref.stream_order(scores)[ref.stream_order(part) == 0])
    for tensor in (plane, supermask):
        assert int(cpu.popcount(tensor)) == int(np.unpackbits(tensor.numpy().view(np.uint8)).sum())


@pytest.mark.parametrize(
    "row0,col0", [(0, 0), (1, 3), (5, 31), (2, 129), (2**32 - 4, 7), (9, 2**34 - 75), (3, 2**33 + 1)]
)
def test_shards(row0, col0, threads):
    rows, cols, at = 3, 75, {"row0": row0, "col0": col0}
    threads(2)
    for code in fmt.CODES:
        header = fmt.make_header(11, 4, generation=2**24 - 1, tau_prune=20000, tau_freeze=40001, code=code)
        same = {"seed": 11, "stream": 4, **at}
        got = cpu.codes(header, code, rows, cols, row0, col0)
        assert np.array_equal(got.numpy(), ref.codes(rows, cols, code=code, generation=2**24 - 1, **same))
    part = ref.partition(rows, cols, tau_prune=20000, tau_freeze=40001, **same)
    assert np.array_equal(cpu.draws(header, rows, cols, row0, col0).numpy(), ref.draws(rows, cols, **same))
    assert np.array_equal(cpu.partition(header, rows, cols, row0, col0).numpy(), part)
    for bound in (1.0, 0.1):
        got = cpu.uniform_scores(header, bound, rows, cols, row0, col0)
        assert np.array_equal(got.numpy(), ref.uniform_scores(rows, cols, bound=bound, **same))


def test_parts_equal_the_whole(threads):
    header = fmt.make_header(3, 1, tau_prune=9000, tau_freeze=30000)
    for make_matrix in (
        lambda *at: cpu.codes(header, "sign", *at),
        lambda *at: cpu.codes(header, "normal", *at),
        lambda *at: cpu.partition(header, *at),
        lambda *at: cpu.draws(header, *at),
        lambda *at: cpu.uniform_scores(header, 0.5, *at),
    ):
        threads(1)
        whole = make_matrix(37, 8300, 0, 0)
        for count in (2, 7):
            threads(count)
            assert torch.equal(make_matrix(37, 8300, 0, 0), whole)
        for row0, col0, rows, cols in ((5, 1, 20, 8299), (0, 97, 3, 64), (36, 8190, 1, 110), (7, 8192, 30, 1)):
            assert torch.equal(make_matrix(rows, cols, row0, col0), whole[row0 : row0 + rows, col0 : col0 + cols])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("code", fmt.CODES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (18, 1100), (6, 5, 3), (7, 40, 3, 3), (3, 2, 1, 2, 5), (4, 33, 7)])
def test_weight(shape, code, dtype, threads):
    rows, cols = shape[0], math.prod(shape[1:])
    header, part, keep = make(rows, cols, code=code, generation=9)
    codes = ref.codes(rows, cols, seed=7, stream=3, code=code, generation=9)
    matrix = torch.from_numpy(np.where(keep, codes.astype(np.float32) * np.float32(0.37), np.float32(0)))
    wanted = fmt.from_matrix(matrix.to(dtype), shape)
    for name, held in residencies(header, part, keep, code):
        for count in (1, 2, 7):
            threads(count)
            got = cpu.weight(None, header, *held, code, list(shape), dtype)
            assert got.is_contiguous() and torch.equal(got, wanted), (name, count)


@pytest.mark.parametrize("code", fmt.CODES)
@pytest.mark.parametrize("score_dtype", [torch.float32, torch.bfloat16])
def test_weight_grad_scores(code, score_dtype, threads):
    for shape in [(1, 1), (5, 33), (18, 1100), (7, 40, 3, 3), (4, 33, 7)]:
        rows, cols = shape[0], math.prod(shape[1:])
        header, part, keep = make(rows, cols, code=code)
        free = int((part == 0).sum())
        generator = torch.Generator().manual_seed(1)
        scores = torch.randn(free, generator=generator).to(score_dtype)
        scores[:3] = torch.tensor([0.0, -0.0, NAN])[: scores[:3].numel()].to(score_dtype)
        codes = ref.codes(rows, cols, seed=7, stream=3, code=code).astype(np.float32)
        for grad in (
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator).to(torch.float16),
            torch.randn(shape[::-1], generator=generator).to(torch.bfloat16).permute(*range(len(shape))[::-1]),
            torch.ones(()).expand(shape),
        ):
            matrix = fmt.to_matrix(grad.float()).numpy() * codes * np.float32(0.37)
            wanted = torch.from_numpy(ref.stream_order(matrix)[ref.stream_order(part) == 0]) * scores.float().sign()
            for name, held in residencies(header, part, keep, code):
                for count in (1, 2, 7):
                    threads(count)
                    got = cpu.weight_grad_scores(grad, scores, header, *held, code, list(shape))
                    assert got.dtype == score_dtype
                    torch.testing.assert_close(got, wanted.to(score_dtype), rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("code", fmt.CODES)
def test_embedding(code, threads):
    shape = (37, 70)
    header, part, keep = make(*shape, code=code)
    indices = torch.tensor([[0, 5, 36, 5, 2, 5], [9, 1, 5, 20, 36, 8], [3, 3, 3, 3, 3, 7]], dtype=torch.int32)
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(int((part == 0).sum()), generator=generator)
    # small integers: sums are exact in any order
    grad = torch.randint(-4, 5, (3, 6, 70), generator=generator).float()
    for name, held in residencies(header, part, keep, code):
        table = cpu.weight(None, header, *held, code, list(shape), torch.float32)
        for padding_idx in (-1, 5):
            rows, dw = table.clone(), torch.zeros(shape)
            dw.index_add_(0, indices.flatten().long(), grad.reshape(-1, 70))
            if padding_idx >= 0:
                rows[padding_idx] = 0
                dw[padding_idx] = 0
            for count in (1, 2, 7):
                threads(count)
                for dtype in (torch.float32, torch.bfloat16):
                    got = cpu.embedding(indices, None, header, *held, code, list(shape), dtype, padding_idx)
                    assert torch.equal(got, rows[indices.long()].to(dtype)), name
                pack = (header, *held, code, list(shape))
                got = cpu.embedding_grad_scores(grad, indices, scores, *pack, padding_idx)
                assert torch.equal(got, cpu.weight_grad_scores(dw, scores, *pack)), name
                one = torch.ones(()).expand(grad.shape)
                cpu.embedding_grad_scores(one, indices, scores, *pack, padding_idx)
    for bad in (-1, 37):
        with pytest.raises(IndexError, match=rf"{bad}.*36"):
            cpu.embedding(torch.tensor([bad]), None, header, *held, code, list(shape), torch.float32, -1)
    empty = cpu.embedding(indices[:0], None, header, *held, code, list(shape), torch.float32, -1)
    assert empty.shape == (0, 6, 70)


def keys(scores):
    return scores.float().abs().view(torch.int32).clamp(max=0x7F800001).long()


def test_select(threads):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(70001, generator=generator)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, NAN, -NAN, 1e-45, -1e-45, 3.4e38, 1.0, 1.0, -1.0])
    special_bits = torch.tensor([-1, 0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    ties = torch.randint(-3, 4, (5003,), generator=generator).float()
    for tensors in (
        [normal],
        [special, special_bits],
        [ties, ties.bfloat16(), torch.empty(0)],
        [normal.bfloat16(), special.bfloat16(), normal[:33]],
        [torch.full((4099,), 0.25)],
        [normal[::3], normal[1:2]],
        [torch.tensor([NAN])],
    ):
        order = torch.cat([keys(t) for t in tensors]).sort().values
        n = order.numel()
        for count in (1, 2, 7):
            threads(count)
            for rank in {1, n, (n + 1) // 2, max(1, n // 3), max(1, n - 2)}:
                key = cpu.select(tensors, rank)
                assert key.dtype == torch.int64 and key.dim() == 0 and key == order[rank - 1]
                for t in tensors:
                    above = (keys(t) > key).numpy()
                    assert np.array_equal(cpu.pack_above(t, key).numpy(), np.packbits(above, bitorder="little"))
        for rank in (0, n + 1):
            with pytest.raises(ValueError, match=f"{rank}.*{n}"):
                cpu.select(tensors, rank)


def test_pack_above_feeds_the_keep_plane():
    header, part, _ = make(33, 147)
    offsets = cpu.offsets(header, 33, 147)
    scores = torch.randn(int(offsets[-1]))
    key = cpu.select([scores], scores.numel() // 2)
    plane = cpu.keep_plane(header, cpu.pack_above(scores, key), offsets, 33, 147)
    assert int(cpu.popcount(plane)) == int((part == 1).sum()) + scores.numel() - scores.numel() // 2


def test_draw_planes():
    for rows, cols in ((1, 1), (19, 200), (3, 33)):
        header = fmt.make_header(7, 3)
        negative = ref.codes(rows, cols, seed=7, stream=3, code="sign") < 0
        plane = cpu.draw_plane(header, "sign", rows, cols)
        assert np.array_equal(plane.numpy().view(np.uint32), ref.planes(negative))
        got = cpu.draw_plane(header, "uniform", rows, cols)
        assert np.array_equal(got.numpy(), ref.draw_bytes(rows, cols, seed=7, stream=3))
    with pytest.raises(ValueError, match="constant"):
        cpu.draw_plane(header, "constant", 2, 2)


@pytest.mark.parametrize("rows,cols", [(0, 5), (5, 0), (0, 0)])
def test_empty(rows, cols):
    header = fmt.make_header(1, tau_freeze=30000)
    for code in fmt.CODES:
        assert cpu.codes(header, code, rows, cols, 0, 0).shape == (rows, cols)
    part = cpu.partition(header, rows, cols, 0, 0)
    offsets = cpu.offsets(header, rows, cols)
    assert part.shape == (rows, cols) and offsets.tolist() == [0]
    assert cpu.partition_counts(header, rows, cols).tolist() == [0, 0, 0]
    assert int(cpu.histogram(header, rows, cols).sum()) == 0
    supermask = cpu.pack(part == 0, part)
    assert supermask.numel() == 0 and cpu.unpack(supermask, part).shape == (rows, cols)
    plane = cpu.keep_plane(header, supermask, offsets, rows, cols)
    assert plane.shape == (rows, fmt.words(cols)) and cpu.pack_plane(header, plane, offsets, rows, cols).numel() == 0
    assert cpu.free_draws(header, offsets, rows, cols, fmt.SCORE).numel() == 0
    for held in ((supermask, offsets, *[None] * 5), (None, offsets, plane, *[None] * 4)):
        pack = (header, *held, "sign", [rows, cols])
        assert cpu.weight(None, *pack, torch.float32).shape == (rows, cols)
        assert cpu.weight_grad_scores(torch.empty(rows, cols), torch.empty(0), *pack).numel() == 0


def test_errors_name_both_values():
    header, part, keep = make(5, 33)
    offsets, supermask = cpu.offsets(header, 5, 33), torch.from_numpy(ref.pack(keep, part))
    pack = (header, supermask, offsets, *[None] * 5, "sign", [5, 33])
    n = int(offsets[-1])
    with pytest.raises(ValueError, match=rf"{supermask.numel() + 1}.*{supermask.numel()}"):
        cpu.keep_plane(header, torch.cat((supermask, supermask[:1])), offsets, 5, 33)
    with pytest.raises(ValueError, match=rf"{n - 1}.*{n}"):
        cpu.weight_grad_scores(torch.empty(5, 33), torch.empty(n - 1), *pack)
    with pytest.raises(ValueError, match=r"\(8,\).*\(7,\)"):
        cpu.codes(header[:7], "sign", 2, 2, 0, 0)
    with pytest.raises(ValueError, match="bytes expected for"):
        cpu.unpack(supermask[:-1], torch.from_numpy(part))
    bad = header.clone()
    bad[fmt.TAU_PRUNE] = 50000
    with pytest.raises(ValueError, match="50000 and 40001"):
        cpu.partition(bad, 2, 2, 0, 0)
    for refused in (
        lambda: cpu.weight(None, *pack, torch.float64),
        lambda: cpu.weight_grad_scores(torch.empty(5, 33), torch.empty(n, dtype=torch.float64), *pack),
        lambda: cpu.weight(None, header, *[None] * 4, torch.empty(5, 33), None, None, "sign", [5, 33], torch.float32),
        lambda: cpu.select([torch.empty(3, dtype=torch.float16)], 1),
    ):
        with pytest.raises(Unsupported):
            refused()


# Without torch in the process there is no OpenMP pool to share, so this also runs the kernels on threads of their own.
_TORCH_FREE = """
import importlib.util, sys, numpy as np
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
c = importlib.util.module_from_spec(spec)
spec.loader.exec_module(c)
header = np.array([7, 0, 3, 0, 0, 0, 0, 0], dtype=np.uint32)
out = np.empty((300, 700), dtype=np.int16)
c.codes(header.ctypes.data, 0, (300, 700, 0, 0), out.ctypes.data, 7)
print(c.isa(), int(out.astype(np.int64).reshape(-1) @ np.arange(out.size)), "torch" in sys.modules)
"""


def test_isa_from_the_environment(isa):
    codes = cpu.codes(fmt.make_header(7, 3), "sign", 300, 700, 0, 0).flatten().long()
    for wanted in (isa, "sse9"):
        run = subprocess.run(
            [sys.executable, "-c", _TORCH_FREE, _C.__file__],
            env={**os.environ, "FROZEN_KERNELS_ISA": wanted},
            capture_output=True,
            text=True,
        )
        if wanted == isa:
            assert run.stdout.split() == [isa, str(int(codes @ torch.arange(codes.numel()))), "False"], run.stderr
        else:
            assert run.returncode and "FROZEN_KERNELS_ISA=sse9" in run.stderr


def test_scale_is_taken_by_its_bits():
    for scale in (1e-42, 3.0e38, 0.0):
        header = fmt.make_header(1, scale=scale, code="sign", tau_freeze=65536)
        pack = (
            header,
            torch.empty(0, dtype=torch.uint8),
            cpu.offsets(header, 2, 40),
            *[None] * 5,
            "sign",
            [2, 40],
        )
        exact = np.float32(struct.unpack("<f", struct.pack("<f", scale))[0])
        got = cpu.weight(None, *pack, torch.float32)
        codes = ref.codes(2, 40, seed=1, stream=0, code="sign").astype(np.float32)
        assert np.array_equal(got.numpy(), codes * exact)
