"""Edge-popup: a supermask from the ranks of scores (Ramanujan et al. 2020; global: Otsuka et al., arXiv 2402.14029)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .rule import Search, check_count, update_masks


class EdgePopup(Search):
    """Searches the supermask of a frozen model: optimise `parameters()`, and call `step()` after the optimizer's.

    `floor(n * sparsity)` of the `n` weights end below the threshold (pruned ones first) and are dropped; kept is what
    has |score| strictly above it. Layers of scope global compete with each other, local ones within themselves.

    The first masks are those of `freeze_`, or what the model has. A derived rule that makes others makes them where its
    constructor has ended; its `load_state_dict` makes them again where a step would have.

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

    def _begin(self) -> None:
        if self._own_masks and not self._on_meta():
            self._update()
        super()._begin()

    @property
    def _own_masks(self) -> bool:
        """Whether the masks are others than those of `freeze_` for the same scores."""
        return type(self)._update is not EdgePopup._update

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state_dict` was taken; masks stay as they are until the next step makes new ones.

        Those of a derived rule are made again where the last step made some. ValueError where the state is not
        `{"steps": an integer >= 0}`.
        """
        super().load_state_dict(state)
        # between two refreshes the model's state has the masks, which its scores do not say
        if self._own_masks and self.steps % self.refresh_every == 0 and not self._on_meta():
            self._update()

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
