"""What the backends share: two primitives behind the layer ops, one pack, one checker, and the choice among them."""

from __future__ import annotations

import inspect
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import make_frozen

from frozen_kernels import format as fmt
from frozen_kernels.backends import Unsupported, choice, layers
from frozen_kernels.ops import CONVOLUTIONS, PACK, SCHEMAS, TRANSPOSED_CONVOLUTIONS

NAMES = ("reference", "cpu", "triton")
LAYERS = ("linear", *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
LAYER_OPS = [name + suffix for name in LAYERS for suffix in ("", "_grad_input", "_grad_scores")]


def test_the_pack_has_one_definition():
    assert tuple(part.split()[-1] for part in PACK.split(", ")) == fmt.Pack._fields
    assert isinstance(make_frozen((2, 3))[0].pack(), fmt.Pack)
    for op, schema in SCHEMAS.items():
        assert ("Tensor? dense" in schema) == (PACK in schema), op


def recorder():
    """A backend of primitives that note their calls, with the derived ops."""
    calls = []

    def product(x, pack, geometry, size, back, bias=None, gain=None, relu=False):
        calls.append(("product", pack, geometry, tuple(size), back, bias, gain, relu))
        return x

    def score_gradient(wide, narrow, scores, pack, geometry):
        calls.append(("score_gradient", pack, geometry, tuple(wide.shape), tuple(narrow.shape)))
        return scores

    nothing = SimpleNamespace(weight=None, weight_grad_scores=None, embedding=None, embedding_grad_scores=None)
    backend = SimpleNamespace(
        product=SimpleNamespace(product=product),
        score_gradient=SimpleNamespace(score_gradient=score_gradient),
        weights=nothing,
        embeddings=nothing,
    )
    layers.derive(backend)
    return backend, calls


@pytest.mark.parametrize("name", LAYERS)
def test_layer_ops_come_from_two_primitives(name):
    backend, calls = recorder()
    transposed, dims = "transpose" in name, 0 if name == "linear" else int(name[-2])
    # two groups, a stride of 2 and a padding of 1; an output padding where there is one
    shape = (6, 4, *[3] * dims)
    spatial = [[n] * dims for n in ((2, 1, 1, 1) if transposed else (2, 1, 1))] + [2] if dims else []
    x_size, y_size = (
        ((2, 6, *[5] * dims), (2, 8, *[10] * dims)) if transposed else ((2, 8, *[5] * dims), (2, 6, *[3] * dims))
    )
    if not dims:
        x_size, y_size = (2, 7, 4), (2, 7, 6)
    pack = fmt.Pack(fmt.make_header(1), *[None] * 7, "sign", list(shape))
    x, y, bias, gain, scores = torch.ones(x_size), torch.ones(y_size), torch.ones(1), torch.ones(2), torch.ones(3)

    getattr(backend, name)(x, bias, None, *pack, *spatial, gain, True)
    getattr(backend, name)(x, None, None, *pack, *spatial, relu=True)
    sizes = [list(x_size)] if dims else []
    getattr(backend, f"{name}_grad_input")(y, *sizes, *pack, *spatial)
    getattr(backend, f"{name}_grad_scores")(y, x, scores, *pack, *spatial)

    geometry = calls[0][2]
    wide, narrow = (y_size, x_size) if transposed else (x_size, y_size)
    assert geometry.transposed == transposed and geometry.groups == (2 if dims else 1)
    assert [call[:5] for call in calls[:3]] == [
        ("product", pack, geometry, y_size, False),
        ("product", pack, geometry, y_size, False),
        ("product", pack, geometry, x_size, True),
    ]
    assert [call[5:] for call in calls[:3]] == [(bias, gain, True), (None, None, True), (None, None, False)]
    assert calls[3] == ("score_gradient", pack, geometry, wide, narrow)


def file_of(backend: str, op: str) -> str:
    """The file of a backend's folder, or the shared one, that defines an op."""
    return pathlib.Path(inspect.getsourcefile(getattr(choice._module(backend), op))).stem


def test_backends_keep_the_same_thing_in_the_same_file():
    for op in SCHEMAS:
        files = {file_of(name, op) for name in NAMES}
        assert len(files) == 1, (op, files)
        assert (op in LAYER_OPS) <= (files == {"layers"}), op
    for name in NAMES:
        module = choice._module(name)
        for primitive in ("product", "score_gradient"):
            function = getattr(getattr(module, primitive), primitive)
            assert list(inspect.signature(function).parameters) == PARAMETERS[primitive], (name, primitive)


PARAMETERS = {
    "product": ["x", "pack", "geometry", "size", "back", "bias", "gain", "relu"],
    "score_gradient": ["wide", "narrow", "scores", "pack", "geometry"],
}

UNFIT = {
    "sparse": (lambda x: x.to_sparse(), r"{0}: layout torch.sparse_coo, expected torch.strided, which {0}.to_dense"),
    "mkldnn": (lambda x: x.to_mkldnn(), r"{0}: layout torch._mkldnn, expected torch.strided"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), r"{0}: torch.float8_e4m3fn, expected float32, bfloat16, float16"),
    "integers": (lambda x: x.long(), r"{0}: torch.int64, expected float32"),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("residency", ["planes", "dense"])
def test_layouts_and_dtypes_that_no_backend_multiplies(kind, residency, backend):
    unfit, message = UNFIT[kind]
    ops = torch.ops.frozen_kernels
    pack = make_frozen((6, 4), residency=residency)[0].pack()
    with pytest.raises(TypeError, match=message.format("x")):
        ops.linear(unfit(torch.ones(2, 4)), None, None, *pack)
    with pytest.raises(TypeError, match=message.format("grad")):
        ops.linear_grad_input(unfit(torch.ones(2, 6)), *pack)
    pack = make_frozen((6, 4, 3, 3), residency=residency)[0].pack()
    with pytest.raises(TypeError, match=message.format("x")):
        ops.conv2d(unfit(torch.ones(2, 4, 5, 5)), None, None, *pack, [1, 1], [0, 0], [1, 1], 1)


@pytest.mark.parametrize("name", NAMES)
def test_operands_lie_beside_the_header(name):
    pack = make_frozen((6, 4), residency="planes")[0].pack()
    module = choice._module(name)
    with pytest.raises(Unsupported, match="x is on meta, the header on cpu"):
        module.linear(torch.ones(2, 4, device="meta"), None, None, *pack)


def test_a_refusal_by_all_says_why():
    pack = make_frozen((6, 4, 3), residency="planes")[0].pack()
    with pytest.raises(RuntimeError, match=r"linear: no backend serves .*weight of 2 dimensions, got shape \(6, 4, 3"):
        torch.ops.frozen_kernels.linear(torch.ones(2, 4), None, None, *pack)


UNBUILT = """
import sys, warnings
sys.modules["frozen_kernels._C"] = None
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch, frozen_kernels as fk
    layer, conv = fk.nn.FrozenLinear(4, 3), fk.nn.FrozenConv2d(2, 3, 3)
    assert not seen, [str(w.message) for w in seen]
    layer.set_residency("dense")
    layer(torch.ones(2, 4))
    told = [str(w.message) for w in seen]
    layer.set_residency("mask")
    for _ in range(2):
        layer(torch.ones(2, 4)), conv(torch.ones(1, 2, 5, 5))
told = [str(w.message) for w in seen]
assert len(told) == 1, told
assert "1000 times slower" in told[0] and "frozen_kernels info" in told[0] and "not built" in told[0], told
"""


def test_without_a_compiler_one_warning_names_the_factor():
    root = pathlib.Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", UNBUILT], check=True, cwd=root)
