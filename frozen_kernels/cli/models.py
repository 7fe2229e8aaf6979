"""A model that a callable of the user's makes, and inputs for it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .usage import Usage, one_line

EXPECTED = "MODULE:CALLABLE, such as my_module:build"
INPUT_HELP = (
    "sizes of an input, such as 16,3,224,224; a dtype behind a colon, such as 8,128:int64, integers below 2 or, with "
    "8,128:int64:30522, below that; a + between the arguments of one forward"
)
RANDOM_BELOW = 2  # integers fit every embedding then, and are masks


def build_model(text: str) -> nn.Module:
    """The module that MODULE:CALLABLE makes, imported from the current folder too. `Usage` says why there is none."""
    place, colon, name = text.partition(":")
    if not colon or not place or not name:
        raise Usage(f"model: expected {EXPECTED}, got {text!r}")
    if place.endswith(".py") or "/" in place or os.sep in place:
        raise Usage(f"model: expected {EXPECTED}, a module and no path: {_without_path(place)}:{name}, got {text!r}")
    made = found(place, name, text)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise Usage(f"model: {text} is a {type(made).__name__}, expected a function that makes a torch.nn.Module")
        with users_code(f"model: {text}() failed"):
            made = made()
    if not isinstance(made, nn.Module):
        raise Usage(f"model: {text} returned a {type(made).__name__}, expected a torch.nn.Module")
    return made


def _without_path(place: str) -> str:
    """The name of the module in a file, and the folder to go to where that is not the current one."""
    path = os.path.normpath(place.removesuffix(".py"))
    folder, module = os.path.split(path)
    if os.path.isabs(path) or path.startswith(os.pardir):
        return f"in the folder {folder} it is {module}"
    return path.replace(os.sep, ".")


@contextlib.contextmanager
def users_code(what: str) -> Iterator[None]:
    """What a user's code prints goes to stderr, so that a report is alone on stdout; what it raises is a `Usage`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as why:
        raise why if isinstance(why, Usage) else Usage(f"{what}: {one_line(why)}") from why


def found(place: str, name: str, text: str) -> Any:
    """What stands at a name in a module. `Usage` where there is no such module or name."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script's is the folder of the script
    with users_code(f"model: {place} does not import"):
        value: Any = importlib.import_module(place)
    with users_code(f"model: {text} cannot be read"):
        for part in name.split("."):
            if not hasattr(value, part):
                raise Usage(f"model: {text}: {getattr(value, '__name__', place)} has no {part!r}")
            value = getattr(value, part)
    return value


def make_inputs(texts: list[str], model: nn.Module, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
    """Random inputs of the sizes given, floating ones in the dtype of the model, all on its device."""
    held = [*model.parameters(), *model.buffers()]
    dtype = next((t.dtype for t in held if t.is_floating_point()), torch.float32)
    device = held[0].device if held else torch.device("cpu")
    made = []
    for text in texts:
        with users_code(f"--input {text}: there is no such tensor"):
            made.append(tuple(_tensor(part, text, dtype, generator).to(device) for part in text.split("+")))
    return made


def _can_hold_numbers(dtype: torch.dtype) -> bool:
    """Is it no quantized dtype, nor bits without a meaning?"""
    try:
        return bool(torch.ones(1).to(dtype).float() == 1)
    except (RuntimeError, NotImplementedError):
        return False


def _tensor(part: str, text: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    sizes, *rest = part.strip().split(":")
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise Usage(f"--input {text}: expected sizes such as 16,3,224,224, got {sizes!r}") from None
    if min(shape) < 1:
        raise Usage(f"--input {text}: sizes of at least 1, got {min(shape)}")
    if rest:
        named = getattr(torch, rest[0], None)
        if not isinstance(named, torch.dtype) or named.is_complex or not _can_hold_numbers(named):
            raise Usage(f"--input {text}: expected a dtype such as int64 or bfloat16, got {rest[0]!r}")
        dtype = named
    if dtype.is_floating_point:
        if len(rest) > 1:
            raise Usage(f"--input {text}: a largest number is for integers, got {rest[0]}")
        return torch.randn(shape, generator=generator).to(dtype)
    below = RANDOM_BELOW
    if len(rest) > 1:
        if len(rest) > 2 or not rest[1].isdecimal() or int(rest[1]) < 1:
            raise Usage(f"--input {text}: expected integers below a number, such as int64:30522, got {':'.join(rest)}")
        below = int(rest[1])
        most = 1 if dtype == torch.bool else torch.iinfo(dtype).max
        if below - 1 > most:
            raise Usage(f"--input {text}: {rest[0]} holds integers up to {most}, got below {below}")
    return torch.randint(below, shape, generator=generator).to(dtype)
