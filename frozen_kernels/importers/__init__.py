"""Published files of masked networks, and ternary layers, as frozen layers whose weights are stored."""

from .load import LAYOUTS, load_
from .report import Imported, ImportReport
from .ternary import TernaryReport, ternary_

__all__ = ["LAYOUTS", "ImportReport", "Imported", "TernaryReport", "load_", "ternary_"]
