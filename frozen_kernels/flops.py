"""What `torch.utils.flop_counter` counts of frozen layers: the operations of the dense layers that they stand for.

The formulas are torch's own, of the product and of its two gradients. They are registered when the counter is first
imported: it imports Triton, which this package leaves alone.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from .ops import CONVOLUTIONS, NAMESPACE, PACK_ARGS, TRANSPOSED_CONVOLUTIONS

_COUNTER = "torch.utils.flop_counter"
_SHAPE = PACK_ARGS - 1  # of the pack

Formula = Callable[..., int]


def _linear(counter: ModuleType) -> tuple[Formula, Formula, Formula]:
    def matrices(wide: Any, weight: Any) -> int:
        return counter.mm_flop([wide[:-1].numel(), weight[1]], [weight[1], weight[0]])

    def product(x: Any, bias: Any, scores: Any, *pack: Any, **_: Any) -> int:
        return matrices(x, pack[_SHAPE])

    def grad_input(grad: Any, *pack: Any, **_: Any) -> int:
        return matrices(grad, pack[_SHAPE])

    def grad_scores(grad: Any, x: Any, scores: Any, *pack: Any, **_: Any) -> int:
        return matrices(x, pack[_SHAPE])

    return product, grad_input, grad_scores


def _convolution(counter: ModuleType, transposed: bool) -> tuple[Formula, Formula, Formula]:
    def product(x: Any, bias: Any, scores: Any, *args: Any, out_shape: Any, **_: Any) -> int:
        return counter.conv_flop_count(x, args[_SHAPE], out_shape, transposed=transposed)

    def backward(grad: Any, x: Any, weight: Any, mask: tuple[bool, bool, bool]) -> int:
        settings = (None, None, None, None, transposed, None, None)
        return counter.conv_backward_flop(grad, x, weight, *settings, mask, out_val=[x, weight, None])

    def grad_input(grad: Any, size: Any, *args: Any, **_: Any) -> int:
        return backward(grad, size, args[_SHAPE], (True, False, False))

    def grad_scores(grad: Any, x: Any, scores: Any, *args: Any, **_: Any) -> int:
        return backward(grad, x, args[_SHAPE], (False, True, False))

    return product, grad_input, grad_scores


def _register(counter: ModuleType) -> None:
    layers = {"linear": _linear(counter)}
    layers |= {name: _convolution(counter, False) for name in CONVOLUTIONS}
    layers |= {name: _convolution(counter, True) for name in TRANSPOSED_CONVOLUTIONS}
    ops = getattr(torch.ops, NAMESPACE)
    for name, formulas in layers.items():
        for suffix, formula in zip(("", "_grad_input", "_grad_scores"), formulas, strict=True):
            counter.register_flop_formula([getattr(ops, name + suffix)])(formula)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Registers the formulas behind the counter's own code, once; no other import is touched."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _COUNTER:
            return None
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _WhenImported())
