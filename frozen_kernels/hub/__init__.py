"""Tickets as folders that are shared: `config.json`, the ticket and a model card, here or on the Hugging Face Hub.

Folders of this machine need nothing else; repositories need `huggingface_hub`, the extra `hub`. docs/guides/share.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .folder import LAYOUT, FolderError, save_pretrained
from .load import from_pretrained
from .push import push_to_hub

if TYPE_CHECKING:
    from .mixin import TicketHubMixin

__all__ = ["LAYOUT", "FolderError", "TicketHubMixin", "from_pretrained", "push_to_hub", "save_pretrained"]


def __getattr__(name: str) -> Any:
    """The mixin, when it is asked for: its base class is of huggingface_hub, which is not always installed."""
    if name != "TicketHubMixin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .mixin import TicketHubMixin

    return TicketHubMixin
