"""The effective weight as an attribute: a value, not a place that can be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HOW = (
    "weight: a frozen layer makes it from its seed and mask and stores none, so it cannot be written; choose weights "
    "by set_keep_mask or set_scores_as_weight, fold batch norm with fold_batch_norm_, train a stored weight in "
    "to_dense(model)"
)
# in-place by name, but what they change is not the values
_HARMLESS = {"requires_grad_", "share_memory_"}
_SETTERS = (Tensor.requires_grad.__set__, Tensor.grad.__set__)  # type: ignore[attr-defined, union-attr]
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class EffectiveWeight(Tensor):
    """A materialised weight that refuses to be written in place, for the layer would not see it.

    Whatever torch computes from it, `detach()` and `clone()` among it, is a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
        if in_place or name in ("__setitem__", "__set__"):
            written = args[0] if args else next(iter((kwargs or {}).values()), None)
            if isinstance(written, cls) and func not in _SETTERS:
                raise RuntimeError(HOW)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        return found.as_subclass(cls) if func == _DATA else found
