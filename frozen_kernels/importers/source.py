"""What is read: a file of tensors and plain values, or a mapping, and the state inside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..tickets import container
from ..tickets.container import short

_DEEPEST = 8
_NESTED = ("state_dict", "model")  # names under which scripts save a state
_PREFIX = "module."  # of torch's DataParallel and DistributedDataParallel


class Checkpoint(NamedTuple):
    """A state by name, in its own order, and the list `cfg` that stood beside it, None where none did."""

    state: dict[str, Tensor]
    cfg: Any = None


Origin = str | os.PathLike[str] | Mapping[str, Any]


def name_of(given: Origin) -> str:
    """What messages call a file, or a mapping. TypeError for anything else."""
    if isinstance(given, (str, os.PathLike)):
        return os.fsdecode(given)
    if isinstance(given, Mapping):
        return "state"
    raise TypeError(f"path_or_state: a path or a mapping, got {type(given).__name__}")


def _read_file(path: str) -> Mapping[str, Any]:
    """The tensors of a safetensors file, or what `torch.save` wrote, on the CPU.

    No code of a file runs: ValueError where a pickle asks for more than tensors and plain values, or for what is
    neither kind of file. OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(9)
        if start[8:] == b"{":
            return container.read(path).tensors
        file.seek(0)
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as why:  # whatever a broken pickle or archive makes of itself
            first = str(why).strip().partition("\n")[0]
            raise ValueError(
                f"not read: neither safetensors nor a file of tensors and plain values by torch.save "
                f"({type(why).__name__}: {short(first)})"
            ) from None
    if not isinstance(found, Mapping):
        raise ValueError(f"a mapping of names to tensors, got {type(found).__name__}")
    return found


def read(given: Origin) -> Mapping[str, Any]:
    """The mapping that a path names, or the one given."""
    return given if isinstance(given, Mapping) else _read_file(os.fsdecode(given))


def _checked(name: object, value: object) -> Tensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise ValueError(f"{short(name)}: a tensor under a name, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise ValueError(f"{name!r}: a strided tensor with memory, got {value.dtype}, {value.layout}, {value.device}")
    size, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if size > held:
        raise ValueError(f"{name!r}: {size} bytes of {held} that the file has: an expanded tensor")
    return value


def checkpoint(found: Mapping[str, Any], names: set[str]) -> Checkpoint:
    """The state inside a mapping, without the prefix `module.` unless the model's own `names` have it.

    ValueError where there is none, or an entry is no tensor.
    """
    cfg = found.get("cfg")
    depth = 0
    while inner := [found[name] for name in _NESTED if isinstance(found.get(name), Mapping)]:
        found, depth = inner[0], depth + 1
        if depth > _DEEPEST:
            raise ValueError(f"a mapping within {depth} others, at most {_DEEPEST} are opened")
        cfg = found.get("cfg", cfg)
    state = {name: _checked(name, value) for name, value in found.items()}
    if not state:
        raise ValueError("no tensors")
    while all(name.startswith(_PREFIX) for name in state) and not any(name.startswith(_PREFIX) for name in names):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    return Checkpoint(state, cfg)
