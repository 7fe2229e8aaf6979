"""The format's golden vectors, shards and refusals, on every live backend."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers import CODES, stream_positions
from hypothesis import given, settings
from hypothesis import strategies as st

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.backends.reference.generate import philox

VECTORS = json.loads((Path(__file__).parent / "vectors" / "format_v1_vectors.json").read_text())
CASES = VECTORS["cases"]
HUGE = {"rows": 2, "cols": 3, "seed": 2**64 - 1, "stream": 2**32 - 1}


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def unsigned(words: torch.Tensor) -> list[int]:
    return [word & 0xFFFFFFFF for word in words.flatten().tolist()]


@pytest.fixture(params=CASES, ids=lambda c: f"{c['rows']}x{c['cols']}-{c['code']}-{c['seed']}")
def case(request):
    return request.param


def extent(case: dict) -> dict:
    return {"rows": case["rows"], "cols": case["cols"], "seed": int(case["seed"]), "stream": case["stream"]}


def taus(case: dict) -> dict:
    return {"tau_prune": case["tau_prune"], "tau_freeze": case["tau_freeze"]}


def rule(case: dict) -> torch.Tensor:
    """The vectors' supermask: a free position is kept iff its index is a multiple of 3."""
    index = torch.arange(case["rows"] * case["cols"]).reshape(case["rows"], case["cols"])
    return index % 3 == 0


@pytest.mark.parametrize("answer", VECTORS["philox4x32_10"], ids=lambda a: a["key"])
def test_generator_gives_the_published_answers(answer):
    c0, c1, c2, c3 = (int(word, 16) for word in answer["counter"])
    seeds = {int(answer["key"], 16)}
    out = [philox(torch.tensor([c0]), torch.tensor([c1]), c2, c3, seed) for seed in seeds]
    assert [[f"{int(word):08x}" for word in words] for words in out] == [answer["out"]]


def test_constants_are_those_of_the_vectors():
    assert fmt.bit_of_column(32).tolist() == VECTORS["beta"]
    assert list(fmt.NORMAL_UPPER_HALF) == VECTORS["normal_table_positive_half"]
    assert VECTORS["rms"] == fmt.RMS
    assert VECTORS["format"] == fmt.VERSION


def test_codes(case, backend):
    out = fmt.codes(**extent(case), code=case["code"], generation=case["generation"])
    assert out.dtype == torch.int16
    assert out[0, :16].tolist() == case["codes_row0_first16"]
    assert out[-1, -8:].tolist() == case["codes_last_row_last8"]
    assert sha256(out) == case["codes_int16_sha256"]


def test_draws(case, backend):
    out = fmt.draws(**extent(case))
    assert out.dtype == torch.int32
    assert out[0, :8].tolist() == case["u16_row0_first8"]
    assert sha256(out) == case["u16_uint32_sha256"]


def test_uniform_scores(case, backend):
    out = fmt.uniform_scores(**extent(case))
    assert out.dtype == torch.float32
    assert out[0, :4].tolist() == case["uniform_scores_row0_first4"]
    assert sha256(out) == case["uniform_scores_float32_sha256"]


def test_calibrate(case, backend):
    count, bits = case["rows"] * case["cols"], case["threshold_bits"]
    ratios = (case["prune_ratio"], case["prune_ratio"] + case["lock_ratio"])
    found = [fmt.calibrate(**extent(case), count=round(ratio * count), bits=bits) for ratio in ratios]
    assert found == [case["tau_prune"], case["tau_freeze"]]


def test_partition(case, backend):
    out = fmt.partition(**extent(case), **taus(case))
    assert out.dtype == torch.int8
    assert [int((out == kind).sum()) for kind in (-1, 1, 0)] == [case["pruned"], case["locked"], case["free"]]
    assert sha256(out) == case["partition_int8_sha256"]


def test_supermask_and_planes(case, backend):
    partition = fmt.partition(**extent(case), **taus(case))
    stream = fmt.pack(rule(case), partition)
    assert stream.dtype == torch.uint8 and len(stream) == case["supermask_bytes"]
    assert bytes(stream[:16].tolist()).hex() == case["supermask_first16_hex"]
    assert sha256(stream) == case["supermask_sha256"]
    keep = fmt.unpack(stream, partition)
    assert torch.equal(keep, (partition == 1) | ((partition == 0) & rule(case)))
    assert int(keep.sum()) == case["kept"]
    planes = fmt.planes(keep)
    assert planes.dtype == torch.int32
    shown = case["keep_words_row0"]
    assert [f"{word:08x}" for word in unsigned(planes[0])][: len(shown)] == shown
    assert sha256(planes) == case["keep_words_sha256"]
    codes = fmt.codes(**extent(case), code=case["code"], generation=case["generation"])
    assert sha256(codes * keep) == case["effective_int16_sha256"]


GENERATORS = {
    "draws": (fmt.draws, {}),
    "partition": (fmt.partition, {"tau_prune": 20000, "tau_freeze": 40001}),
    "uniform_scores": (fmt.uniform_scores, {"bound": 0.3}),
    **{code: (fmt.codes, {"code": code, "generation": 5}) for code in CODES},
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("first", [(0, 0), (1, 1), (3, 31), (2, 33), (5, 130), (0, 1029)])
def test_shard_is_its_part_of_the_whole(name, first, backend):
    function, options = GENERATORS[name]
    row0, col0 = first
    whole = function(8, 1100, seed=2**63 + 5, stream=9, **options)
    part = function(3, 67, seed=2**63 + 5, stream=9, row0=row0, col0=col0, **options)
    assert torch.equal(part, whole[row0 : row0 + 3, col0 : col0 + 67])


@pytest.mark.parametrize("name", GENERATORS)
def test_last_rows_and_columns_of_the_largest_matrix(name, backend):
    function, options = GENERATORS[name]
    last = function(2, 40, seed=3, stream=2**32 - 1, row0=2**32 - 2, col0=2**34 - 40, **options)
    inner = function(1, 7, seed=3, stream=2**32 - 1, row0=2**32 - 1, col0=2**34 - 7, **options)
    assert torch.equal(last[1:, -7:], inner)
    if name != "constant":
        assert not torch.equal(last, function(2, 40, seed=3, stream=2**32 - 1, **options))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 5), cols=st.integers(0, 100), taus=st.lists(st.integers(0, 65536), min_size=2, max_size=2))
def test_stream_order_and_round_trip(rows, cols, taus):
    tau_prune, tau_freeze = sorted(taus)
    for name in ("reference", *(n for n, why in fk.backends.report().items() if n == "cpu" and why == "live")):
        with fk.backends.use(name):
            partition = fmt.partition(rows, cols, seed=1, stream=2, tau_prune=tau_prune, tau_freeze=tau_freeze)
            keep = torch.rand(rows, cols) < 0.5
            stream = fmt.pack(keep, partition)
            bits = [int(keep[position]) for position in stream_positions(partition)]
            assert [int(stream[i // 8]) >> i % 8 & 1 for i in range(len(bits))] == bits
            assert torch.equal(fmt.unpack(stream, partition), (partition == 1) | ((partition == 0) & keep))


def test_thresholds_cut_the_draws(backend):
    u = fmt.draws(7, 45, seed=1, stream=0)
    for tau_prune, tau_freeze in [(0, 0), (0, 65536), (65536, 65536), (256, 512), (1, 65535), (32768, 32768)]:
        expected = (u < tau_freeze).char() - 2 * (u < tau_prune).char()
        out = fmt.partition(7, 45, seed=1, stream=0, tau_prune=tau_prune, tau_freeze=tau_freeze)
        assert torch.equal(out, expected), (tau_prune, tau_freeze)


@pytest.mark.parametrize("bits", [1, 8, 13, 16])
def test_calibrate_is_the_smallest_nearest_threshold(bits, backend):
    u = fmt.draws(10, 30, seed=4, stream=1).flatten()
    taus = torch.arange(0, 65537, 1 << (16 - bits), dtype=u.dtype)
    below = dict(zip(taus.tolist(), torch.searchsorted(u.sort().values, taus).tolist(), strict=True))
    for count in (0, 1, 150, 299, 300):
        best = min(below, key=lambda tau: (abs(below[tau] - count), tau))
        assert fmt.calibrate(10, 30, seed=4, stream=1, count=count, bits=bits) == best, count


def test_free_draws_are_the_scores_of_the_free_weights(backend):
    header = fmt.make_header(5, 6, tau_prune=20000, tau_freeze=40000)
    rows, cols = 5, 1061
    ops = torch.ops.frozen_kernels
    offsets = ops.offsets(header, rows, cols)
    draws = ops.free_draws(header, offsets, rows, cols, fmt.SCORE)
    scores = fmt.uniform_scores(rows, cols, seed=5, stream=6)
    partition = ops.partition(header, rows, cols, 0, 0)
    expected = torch.stack([scores[p] for p in stream_positions(partition)])
    assert torch.equal((draws >> 8).float() * 2.0**-23, expected)
    # entry (row, chunk) counts the free weights of all rows and 1024-column chunks before it
    counts = (partition == 0).sum(1).tolist()
    first_chunk = (partition[:, :1024] == 0).sum(1).tolist()
    before = [sum(counts[:row]) for row in range(rows)]
    table = [entry for row in range(rows) for entry in (before[row], before[row] + first_chunk[row])]
    assert offsets.tolist() == [*table, sum(counts)]


@pytest.mark.parametrize("code", CODES)
def test_planes_hold_what_the_layer_needs(code, backend):
    rows, cols = 6, 75
    header = fmt.make_header(11, 2, tau_prune=10000, tau_freeze=30000)
    ops = torch.ops.frozen_kernels
    partition, offsets = ops.partition(header, rows, cols, 0, 0), ops.offsets(header, rows, cols)
    wanted = torch.rand(rows, cols) < 0.3
    stream = ops.pack(wanted, partition)
    keep = ops.keep_plane(header, stream, offsets, rows, cols)
    assert torch.equal(keep, ops.planes(ops.unpack(stream, partition)))
    assert torch.equal(ops.pack_plane(header, keep, offsets, rows, cols), stream)
    assert int(ops.popcount(keep)) == int(ops.unpack(stream, partition).sum())
    codes = fmt.codes(rows, cols, seed=11, stream=2, code=code)
    if code == "constant":
        with pytest.raises((ValueError, RuntimeError), match="constant"):
            ops.draw_plane(header, code, rows, cols)
    elif code == "sign":
        assert torch.equal(ops.draw_plane(header, code, rows, cols), ops.planes(codes < 0))
    else:
        draw = ops.draw_plane(header, code, rows, cols)
        table = torch.cat((-torch.tensor(fmt.NORMAL_UPPER_HALF).flip(0), torch.tensor(fmt.NORMAL_UPPER_HALF)))
        values = 2 * draw.long() - 255 if code == "uniform" else table[draw.long()]
        assert torch.equal(values, codes.long())


def test_scale_is_rounded_once():
    for code, rms in fmt.RMS.items():
        exact = torch.tensor(0.3 * 1.7 / rms, dtype=torch.float64)
        assert fmt.scale_of(code, 0.3, 1.7) == float(exact.float())


OK = {"rows": 2, "cols": 3, "seed": 0, "stream": 0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 2**64}, f"seed.*{2**64}"),
        ({"seed": True}, "seed.*True"),
        ({"seed": 1.0}, "seed.*1.0"),
        ({"stream": -1}, "stream.*-1"),
        ({"stream": 2**32}, f"stream.*{2**32}"),
        ({"stream": False}, "stream.*False"),
        ({"rows": -1}, "rows.*-1"),
        ({"cols": 2.0}, "cols.*2.0"),
        ({"row0": -1}, "row0.*-1"),
        ({"row0": 2**32 - 1}, f"rows.*{2**32 + 1}"),
        ({"col0": 2**34 - 2}, f"columns.*{2**34 + 1}"),
        ({"code": "signs"}, "code.*signs"),
        ({"generation": 2**24}, f"generation.*{2**24}"),
        ({"tau_prune": 5, "tau_freeze": 4}, "5 and 4"),
        ({"tau_prune": -1, "tau_freeze": 4}, "tau_prune.*-1"),
        ({"tau_prune": 0, "tau_freeze": 65537}, "tau_freeze.*65537"),
        ({"tau_prune": 0.5, "tau_freeze": 4}, "tau_prune.*0.5"),
    ],
)
def test_refusals_name_the_argument_and_its_value(change, named):
    if "tau_prune" in change:
        call = fmt.partition
    else:
        call, change = fmt.codes, {"code": "sign", **change}
    with pytest.raises(ValueError, match=named):
        call(**{**OK, **change})


def test_limits_are_legal():
    assert fmt.codes(**HUGE, code="sign", generation=2**24 - 1).shape == (2, 3)
    assert fmt.codes(0, 0, seed=0, stream=0, code="normal").shape == (0, 0)


@pytest.mark.parametrize("bits", [0, 17, 8.0, True])
def test_threshold_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits.*{bits}"):
        fmt.calibrate(2, 3, seed=0, stream=0, count=1, bits=bits)
    with pytest.raises(ValueError, match=f"threshold_bits.*{bits}"):
        fk.FreezeConfig(threshold_bits=bits)


@pytest.mark.parametrize("count", [-1, 7, 1.5])
def test_calibrate_refuses_impossible_counts(count):
    with pytest.raises(ValueError, match=f"count.*6.*{count}"):
        fmt.calibrate(2, 3, seed=0, stream=0, count=count)


def test_pack_and_unpack_refuse_what_does_not_fit():
    partition = fmt.partition(3, 7, seed=0, stream=0, tau_prune=0, tau_freeze=0)
    keep = torch.ones(3, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"keep.*uint8"):
        fmt.pack(keep.byte(), partition)
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(3, 7\)"):
        fmt.pack(keep[:, :6], partition)
    with pytest.raises(ValueError, match=r"keep.*1"):
        fmt.planes(keep[0])
    stream = fmt.pack(keep, partition)
    for wrong in (stream[:-1], stream.repeat(2), stream.int(), stream[None]):
        with pytest.raises(ValueError, match="21 free"):
            fmt.unpack(wrong, partition)
    stream[-1] |= 0x80
    with pytest.raises(ValueError, match=f"21 free.*{int(stream[-1])}"):
        fmt.unpack(stream, partition)


def test_unpack_takes_any_stride(backend):
    partition = fmt.partition(5, 67, seed=0, stream=0, tau_prune=1000, tau_freeze=30000)
    keep = torch.rand(67, 5).T < 0.5
    stream = fmt.pack(keep, partition)
    spread = torch.stack((stream, stream), 1)[:, 0]
    assert torch.equal(fmt.unpack(spread, partition), fmt.unpack(stream, partition))
    assert torch.equal(fmt.pack(keep, partition.T.contiguous().T), stream)
    assert torch.equal(fmt.planes(keep), fmt.planes(keep.contiguous()))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_shapes_below_two_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match="2 dimensions"):
        fmt.matrix_shape(shape)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 1, 3), (0, 3, 2), (4, 1, 1)])
def test_matrix_layout(shape):
    weight = torch.arange(torch.Size(shape).numel()).reshape(shape)
    matrix = fmt.to_matrix(weight)
    assert torch.equal(fmt.from_matrix(matrix, shape), weight)
    for index in weight.nonzero().tolist():
        tap = 0
        for position, size in zip(index[2:], shape[2:], strict=True):
            tap = tap * size + position
        assert matrix[index[0], tap * shape[1] + index[1]] == weight[tuple(index)]


@pytest.mark.parametrize(
    ("word", "value"),
    [(fmt.TAU_FREEZE, 65537), (fmt.TAU_PRUNE, 9), (fmt.CODE, 6), (fmt.CODE, -1), (fmt.GENERATION, -1)],
)
def test_headers_with_impossible_values_are_refused(word, value):
    header = fmt.make_header(0, tau_freeze=8)
    header[word] = value
    with pytest.raises(ValueError, match="header"):
        fmt.header_fields(header)


@pytest.mark.parametrize("header", [torch.zeros(7, dtype=torch.int32), torch.zeros(8), torch.zeros(8, 1).int()])
def test_headers_of_another_kind_are_refused(header):
    with pytest.raises(ValueError, match=r"header: int32 \[8\]"):
        fmt.header_fields(header)


def test_header_round_trip():
    values = {"seed": 2**64 - 1, "stream": 2**32 - 1, "generation": 2**24 - 1, "tau_prune": 7, "tau_freeze": 65536}
    header = fmt.make_header(**values, scale=0.1, code="normal")
    assert fmt.header_fields(header) == {**values, "scale": float(torch.tensor(0.1)), "code": "normal"}


@pytest.mark.parametrize("scale", [1e39, float("inf"), float("nan")])
def test_scales_that_are_not_finite_are_refused(scale):
    with pytest.raises(ValueError, match="scale"):
        fmt.make_header(0, scale=scale)
    with pytest.raises(ValueError, match="scale"):
        fmt.scale_of("sign", scale)
