"""`python -m frozen_kernels info | inspect | verify | footprint | bench`; `--help` lists what each takes."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status. Without torch none runs."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        print("error: the command line needs torch, which is not installed", file=sys.stderr)
        return 2
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
