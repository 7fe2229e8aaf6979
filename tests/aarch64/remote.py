"""A plugin of pytest: `frozen_kernels._C` is that of another processor, which server.cpp serves in an emulator.

Tests and the package do not see the difference. Each call sends the memory of the tensors whose addresses it names, and
takes back what changed.
"""

from __future__ import annotations

import atexit
import builtins
import importlib.machinery
import importlib.util
import os
import struct
import subprocess
import sys
import weakref
import zlib
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

PACKAGE = Path(__file__).parents[2] / "frozen_kernels"
# what gives torch memory stays where torch is
HERE = ("block", "prefer_huge_pages", "release_results")
LEAST_ADDRESS = 1 << 32  # what is smaller is a number
RECENT = 64  # tensors whose address a call may name: it is asked for shortly before

_recent: deque[torch.UntypedStorage] = deque(maxlen=RECENT)
_data_ptr = torch.Tensor.data_ptr


def _noted_data_ptr(tensor: torch.Tensor) -> int:
    _recent.append(tensor.untyped_storage())
    return _data_ptr(tensor)


def _integer(x: int) -> bytes:
    return struct.pack("<q", x)


def _text(x: str) -> bytes:
    return _integer(len(x.encode())) + x.encode()


class Message:
    """A call as bytes, and the storages that its arguments point into."""

    def __init__(self, name: str, args: tuple[Any, ...], storages: dict[int, torch.UntypedStorage]) -> None:
        # a storage's number is its address: while it is held no other has that
        self.storages = dict(storages)
        values = self._value(args)
        sent = (_integer(number) + _integer(s.nbytes()) + _bytes(s) for number, s in self.storages.items())
        self.bytes = _text(name) + _integer(len(self.storages)) + b"".join(sent) + values

    def _value(self, x: Any) -> bytes:
        if x is None:
            return b"n"
        if isinstance(x, float):
            return b"r" + struct.pack("<d", x)
        if isinstance(x, str):
            return b"t" + _text(x)
        if isinstance(x, int):
            return (self._place(x) if x > LEAST_ADDRESS else b"") or b"i" + struct.pack("<Q", x & (1 << 64) - 1)
        return b"l" + _integer(len(x)) + b"".join(map(self._value, x))

    def _place(self, address: int) -> bytes:
        for past in (0, 1):  # an empty part may lie at the end of a storage, where another one begins
            for storage in reversed(_recent):
                first = storage.data_ptr()
                if first and first <= address < first + storage.nbytes() + past:
                    self.storages[first] = storage
                    return b"a" + _integer(first) + _integer(address - first)
        return b""


def _bytes(storage: torch.UntypedStorage) -> bytes:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy().tobytes()


class Server:
    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self._end)
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        self._held: set[int] = set()  # storages that have a copy there

    def call(self, name: str, args: tuple[Any, ...], of: Call | None = None) -> Any:
        """What the function gives. Copies of what a prepared call points into stay there while it lives."""
        message = Message(name, args, {} if of is None else of.storages)
        if of is not None:
            of.storages = of.storages or message.storages
            self._calls.add(of)
        kept = {number for call in self._calls for number in call.storages}
        left = (self._held | message.storages.keys()) - kept
        self._held = (self._held | message.storages.keys()) & kept
        assert self._process.stdin is not None
        self._process.stdin.write(message.bytes + _integer(len(left)) + b"".join(map(_integer, left)))
        self._process.stdin.flush()
        if self._read(1) == b"e":
            error, text = self._text(), self._text()
            raise getattr(builtins, error)(text)
        result = self._value()
        for _ in range(self._integer()):
            storage = message.storages[self._integer()]
            changed = torch.frombuffer(bytearray(self._read(self._integer())), dtype=torch.uint8)
            torch.tensor([], dtype=torch.uint8).set_(storage).copy_(changed)
        return result

    def _end(self) -> None:
        self._process.communicate()

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(count)
        if len(found) != count:
            raise RuntimeError(f"the emulated extension ended with {self._process.wait()}")
        return found

    def _integer(self) -> int:
        return int(struct.unpack("<q", self._read(8))[0])

    def _text(self) -> str:
        return self._read(self._integer()).decode()

    def _value(self) -> Any:
        kind = self._read(1)
        if kind == b"i":
            return self._integer()
        if kind == b"t":
            return self._text()
        if kind == b"b":
            return bytearray(self._read(self._integer()))
        return None if kind == b"n" else tuple(self._value() for _ in range(self._integer()))


class Call:
    """A prepared call, whose tensors stay where they are."""

    server: Server

    def __init__(self, *args: Any) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}
        self._number = self.server.call("Call", args, of=self)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.server.call(f"Call.{name}", (self._number, *args), of=self)


class Extension(ModuleType):
    def __init__(self, name: str, server: Server, own: ModuleType) -> None:
        super().__init__(name)
        self._server, self._own = server, own
        self.Call = type("Call", (Call,), {"server": server})
        self.__file__ = own.__file__

    def __getattr__(self, name: str) -> Any:
        if name in HERE:
            return getattr(self._own, name)
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self._server.call(name, args)


@pytest.hookimpl(trylast=True)  # behind -k
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One test in EMULATED_SAMPLE, the same ones each time; by their names, since parameters repeat in a rhythm."""
    every = int(os.environ["EMULATED_SAMPLE"])
    items[:] = [item for item in items if zlib.crc32(item.name.encode()) % every == 0]


def _install() -> None:
    name = "frozen_kernels._C"
    spec = importlib.machinery.PathFinder.find_spec(name, [str(PACKAGE)])
    assert spec is not None and spec.loader is not None, "the extension of this machine is not built"
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    server = Server(os.environ["EMULATED_EXTENSION"].split())
    assert server.call("isa_available", ()) == ("portable", "neon")
    sys.modules[name] = Extension(name, server, own)
    torch.Tensor.data_ptr = _noted_data_ptr  # type: ignore[assignment]


_install()
