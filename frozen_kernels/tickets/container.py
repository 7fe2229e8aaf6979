"""The safetensors container of a ticket, read without trust: bounded, and into memory of its own.

A reader that maps the file would see what others write to it later, or die where they cut it short.
"""

from __future__ import annotations

import json
import math
import os
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

# what the safetensors library reads at most, too
LARGEST_HEADER = 100_000_000
# `{`, `[` and `,` in JSON: a value takes up to two hundred bytes in memory and as few as two in a file
MOST_VALUES = 1 << 20

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Container(NamedTuple):
    """What a file holds; `header_bytes` counts the eight of its length too."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]
    header_bytes: int
    file_bytes: int


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def short(value: object) -> str:
    """A value as an error message shows it."""
    text = ascii(value)  # names from a file may hold anything: control characters, halves of surrogate pairs
    return text if len(text) <= 200 else f"{text[:200]}..."


def integer(name: str, value: object, highest: int) -> int:
    """The value; ValueError that calls it `name` where it is no integer from 0 to `highest`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise ValueError(f"{name}: an integer from 0 to {highest}, got {short(value)}")
    return value


def bytes_of(tensor: Tensor) -> np.ndarray:
    """uint8 [bytes]: a view of a contiguous CPU tensor, in the file's byte order."""
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"the key {short(name)} is there twice")
        out[name] = value
    return out


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_json(text: str | bytes) -> Any:
    """JSON as the standard has it; ValueError for duplicate keys, NaN, too many values, and what Python cannot hold."""
    if isinstance(text, bytes):
        values = sum(text.count(mark) for mark in (b"{", b"[", b","))
    else:
        values = sum(text.count(mark) for mark in ("{", "[", ","))
    if values > MOST_VALUES:
        raise ValueError(f"{values} of the characters {{ [ , in JSON; at most {MOST_VALUES} are read")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _entry(name: str, value: object) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"no safetensors file: {short(name)} is {short(value)}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
        raise ValueError(f"{short(name)}: dtype {short(value['dtype'])}; known: {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"no safetensors file: {short(name)} has shape {short(shape)} and offsets {short(offsets)}")
    dtype = DTYPES[value["dtype"]]
    sizes = tuple(integer(f"no safetensors file: {short(name)}: shape", size, (1 << 63) - 1) for size in shape)
    begin, end = (integer(f"no safetensors file: {short(name)}: offset", at, (1 << 63) - 1) for at in offsets)
    # a size of 0 hides the others from the count of bytes, and torch multiplies them all
    if math.prod(sizes) * dtype.itemsize != end - begin or math.prod(max(size, 1) for size in sizes) >= 1 << 59:
        raise ValueError(
            f"no safetensors file: {short(name)} has {end - begin} bytes for {value['dtype']} {short(shape)}"
        )
    return _Entry(name, dtype, sizes, begin, end)


def parse_header(text: bytes, body: int) -> tuple[dict[str, str], list[_Entry]]:
    """Metadata, and the tensors in the order of a body of so many bytes, which they fill; ValueError where not."""
    if not text.startswith(b"{"):
        raise ValueError(f"no safetensors file: its header is {short(text[:20])}")
    header = parse_json(text)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"no safetensors file: its metadata are {short(metadata)}")
    entries = sorted((_entry(*pair) for pair in header.items()), key=lambda entry: (entry.begin, entry.end))
    reached = 0
    for entry in entries:
        if entry.begin != reached:
            raise ValueError(f"no safetensors file: {short(entry.name)} begins at {entry.begin}, not at {reached}")
        reached = entry.end
    if reached != body:
        raise ValueError(f"no safetensors file: its tensors end at {reached}, the file has {body} bytes for them")
    return metadata, entries


def _read_into(file: IO[bytes], target: np.ndarray) -> None:
    rest = target.data
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"{len(rest)} bytes are missing at its end: it was cut while it was read")
        rest = rest[count:]


def read(path: str) -> Container:
    """Metadata and tensors of a safetensors file, in memory that is no part of the file.

    ValueError where it is none, is ambiguous, or beyond `LARGEST_HEADER` or `MOST_VALUES`.
    """
    with open(path, "rb") as file:
        total = os.fstat(file.fileno()).st_size
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > total - 8:
            raise ValueError(f"no safetensors file: the header needs {8 + size} bytes, the file has {total}")
        if size > LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes; at most {LARGEST_HEADER} are read")
        metadata, entries = parse_header(file.read(size), total - 8 - size)
        tensors = {}
        for entry in entries:
            tensors[entry.name] = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
            _read_into(file, bytes_of(tensors[entry.name]))
    return Container(metadata, dict(sorted(tensors.items())), 8 + size, total)
