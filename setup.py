"""Builds frozen_kernels._C, and _cuda where nvcc is found, without torch. Without a compiler the reference runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CORE = CSRC / "cpu/core"
CUDA_MODULE = "frozen_kernels._cuda"
CUDA_BINDING = CSRC / "binding/cuda.cpp"
LIBRARY_MODULE = "frozen_kernels.libfrozen"  # no module, but built and shipped as one is
LIBRARY_SOURCES = CSRC / "lib"
LIBRARY_FILE = "libfrozen.dylib" if sys.platform == "darwin" else "libfrozen.so"
SOURCES = sorted(p for p in CSRC.rglob("*.cpp") if p != CUDA_BINDING and LIBRARY_SOURCES not in p.parents)
# What libfrozen has no use for: it serves, on float32.
NO_LIBRARY = {"format": ("generators", "selection", "stored", "swap", "table"), "fma": ("convolve_transposed",)}
NO_LIBRARY |= {"scores": ("gradient", "panels"), "stored": ("convolve_transposed", "scatter")}
# From the end of the alphabet: stored.cu takes longest, and begun last it would leave the other processors idle.
CUDA_SOURCES = sorted((CSRC / "cuda").glob("*.cu"), reverse=True)
WINDOWS = sys.platform == "win32"
CFLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
CFLAGS += ["-Werror=undef", "-DNDEBUG", "-fms-runtime-lib=dll" if WINDOWS else "-fPIC"]
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mpopcnt"]
# GCC 12 takes its own AVX-512 intrinsics for uninitialised (its bug 105593).
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd"]
AVX512 += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
VNNI = [*AVX512, "-mavx512vbmi", "-mavx512vbmi2", "-mavx512vnni", "-mgfni"]
AMX = [*VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
# Each better than those before it. What its kernels may use is a row of csrc/cpu/simd/features.h, and core/isa.cpp asks
# whether a machine runs it. They are linked in this order: where files share an inline function, the first copy is
# kept, so it must be one that every machine can run.
# A level of ADDS_TO has the kernels of another one, but those in files with FK_LEVEL_NS, which it compiles for itself.
# One of CHOOSES_FROM has all kernels of another one, and tables (files with FK_TABLE_NS) that choose otherwise.
X86_64 = {"portable": [], "avx2": AVX2, "avx512": AVX512, "vnni": VNNI, "zen4": VNNI, "amx": AMX}
ADDS_TO = {"vnni": "avx512", "amx": "avx512"}
CHOOSES_FROM = {"zen4": "vnni"}
AARCH64: dict[str, list[str]] = {"portable": [], "neon": []}
VARIANTS = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
# GPUs whose code is built; others from sm_90 on translate the PTX of the one named last when they first load it.
GPUS = (80, 90, 100, 120)
PTX = 90
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def flags(name: str) -> list[str]:
    return os.environ.get(name, "").split()


def compiler() -> str:
    wanted = os.environ.get("CXX")
    # on Windows clang++ builds for Microsoft's runtime, as Python is built; a g++ there has a runtime of its own
    names = [wanted] if wanted else ["clang++"] if WINDOWS else ["g++", "clang++", "c++"]
    for name in names:
        if Path(name.split()[0]).stem.lower() == "cl":
            raise OSError(f"CXX={name} cannot build the kernels, which use GNU's vectors: clang++ of LLVM can")
        if shutil.which(name.split()[0]):
            return name
    raise OSError(f"no C++ compiler found ({', '.join(names)})")


def link_options() -> list[str]:
    """What this system's linker must be told to make an extension."""
    if sys.platform == "darwin":
        return ["-undefined", "dynamic_lookup"]
    if not WINDOWS:
        return ["-ldl", "-pthread"]
    # Python's import library; the questions to the processor, which Microsoft's runtime lacks; and the runtime of
    # -fms-runtime-lib alone, beside which this driver would link the static one
    command = [*compiler().split(), "--rtlib=compiler-rt", "-print-libgcc-file-name"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    libraries = [f'"-L{escape(Path(sys.base_prefix) / "libs")}"', f'"{escape(asked)}"', "-lkernel32", "-loldnames"]
    return ["-fuse-ld=lld", "-nostartfiles", "-nostdlib", *libraries]


def machine() -> str:
    """The processor that the compiler builds for: not that of this machine where it is a cross compiler."""
    said = subprocess.run([*compiler().split(), "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    return said.partition("-")[0].lower()


def accepts(options: list[str]) -> bool:
    """Whether the compiler knows these options."""
    command = [*compiler().split(), *options, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def links(options: list[str]) -> bool:
    """Whether a library that throws can be linked with these options."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "one.cpp")
        source.write_text("int one(int n) { if (!n) throw n; return n; }\n")
        command = [*compiler().split(), "-shared", "-fPIC", *options, str(source), "-o", str(Path(folder, "one.so"))]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def nvcc() -> str | None:
    """CUDA's compiler; None where FROZEN_KERNELS_CUDA=0 or there is none. OSError where it is 1 and there is none."""
    wanted = os.environ.get("FROZEN_KERNELS_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise OSError(f"FROZEN_KERNELS_CUDA={wanted}, expected 0, 1 or nothing")
    found = shutil.which(os.environ.get("CUDACXX") or "nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if WINDOWS:
        found = None  # nvcc there takes cl alone, which the flags here are not for
    if wanted == "1" and not found:
        raise OSError("FROZEN_KERNELS_CUDA=1 and nvcc not found: put it on PATH or name it in CUDACXX")
    return None if wanted == "0" else found


def version() -> str:
    """That of the package; a wheel that must hold CUDA kernels says of which CUDA."""
    text = (ROOT / "frozen_kernels/__init__.py").read_text()  # read, since an import needs torch
    plain = re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)[0]
    compiler_of_cuda = nvcc() if os.environ.get("FROZEN_KERNELS_CUDA") == "1" else None
    if not compiler_of_cuda:
        return plain
    return f"{plain}+cu{''.join(map(str, release_of(compiler_of_cuda)))}"


def release_of(compiler: str) -> tuple[int, int]:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = said.partition("release ")[2].partition(",")[0].split(".")
    return int(major), int(minor)


def gpu_code(compiler: str) -> list[str]:
    """Options for the GPUs that this nvcc knows, and for PTX."""
    listed = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    codes = [f"arch=compute_{gpu},code=sm_{gpu}" for gpu in GPUS if f"sm_{gpu}" in listed]
    codes.append(f"arch=compute_{PTX},code=compute_{PTX}")
    return [option for code in codes for option in ("-gencode", code)]


def ninja_program() -> str:
    try:
        import ninja

        return os.path.join(ninja.BIN_DIR, "ninja")
    except ImportError:
        found = shutil.which("ninja")
    if not found:
        raise OSError("ninja not found (pip install ninja)")
    return found


def escape(path: object) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def run_ninja(folder: Path, text: str, parallel: object = None) -> None:
    """Bring what a script says up to date; nothing is done again where the script and the sources are as they were."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "build.ninja"
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
    command = [ninja_program(), "-f", str(script), "-C", str(folder)]
    if parallel:
        command += ["-j", str(int(str(parallel)))]
    subprocess.check_call(command)


class CpuScript:
    """A ninja script that compiles files for every instruction set."""

    def __init__(self, cflags: list[str]) -> None:
        known = VARIANTS.get(machine(), {"portable": []})
        self.variants = {name: options for name, options in known.items() if accepts(options)}
        each = " ".join(f"DO({name}, __VA_ARGS__)" for name in self.variants)
        define = [f'"-DFK_EACH_VARIANT(DO, ...)={each}"', f"-I{escape(CSRC)}"]
        self.common = " ".join([*cflags, *define, *flags("CPPFLAGS"), *flags("CXXFLAGS")])
        self.lines: list[str] = []
        self.objects: list[str] = []

    def compile(self, sources: list[Path], folder: str, extra: list[str]) -> None:
        for source in sources:
            target = f"{folder}/{escape(source.relative_to(CSRC).with_suffix('.o'))}"
            self.lines.append(f"build {target}: compile {escape(source)}\n  extra = {' '.join(extra)}")
            self.objects.append(target)

    def compile_variants(
        self, kernels: list[Path], more: Callable[[str, Path], list[str]] = lambda level, source: []
    ) -> None:
        """Kernels for each level; `more` gives further options for one of them."""
        text = {source: source.read_text() for source in kernels}
        tables = [source for source in kernels if "FK_TABLE_NS" in text[source]]
        own = [source for source in kernels if "FK_LEVEL_NS" in text[source] or source in tables]
        for name, instructions in self.variants.items():
            level = CHOOSES_FROM.get(name, name)
            base = ADDS_TO.get(level, level)
            spaces = {"FK_ISA_NS": base, "FK_LEVEL_NS": level, "FK_TABLE_NS": name}
            defined = [f"-D{space}={value}" for space, value in spaces.items()]
            for source in tables if level != name else own if base != level else kernels:
                self.compile([source], name, [*defined, *instructions, *more(name, source)])

    def text(self, output: Path, ldflags: list[str]) -> str:
        head = [
            f"cxx = {compiler()}",
            f"cflags = {self.common}",
            f"ldflags = {' '.join([*ldflags, *flags('LDFLAGS')])}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $cflags $extra -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx -shared -o $out $in $cflags $ldflags",
        ]
        tail = [f"build {escape(output)}: link {' '.join(self.objects)}", f"default {escape(output)}", ""]
        return "\n".join([*head, *self.lines, *tail])


def library_script(output: Path) -> str:
    """libfrozen: C around the kernels that serve float32, without Python and with no symbol but its own."""
    if WINDOWS:
        raise OSError("libfrozen has not been built on Windows")
    script = CpuScript([*CFLAGS, "-DFK_LIBRARY", "-ffunction-sections", "-fdata-sections"])
    level = LIBRARY_SOURCES / "kernels.cpp"
    once = [*sorted(CORE.glob("*.cpp")), *sorted(LIBRARY_SOURCES.glob("*.cpp"))]
    script.compile([source for source in once if source != level], "once", ["-Os"])
    kernels = [source for source in SOURCES if CSRC / "cpu" in source.parents and CORE not in source.parents]
    kernels = [source for source in kernels if source.stem not in NO_LIBRARY.get(source.parent.name, ())]

    def smaller(name: str, source: Path) -> list[str]:
        """Where speed is not what counts: planes are made once, and few processors have no AVX2."""
        return ["-O2"] if source.parent.name == "format" or (name == "portable" and "avx2" in script.variants) else []

    script.compile_variants([*kernels, level], smaller)
    if sys.platform == "darwin":
        return script.text(output, ["-Wl,-dead_strip", f"-Wl,-install_name,@rpath/{LIBRARY_FILE}"])
    link = [f"-Wl,--version-script={escape(LIBRARY_SOURCES / 'frozen.map')}", f"-Wl,-soname,{LIBRARY_FILE}"]
    link += ["-Wl,--gc-sections", "-ldl", "-pthread"]
    if "-fsanitize" not in os.environ.get("CXXFLAGS", ""):
        # A process then needs no libstdc++ of this age, where the compiler has one to link in. libgcc_s stays outside:
        # linked in, it would ask for a later glibc.
        link += ["-Wl,-s", *(["-static-libstdc++"] if links(["-static-libstdc++"]) else [])]
    return script.text(output, link)


class Library(Command):
    """`python setup.py libfrozen`: the library by itself in build/libfrozen, with its header and for pkg-config."""

    description = "build libfrozen, the C library, into build/libfrozen"
    user_options: ClassVar = [("build-dir=", None, "where it goes")]

    def initialize_options(self) -> None:
        self.build_dir = "build/libfrozen"

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        folder = Path(self.build_dir).resolve()
        run_ninja(folder / "objects", library_script(folder / LIBRARY_FILE))
        shutil.copy2(LIBRARY_SOURCES / "frozen.h", folder)
        said = ["prefix=${pcfiledir}", "Name: libfrozen", "Description: layers of frozen networks, from C"]
        said += [f"Version: {version()}", "Cflags: -I${prefix}", "Libs: -L${prefix} -lfrozen"]
        (folder / "frozen.pc").write_text("\n".join([said[0], "", *said[1:], ""]))


class Build(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        # only the binding knows a Python: wheels for several of them share the kernels' objects
        self.build_temp = self.build_temp.removesuffix(f"-{sys.implementation.cache_tag}")
        if os.path.isabs(self.build_temp) and ROOT not in Path(self.build_temp).parents:
            # an editable install would compile in a folder that is thrown away, each time all of it
            self.build_temp = str(ROOT / "build" / f"temp.{sysconfig.get_platform()}")

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] == LIBRARY_MODULE.rpartition(".")[2]:
            return os.path.join(*fullname.split(".")[:-1], LIBRARY_FILE)
        return str(super().get_ext_filename(fullname))

    def build_extension(self, ext: Extension) -> None:
        try:
            self.ninja_build(ext)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            left = {CUDA_MODULE: "will run on Triton", LIBRARY_MODULE: "has no frozen_kernels.runtime"}
            raise CompileError(f"{error}; frozen_kernels {left.get(ext.name, 'will run on its reference')}") from error

    def ninja_build(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.build_temp).resolve()
        if ext.name == LIBRARY_MODULE:
            return run_ninja(folder / "libfrozen", library_script(output), self.parallel)
        import pybind11

        includes = [sysconfig.get_path("include"), pybind11.get_include()]
        if ext.name == CUDA_MODULE:
            return run_ninja(folder / "cuda", self.cuda_script(output, includes), self.parallel)
        run_ninja(folder, self.ninja_script(output, includes), self.parallel)

    def ninja_script(self, output: Path, includes: list[str]) -> str:
        script = CpuScript(CFLAGS)
        system = [f"-isystem {escape(path)}" for path in includes]
        # Whatever is no kernel is built once, for every processor.
        kernels = [source for source in SOURCES if CSRC / "cpu" in source.parents and CORE not in source.parents]
        script.compile([source for source in SOURCES if source not in kernels], "once", system)
        script.compile_variants(kernels)
        return script.text(output, link_options())

    def cuda_script(self, output: Path, includes: list[str]) -> str:
        compiler_of_cuda = nvcc()
        assert compiler_of_cuda is not None
        system = " ".join(f"-isystem {escape(path)}" for path in includes)
        smaller = ["--compress-mode=size"] if release_of(compiler_of_cuda) >= (12, 8) else []
        cuda = " ".join([*NVCC_FLAGS, *smaller, *gpu_code(compiler_of_cuda), f"-I{escape(CSRC)}"])
        common = " ".join([*CFLAGS, f"-I{escape(CSRC)}", *flags("CPPFLAGS"), *flags("CXXFLAGS")])
        lines = [
            f"nvcc = {escape(compiler_of_cuda)}",
            "rule kernels",
            f"  command = $nvcc -MMD -MF $out.d {cuda} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule binding",
            f"  command = {compiler()} -MMD -MF $out.d {common} -DFK_CUDA_MODULE=_cuda {system} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $nvcc -shared -cudart static -Xlinker --exclude-libs,ALL,-s -o $out $in",
        ]
        objects = ["binding.o", *(f"{source.stem}.o" for source in CUDA_SOURCES)]
        lines.append(f"build binding.o: binding {escape(CUDA_BINDING)}")
        lines += [f"build {source.stem}.o: kernels {escape(source)}" for source in CUDA_SOURCES]
        lines.append(f"build {escape(output)}: link {' '.join(objects)}")
        return "\n".join([*lines, f"default {escape(output)}", ""])


def extensions() -> list[Extension]:
    """The CPU kernels; the CUDA kernels beside them where there is a compiler for them."""
    required = os.environ.get("FROZEN_KERNELS_CUDA") == "1"
    sources = [str(path.relative_to(ROOT)) for path in SOURCES]
    found = [Extension("frozen_kernels._C", sources, optional=True)]
    sources = [str(path.relative_to(ROOT)) for path in sorted(LIBRARY_SOURCES.glob("*.cpp"))]
    found.append(Extension(LIBRARY_MODULE, sources, optional=True))
    if nvcc():
        sources = [str(path.relative_to(ROOT)) for path in (CUDA_BINDING, *CUDA_SOURCES)]
        found.append(Extension(CUDA_MODULE, sources, optional=not required))
    return found


setup(version=version(), ext_modules=extensions(), cmdclass={"build_ext": Build, "libfrozen": Library})
