"""What the functions of `functional` take beyond ordinary tensors and settings, and what they refuse by name."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from helpers import make_frozen
from torch import fx
from torch.nn import functional as F

from frozen_kernels import functional

CONVOLUTION, TRANSPOSED = (6, 2, 3, 3), (4, 3, 3, 3)


@pytest.mark.parametrize("number", [np.int64, np.uint8, lambda n: torch.tensor(n), lambda n: (np.int32(n),) * 2])
def test_settings_of_other_integers(number):
    frozen, _ = make_frozen(CONVOLUTION)
    x, groups = torch.randn(1, 4, 7, 8), np.int64(2)
    expected = functional.conv2d(x, frozen, None, 2, 1, 1, 2)
    assert torch.equal(functional.conv2d(x, frozen, None, number(2), number(1), number(1), groups), expected)
    frozen, _ = make_frozen(TRANSPOSED)
    expected = functional.conv_transpose2d(x, frozen, None, 2, 1, 1, 2, 1)
    got = functional.conv_transpose2d(x, frozen, None, number(2), number(1), number(1), groups, number(1))
    assert torch.equal(got, expected)
    table, _ = make_frozen((5, 4))
    got = functional.embedding(torch.arange(5), table, np.int64(3))
    assert torch.equal(got, functional.embedding(torch.arange(5), table, 3)) and not got[3].any()


@pytest.mark.parametrize("stride", [1.5, (1, 2.0), "ab", None, (1, 2, 3), [], 0])
def test_settings_that_are_no_integers(stride):
    frozen, _ = make_frozen(CONVOLUTION)
    with pytest.raises(ValueError, match=r"^stride: 2 integers >= 1, got "):
        functional.conv2d(torch.randn(1, 4, 7, 8), frozen, stride=stride, groups=2)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_input_of_a_linear_layer(layout):
    """As torch's own, whose result and gradient are dense."""
    frozen, weight = make_frozen((3, 8))
    x = torch.randn(5, 8).relu()
    torch.testing.assert_close(functional.linear(getattr(x, layout)(), frozen), F.linear(x, weight.float()))
    leaf = x.clone().requires_grad_()
    functional.linear(getattr(leaf, layout)(), frozen).square().sum().backward()
    other = x.clone().requires_grad_()
    F.linear(getattr(other, layout)(), weight.float()).square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


IMAGE = torch.randn(1, 4, 7, 8)
REFUSED = {
    "sparse": (IMAGE.to_sparse(), r"^x: layout torch.sparse_coo, expected torch.strided.*to_dense"),
    "mkldnn": (IMAGE.to_mkldnn(), r"^x: layout torch._mkldnn, expected torch.strided.*to_dense"),
    "float8": (IMAGE.to(torch.float8_e4m3fn), r"^x: torch.float8_e4m3fn, expected float32, bfloat16"),
    "complex": (IMAGE.to(torch.complex64), r"^x: torch.complex64, expected float32, bfloat16"),
    "integer": (IMAGE.to(torch.int8), r"^x: torch.int8, expected float32, bfloat16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_and_dtypes_are_refused_by_name(name):
    x, why = REFUSED[name]
    with pytest.raises(TypeError, match=why):
        functional.conv2d(x, make_frozen(CONVOLUTION)[0], groups=2)
    with pytest.raises(TypeError, match=why):
        functional.conv_transpose2d(x, make_frozen(TRANSPOSED)[0])
    if name != "sparse":
        with pytest.raises(TypeError, match=why):
            functional.linear(x, make_frozen((3, 8))[0])


@pytest.mark.parametrize(
    ("indices", "options", "why"),
    [
        (torch.zeros(2, dtype=torch.int64, device="meta"), {}, r"^indices: on meta, the frozen weight is on cpu"),
        (torch.ones(2, dtype=torch.int64).to_sparse(), {}, r"^indices: layout torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.int64), {"dtype": torch.int8}, r"^dtype: torch.int8, expected float32"),
    ],
)
def test_embedding_refusals(indices, options, why):
    with pytest.raises((TypeError, ValueError), match=why):
        functional.embedding(indices, make_frozen((5, 4))[0], **options)


def calling(function, frozen):
    return lambda x: function(x, frozen)


def test_calls_are_traced_as_calls():
    """fx hands over a proxy, of which nothing can be asked; every function appears in the graph under its own name."""
    shapes = {"linear": (3, 4), "embedding": (7, 4)}
    shapes |= {f"conv{n}d": (3, 4, *[2] * n) for n in (1, 2, 3)}
    shapes |= {f"conv_transpose{n}d": (4, 3, *[2] * n) for n in (1, 2, 3)}
    for name, shape in shapes.items():
        function, frozen = getattr(functional, name), make_frozen(shape)[0]
        traced = fx.symbolic_trace(calling(function, frozen))
        assert function in {node.target for node in traced.graph.nodes}
        x = torch.tensor([1, 5]) if name == "embedding" else torch.randn(2, 4, *[3] * (len(shape) - 2))
        assert torch.equal(traced(x), function(x, frozen)), name


def test_public_functions_are_typed_and_documented():
    public = [
        f
        for n, f in vars(functional).items()
        if inspect.isfunction(f) and n[0] != "_" and f.__module__ == functional.__name__
    ]
    assert len(public) == 10
    for function in public:
        signature = inspect.signature(function)
        assert function.__doc__ and signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not p.empty for p in signature.parameters.values()), function.__name__
