"""Searches of a supermask: what they have in common in `rule`, each rule in a file of its own.

A rule is a module of this folder: nothing else names it. Its classes of searches, or what its `__all__` says, are
attributes here, and the presets that it registers are known to `FreezeConfig.preset`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from .rule import MaskRule, Search

__all__ = ["MaskRule", "Search"]


def find_rules() -> None:
    """Import every module of this folder, and give its rules as attributes; what was found before stays."""
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        searches = [n for n, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, Search)]
        own = [name for name in searches if vars(module)[name].__module__ == module.__name__]
        for name in getattr(module, "__all__", own):
            globals()[name] = getattr(module, name)
            if name not in __all__:
                __all__.append(name)


find_rules()

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Rules are found when the package is imported; what reads the sources alone does not know them."""
