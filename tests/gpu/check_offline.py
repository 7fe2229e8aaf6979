"""That the proof of `offline.py` notices what it is there for; in a process without TRITON_INTERPRET."""

from __future__ import annotations

import offline
import pytest
import torch
import triton
import triton.language as tl
from compiled import Instruction, amdgcn, hot_part, measure, recorded, sass
from offline_cases import Case

GOOD = {
    "key": "op/kernel",
    "spills": 0,
    "serialised": [],
    "registers": 100,
    "instructions": 3.0,
    "asynchronous": 4,
    "matrix": 8,
    "sums": 0,
}
BUDGET = {"op/kernel": [95, 2.8]}


@pytest.fixture(autouse=True)
def _pinned(monkeypatch):
    monkeypatch.setattr(offline, "pinned", lambda: True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spills": 8}, "spills 8 bytes"),
        ({"serialised": ["C7515"]}, "C7515"),
        ({"registers": 105}, "105 registers"),
        ({"instructions": 3.2}, "3.2 instructions"),
        ({"key": "op/another"}, "no budget"),
    ],
)
def test_a_worse_launch_is_told(change, said):
    assert not offline.faults(GOOD, BUDGET)
    (fault,) = offline.faults({**GOOD, **change}, BUDGET)
    assert said in fault


def test_another_triton_has_no_budgets(monkeypatch):
    monkeypatch.setattr(offline, "pinned", lambda: False)
    assert not offline.faults({**GOOD, "registers": 255}, {})
    assert offline.faults({**GOOD, "spills": 8}, {})


def test_products_must_be_there():
    large = Case("op", "", lambda: None, "large")
    assert not offline.product_faults(large, "sm_90", [GOOD])
    assert offline.product_faults(large, "sm_90", [{**GOOD, "asynchronous": 0}]) == ["no wgmma"]
    assert not offline.product_faults(large, "sm_80", [{**GOOD, "asynchronous": 0}])
    assert offline.product_faults(large, "sm_80", [{**GOOD, "matrix": 0}]) == ["no products of tiles"]


def listing(*lines: str) -> str:
    return "\n".join(f"        /*{16 * i:04x}*/                   {line} ;" for i, line in enumerate(lines))


def test_the_innermost_loop_of_the_products_is_found():
    lines = ["MOV R1, R2", "IADD3 R1, R1, R2, RZ", "@P0 BRA 0x60", "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR4], R24"]
    lines += ["LOP3.LUT R1, R2, R3, R4, 0x80, !PT", "@!P1 BRA 0x30", "@P2 BRA 0x10", "EXIT", "NANOSLEEP", "BRA 0x20"]
    code = sass(listing(*lines, "BRA 0xa0", "NOP"))
    assert len(code) == len(lines)  # without the padding
    assert [x.place for x in hot_part(code)] == [0x30, 0x40, 0x50]


def test_all_counts_where_nothing_is_multiplied():
    code = sass(listing("MOV R1, R2", "FFMA R1, R1, R2, R3", "@P0 BRA 0x10", "EXIT"))
    assert hot_part(code) == code


def test_loops_of_amd_code():
    lines = [
        ".LBB0_1:",
        "\tv_mov_b32_e32 v0, v1",
        ".LBB0_2:",
        "\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]",
    ]
    code = amdgcn("\n".join([*lines, "\ts_cbranch_scc1 .LBB0_2", "\ts_branch .LBB0_1", "\ts_endpgm", "\tv_nop"]))
    assert [x.name for x in hot_part(code)] == ["v_mfma_f32_32x32x8_bf16", "s_cbranch_scc1"]
    assert Instruction(3, "s_branch", 0) in code


@triton.jit
def product_kernel(out, x, w, steps, ROWS: tl.constexpr, SURE: tl.constexpr):
    """Codes from bits, transposed on the way to the tensor cores; a large `ROWS` takes too many registers."""
    i, k = tl.arange(0, ROWS), tl.arange(0, 64)
    total = tl.zeros((ROWS, 128), tl.float32)
    if SURE:
        tl.assume(steps > 0)
    for step in range(0, steps):
        bits = tl.load(w + step * 64 + k)[:, None] >> (i[None, :] & 31)
        codes = tl.trans((bits & 1).to(tl.bfloat16))
        total = tl.dot(codes, tl.load(x + (step * 64 + k[:, None]) * 128 + tl.arange(0, 128)[None, :]), total)
    tl.store(out + i[:, None] * 128 + tl.arange(0, 128)[None, :], total)


@pytest.mark.parametrize(
    ("rows", "sure", "spills", "serialised"),
    # a loop that may not run defines its sums by other means too, and the tensor cores wait each time
    [(128, True, False, False), (128, False, False, True), (512, True, True, True)],
)
def test_the_compiler_is_heard(rows, sure, spills, serialised):
    out, x = torch.ones(rows, 128), torch.ones(128, 128, dtype=torch.bfloat16)
    with recorded("sm_90") as launches:
        product_kernel[(1,)](out, x, torch.ones(128, dtype=torch.int32), 2, ROWS=rows, SURE=sure)
    row = measure(launches[0])
    assert out.sum() == rows * 128  # nothing ran
    assert row["asynchronous"] > 0
    assert row["matrix"] > 0
    assert (row["spills"] > 0) == spills
    assert bool(row["serialised"]) == serialised
