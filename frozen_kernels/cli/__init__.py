"""The command line, a file for each command.

Exit status: 0, 1 for a failure (told in one line on stderr), 2 for wrong usage or input that is no model.
"""

from .program import main

__all__ = ["main"]
