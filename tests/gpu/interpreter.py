"""Mends of Triton's interpreter (3.6 to 3.7) that make its answers trustworthy and quicker, and a trap for stray lanes.

For a process that sets TRITON_INTERPRET=1 before it imports triton. The interpreter stores bfloat16 as raw uint16: it
multiplies those integers in `tl.dot`, truncates where it should round, and casts them as numbers. It also reads and
writes wherever an unmasked lane points; here a lane outside every tensor of the launch raises `StrayLane`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


class StrayLane(RuntimeError):
    """An active lane of a load or store lies outside the tensors of its launch."""


def bf16_to_float32(raw: np.ndarray) -> np.ndarray:
    return (raw.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest even, as raw uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def _is_bf16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _mend_bfloat16() -> None:
    dot, cast, convert = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp

    def create_dot(self, a, b, total, input_precision, max_num_imprecise_acc):
        if _is_bf16(a) or _is_bf16(b):
            a, b = (TensorHandle(bf16_to_float32(h.data), tl.float32) if _is_bf16(h) else h for h in (a, b))
        return dot(self, a, b, total, input_precision, max_num_imprecise_acc)

    def cast_impl(self, source, to):
        target = to.scalar
        if _is_bf16(source) and target != tl.bfloat16:
            source = TensorHandle(bf16_to_float32(source.data), tl.float32)
        elif target == tl.bfloat16 and not _is_bf16(source):
            return TensorHandle(float32_to_bf16(source.data.astype(np.float32)), target)
        return source if source.dtype.scalar == target else cast(self, source, to)

    def create_fp_to_fp(self, source, to, rounding_mode):
        if _is_bf16(source) or to.scalar == tl.bfloat16:
            return cast_impl(self, source, to)
        return convert(self, source, to, rounding_mode)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp


def _mend_indices() -> None:
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        # triton 3.6 makes an int of an array of one element, which numpy 2.4 refuses
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_lang_tensor


def _spans(args: Any) -> Iterator[tuple[int, int]]:
    """First and past-the-last address of every tensor, of the view and not of its storage."""
    for a in args:
        if isinstance(a, tuple):
            yield from _spans(a)
        elif hasattr(a, "data_ptr") and a.numel():
            last = sum((size - 1) * stride for size, stride in zip(a.shape, a.stride(), strict=True))
            yield a.data_ptr(), a.data_ptr() + (last + 1) * a.element_size()


def _trap_stray_lanes() -> None:
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    init = GridExecutor._init_args_hst
    spans: list[tuple[int, int]] = []

    def check(what, pointers, mask):
        # a scalar's part in a mask makes it integers, which would index where bools select
        mask.data = mask.data.astype(bool)
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        active = np.broadcast_to(mask.data.astype(bool), pointers.data.shape)  # int1 may come as int8
        at = pointers.data[active].astype(np.uint64)
        if not at.size:
            return
        # most often all lanes are in one tensor, which takes one look
        first, last = int(at.min()), int(at.max()) + width
        if any(start <= first and last <= end for start, end in spans):
            return
        inside = np.zeros(at.shape, bool)
        for start, end in spans:
            inside |= (at >= start) & (at + np.uint64(width) <= end)
        if not inside.all():
            program = interpreter.interpreter_builder.grid_idx
            raise StrayLane(f"{what}: {int((~inside).sum())} of {at.size} active lanes outside, program {program}")

    def create_masked_load(self, pointers, mask, *rest):
        check("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def create_masked_store(self, pointers, value, mask, *rest):
        check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def init_args(self, args, kwargs):
        # the copies that the kernel will see, which need not be the caller's tensors
        found = init(self, args, kwargs)
        spans[:] = [*_spans(found[0]), *_spans(found[1].values())]
        return found

    InterpreterBuilder.create_masked_load = create_masked_load
    InterpreterBuilder.create_masked_store = create_masked_store
    GridExecutor._init_args_hst = init_args


def _patch_once() -> None:
    """A launch patches the language and undoes it; each call of a device function would patch all of it once more."""
    patch, launch = interpreter._patch_lang, GridExecutor.__call__
    patched: set[frozenset[str]] = set()

    @functools.cache
    def languages(fn: Any) -> frozenset[str]:
        return frozenset(value.__name__ for value in fn.__globals__.values() if value in (tl, tl.core))

    def patch_lang(fn):
        if languages(fn) in patched:
            return interpreter._LangPatchScope()  # nothing to undo
        patched.add(languages(fn))
        return patch(fn)

    def call(self, *args, **kwargs):
        patched.clear()
        try:
            return launch(self, *args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_lang
    GridExecutor.__call__ = call


def _remember_types() -> None:
    """Types and shapes of tensors, which the interpreter makes anew, with a table of all types, at every operation."""
    find, block, tensor = interpreter._get_np_dtype, tl.block_type.__init__, tl.tensor.__init__
    numpy_types: dict[str, np.dtype] = {}
    blocks: dict[tuple, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}

    def get_np_dtype(tt_dtype):
        name = str(tt_dtype)
        if name not in numpy_types:
            numpy_types[name] = find(tt_dtype)
        return numpy_types[name]

    def block_init(self, element_ty, shape):
        key = (str(element_ty), *(getattr(size, "value", size) for size in shape))
        if key not in blocks:
            block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        vars(self).update(blocks[key], element_ty=element_ty)

    def tensor_init(self, handle, type):
        key = str(type)
        if key not in tensors:
            tensor(self, handle, type)
            tensors[key] = {name: value for name, value in vars(self).items() if name != "handle"}
        vars(self).update(tensors[key], handle=handle, type=type, dtype=type.scalar)

    interpreter._get_np_dtype = get_np_dtype
    tl.block_type.__init__ = block_init
    tl.tensor.__init__ = tensor_init


def mend() -> None:
    """Apply the mends once to this process."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before triton is imported"
    if not hasattr(InterpreterBuilder, "mended"):
        InterpreterBuilder.mended = True
        # the overflow check does every integer sum twice and, outside debug mode, says nothing
        builder = interpreter.interpreter_builder
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
        _mend_bfloat16()
        _mend_indices()
        _trap_stray_lanes()
        _patch_once()
        _remember_types()
