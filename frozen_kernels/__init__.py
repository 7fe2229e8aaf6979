"""frozen_kernels: fused kernels for networks whose weights are never stored.

A seed regenerates random weights inside the kernel; packed bits say which of them count. `freeze_` converts a model,
`EdgePopup` searches its supermask, `Jackpot` that of a pre-trained model, `save_ticket` writes what is not regenerated.
"""

from typing import TYPE_CHECKING

from . import runtime

try:
    import torch as _torch
except ModuleNotFoundError as _missing:
    if _missing.name != "torch":
        raise
    _torch = None  # type: ignore[assignment]

if _torch is not None:
    from . import backends, distributed, format, functional, hub, importers, nn, ops, plot, search
    from .bank.mask_bank import MaskBank
    from .bank.packed import load_masks, load_mean, masks
    from .config import FreezeConfig
    from .convert.dense import to_dense
    from .convert.fold import FoldReport, fold_batch_norm_
    from .convert.freeze import FreezeReport, finalize_, freeze_
    from .convert.recalibrate import recalibrate_
    from .hub import from_pretrained, push_to_hub, save_pretrained
    from .memory.footprint import Footprint, footprint
    from .memory.residency import set_residency
    from .search.edge_popup import EdgePopup
    from .search.jackpot import Jackpot, tune_weights_
    from .select.aggregate import aggregate_masks, majority_mask
    from .tensor import FrozenTensor
    from .tickets.model import TicketError, load_ticket, save_ticket
    from .tune.bench import bench
    from .tune.report import BenchReport

__version__ = "0.1.0"

__all__ = [
    "BenchReport",
    "EdgePopup",
    "FoldReport",
    "Footprint",
    "FreezeConfig",
    "FreezeReport",
    "FrozenTensor",
    "Jackpot",
    "MaskBank",
    "TicketError",
    "aggregate_masks",
    "backends",
    "bench",
    "distributed",
    "finalize_",
    "fold_batch_norm_",
    "footprint",
    "format",
    "freeze_",
    "from_pretrained",
    "functional",
    "hub",
    "importers",
    "load_masks",
    "load_mean",
    "load_ticket",
    "majority_mask",
    "masks",
    "nn",
    "ops",
    "plot",
    "push_to_hub",
    "recalibrate_",
    "runtime",
    "save_pretrained",
    "save_ticket",
    "search",
    "set_residency",
    "to_dense",
    "tune_weights_",
]


if not TYPE_CHECKING:  # to a type checker torch is there
    _needs_torch = frozenset() if _torch is not None else frozenset(__all__) - {"runtime"}
    __all__ = [name for name in __all__ if name not in _needs_torch]  # so that `import *` works

    def __getattr__(name: str) -> object:
        """What is not there: without torch all but `runtime`.

        ImportError and not AttributeError, since `from frozen_kernels import load_ticket` would lose the reason.
        """
        if name in _needs_torch:
            raise ImportError(
                f"frozen_kernels.{name} needs torch, which is not installed; frozen_kernels.runtime does not"
            )
        raise AttributeError(f"module 'frozen_kernels' has no attribute {name!r}")
