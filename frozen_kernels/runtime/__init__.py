"""Serve tickets with numpy alone: no torch, no compiler.

`open(path)` gives a `Ticket`, which lists what the file holds and runs its layers on numpy arrays. The work is done by
libfrozen, the C library that comes with the package; its results are those of the torch layers, bit for bit.
"""

from .library import TicketError
from .ticket import Ticket, Weight, isa, open, open_bytes

__all__ = ["Ticket", "TicketError", "Weight", "isa", "open", "open_bytes"]
