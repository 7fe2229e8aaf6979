"""The reference: every public name is on one of its pages, once, with a docstring that names its parameters."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import frozen_kernels as fk
from frozen_kernels.cli.program import parser

PAGES = Path(__file__).parents[1] / "docs" / "reference"
ITEM = re.compile(r"^ {4}(\w+)(?: \([^)]*\))?: ", re.M)


def resolved(path: str) -> Any:
    """What a dotted path names."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise  # what the module imports is missing
            continue
        return functools.reduce(getattr, parts[end:], found)
    raise LookupError(path)


LISTED = [
    (match[1], page.name)
    for page in sorted(PAGES.glob("*.md"))
    for match in re.finditer(r"^::: (\S+)$", page.read_text(), re.M)
]


def public() -> Iterator[tuple[str, Any]]:
    """Dotted name and object of all that the package, and the modules that it names, have in `__all__`."""
    for module in (fk, *(m for m in map(vars(fk).get, fk.__all__) if isinstance(m, ModuleType))):
        if module is not fk:
            yield module.__name__, module
        yield from ((f"{module.__name__}.{name}", getattr(module, name)) for name in module.__all__)


def key(path: str, found: Any) -> tuple[str, int]:
    """The same of every path to one object; numbers and short tuples may be one object under two names."""
    return path.rpartition(".")[2], id(found)


NAMES = {key(path, found): (path, found) for path, found in public()}


def test_every_public_name_is_on_one_page():
    counts = Counter(key(path, resolved(path)) for path, _ in LISTED)
    assert {NAMES[k][0]: counts[k] for k in NAMES if counts[k] != 1} == {}


def test_no_page_has_another_name():
    assert [(path, page) for path, page in LISTED if key(path, resolved(path)) not in NAMES] == []


def test_the_index_names_every_page():
    index = (PAGES / "index.md").read_text()
    assert sorted(re.findall(r"\]\((\w+\.md)\)", index)) == sorted(
        p.name for p in PAGES.glob("*.md") if p.name != "index.md"
    )


def documented(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    """What has a docstring of its own: a function; a class and its public methods."""
    if not inspect.isclass(found):
        yield name, found
        return
    yield name, found
    for own, value in vars(found).items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        ours = getattr(function, "__module__", "").startswith("frozen_kernels")
        if own.startswith("_") or not inspect.isfunction(function) or not ours:
            continue
        above = next((vars(base)[own] for base in found.__mro__[1:] if own in vars(base)), function)
        above = getattr(above, "__func__", above)
        # what overrides a method of another library takes what is documented there
        if getattr(above, "__module__", "").startswith("frozen_kernels") or own == "forward":
            yield f"{name}.{own}", function


def members_on_a_page() -> Iterator[tuple[str, Any]]:
    """Methods and properties, inherited ones too, that a page asks for by name."""
    for page in PAGES.glob("*.md"):
        for path, lines in re.findall(r"^::: (\S+)\n(?: +\w+:.*\n)+?((?: +- \w+\n)+)", page.read_text(), re.M):
            for name in re.findall(r"\w+", lines):
                value = inspect.getattr_static(resolved(path), name)
                yield f"{path}.{name}", getattr(value, "fget", None) or getattr(value, "__func__", value)


CALLABLE = [
    case
    for name, found in NAMES.values()
    if callable(found) and not isinstance(found, ModuleType)
    for case in documented(name, found)
] + list(members_on_a_page())


def text_of(found: Any) -> str:
    """The docstring; of a method that has none, that of the method which it overrides."""
    if found.__doc__ or not inspect.isfunction(found):
        return inspect.cleandoc(found.__doc__ or "")
    path = found.__qualname__.rpartition(".")[0]
    return (
        inspect.getdoc(
            getattr(functools.reduce(getattr, path.split("."), sys.modules[found.__module__]), found.__name__)
        )
        or ""
    )


def signature(found: Any) -> dict[str, inspect.Parameter]:
    if inspect.isclass(found):
        made = vars(found).get("__init__") or vars(found).get("__new__")
        if made is None and issubclass(found, Exception):
            return {}
        found = found.__init__ if issubclass(found, fk.search.Search) else found
    parameters = dict(inspect.signature(inspect.unwrap(found)).parameters)
    return {n: p for n, p in parameters.items() if n not in ("self", "cls", "args", "kwargs")}


def taken_from_torch(text: str) -> set[str]:
    """Parameters of what a docstring names as torch's, which torch documents."""
    found = [resolved(name) for name in re.findall(r"`(torch\.nn\.[\w.]+\w)`", text)]
    return {name for each in found if callable(each) for name in parameters_in_torch(each)}


def parameters_in_torch(found: Any) -> set[str]:
    try:
        return set(inspect.signature(found).parameters)
    except ValueError:  # a builtin: its first line is the signature
        return set(re.findall(r"\w+", (found.__doc__ or "").strip().split("\n")[0]))


def faults(name: str, found: Any) -> Iterator[str]:
    """What a docstring lacks, or says of parameters that are not there."""
    text, parameters = text_of(found), signature(found)
    if not text:
        yield f"{name}: no docstring"
    elsewhere = taken_from_torch(text)
    left = [n for n in parameters if n not in elsewhere and not re.search(rf"\b{n}\b", text)]
    if left:
        yield f"{name}: does not name {', '.join(left)}"
    if re.search(r"^(Args|Returns|Raises): *\S", text, re.M):
        yield f"{name}: a section begins on its own line"
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n(?= {4}))+)", text, re.M)
    for several in re.findall(r"^ {4}((?:\*{0,2}\w+, )+\w+): ", section[1] if section else "", re.M):
        yield f"{name}: an entry for each of {several}"
    unknown = [n for n in ITEM.findall(section[1]) if n not in parameters] if section else []
    if unknown:
        yield f"{name}: has no parameter {', '.join(unknown)}"


def test_docstrings_name_the_parameters():
    assert [fault for name, found in CALLABLE for fault in faults(name, found)] == []


def function(x: int, y: int) -> None:
    """Takes x.

    Args:
        x: a number.
        z: another.
        v, w: two more.

    Raises: nothing.
    """


def test_faults_are_found():
    assert [fault.partition(": ")[2] for fault in faults("f", function)] == [
        "does not name y",
        "a section begins on its own line",
        "an entry for each of v, w",
        "has no parameter z",
    ]


def test_a_constant_says_what_it_is():
    """By a string behind it, which is where the pages take it from."""
    for path, _ in LISTED:
        module, _, name = path.rpartition(".")
        if module not in sys.modules or isinstance(resolved(path), ModuleType) or callable(resolved(path)):
            continue
        body = ast.parse(Path(str(sys.modules[module].__file__)).read_text()).body
        at = next(i for i, node in enumerate(body) if name in names_assigned(node))
        said = body[at + 1].value if isinstance(body[at + 1], ast.Expr) else None
        assert isinstance(said, ast.Constant) and isinstance(said.value, str), f"{path}: no docstring behind it"


def names_assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_the_page_of_the_command_line_has_every_option():
    page = (PAGES / "cli.md").read_text()
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert section, f"no section of {name}"
        told = set(re.findall(r"^\| `(--[\w-]+)", section[1], re.M))
        assert told == {o for action in command._actions for o in action.option_strings if o.startswith("--")} - {
            "--help"
        }
