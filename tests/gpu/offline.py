"""Compile the Triton kernels for GPUs that are not here and print one JSON object per kernel; needs no GPU or driver.

Run by `test_triton.py` in a process without TRITON_INTERPRET: `python triton_offline.py sm_90`.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from frozen_kernels.backends.triton.kernels.gemm import linear_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from frozen_kernels.backends.triton import launch, layers, weights
from frozen_kernels.backends.triton.kernels.weight import weight_kernel
from frozen_kernels.format import CODES

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
KERNELS = {"weight": weight_kernel, "linear": linear_kernel}
POINTERS = {
    "header": "i32",
    "supermask": "u8",
    "offsets": "i64",
    "keep": "i32",
    "normal_table": "fp32",
    "bias": "fp32",
    "gain": "fp32",
}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# kernel, residency, code, dtype
CASES = [
    ("weight", "seed", "normal", torch.bfloat16),
    ("weight", "planes", "uniform", torch.float32),
    ("linear", "seed", "sign", torch.bfloat16),
    ("linear", "seed", "normal", torch.float32),
    ("linear", "planes", "sign", torch.float16),
]


def arguments(kernel: str, residency: str, code: str, dtype: torch.dtype) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of the run-time arguments, and values of the compile-time ones, of a launch by `ops`."""
    constants: dict[str, Any] = {"CODE": CODES.index(code), "WORDS": launch.WORDS}
    if kernel == "weight":
        constants |= {"ROWS": weights.ROWS, "TAPS": 1}
    else:
        constants |= {"ROWS": layers.ROWS, "BATCH": layers.batch_tile(1 << 20, dtype), "x_col_stride": 1, "RELU": True}
    absent = ["keep", "draw"] if residency == "seed" else ["supermask", "offsets"]
    absent += [] if code == "normal" else ["normal_table"]
    constants |= dict.fromkeys(absent)
    draw = "i32" if code == "sign" else "u8"
    pointers = {**POINTERS, "draw": draw, "out": TYPES[dtype], "x": TYPES[dtype], "y": TYPES[dtype]}
    names = KERNELS[kernel].arg_names
    types = {n: "constexpr" if n in constants else f"*{pointers[n]}" if n in pointers else "i32" for n in names}
    return types, constants


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} not found"
    return int(found[1])


def nvidia_spills(ptx: str) -> dict[str, Any]:
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", str(source), "-o", str(source) + ".cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "spills": number(r"(\d+) bytes spill stores", log) + number(r"(\d+) bytes spill loads", log),
        "registers": number(r"Used (\d+) registers", log),
        "matrix_instructions": len(re.findall(r"wgmma\.mma_async|\bmma\.sync", ptx)),
        # ptxas says so where it cannot overlap the tensor cores with the decode
        "serialised": bool(re.search(r"C75\d\d|serialized", log)),
    }


def amd_spills(assembly: str) -> dict[str, Any]:
    return {
        # scalar registers spill into vector lanes, which is no memory traffic
        "spills": number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
        + number(r"\.private_segment_fixed_size:\s+(\d+)", assembly),
        "registers": number(r"\.vgpr_count:\s+(\d+)", assembly),
        "matrix_instructions": assembly.count("v_mfma"),
    }


def compile_case(target: str, kernel: str, residency: str, code: str, dtype: torch.dtype) -> dict[str, Any]:
    types, constants = arguments(kernel, residency, code, dtype)
    # what a launch finds out by itself: torch's allocations and even sizes are multiples of 16
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(types) if types[n] != "constexpr"}
    function = KERNELS[kernel]
    source = ASTSource(fn=function, signature=types, constexprs=constants, attrs=aligned)
    built = triton.compile(source, target=TARGETS[target], options={"num_warps": 4})
    found = nvidia_spills(built.asm["ptx"]) if target.startswith("sm_") else amd_spills(built.asm["amdgcn"])
    return {"kernel": kernel, "residency": residency, "code": code, "dtype": str(dtype), **found}


if __name__ == "__main__":
    for case in CASES:
        print(json.dumps(compile_case(sys.argv[1], *case)))
