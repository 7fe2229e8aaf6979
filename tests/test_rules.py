"""The rules of the architecture, read off the sources and observed on running code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import live_backends
from helpers import FUSED
from torch.utils._python_dispatch import TorchDispatchMode

import frozen_kernels as fk
from frozen_kernels import format as fmt

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "frozen_kernels"
PYTHON = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
OURS = ("tests/*.py", "*.py", "benchmarks/**/*.py", "examples/**/*.py")
OWN = [*PYTHON, *NATIVE, *(path for pattern in OURS for path in ROOT.glob(pattern))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in PYTHON}
EXTENSION = "frozen_kernels._C"


def imports(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, inside functions too."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def inside(names: set[str], *modules: str) -> set[str]:
    return {n for n in names for m in modules if n == m or n.startswith(m + ".")}


def files_imported(path: Path) -> set[str]:
    """Modules of the package whose files an import names: the most exact one of each name."""
    found = set()
    for name in imports(path) - {EXTENSION}:
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module_of(path)}


GRAPH = {name: files_imported(path) for name, path in MODULES.items()}


def reached(module: str) -> set[str]:
    """What a module imports, and what that imports."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = GRAPH[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_no_circle_of_imports():
    assert {name: sorted(reached(name)) for name in GRAPH if name in reached(name)} == {}


# what a user asks for by name: measuring, bytes, and the choice of backends
MEASURING = ("__main__", "backends", "cli", "memory", "tune")


def test_no_implementation_is_reached():
    for name in GRAPH:
        if name.split(".")[1:2] in [[], *([m] for m in MEASURING)]:
            continue
        assert not inside(reached(name), "frozen_kernels.backends"), name
        assert EXTENSION not in imports(MODULES[name]), name


def test_the_catalogue_knows_the_format_alone():
    assert GRAPH["frozen_kernels.ops"] == {"frozen_kernels.format"}


def test_the_reference_knows_the_format_alone():
    for name in inside(set(GRAPH), "frozen_kernels.backends.reference"):
        allowed = ("frozen_kernels.backends.reference", "frozen_kernels.format")
        assert GRAPH[name] == inside(GRAPH[name], *allowed), name


def test_selection_knows_no_module():
    for name in inside(set(GRAPH), "frozen_kernels.select"):
        assert reached(name) == inside(reached(name), "frozen_kernels.select", "frozen_kernels.format"), name
        assert not inside(imports(MODULES[name]), "torch.nn"), name


def test_no_torch_header_in_native_code():
    for path in NATIVE:
        found = re.findall(r'#\s*include\s*[<"]((?:torch|ATen|c10|caffe2)[/.][^>"]*)', path.read_text())
        assert found == [], name_of(path)
        if "binding" not in path.parts:
            assert not re.search(r"#\s*include\s*[<\"](pybind11/|Python\.h)", path.read_text()), name_of(path)


def test_the_build_needs_no_torch():
    setup = ROOT / "setup.py"
    assert not inside(imports(setup), "torch")
    build = re.search(r"\[build-system\].*?requires\s*=\s*\[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S)
    assert build and "torch" not in build.group(1)


def test_the_build_keeps_arithmetic_as_written():
    text = (ROOT / "setup.py").read_text()
    assert "-ffp-contract=off" in text
    for path in (ROOT / "setup.py", *NATIVE):
        assert not re.search(r"fast-math|Ofast|-funsafe|associative-math|reciprocal-math", path.read_text()), path
    assert "nvcc" not in text or "-fmad=false" in text


def calls(path: Path) -> set[str]:
    """Dotted names of everything that a file calls."""
    functions = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return {ast.unparse(f) for f in functions if isinstance(f, (ast.Attribute, ast.Name))}


RANDOM = re.compile(
    r"(^|\.)(rand|randn|randint|rand_like|randn_like|randint_like|randperm|bernoulli_?|multinomial|normal_?|uniform_"
    r"|random_|exponential_|geometric_|manual_seed|kaiming_(normal|uniform)_|xavier_(normal|uniform)_|trunc_normal_|Generator|RandomState"
    r"|default_rng|philox|dropout)$"
)


def test_randomness_comes_from_the_format_alone():
    for path in PYTHON:
        assert not inside(imports(path), "random", "numpy.random"), name_of(path)
        allowed = {"philox"} if "reference" in path.parts or "triton" in path.parts else set()
        if "cli" in path.parts:  # inputs of a benchmark, and the weights that a user's model begins with
            allowed |= {"torch.randn", "torch.randint", "torch.manual_seed", "torch.Generator"}
            allowed.add("torch.Generator().manual_seed")
        if path.name == "attention.py":
            allowed.add("F.dropout")  # of the weights of one call, as torch's attention
        assert {name for name in calls(path) if RANDOM.search(name)} <= allowed, name_of(path)
        assert not re.search(r"tl\.rand|tl\.philox|curand", path.read_text()), name_of(path)


def test_native_code_draws_from_the_format_alone():
    for path in NATIVE:
        found = re.findall(r"curand|std::(?:mt19937|random_device|uniform_)|\brand\(|<random>", path.read_text())
        assert found == [], name_of(path)


def test_files_stay_small():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in OWN}
    assert {name: count for name, count in lines.items() if count >= 600} == {}


def constants_of(header: str) -> dict[str, int]:
    """Integer constants and enumerators of a header by name."""
    text = re.sub(r"//[^\n]*", "", header)
    found = re.findall(r"\b([A-Z][A-Z0-9_]+)\s*=\s*(0x[0-9A-Fa-f]+|\d+)u?\b", text)
    return {name: int(value, 0) for name, value in found}


def numbers_of(header: str, macro: str) -> list[int]:
    """The numbers that a macro stands for."""
    body = re.search(rf"#define {macro} \\\n((?:[^\n]*\\\n)*[^\n]*)", header)
    assert body is not None
    return [int(n) for n in re.findall(r"\d+", body.group(1))]


@pytest.mark.skipif(not NATIVE, reason="no native sources here")
def test_format_constants_agree_between_python_and_native_code():
    folder = ROOT / "csrc" / "frozen"
    header, generator = (folder / "format.h").read_text(), (folder / "philox.h").read_text()
    constants = constants_of(header)
    assert constants["FORMAT_VERSION"] == fmt.VERSION
    assert [constants[f"{code.upper()}_CODE"] for code in fmt.ALL_CODES] == list(range(len(fmt.ALL_CODES)))
    purposes = ("SIGN", "BYTE", "PARTITION", "SCORE", "SEARCH")
    assert [constants[f"{p}_PURPOSE"] for p in purposes] == [getattr(fmt, p) for p in purposes]
    assert constants["PLANES"] == 4 * fmt.PARTITION_CALLS and constants["FULL_THRESHOLD"] == 65536
    assert numbers_of(header, "FK_NORMAL_HALF") == list(fmt.NORMAL_UPPER_HALF)
    words = [int(word, 16) for word in re.findall(r"0x[0-9A-Fa-f]{8}", generator)]
    assert words == [*fmt.PHILOX_MULTIPLIERS, *fmt.PHILOX_WEYL]
    assert constants_of(generator)["PHILOX_ROUNDS"] == fmt.PHILOX_ROUNDS
    layout = ("SEED_LO", "SEED_HI", "STREAM", "GENERATION", "TAU_PRUNE", "TAU_FREEZE", "SCALE", "CODE", "HEADER_WORDS")
    assert [constants[word] for word in layout] == [getattr(fmt, word) for word in layout] == list(range(len(layout)))
    assert constants["CHUNK_WORDS"] == fmt.CHUNK_WORDS


def test_native_code_states_the_format_once():
    """No file but the format's own gives one of its constants a value."""
    facts = set(constants_of((ROOT / "csrc/frozen/format.h").read_text()))
    elsewhere = {name_of(p): facts & set(constants_of(p.read_text())) for p in NATIVE if p.name != "format.h"}
    assert {name: found for name, found in elsewhere.items() if found} == {}


LIGHT = """
import sys, torch
before = set(sys.modules)
import frozen_kernels as fk
fresh = {name.split(".")[0] for name in set(sys.modules) - before}
heavy = {"triton", "safetensors", "matplotlib", "sklearn", "tqdm", "rich", "torchvision", "ninja", "pybind11"}
heavy |= {"huggingface_hub"}
assert not fresh & heavy, fresh & heavy
assert not torch.cuda.is_initialized()
assert "torch.distributed.tensor" in before or "torch.distributed.tensor" not in sys.modules
fk.nn.FrozenLinear(40, 30)(torch.ones(1, 40)).sum().backward()
fk.nn.FrozenEmbedding(40, 30, padding_idx=2)(torch.tensor([1]))
assert not {"triton", "torch._dynamo"} & (set(sys.modules) - before)
assert not torch.cuda.is_initialized()
fk.freeze_(torch.nn.Sequential(torch.nn.Linear(4, 4)))
assert "transformers" not in sys.modules
"""


def test_importing_the_package_is_light():
    """Torch and numpy only; a CPU forward loads no Triton and no CUDA either."""
    subprocess.run([sys.executable, "-c", LIGHT], check=True, cwd=ROOT)


class Calls(TorchDispatchMode):
    """Names of the package's ops, as the modules call them."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "frozen_kernels":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


LAYERS = {
    "linear": (lambda **s: fk.nn.FrozenLinear(160, 96, **s), (3, 160)),
    "conv2d": (lambda **s: fk.nn.FrozenConv2d(32, 48, 3, padding=1, **s), (1, 32, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("residency", FUSED)
def test_a_step_is_one_op_forward_and_two_back(name, residency):
    make, x_shape = LAYERS[name]
    layer = make()
    layer.set_residency(residency)
    x = torch.randn(x_shape, requires_grad=True)
    with Calls() as seen:
        layer(x).sum().backward()
    assert seen.names == [name, f"{name}_grad_input", f"{name}_grad_scores"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("residency", FUSED)
def test_no_dense_weight_is_allocated_by_a_fused_backend(name, residency):
    """Of any dtype: the smallest dense weight has 2 bytes per element. The reference must be caught doing it."""
    make, x_shape = LAYERS[name]
    layer, x = make(), torch.randn(x_shape, requires_grad=True)
    layer.set_residency(residency)
    weight = layer.rows * layer.cols
    for backend in live_backends():
        with fk.backends.use(backend), torch.profiler.profile(profile_memory=True) as profile:
            y = layer(x)
            y.sum().backward()
        events = profile.profiler.kineto_results.events()
        largest = max(e.nbytes() for e in events if e.name() == "[memory]")
        # the gradient of the scores is part of a training step
        allowed = max(t.nbytes for t in (layer.scores, x, y))
        assert allowed < 2 * weight
        assert (largest >= 2 * weight) if backend == "reference" else largest <= allowed, backend


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("residency", [*FUSED, "dense"])
def test_a_forward_never_mutates_the_module(name, residency, backend):
    make, x_shape = LAYERS[name]
    layer = make(scaling="dynamic")
    layer.set_residency(residency)

    def state() -> dict:
        own = {k: v for k, v in vars(layer).items() if k not in ("_parameters", "_buffers")}
        tensors = {**layer._parameters, **layer._buffers}
        held = {k: None if t is None else (id(t), t._version) for k, t in tensors.items()}
        return {"attributes": repr(own), **held}

    before = state()
    layer(torch.randn(x_shape)).sum().backward()
    layer.eval()(torch.randn(x_shape))
    layer.train()
    assert state() == before


def test_seeds_are_never_python_numbers_of_an_op():
    for op, schema in fk.ops.SCHEMAS.items():
        assert not re.search(r"\b(int|SymInt) (seed|stream|generation)\b", schema), op


def test_every_op_has_a_reference():
    assert {op for op in fk.ops.SCHEMAS if not hasattr(fk.backends.choice._module("reference"), op)} == set()


def test_report_names_every_backend():
    report = fk.backends.report()
    assert set(report) == {"reference", "cpu", "triton", "cuda"} and report["reference"] == "live"
    assert all(status for status in report.values())
    assert report["cuda"] == "live" or re.search(
        "extension is not built|NVIDIA driver|no GPU can be used", report["cuda"]
    )
