"""Which implementation runs an op: `report()` says what is live and why the rest is not, `use()` forces one."""

from .. import calls
from .choice import NAMES, candidates, reasons, report, use
from .cpu.prepared import prepare
from .errors import Unsupported

calls.register(prepare)

__all__ = ["NAMES", "Unsupported", "candidates", "reasons", "report", "use"]
