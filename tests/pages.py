"""The code blocks of README.md and docs/: what stands in them, and how a reader would run each.

- `python` runs in the page's order, in one namespace, in a folder of the page's own. With `title="file"` a block of any
  language is written to that file instead.
- `shell` and `console` (lines after `$ `) run line by line in the same folder. `make`, `pip` and what else takes
  minutes or changes the machine is checked to exist: targets, extras, scripts, flags.
- `<!-- check only: reason -->` before a block has its commands checked, `<!-- not run: reason -->` leaves it out.
- `text` with `title="output"` is what the block before it printed; `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from training import settings

from frozen_kernels.cli import program as command_line

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINKED = ("examples", "benchmarks", "tests", "csrc")  # a reader stands in a checkout
LANGUAGES = ("python", "shell", "console", "yaml", "json", "text", "c", "cpp", "html", "toml")
SETUP = ("cd", "git", "source")
OUTPUT = "output"

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+) *(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$", re.M | re.S
)
COMMENT = re.compile(r"<!-- (not run|check only): ([^>]+?) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block. `how`: "run", "check only" or "not run", the last two with a reason."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    how: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        comment = COMMENT.search(text, 0, match.start())
        how, reason = (comment[1], " ".join(comment[2].split())) if comment else ("run", "")
        line = text.count("\n", 0, match.start()) + 1
        body = textwrap.dedent(match["body"])
        found.append(Block(page, line, language, title[1] if title else "", body, how, reason))
    return found


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command; of a console, of the lines after `$ `."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def is_run(block: Block) -> bool:
    """Is it a block of commands that run an example or start processes, for seconds?"""
    if block.language not in ("shell", "console") or block.how != "run" or block.title:
        return False
    return any(words[0] == "torchrun" or any("examples/" in word for word in words) for words in commands_of(block))


# what is not run


def flags(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def check_script(path: str, words: list[str], folder: Path = ROOT) -> None:
    """The script is there and knows the flags; the settings of a training run are read."""
    script = next((place / path for place in (folder, ROOT) if (place / path).is_file()), None)
    assert script, f"no file {path}"
    text = script.read_text(encoding="utf-8")
    unknown = [flag for flag in flags(words) if f'"{flag}"' not in text]
    assert not unknown, f"{path} has no {', '.join(unknown)}"
    if path == "examples/train.py":
        config = folder / words[words.index("--config") + 1]
        overrides = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
        assert settings.load(config, overrides)


def check_make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, _ = word.partition("=")
        if equals:
            assert re.search(rf"\$\({name}\)|^{name} [?:]?=", text, re.M), f"the Makefile has no variable {name}"
            continue
        rule = re.search(rf"^{re.escape(name)}:.*\n((?:\t.*\n)*)", text, re.M)
        assert rule, f"the Makefile has no target {name}"
        script = re.search(r"[\w/]+\.py", rule[1])
        arguments = [word.partition("=")[2] for word in words if word.startswith("ARGS=")]
        if script and arguments:
            check_script(script[0], shlex.split(arguments[0]))


def check_pip(words: list[str]) -> None:
    """Every extra of this package that is asked for is one."""
    said = (ROOT / "setup.py").read_text() + (ROOT / "pyproject.toml").read_text()
    for word in words:
        own = re.fullmatch(r"(?:\.|frozen[-_]kernels.*|.*\.whl)\[([\w,-]+)\]", word)
        for extra in own[1].split(",") if own else ():
            assert re.search(rf'^\s*"?{extra}"?\s*[:=]\s*\[', said, re.M), f"no extra {extra}"


def check_module(name: str, words: list[str]) -> None:
    if name in ("venv", "pytest", "build"):
        return
    if name == "pip":
        check_pip(words)
    elif name == "frozen_kernels":
        assert command_line.parser().parse_args(words)
    else:
        check_script(f"{name.replace('.', '/')}.py", words)


def check(words: list[str], folder: Path) -> None:
    """Does what the command names exist, in the checkout or in the page's folder, and does it know the flags?"""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    first, rest = words[0].rpartition("/")[2], words[1:]
    if first in ("python", "python3") and rest[0] == "-m":
        check_module(rest[1], rest[2:])
    elif first in ("python", "python3", "torchrun"):
        script = next(i for i, word in enumerate(rest) if word.endswith(".py"))
        check_script(rest[script], rest[script + 1 :], folder)
    elif first == "make":
        check_make(rest)
    elif first == "pip":
        check_pip(rest)
    elif (ROOT / words[0]).is_file():
        return
    else:
        assert first in SETUP, f"nobody knows how to check {words[0]!r}"


def compile_c(text: str) -> None:
    """A program in C is one that a compiler takes, against the header of this checkout."""
    compiler = shutil.which("cc")
    header = next(ROOT.glob("csrc/**/frozen.h"))
    if compiler is None:
        return
    command = [compiler, "-fsyntax-only", "-Wall", "-Werror", "-x", "c", f"-I{header.parent}", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# what is run


@dataclass
class Reader:
    """Somebody who copies a page's blocks, one after the other, into `folder`."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    printed: str = ""

    def __enter__(self) -> Reader:
        for name in LINKED:
            (self.folder / name).symlink_to(ROOT / name)
        self.before = os.getcwd(), sys.path[:], set(sys.modules)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        folder, sys.path[:], modules = self.before
        os.chdir(folder)
        for name in set(sys.modules) - modules:  # another page may write a file of the same name
            if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]

    def take(self, block: Block) -> None:
        if block.how == "not run":
            return
        if block.title == OUTPUT:
            self.compare(block)
        elif block.title:
            (self.folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code = compile("\n" * block.line + block.text, block.place.rpartition(":")[0], "exec")
            self.printed = caught(lambda: exec(code, self.names))
        elif block.language in ("shell", "console"):
            self.printed = "".join(self.command(words, block.how == "run") for words in commands_of(block))
        elif block.language in ("yaml", "json"):
            assert {"yaml": yaml.safe_load, "json": json.loads}[block.language](block.text) is not None
        elif block.language == "c":
            compile_c(block.text)
        elif block.language == "cpp":
            files = [path for kind in ("h", "cpp") for path in ROOT.glob(f"csrc/**/*.{kind}")]
            assert any(block.text in path.read_text() for path in files), "stands in no file of csrc"

    def compare(self, block: Block) -> None:
        how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(block.text, self.printed, how)
        assert same, f"the page says\n{block.text}\nprinted was\n{self.printed}"

    def command(self, words: list[str], run: bool) -> str:
        """Run what a reader may run here, check the rest; returns what was printed."""
        program, rest = words[0], words[1:]
        if run and program == "torchrun" and any((self.folder / word).is_file() for word in rest if "/" not in word):
            return self.process([sys.executable, "-m", "torch.distributed.run", *rest])
        python = program == "python" and rest[0] != "-m"
        if run and python and ((self.folder / rest[0]).exists() and not rest[0].startswith(("tests", "benchmarks"))):
            return self.in_process(lambda: runpy.run_path(rest[0], run_name="__main__"), rest)
        if run and words[:3] == ["python", "-m", "frozen_kernels"]:
            return self.in_process(lambda: sys.exit(command_line.main(rest[2:])), rest[1:])
        check(words, self.folder)
        return ""

    def process(self, words: list[str]) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}: exit status {done.returncode}\n{done.stderr}"
        return done.stdout

    def in_process(self, start: Any, arguments: list[str]) -> str:
        """As a process of its own would run it, without the seconds of importing torch."""
        argv, path = sys.argv, sys.path[:]
        sys.argv = list(arguments)
        sys.path.insert(0, str((self.folder / arguments[0]).parent))
        status: Any = 0

        def run() -> None:
            nonlocal status
            try:
                start()
            except SystemExit as end:
                status = end.code

        try:
            printed = caught(run)
        finally:
            sys.argv, sys.path[:] = argv, path
        assert status in (0, None), f"{shlex.join(arguments)}: exit status {status}\n{printed}"
        return printed


def caught(run: Any) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run()
    return printed.getvalue()
