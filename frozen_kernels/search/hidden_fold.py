"""Hidden-fold networks: blocks that share random weights and masks (Garcia-Arias et al. 2021, arXiv 2111.12330)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..config import register_preset
from ..convert.choose import candidates
from ..nn.layer import FrozenLayer
from ..nn.twins import weight_place

__all__ = ["fold_blocks_"]

register_preset(
    "hidden_fold", code="sign", scope="local", prune_ratio=0.0, lock_ratio=0.0, score_init="kaiming_uniform"
)


def fold_blocks_(blocks: Sequence[nn.Module]) -> list[str]:
    """Tie the weights of the blocks, in place, to those of the first; then `freeze_` gives them one stream and mask.

    Layers that `freeze_` converts without a filter_fn, attention's projections among them, are tied where the first
    block has one of the same name, type and shape, and its weight the same dtype and device. Others stay. Their
    biases, and everything else such as batch norm, stay each block's own, as in the paper, which unrolls one recurrent
    residual block. Preset "hidden_fold", searched by `EdgePopup`: a ticket stores the blocks' mask once.

    Args:
        blocks: two or more modules of one network, none of which is frozen yet.

    Returns:
        The names, within a block, of the layers that were tied.

    Raises:
        ValueError: fewer than two blocks, one that is there twice or is frozen, or with no layer to tie; nothing is
            changed then.
    """
    blocks = list(blocks)
    if len(blocks) < 2 or len({id(block) for block in blocks}) < len(blocks):
        raise ValueError(f"blocks: two or more different modules, got {len(blocks)} of {len({id(b) for b in blocks})}")
    frozen = [i for i, block in enumerate(blocks) if any(isinstance(m, FrozenLayer) for m in block.modules())]
    if frozen:
        raise ValueError(f"blocks: block {frozen[0]} is frozen already; fold blocks before freeze_")
    first: dict[str, Any] = candidates(blocks[0], None)[0]
    tied: list[tuple[str, nn.Module, Any]] = []
    for i, block in enumerate(blocks[1:], 1):
        modules = candidates(block, None)[0]
        same = [name for name, module in first.items() if _alike(module, modules.get(name))]
        if not same:
            shapes = {name: list(module.weight.shape) for name, module in first.items()}
            raise ValueError(f"blocks: block {i} has no layer like one of block 0, which has {shapes}")
        tied += [(name, modules[name], first[name]) for name in same]
    for _, module, like in tied:
        owner, part = weight_place(module)
        setattr(owner, part, like.weight)
    return list(dict.fromkeys(name for name, _, _ in tied))


def _alike(module: Any, other: Any) -> bool:
    if type(module) is not type(other):
        return False
    return all(getattr(module.weight, name) == getattr(other.weight, name) for name in ("shape", "dtype", "device"))
