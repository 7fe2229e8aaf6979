"""Edge-popup: a supermask from the ranks of scores (Ramanujan et al. 2020; global: Otsuka et al., arXiv 2402.14029)."""

from __future__ import annotations

from torch import nn

from .rule import Search, check_count, update_masks


class EdgePopup(Search):
    """Searches the supermask of a frozen model: optimise `parameters()`, and call `step()` after the optimizer's.

    `floor(n * sparsity)` of the `n` weights end below the threshold (pruned ones first) and are dropped; kept is what
    has |score| strictly above it. Layers of scope global compete with each other, local ones within themselves.

    Of an average of models, `EdgePopup(average).step()` makes the masks of the averaged scores. A mask that changes
    between a forward and its backward is a RuntimeError there, under activation checkpointing too. With foreach=True,
    its default on GPUs, torch's SGD copies all gradients to decay them; fused=True copies none.

    Args:
        model: a model that `freeze_` has converted, bare or in `torch.compile`, `DataParallel`,
            `DistributedDataParallel` or `fully_shard`.
        refresh_every: make new masks at every so many-th `step()`; 1 makes them at each.

    Raises:
        ValueError: the model has no frozen layer with scores (stored weights are for `Jackpot`), or layers whose seeds
            were overwritten, as by averaging buffers; it is in `FullyShardedDataParallel`; or `refresh_every` is no
            integer >= 1.
    """

    def __init__(self, model: nn.Module, refresh_every: int = 1) -> None:
        self.refresh_every = check_count("refresh_every", refresh_every, 1)
        super().__init__(model)

    def step(self) -> None:
        """Counts one step of the optimizer; at every `refresh_every`-th one, `refresh()`."""
        self._check()
        self.steps += 1
        if self.steps % self.refresh_every == 0:
            self._update()

    def refresh(self) -> None:
        """New threshold, new packed masks, uncounted: every mask becomes the one that the scores now say.

        Layers finalized since keep theirs; ValueError where no layer has scores any more. Nothing here waits for a
        GPU: how many weights a mask keeps is counted when `counts` is asked. Collective where the scores are sharded.
        """
        self._check()
        self._update()

    def _update(self) -> None:
        """Make the masks of the scores as they are; rules of |score| change this."""
        update_masks(self.layers)
