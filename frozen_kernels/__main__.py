"""`python -m frozen_kernels info | inspect | verify | footprint | bench`; `--help` lists what each takes."""

import sys
from collections.abc import Sequence

try:
    from .cli import main
except ModuleNotFoundError as _missing:
    if _missing.name != "torch":
        raise

    def main(arguments: Sequence[str] | None = None) -> int:
        """Without torch no command runs."""
        print("error: the command line needs torch, which is not installed", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
