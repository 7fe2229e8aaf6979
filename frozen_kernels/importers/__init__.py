"""Published files of masked networks, loaded into plain torch models as stored frozen layers."""

from .load import LAYOUTS, load_
from .report import Imported, ImportReport

__all__ = ["LAYOUTS", "ImportReport", "Imported", "load_"]
