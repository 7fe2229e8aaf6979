"""huggingface_hub, where it is installed."""

from __future__ import annotations

from types import ModuleType


def client(wanted: str) -> ModuleType:
    """huggingface_hub; ImportError that says who wants it, and which extra brings it."""
    try:
        import huggingface_hub
    except ImportError as why:
        raise ImportError(f"{wanted} needs huggingface_hub: pip install 'frozen-kernels[hub]' ({why})") from None
    return huggingface_hub
