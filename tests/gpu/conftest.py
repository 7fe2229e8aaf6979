"""Collects `cases_*.py` when they are named; mends the interpreter before any case launches a kernel."""

from common import INTERPRETING

if INTERPRETING:
    import interpreter

    interpreter.mend()
