"""Launches compiled for a GPU that is not here instead of run, and what the compiler made of them.

Needs neither GPU nor driver, and a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

TILE_SUMS = 64  # fused multiply-adds of a loop that multiplies tiles; less is address arithmetic
SUM = re.compile(r"FFMA|v_fma|v_pk_fma|v_fmac")  # products where no matrix unit takes the type
MATRIX = re.compile(r"HGMMA|HMMA|IMMA|IGMMA|QGMMA|UTC\w*MMA|v_mfma")
# a lane group of the integer units takes 64 lanes a cycle, the issue slots of a multiprocessor 128
ALU = re.compile(
    r"LOP3|SHF|PRMT|SEL|ISETP|IADD|VIADD|VIMNMX|LEA|PLOP3|FSETP|FSEL|BMSK|SGXT|I2FP|F2FP|FMNMX|IMNMX|P2R|R2P|CSET"
    r"|v_(?!mfma|fma|pk_fma|fmac)"
)
FMA = re.compile(r"IMAD|FFMA|FMUL|FADD|HFMA2|HMUL2|HADD2|v_fma|v_pk_fma|v_fmac")
MEMORY = re.compile(r"LDG|STG|LDS|STS|LDL|STL|SHFL|ds_|global_|buffer_|flat_|scratch_")


class Driver:
    """What the compiler asks of a driver."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return list(TARGETS.values()).index(self.target)  # compiled kernels are remembered by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class Launch(NamedTuple):
    kernel: str
    arguments: dict[str, Any]
    built: Any  # triton's CompiledKernel
    log: str  # what the assembler said; empty where this process had compiled the same before


@contextlib.contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """Launches inside are compiled for the target, listed, and not run."""
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            built = run(self, *args, grid=grid, warmup=True, **kwargs)
        named = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        launches.append(Launch(self.__name__, named, built, log.getvalue()))
        return built

    triton.runtime.driver.set_active(Driver(TARGETS[target]))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        # a kernel from the cache on disk has no log
        mock.patch.object(knobs.compilation, "always_compile", True),
        mock.patch.object(knobs.nvidia, "dump_ptxas_log", True),
    ):
        yield launches


class Instruction(NamedTuple):
    place: int
    name: str
    jump: int | None  # where a branch goes


def sass(listing: str) -> list[Instruction]:
    found = []
    for place, text in re.findall(r"^\s*/\*([0-9a-f]{4,6})\*/\s+([^;]*);", listing, re.M):
        always = re.sub(r"^@!?U?P\w+\s+", "", text.strip())
        jump = re.match(r"BRA(?:\.\w+)*\s.*?0x([0-9a-f]+)", always)
        name = "leave" if text.strip() == "EXIT" else always.split()[0]
        found.append(Instruction(int(place, 16), name, int(jump[1], 16) if jump else None))
    # what follows the branch to itself is padding
    end = next((i for i, x in enumerate(found) if x.jump == x.place), len(found))
    return found[:end]


def amdgcn(listing: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    lines: list[tuple[str, str | None]] = []
    for line in listing.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(lines)
        elif text := re.match(r"\t([svdbgf][a-z0-9]*_\w+)(?:\s.*?(\.LBB\w+))?", line):
            lines.append((text[1], text[2]))
        elif line.startswith("\ts_endpgm"):
            break
    return [Instruction(i, name, labels.get(label or "")) for i, (name, label) in enumerate(lines)]


def hot_part(code: list[Instruction]) -> list[Instruction]:
    """The innermost loop that holds the products of tiles; all of the code where nothing multiplies tiles."""
    unit = MATRIX if any(MATRIX.match(x.name) for x in code) else SUM

    def products(part: list[Instruction]) -> int:
        return sum(bool(unit.match(x.name)) for x in part)

    back = [(x.jump, x.place) for x in code if x.jump is not None and x.jump < x.place]
    loops = [[x for x in code if first <= x.place <= last] for first, last in back]
    # a wait that spins behind the kernel's end and branches back looks like a loop over all that lies between
    loops = [loop for loop in loops if not any(x.name == "leave" for x in loop)]
    most = max(map(products, loops), default=0)
    if unit is SUM and most < TILE_SUMS:
        return code
    return min((loop for loop in loops if products(loop) == most), key=len, default=code)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} not found in {text[-500:]}"
    return int(found[1])


def tool(name: str, *args: str) -> str:
    done = subprocess.run([getattr(knobs.nvidia, name).path, *args], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def lacking(target: str) -> str:
    """What this triton has not, of all that it takes to compile for a target and to look at what came out."""
    maker = {"cuda": "nvidia", "hip": "amd"}[TARGETS[target].backend]
    if maker not in backends:
        return f"triton's compiler for {maker}"
    if maker == "amd":
        return ""
    try:
        tool("cuobjdump", "--version")
        tool("ptxas_blackwell" if TARGETS[target].arch >= 100 else "ptxas", "--version")
    except RuntimeError as missing:
        return str(missing)
    return ""


def code_bytes(cubin: bytes) -> int:
    """Of an ELF file with one function."""
    start, size, count, names = struct.unpack("<40xQ10xHHH", cubin[:64])
    sections = [struct.unpack_from("<I20xQQ", cubin, start + i * size) for i in range(count)]
    text = sections[names][1]
    return sum(length for name, _, length in sections if cubin[text + name :].startswith(b".text."))


def nvidia(built: Any, log: str) -> dict[str, Any]:
    ptx, cubin = built.asm["ptx"], built.asm["cubin"]
    if "mma" in ptx or ptx.count("fma.rn.f32") >= TILE_SUMS:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
            binary.write(cubin)
            binary.flush()
            code = sass(tool("cuobjdump", "-sass", binary.name))
    else:
        # nothing to look at but the length, and the disassembler takes as long as the compiler
        code = [Instruction(16 * i, "", None) for i in range(code_bytes(cubin) // 16)]
    return {
        "spills": number(r"(\d+) bytes spill stores", log) + number(r"(\d+) bytes spill loads", log),
        "registers": number(r"Used (\d+) registers", log),
        # ptxas says so where it cannot overlap the tensor cores with the decode
        "serialised": sorted(set(re.findall(r"C75\d\d", log))),
        "asynchronous": len(re.findall(r"wgmma\.mma_async|tcgen05\.mma", ptx)),
        "code": code,
    }


def amd(built: Any) -> dict[str, Any]:
    text = built.asm["amdgcn"]
    return {
        # scalar registers spill into vector lanes, which is no memory traffic
        "spills": number(r"\.vgpr_spill_count:\s+(\d+)", text) + number(r"\.private_segment_fixed_size:\s+(\d+)", text),
        "registers": number(r"\.vgpr_count:\s+(\d+)", text),
        "serialised": [],
        "asynchronous": 0,
        "code": amdgcn(text),
    }


def elements(arguments: dict[str, Any]) -> int:
    """Weights, or elements, of a program's tile."""
    cols = 32 * arguments.get("WORDS", 0) or arguments.get("COLS") or arguments.get("PIXELS") or 1
    return (
        arguments.get("BLOCK")
        or arguments.get("COUNT")
        or 8 * arguments.get("BYTES", 0)
        or arguments.get("ROWS", 1) * cols
    )


def measure(launch: Launch) -> dict[str, Any]:
    """Static facts; instructions are those of the hot part, for each element of a tile and without the products."""
    built = launch.built
    found = nvidia(built, launch.log) if "ptx" in built.asm else amd(built)
    code = found.pop("code")
    part = hot_part(code)
    lanes = built.metadata.num_warps * built.metadata.target.warp_size / elements(launch.arguments)

    def each(keep: Callable[[str], Any]) -> float:
        return round(sum(bool(keep(x.name)) for x in part) * lanes, 2)

    return {
        "kernel": launch.kernel,
        "warps": built.metadata.num_warps,
        "shared": built.metadata.shared,
        **found,
        "matrix": sum(bool(MATRIX.match(x.name)) for x in part),
        "sums": sum(bool(SUM.match(x.name)) for x in part),
        "instructions": each(lambda name: not MATRIX.match(name)),
        "alu": each(ALU.match),
        "fma": each(FMA.match),
        "memory": each(MEMORY.match),
    }
