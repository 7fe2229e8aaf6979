"""What every op may do beside launching kernels: make its result and a stated workspace, and wait for nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from common import DEVICE, INTERPRETING, same_bits
from test_ops import sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from frozen_kernels import format
from frozen_kernels.backends import triton
from frozen_kernels.ops import SCHEMAS

BY_REFERENCE = ("swap", "flip")  # torch's own kernels
OPS = [op for op in SCHEMAS if hasattr(triton, op) and op not in BY_REFERENCE]
SIZED_BY_DATA = (
    "pack",
    "free_draws",
    "pack_plane",
    "pack_values",
)  # read the size of their result back from the device
READ_ON_HOST = ("embedding", "embedding_grad_scores")  # compare indices with the table where that needs no device
CONTIGUOUS = (
    "pack",
    "unpack",
    "planes",
    "pack_values",
    "embedding",
    "embedding_grad_scores",
)  # copy an operand that is not
WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")
SLACK = 64  # bytes: a counter

needs_gpu = pytest.mark.skipif(INTERPRETING, reason="of a GPU alone")


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for v in values:
            yield from _tensors(v)


def _to_device(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().to(DEVICE)
    if isinstance(value, (tuple, list)):
        return type(value)(_to_device(v) for v in value)
    return value


class Recorder(TorchDispatchMode):
    """What torch is asked for inside the block, but for what the interpreter itself asks while it runs a kernel."""

    def __init__(self, given: Sequence) -> None:
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in _tensors(given)}
        self.numbers: set[int] = set()
        self.made: list[torch.UntypedStorage] = []  # kept, so that no address comes twice
        self.waits: list[str] = []
        self.launching = False

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.made)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.launching:
            return result
        name = func.overloadpacket.__name__
        if name == "lift_fresh":  # a number of Python's
            self.numbers |= {t.untyped_storage().data_ptr() for t in _tensors(result)}
            self.known |= self.numbers
        if name in WAITING and args[0].untyped_storage().data_ptr() in self.numbers:
            return result
        devices = {t.device for t in (*_tensors(list(args)), *_tensors(result)) if t.numel()}
        if name in WAITING or len(devices) > 1:
            self.waits.append(name)
        for t in _tensors(result):
            storage = t.untyped_storage()
            if storage.nbytes() and storage.data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.made.append(storage)
        return result


@contextlib.contextmanager
def recording(given: Sequence) -> Iterator[Recorder]:
    with pytest.MonkeyPatch.context() as patch, Recorder(given) as recorder:
        if INTERPRETING:
            from triton.runtime.interpreter import GridExecutor

            launch = GridExecutor.__call__

            def paused(self, *args, **kwargs):
                recorder.launching = True
                try:
                    return launch(self, *args, **kwargs)
                finally:
                    recorder.launching = False

            patch.setattr(GridExecutor, "__call__", paused)
        yield recorder


def calls_of(op: str) -> list[tuple[tuple, dict]]:
    """Arguments on the device under test, as the dispatcher hands them to a backend."""
    schema = getattr(torch.ops.frozen_kernels, op).default._schema
    plain = sum(not a.has_default_value() for a in schema.arguments)
    names = [a.name for a in schema.arguments]
    found = []
    for args in sample(op):
        moved = tuple(_to_device(a) for a in args)
        found.append((moved[:plain], dict(zip(names[plain:], moved[plain:], strict=False))))
    return found


def named(op: str, args: Sequence) -> dict:
    names = [a.name for a in getattr(torch.ops.frozen_kernels, op).default._schema.arguments]
    return dict(zip(names, args, strict=False))


def offsets_bytes(rows: int, cols: int) -> int:
    return 8 * (rows * format.chunks(cols) + 1)


def gradient_plan(shape: Sequence[int]) -> int:
    """Of each word of 32 weights its free bits, what lies before it and its signs; counts and their sums."""
    rows, cols = format.matrix_shape(shape)
    return rows * format.words(cols) * (4 + 2 + 4) + 2 * offsets_bytes(rows, cols)


def product_workspace(named: dict) -> int:
    """Inputs in parts, both planes of the weight, and both turned, a tap's words padded to a step of at most eight."""
    rows, cols = format.matrix_shape(named["shape"])
    groups = named.get("groups", 1)
    back, transposed = "grad" in named, "output_padding" in named
    turned = groups * cols * -(-format.words(rows // groups) // 8) * 8 if back != transposed else 0
    inputs = named["grad" if "grad" in named else "x"]
    return 2 * inputs.nbytes + 8 * (rows * format.words(cols) + turned)


def workspace(op: str, named: dict) -> int:
    """Bytes beyond the result that the launcher of an op declares."""
    copies = sum(t.nbytes for t in named.values() if isinstance(t, Tensor) and not t.is_contiguous())
    if op == "embedding_grad_scores":  # indices in order, which they were, and where each row's begin and end
        return gradient_plan(named["shape"]) + copies + 16 * named["indices"].numel() + 12 * (named["shape"][0] + 1)
    if op.endswith("_grad_scores"):
        return gradient_plan(named["shape"])
    if op.startswith(("linear", "conv")):
        return product_workspace(named)
    if op == "select":
        return 8 * (256 + 256 + 32768)
    if op in ("offsets", "pack", "unpack"):  # counts, and their sums where the result is another
        rows, cols = named["partition"].shape if "partition" in named else (named["rows"], named["cols"])
        copies += 2 * offsets_bytes(rows, cols)
    if op in ("plane_offsets", "pack_values"):
        copies += 16 * (named["keep"].shape[0] * -(-named["keep"].shape[1] // 32) + 1)
    return copies if op in ("offsets", "plane_offsets", *CONTIGUOUS) else 0


@pytest.mark.parametrize("op", OPS)
def test_launchers_wait_for_nothing_and_allocate_what_they_say(op):
    call = getattr(triton, op)
    for args, options in calls_of(op):
        call(*args, **options)  # tables that a process makes once
        with recording([*args, *options.values()]) as seen:
            result = call(*args, **options)
        allowed_waits = 2 * (INTERPRETING and op in READ_ON_HOST) + (op in SIZED_BY_DATA)
        assert len(seen.waits) <= allowed_waits, (op, seen.waits)
        allowed = result.untyped_storage().nbytes() + workspace(op, {**named(op, args), **options}) + SLACK
        assert seen.bytes <= allowed, (op, seen.bytes, allowed)


@pytest.mark.parametrize("wait", [lambda t: t.sum().item(), torch.nonzero, lambda t: bool(t.any())])
def test_a_wait_is_seen(wait):
    t = torch.ones(3, device=DEVICE)
    with recording([t]) as seen:
        wait(t)
    assert seen.waits


def test_memory_is_seen():
    t = torch.ones(100, device=DEVICE)
    with recording([t]) as seen:
        t.clone()
        t.view(10, 10)
        torch.empty(200, device=DEVICE)
    assert seen.bytes == 1200 and not seen.waits


@needs_gpu
@pytest.mark.parametrize("op", [op for op in OPS if op not in SIZED_BY_DATA])
def test_ops_in_a_graph(op):
    """CUDA refuses to capture what synchronises; a replay must give the bits of the call."""
    call = getattr(triton, op)
    for args, options in calls_of(op):
        want = call(*args, **options)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call(*args, **options)
        result.zero_()
        graph.replay()
        assert same_bits(result, want), op
