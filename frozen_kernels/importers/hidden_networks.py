"""Files of hidden-networks, the code of "What's Hidden in a Randomly Weighted Neural Network?" (arXiv 1911.13299).

A masked layer has `weight` and `scores`; the weight of a scaled variant is in the file as it is used. A layer without
scores is dense. A search layer uses `weight` where `|scores|` is not among the `int((1 - k) * n)` lowest; k, the
fraction kept, is called prune_rate there and is not in the file. In a layer whose mask was fixed at random the scores
are the mask, 0 or 1, and prune_rate is the fraction removed. A layer that samples its mask at every forward has no
one mask, and the same names: do not load its files.
"""

from __future__ import annotations

from torch import Tensor

from .layout import Given, Layout, Masked, Read, bits_of, by_layer, computed, drop_lowest, owners, scores_of, without
from .source import Checkpoint

_ASK = (
    "sparsity: not in a file of this layout; give sparsity=, the fraction of zeros, one number or one by layer name: "
    "1 - prune_rate of their search layers, whose prune_rate is the fraction kept"
)


def dropped(sparsity: float, count: int) -> int:
    """How many weights a search layer drops: in the arithmetic of a kept fraction k, which people write in decimals."""
    kept = round(1 - sparsity, 12)
    return int((1 - kept) * count)


def _is_mask(scores: Tensor) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _check_sparsity(layer: str, keep: Tensor, sparsity: float) -> None:
    """ValueError where a fixed mask has another sparsity than the one that the caller expects."""
    zeros = int((~keep).sum())
    if abs(zeros - sparsity * keep.numel()) > 1:
        raise ValueError(
            f"sparsity: {sparsity}, but the fixed mask of {layer!r} has {zeros / keep.numel():g}: {zeros} zeros of "
            f"{keep.numel()}"
        )


def _read(found: Checkpoint, given: Given) -> Read:
    state, layers = found.state, owners(found.state, "scores")
    scores = {layer: scores_of(state, layer, "scores") for layer in layers}
    fixed = given.fixed
    if fixed is None:
        fixed = all(_is_mask(value) for value in scores.values())
    if not fixed and given.sparsity is None:
        raise ValueError(_ASK)
    wanted = None if given.sparsity is None else by_layer(given.sparsity, layers)
    masked, recomputed = {}, []
    for layer in layers:
        weight = state[f"{layer}.weight"]
        if fixed:
            keep = bits_of(state, f"{layer}.scores", weight)
            if wanted is not None:
                _check_sparsity(layer, keep, wanted[layer])
        else:
            assert wanted is not None
            keep, tied = drop_lowest(scores[layer].abs(), dropped(wanted[layer], weight.numel()))
            recomputed.append(computed(layer, keep, f"by |scores| and sparsity {wanted[layer]:g}", tied))
        masked[layer] = Masked(weight, keep)
    return Read(masked, without(state, layers, ("weight", "scores")), recomputed, [])


LAYOUT = Layout("hidden-networks", ("sparsity", "fixed"), lambda state: bool(owners(state, "scores")), _read)
