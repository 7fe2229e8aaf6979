"""Forwards of a model and changes of its masks, one after the other: no forward sees half of a change."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn

_PATIENCE = 0.05  # seconds between looks for forwards that ended without saying so


def _running(frames: list[FrameType], top: FrameType | None) -> list[FrameType]:
    """Those of the frames that are on a thread's stack, of which `top` is the innermost frame."""
    found = set()
    while top is not None:
        found.add(top)
        top = top.f_back
    return [frame for frame in frames if frame in found]


class Gate:
    """Many threads run forwards, or one changes the model. A change does not wait for its own thread's.

    A forward is known by the frame of its call. torch runs no hook after a KeyboardInterrupt: a frame that left its
    thread's stack has ended, which a change that waits sees after 50 ms.
    Of changes within forwards of several threads the first goes on and the others are errors: each would wait for the
    other's forward. Nothing sees a forward that waits, by the caller's own locks, for the thread of the change.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, list[FrameType]] = {}  # the forwards of each thread
        self._waiting: list[int] = []  # threads with a change

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()  # a copy of a model has forwards of its own

    def enter(self, module: nn.Module, arguments: Any) -> None:
        """A forward begins."""
        if torch.compiler.is_compiling():
            return
        me, call = threading.get_ident(), sys._getframe(2)  # the nearest frame to last until the hooks behind
        with self._changed:
            if me in self._inside:
                self._forget_ended(me, call)
            while self._waiting and me not in self._inside:
                self._changed.wait()
            self._inside.setdefault(me, []).append(call)

    def leave(self, module: nn.Module, arguments: Any, result: Any) -> None:
        """A forward ended, with a result or an error."""
        if torch.compiler.is_compiling():
            return
        me = threading.get_ident()
        with self._changed:
            frames = self._inside.get(me, [])
            if len(frames) > 1:
                frames.pop()
            else:
                self._inside.pop(me, None)
            if self._waiting:
                self._changed.notify_all()

    def _forget_ended(self, thread: int, top: FrameType | None) -> None:
        frames = _running(self._inside[thread], top)
        if frames:
            self._inside[thread] = frames
        else:
            del self._inside[thread]

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """While the block runs no other thread begins a forward; it begins when theirs have ended.

        RuntimeError within a forward, where another thread's forward waits here already.
        """
        me = threading.get_ident()
        with self._changed:
            if me in self._inside:
                self._forget_ended(me, sys._getframe())
            if me in self._inside and any(other != me and other in self._inside for other in self._waiting):
                raise RuntimeError("model: another thread changes masks within its forward, and so does this one")
            self._waiting.append(me)
            try:
                while self._inside.keys() - {me}:
                    if not self._changed.wait(_PATIENCE):
                        tops = sys._current_frames()
                        for thread in self._inside.keys() - {me}:
                            self._forget_ended(thread, tops.get(thread))
                yield
            finally:
                self._waiting.remove(me)
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
