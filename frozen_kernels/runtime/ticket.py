"""A ticket on numpy arrays."""

from __future__ import annotations

import ctypes
import math
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref, c_int64, c_void_p
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from .library import RESIDENCIES, Conv, Epilogue, Tensor, check, last_error, library

Floats = NDArray[np.float32]
Own = Literal["ticket"]  # what the ticket has, where it has any

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    "C64": np.complex64,
}  # fmt: skip


class Weight(NamedTuple):
    """A frozen weight: `shape` as in torch, `code` of the format, its `residency`, and the `bytes` held of it."""

    shape: tuple[int, ...]
    code: str
    residency: str
    bytes: int


def isa() -> str:
    """The instructions in use: portable, avx2, avx512, vnni, zen4, amx or neon.

    ValueError where FROZEN_KERNELS_ISA names what this processor lacks.
    """
    name = library().frozen_isa()
    if name is None:
        raise ValueError(last_error())
    return str(name.decode())


def open(path: str | os.PathLike[str], *, residency: str = "default", threads: int = 1, most_bytes: int = 0) -> Ticket:
    """Read a ticket and check it.

    Args:
        path: the file. It may be changed or removed afterwards.
        residency: what is kept of each weight: seed, mask, planes, packed or default (planes; packed of stored
            weights). A weight that cannot be in it is in that of default. Results are the same.
        threads: how many may work on one call, 1 to 1024.
        most_bytes: how much memory what a seed gives again may take, checked before any of it is made: a small file may
            ask for much. 0 for keep planes of 1 GiB and 16 bytes for each byte of the file.

    Raises:
        TicketError: no ticket, one that is cut short or was changed, one with a feature that libfrozen lacks, or one
            whose weights take more than `most_bytes`.
        OSError: the file is missing or cannot be read, or this installation has no libfrozen.
        ValueError: another residency, number of threads, or less than 0 bytes.
    """
    os.stat(path)  # says in Python's words what is missing
    name = os.fspath(path)
    return Ticket(_opened("frozen_open", (os.fsencode(name),), residency, most_bytes, str(name)), threads)


def open_bytes(data: bytes, *, residency: str = "default", threads: int = 1, most_bytes: int = 0) -> Ticket:
    """As `open`, of the contents of a file.

    Args:
        data: the bytes of a ticket.
        residency: as of `open`.
        threads: as of `open`.
        most_bytes: as of `open`.

    Raises:
        TypeError: other data than bytes.
        TicketError: what `open` refuses.
        ValueError: another residency, or less than one thread.
    """
    if not isinstance(data, bytes):
        raise TypeError(f"data: bytes, got {type(data).__name__}")
    return Ticket(_opened("frozen_open_memory", (data, len(data)), residency, most_bytes, ""), threads)


def _opened(function: str, source: tuple[Any, ...], residency: str, most_bytes: int, what: str) -> c_void_p:
    if residency not in RESIDENCIES:
        raise ValueError(f"residency: one of {', '.join(RESIDENCIES)}, got {residency!r}")
    handle, most = c_void_p(), _integer("most_bytes", most_bytes)
    check(getattr(library(), function)(*source, RESIDENCIES.index(residency), most, byref(handle)), what)
    return handle


def _array_of(name: str, value: object, what: str) -> NDArray[Any]:
    """TypeError unless an array, none of whose elements are masked out: the library would read those too."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: {what}, got an object of type {type(value).__name__}")
    return np.asarray(value)


def _floats(name: str, value: object) -> Floats:
    """A contiguous, aligned float32 array."""
    array = _array_of(name, value, "a float32 array")
    if array.dtype != np.float32:
        raise TypeError(f"{name}: a float32 array, got one of {array.dtype}")
    return np.require(array, requirements=["C", "A"])


def _integer(name: str, value: object, what: str = "an integer of 64 bits") -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: {what}, got {value!r}") from None
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{name}: {what}, got {number}")
    return number


def _integers(name: str, value: object, dims: int) -> Any:
    """A C array of so many integers."""
    what = f"an integer or {dims} of them"
    numbers = (
        list(value) if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str) else [value] * dims
    )
    if len(numbers) != dims:
        raise ValueError(f"{name}: {what}, got {value!r}")
    return (c_int64 * 3)(*(_integer(name, number, what) for number in numbers))


class Ticket:
    """An open ticket: `weights` by name, `ordinary` names of other tensors, and the layers that its weights make.

    `open` and `open_bytes` make one, of a `handle` of the library. Names are those of the modules in torch. A layer's
    bias `<name>.bias` and gain are applied where the ticket has them. Any number of threads may call one ticket.
    `close()` it, or leave a `with` block, to free its memory. It cannot be copied or pickled: open the file again.
    """

    def __init__(self, handle: c_void_p, threads: int) -> None:
        # Reentrant, since a signal's handler may close the ticket while this thread holds it.
        self._lock = threading.RLock()
        self._calls = 0  # under way
        self._closed = False
        self._handle: c_void_p | None = handle
        try:
            self.threads = threads
        except ValueError:
            self.close()
            raise
        self.weights: dict[str, Weight] = {}
        self._ordinary: dict[str, Tensor] = {}
        for index in range(library().frozen_count(handle)):
            tensor = Tensor()
            check(library().frozen_get(handle, index, byref(tensor)))
            name = tensor.name.decode()
            if tensor.kind:
                self._ordinary[name] = tensor
            else:
                shape = tuple(tensor.shape[i] for i in range(tensor.dims))
                self.weights[name] = Weight(shape, tensor.code.decode(), RESIDENCIES[tensor.residency], tensor.bytes)

    @property
    def threads(self) -> int:
        """How many may work on one call, 1 to 1024; ValueError where another number is set."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        good = isinstance(threads, (int, np.integer)) and not isinstance(threads, bool) and 1 <= threads <= 1024
        if not good:
            raise ValueError(f"threads: an integer from 1 to 1024, got {threads!r}")
        self._threads = int(threads)

    @property
    def ordinary(self) -> list[str]:
        """Names of the ordinary parameters and buffers, sorted."""
        return list(self._ordinary)

    def tensor(self, name: str) -> NDArray[Any]:
        """A copy of an ordinary tensor; bfloat16 becomes float32, which holds each of its values.

        LookupError for a name that no ordinary tensor has, TypeError for a dtype that numpy lacks.
        """
        with self._in_use():
            tensor = self._ordinary.get(name)
            if tensor is None:
                raise LookupError(f"{name!r}: no ordinary tensor; there are {', '.join(self._ordinary) or 'none'}")
            dtype, shape = tensor.dtype.decode(), tuple(tensor.shape[i] for i in range(tensor.dims))
            kind = np.uint16 if dtype == "BF16" else _DTYPES.get(dtype)
            if kind is None:
                raise TypeError(f"{name!r}: {dtype}, which numpy has not")
            found = np.frombuffer(ctypes.string_at(tensor.data, tensor.bytes), kind).reshape(shape).copy()
        return (found.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else found

    def linear(
        self,
        name: str,
        x: Floats,
        *,
        bias: Floats | Own | None = "ticket",
        gain: Floats | Own | None = "ticket",
        relu: bool = False,
    ) -> Floats:
        """`relu(gain * x @ W.T + bias)` of a weight [out, in]: float32 [..., in] gives [..., out].

        Args:
            name: of the weight.
            x: float32, of any number of leading dimensions.
            bias: float32 [out]; "ticket" for the ticket's own where it has one; None for none.
            gain: the same.
            relu: whether a ReLU follows.

        Raises:
            LookupError: the ticket has no such weight.
            ValueError, TypeError: another shape or dtype, said with what was expected and what came.
        """
        shape = self._weight(name, 2).shape
        x = _floats("x", x)
        if x.ndim < 1 or x.shape[-1] != shape[1]:
            raise ValueError(f"x: [..., {shape[1]}] for weight {name!r} {list(shape)}, got {list(x.shape)}")
        y = np.empty((*x.shape[:-1], shape[0]), np.float32)
        ends, _held = self._epilogue(shape[0], bias, gain, relu)
        batch = math.prod(x.shape[:-1])
        with self._in_use() as handle:
            check(
                library().frozen_linear(
                    handle, name.encode(), x.ctypes.data, batch, shape[1], y.ctypes.data, shape[0], byref(ends),
                    self.threads,
                )
            )  # fmt: skip
        return y

    def conv(
        self,
        name: str,
        x: Floats,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: Floats | Own | None = "ticket",
        gain: Floats | Own | None = "ticket",
        relu: bool = False,
    ) -> Floats:
        """The convolution of a weight [out, in / groups, *kernel] of one to three spatial dimensions.

        Args:
            name: of the weight.
            x: float32 [batch, in, *spatial].
            stride: one integer, or one for each spatial dimension.
            padding: the same; zeros are padded.
            dilation: the same.
            groups: as in torch.
            bias: as for `linear`.
            gain: as for `linear`.
            relu: as for `linear`.

        Raises:
            LookupError: the ticket has no such weight.
            ValueError, TypeError: another shape or dtype, said with what was expected and what came.
        """
        weight = self._weight(name)
        dims = len(weight.shape) - 2
        x = _floats("x", x)
        if not 1 <= dims <= 3 or x.ndim != dims + 2:
            raise ValueError(
                f"x: [batch, channels, spatial sizes...] for weight {name!r} {list(weight.shape)}, got {list(x.shape)}"
            )
        sizes = [_integers(n, v, dims) for n, v in (("stride", stride), ("padding", padding), ("dilation", dilation))]
        layer = Conv(dims, _integer("groups", groups), *sizes)
        x_shape, y_shape = (c_int64 * x.ndim)(*x.shape), (c_int64 * x.ndim)()
        ends, _held = self._epilogue(weight.shape[0], bias, gain, relu)
        with self._in_use() as handle:
            check(library().frozen_conv_shape(handle, name.encode(), byref(layer), x_shape, y_shape))
            y = np.empty(tuple(y_shape), np.float32)
            check(
                library().frozen_convolve(
                    handle, name.encode(), byref(layer), x.ctypes.data, x_shape, y.ctypes.data, y.size, byref(ends),
                    self.threads,
                )
            )  # fmt: skip
        return y

    def embedding(self, name: str, indices: NDArray[Any], *, padding_idx: int | None = None) -> Floats:
        """Rows of a weight [rows, columns]: integers of any shape give float32 [*indices.shape, columns].

        Args:
            name: of the weight.
            indices: integers from 0 to rows - 1.
            padding_idx: the row that gives zeros; a negative one counts from the end, as in torch.

        Raises:
            LookupError: the ticket has no such weight.
            ValueError, TypeError: an index that is no row, or another dtype.
        """
        shape = self._weight(name, 2).shape
        array = _array_of("indices", indices, "an array of integers")
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"indices: an array of integers, got one of {array.dtype}")
        if array.dtype == np.uint64 and array.size and array.max() >= shape[0]:
            raise ValueError(f"indices: 0 to {shape[0] - 1} for weight {name!r}, got {array.max()}")
        rows = np.require(array, np.int64, ["C", "A"])
        padding = -1
        if padding_idx is not None:
            padding = _integer("padding_idx", padding_idx)
            if not -shape[0] <= padding < shape[0]:
                raise ValueError(f"padding_idx: {-shape[0]} to {shape[0] - 1} for weight {name!r}, got {padding}")
            padding %= shape[0]
        y = np.empty((*array.shape, shape[1]), np.float32)
        with self._in_use() as handle:
            check(
                library().frozen_embedding(
                    handle, name.encode(), rows.ctypes.data, rows.size, padding, y.ctypes.data, shape[1], self.threads
                )
            )
        return y

    def close(self) -> None:
        """Free the memory; nothing can be asked afterwards.

        Calls under way in other threads end as they would, and the last of them frees the memory.
        """
        with self._lock:
            self._closed = True
            self._free_unused()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """TypeError, of copy and pickle: two tickets would free one memory."""
        raise TypeError("a Ticket cannot be copied or pickled: open its file again")

    def _free_unused(self) -> None:
        if self._closed and not self._calls and self._handle is not None:
            handle, self._handle = self._handle, None
            library().frozen_close(handle)

    @contextmanager
    def _in_use(self) -> Iterator[c_void_p]:
        """The handle, not freed while the block runs. ValueError of a closed ticket."""
        with self._lock:
            if self._closed or self._handle is None:
                raise ValueError("the ticket is closed")
            self._calls += 1
            handle = self._handle
        try:
            yield handle
        finally:
            with self._lock:
                self._calls -= 1
                self._free_unused()

    def _weight(self, name: str, dims: int | None = None) -> Weight:
        if self._closed:
            raise ValueError("the ticket is closed")
        weight = self.weights.get(name)
        if weight is None:
            raise LookupError(f"{name!r}: no weight of this ticket; there are {', '.join(self.weights)}")
        if dims is not None and len(weight.shape) != dims:
            raise ValueError(f"{name!r}: a weight of {dims} dimensions expected, its shape is {list(weight.shape)}")
        return weight

    def _epilogue(
        self, outputs: int, bias: Floats | Own | None, gain: Floats | Own | None, relu: bool
    ) -> tuple[Epilogue, Any]:
        """The structure, and the arrays that it points to."""
        ends, held = Epilogue(relu=bool(relu), no_bias=bias is None, no_gain=gain is None), []
        for field, value in (("bias", bias), ("gain", gain)):
            if value is None or (isinstance(value, str) and value == "ticket"):
                continue
            array = _floats(field, value)
            if array.shape != (outputs,):
                raise ValueError(f"{field}: [{outputs}], got {list(array.shape)}")
            held.append(array)
            setattr(ends, field, array.ctypes.data)
            setattr(ends, f"{field}_count", array.size)
        return ends, held
