"""`python -m frozen_kernels info | inspect | verify | footprint | bench`; `--help` lists what each takes."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
