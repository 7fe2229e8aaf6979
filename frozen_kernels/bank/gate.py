"""Forwards of a model and changes of its masks, one after the other: no forward sees half of a change."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_PATIENCE = 0.05  # seconds between looks for threads that ended within a forward


class Gate:
    """Many threads run forwards, or one changes the model. A change within the thread's own forward does not wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: set[int] = set()  # threads with a forward
        self._waiting = 0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()  # a copy of a model has forwards of its own

    def enter(self, module: nn.Module, arguments: Any) -> None:
        """A forward begins."""
        if torch.compiler.is_compiling():
            return
        me = threading.get_ident()
        with self._changed:
            while self._waiting and me not in self._inside:
                self._changed.wait()
            self._inside.add(me)

    def leave(self, module: nn.Module, arguments: Any, result: Any) -> None:
        """A forward ended, with a result or an error."""
        if torch.compiler.is_compiling():
            return
        with self._changed:
            self._inside.discard(threading.get_ident())
            if self._waiting:
                self._changed.notify_all()

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """While the block runs no other thread begins a forward; it begins when theirs have ended."""
        me = threading.get_ident()
        with self._changed:
            self._waiting += 1
            try:
                while self._inside - {me}:
                    if not self._changed.wait(_PATIENCE):
                        self._inside &= {thread.ident or 0 for thread in threading.enumerate()}
                yield
            finally:
                self._waiting -= 1
                self._changed.notify_all()


class Entrance:
    """The hooks by which a model's forwards go through a gate."""

    def __init__(self, model: nn.Module) -> None:
        self.gate = Gate()
        self._handles = (
            model.register_forward_pre_hook(self.gate.enter),
            model.register_forward_hook(self.gate.leave, always_call=True),
        )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
