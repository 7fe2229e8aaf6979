"""Running statistics of batch norm from data, for a network whose weights or masks changed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from ..search.rule import check_count

_NORMS = (nn.modules.batchnorm._BatchNorm,)


def recalibrate_(model: nn.Module, loader: Iterable[Any], batches: int | None = None) -> int:
    """Make the running statistics of every batch norm anew, as means over batches; returns over how many.

    Masking a network moves what its layers give, so that old statistics say more of the mask than of the network. The
    model runs in train mode without gradients, as `torch.optim.swa_utils.update_bn` does; its modes and momenta are
    what they were afterwards. A model without running statistics stays as it is, and 0 is returned.

    Args:
        model: any module.
        loader: batches; of a tuple or list the first element is the input. They go to the device of the parameters.
        batches: how many to take at most; all by default.

    Raises:
        ValueError: `batches` is no integer >= 1, the loader is empty, or a batch is something else. Statistics and
            momenta are as they were wherever a batch fails.
    """
    if batches is not None:
        batches = check_count("batches", batches, 1)
    if not any(isinstance(m, _NORMS) and m.track_running_stats for m in model.modules()):
        return 0
    taken = iter(islice(loader, batches))
    first = next(taken, None)
    if first is None:
        raise ValueError("loader: at least one batch, got none")
    count = 0

    def counted() -> Iterable[Any]:
        nonlocal count
        for batch in chain([first], taken):
            given = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(given, torch.Tensor):
                kind = type(batch).__name__
                raise ValueError(
                    f"loader: batches that are tensors, or tuples or lists that begin with one, got {kind}"
                )
            count += 1
            yield batch

    device = next((p.device for p in model.parameters()), None)
    modes = {m: m.training for m in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, _NORMS)]
    before = [(m, m.momentum, {name: t.clone() for name, t in m.named_buffers()}) for m in norms]
    try:
        update_bn(counted(), model, device)  # type: ignore[arg-type]
    except BaseException:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            for name, tensor in buffers.items():
                norm.get_buffer(name).copy_(tensor)
        raise
    finally:
        for module, training in modes.items():
            module.training = training
    return count
