"""Which implementation runs an op: `report()` says what is live and why the rest is not, `use()` forces one."""

from .choice import NAMES, candidates, reasons, report, use
from .errors import Unsupported

__all__ = ["NAMES", "Unsupported", "candidates", "reasons", "report", "use"]
