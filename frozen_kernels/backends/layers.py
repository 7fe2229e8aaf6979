"""The ops on a frozen tensor, derived once for every backend.

Linear layers and convolutions of one to three dimensions, transposed or not, with the gradients of their inputs and
scores (`conv2d`, `conv2d_grad_input`, `conv2d_grad_scores`, ...) are 21 ops of one geometry. A backend holds two
primitives for all of them, each in a file of its name:

    product(x, pack, geometry, size, back, bias=None, gain=None, relu=False) -> y of that size
        `relu(gain * W x + bias)` for an input of the layer; with `back` the product of the transposed layer, which
        takes a gradient of the result to a gradient of the input
    score_gradient(wide, narrow, scores, pack, geometry) -> like scores
        from the tensors on both sides of the layer

and the ops of `weights` and `embeddings`, which take a `Pack` too. A backend without these two files leaves their ops
to the next. No backend sees code "signs": `signs` calls them with code "sign".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from ..format import Pack
from ..ops import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, conv_output_size, conv_transpose_output_size
from .checks import check_operand, check_size
from .errors import Unsupported
from .geometry import POINT, Geometry, geometry
from .signs import Signs

# of the size of a layer's input, the shape of its weight and the op's spatial arguments: size of the result, geometry
Describe = Callable[..., tuple[Sequence[int], Geometry]]


def _check_dimensions(name: str, shape: Sequence[int], dims: int) -> None:
    if len(shape) != dims + 2:
        raise Unsupported(f"{name} needs a weight of {dims + 2} dimensions, got shape {tuple(shape)}")


def _linear(x: Sequence[int], shape: Sequence[int]) -> tuple[Sequence[int], Geometry]:
    _check_dimensions("linear", shape, 0)
    rows, cols = shape
    check_size("last dimension of x", x[-1:], (cols,))
    return (*x[:-1], rows), POINT


def _convolution(name: str) -> Describe:
    dims, transposed = int(name[-2]), name in TRANSPOSED_CONVOLUTIONS

    # the same few layers and sizes are asked for over and over
    @functools.lru_cache(maxsize=1024)
    def describe(
        x: Sequence[int], shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], *rest: Any
    ) -> tuple[Sequence[int], Geometry]:
        _check_dimensions(name, shape, dims)
        if len(x) != dims + 2:
            raise ValueError(f"x: {dims + 2} dimensions expected, got size {list(x)}")
        dilation, groups = rest[-2:]
        if groups < 1 or shape[0] % groups:
            raise ValueError(f"groups = {groups} does not divide rows = {shape[0]}")
        check_size("channels of x", x[1:2], (shape[0] if transposed else shape[1] * groups,))
        if transposed:
            size = conv_transpose_output_size(x, shape, stride, padding, rest[0], dilation, groups)
        else:
            size = conv_output_size(x, shape, stride, padding, dilation)
        return tuple(size), geometry(shape, stride, padding, dilation, groups, transposed)

    def described(x: Sequence[int], shape: Sequence[int], *spatial: Any) -> tuple[Sequence[int], Geometry]:
        return describe(tuple(x), tuple(shape), *map(tuple, spatial[:-1]), spatial[-1])

    return described


def _layer(
    backend: ModuleType, describe: Describe, spatial: int
) -> tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]:
    """The op of a layer with so many spatial arguments, the gradient of its input and that of its scores."""
    primitives = Signs(backend)
    product, score_gradient = primitives.product, primitives.score_gradient

    def forward(
        x: Tensor, bias: Tensor | None, scores: Tensor | None, pack: Pack, *rest: Any, **epilogue: Any
    ) -> Tensor:
        check_operand("x", x, pack.header)
        size, at = describe(x.shape, pack.shape, *rest[:spatial])
        return product(x, pack, at, size, False, bias, *rest[spatial:], **epilogue)

    def grad_input(grad: Tensor, input_size: Sequence[int], pack: Pack, *rest: Any) -> Tensor:
        check_operand("grad", grad, pack.header)
        size, at = describe(input_size, pack.shape, *rest)
        check_size("grad", grad.shape, size)
        return product(grad, pack, at, input_size, True)

    def grad_scores(grad: Tensor, x: Tensor, scores: Tensor, pack: Pack, *rest: Any) -> Tensor:
        check_operand("grad", grad, pack.header)
        check_operand("x", x, pack.header)
        size, at = describe(x.shape, pack.shape, *rest)
        check_size("grad", grad.shape, size)
        wide, narrow = (grad, x) if at.transposed else (x, grad)
        return score_gradient(wide, narrow, scores, pack, at)

    return forward, grad_input, grad_scores


def _op(name: str, function: Callable[..., Tensor], at: int) -> Callable[..., Tensor]:
    """A function that takes a `Pack` after `at` arguments as an op, which takes its fields one by one."""
    end = at + len(Pack._fields)

    def op(*args: Any, **options: Any) -> Tensor:
        # Pack(*fields) takes four times as long
        return function(*args[:at], tuple.__new__(Pack, args[at:end]), *args[end:], **options)

    op.__name__ = op.__qualname__ = name
    return op


def derive(backend: ModuleType) -> None:
    """Give a backend the ops that its primitives make, under their names in the catalogue."""

    def add(name: str, function: Callable[..., Tensor], at: int) -> None:
        setattr(backend, name, _op(name, function, at))

    if hasattr(backend, "weights"):
        signs = Signs(backend)
        add("weight", signs.weight, 1)
        add("weight_grad_scores", signs.weight_grad_scores, 2)
        add("embedding", signs.embedding, 2)
        add("embedding_grad_scores", signs.embedding_grad_scores, 3)

    linear, linear_grad_input, linear_grad_scores = _layer(backend, _linear, 0)
    add("linear", linear, 3)
    add("linear_grad_input", lambda grad, pack: linear_grad_input(grad, (*grad.shape[:-1], *pack.shape[1:2]), pack), 1)
    add("linear_grad_scores", linear_grad_scores, 3)
    for name in (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS):
        forward, grad_input, grad_scores = _layer(backend, _convolution(name), 5 if "transpose" in name else 4)
        add(name, forward, 3)
        add(f"{name}_grad_input", grad_input, 2)
        add(f"{name}_grad_scores", grad_scores, 3)
