"""What nvcc made of kernels: `python tests/cuda/counts.py FILE [KERNEL]`, FILE a library, an object or a cubin.

For every kernel and target its registers, stack and shared memory; for those whose name begins with KERNEL the
instructions of the main loop by pipe: of the smallest loop with at least half as many products of matrices as any.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PIPES = {
    "tensor": r"HMMA|IMMA",
    "fma": r"IMAD|FFMA|FMUL|FADD|HFMA2|HADD2|HMUL2|IDP4A|IDP",
    "shared": r"LDS|STS|LDSM|SHFL",
    "global": r"LDG|STG|LD|ST|LDGSTS",
    "local": r"LDL|STL",
    "convert": r"MUFU|I2F|F2I|F2F|POPC|FLO|BREV|I2I|FRND|I2FP|F2FP",
    "uniform": r"U[A-Z0-9]+|R2UR|S2UR|LDC|LDCU",
    "control": r"BRA|EXIT|BSSY|BSYNC|BAR|WARPSYNC|NOP|DEPBAR|RET|CALL|ACQBULK|PREEXIT|YIELD|CS2R|S2R",
}
PRODUCTS = r"HMMA|IMMA"


@dataclasses.dataclass(frozen=True)
class Kernel:
    target: str  # sm_90
    symbol: str
    registers: int
    stack: int  # of a thread, spilled registers among it
    local: int
    shared: int  # without what a launch adds

    @property
    def name(self) -> str:
        return self._parts()[0]

    @property
    def arguments(self) -> tuple[int, ...]:
        """Of the template: numbers and truth values."""
        return self._parts()[1]

    def _parts(self) -> tuple[str, tuple[int, ...]]:
        rest, names = self.symbol.removeprefix("_ZN"), []
        while found := re.match(r"(\d+)", rest):
            begin, length = found.end(), int(found.group())
            names.append(rest[begin : begin + length])
            rest = rest[begin + length :]
        listed = re.match(r"I((?:L\w\d+E)+)E", rest)
        return names[-1], tuple(map(int, re.findall(r"L\w(\d+)E", listed.group(1)))) if listed else ()

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, self.arguments))}> {self.target}"


def cuobjdump() -> str | None:
    """That of CUDA, or else Triton's own."""
    if found := os.environ.get("CUOBJDUMP") or shutil.which("cuobjdump"):
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    program = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return str(program) if program.exists() else None


def _dump(file: Path, *options: str) -> str:
    program = cuobjdump()
    assert program, "cuobjdump is not installed"
    return subprocess.run([program, *options, str(file)], capture_output=True, text=True, check=True).stdout


def kernels(file: Path) -> list[Kernel]:
    found, target, symbol = [], "", ""
    for line in _dump(file, "-res-usage").splitlines():
        if line.startswith("arch = "):
            target = line.removeprefix("arch = ")
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match.group(1)
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(Kernel(target, symbol, registers, stack, local, shared))
    return found


def most_threads(file: Path) -> dict[tuple[str, str], int]:
    """The threads of a block that each kernel is bound to, by target and symbol."""
    found, target, symbol, of_threads = {}, "", "", False
    for line in _dump(file, "-elf").splitlines():
        if match := re.search(r"\bsm=(\d+)", line):
            target = f"sm_{match.group(1)}"
        elif match := re.match(r"\.nv\.info\.(\S+)", line):
            symbol = match.group(1)
        elif "Attribute:" in line:
            of_threads = "EIATTR_MAX_THREADS" in line
        elif of_threads and (match := re.match(r"\s*Value:\s+0x(\w+) 0x(\w+) 0x(\w+)", line)):
            found[target, symbol] = int(match[1], 16) * int(match[2], 16) * int(match[3], 16)
    return found


def _code(file: Path, symbols: Iterable[str]) -> Iterator[tuple[str, str, list[tuple[int, str]]]]:
    """Target, symbol, and addresses and text of the instructions."""
    target, symbol, code = "", "", []
    for line in [*_dump(file, "-sass", "-fun", ",".join(sorted(set(symbols)))).splitlines(), "\t\tFunction : "]:
        if match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
            code.append((int(match[1], 16), match[2]))
        elif match := re.match(r"\s*Function : (\S*)", line):
            if symbol:
                yield target, symbol, code
            symbol, code = match[1], []
        elif match := re.match(r"\s*code for (\S+)", line):
            if symbol:
                yield target, symbol, code
            target, symbol, code = match[1], "", []


def _operation(text: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]


def _pipe(operation: str) -> str:
    base = operation.split(".")[0]
    return next((pipe for pipe, names in PIPES.items() if re.fullmatch(names, base)), "alu")


@dataclasses.dataclass(frozen=True)
class Loop:
    products: int
    pipes: dict[str, int]

    @property
    def instructions(self) -> int:
        return sum(self.pipes.values())


def _main_loop(code: list[tuple[int, str]]) -> Loop | None:
    products = [at for at, text in code if re.match(PRODUCTS, _operation(text))]
    spans = []
    for at, text in code:
        jump = re.match(r"(?:@!?U?P\w+ )?BRA(?:\.\w+)*\s+.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= at:
            first = int(jump[1], 16)
            spans.append((first, at, sum(first <= place <= at for place in products)))
    if not products or not spans:
        return None
    most = max(held for _, _, held in spans)
    first, last, held = min((span for span in spans if 2 * span[2] >= most), key=lambda span: span[1] - span[0])
    inside = [_operation(text) for at, text in code if first <= at <= last]
    return Loop(held, dict(collections.Counter(map(_pipe, inside))))


def main_loops(file: Path, wanted: Iterable[Kernel]) -> dict[tuple[str, str], Loop]:
    """By target and symbol; kernels without products of matrices in a loop are left out."""
    found = {}
    for target, symbol, code in _code(file, [kernel.symbol for kernel in wanted]):
        if loop := _main_loop(code):
            found[target, symbol] = loop
    return found


def main() -> None:
    file, chosen = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    listed, threads = kernels(file), most_threads(file)
    shown = [kernel for kernel in listed if chosen and kernel.name.startswith(chosen)]
    loops = main_loops(file, shown) if shown else {}
    for kernel in shown or listed:
        key = kernel.target, kernel.symbol
        line = f"{kernel}: registers {kernel.registers}, threads {threads.get(key)}, stack {kernel.stack}"
        if loop := loops.get(key):
            line += f"; loop of {loop.instructions} for {loop.products} products {loop.pipes}"
        print(line)


if __name__ == "__main__":
    main()
