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

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    _own = [name for name, value in vars(_module).items() if isinstance(value, type) and issubclass(value, Search)]
    for _name in getattr(
        _module, "__all__", [name for name in _own if vars(_module)[name].__module__ == _module.__name__]
    ):
        globals()[_name] = getattr(_module, _name)
        if _name not in __all__:
            __all__.append(_name)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Rules are found when the package is imported; what reads the sources alone does not know them."""
