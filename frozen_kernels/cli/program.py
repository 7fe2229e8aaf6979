"""The commands together: their parser, and how a run ends."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from . import bench, footprint, info, inspect, verify
from .usage import Usage, shown


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    root = argparse.ArgumentParser(prog="python -m frozen_kernels", description="Frozen networks and their tickets.")
    commands = root.add_subparsers(dest="command", required=True)
    for command in (info, inspect, verify, footprint, bench):
        command.add(commands)
    return root


def _print_anything() -> None:
    """Let names that the console's encoding lacks be printed as escapes: a path may hold any character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _print_anything()
    if sys.stdout is None:
        print("error: standard output is closed", file=sys.stderr)
        return 1
    try:
        options = parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has seen enough; nothing is left to write when the interpreter closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Usage as why:
        print(f"error: {shown(why)}", file=sys.stderr)
        return 2
    except (OSError, ValueError, RuntimeError) as why:
        print(f"error: {shown(why)}", file=sys.stderr)
        return 1
    return 0
