"""Stored signs: a keep bit and a sign bit a weight. While a search runs, both come from one score (Koster et al. 2022).

The sign of a weight is the sign of its score, and it is kept where |score| is above the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import format as fmt
from ..config import FreezeConfig
from ..select import thresholds
from .masks import Made
from .state import swapping
from .stored import FrozenStored


class FrozenSigns(FrozenStored):
    """What differs where the code is "signs"."""

    @property
    def signed(self) -> bool:
        """Whether the signs of the weights are stored bits, not drawn from a seed."""
        return self.config.code == fmt.SIGNS

    def _started(self) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
        if not self.signed:
            return super()._started()
        drawn = fmt.make_header(self._start["seed"], self._start["stream"])
        return drawn, fmt.make_header(0, code=fmt.SIGNS), (0, 0, self.rows * self.cols)

    @torch.no_grad()
    def reset_parameters(self, masks: bool = True) -> None:
        if self.signed:
            self.row_scale = None
        super().reset_parameters(masks)

    def _describe(self, header: Tensor, counts: tuple[int, ...]) -> None:
        start = self._start
        super()._describe(header, counts)
        if self.signed:
            self._start = start  # what draws the scores; the header says 0

    def sign_plane(self, signs: Tensor, header: Tensor | None = None) -> Tensor:
        """int32 [rows, words]: signs of all weights, uint8 [ceil(rows * columns / 8)] in stream order, as a plane."""
        ops, header = torch.ops.frozen_kernels, self.header if header is None else header
        offsets = self.offsets if self.offsets is not None else ops.offsets(header, self.rows, self.cols)
        plane: Tensor = ops.keep_plane(header, signs, offsets, self.rows, self.cols)
        return plane

    def packed_signs(self) -> Tensor:
        """uint8 [ceil(rows * columns / 8)]: the sign of each weight in stream order, 1 = negative, 0 where dropped.

        ValueError for another code than "signs".
        """
        self._check_signed()
        ops = torch.ops.frozen_kernels
        offsets = self.offsets if self.offsets is not None else ops.offsets(self.header, self.rows, self.cols)
        stream: Tensor = ops.pack_plane(self.header, self.draw, offsets, self.rows, self.cols)
        return stream

    def _check_signed(self) -> None:
        if not self.signed:
            raise ValueError(f"signs: of code 'signs', the layer has {self.code!r}")

    @torch.no_grad()
    def adopt_signs(self, supermask: Tensor, signs: Tensor, rescale: bool = True) -> None:
        """Keep the weights of a supermask with these signs, 1 = negative; signs of dropped weights are not read.

        Both uint8 [ceil(rows * columns / 8)] in stream order. `rescale`: take the scale that the settings give for the
        mask. ValueError for another code, or where either does not fit; the layer is then unchanged. On a GPU nobody
        waits to see whether bits are set behind the last weight.
        """
        self._check_signed()
        count = self.rows * self.cols
        for name, bits in (("supermask", supermask), ("signs", signs)):
            if bits.device.type == "cpu" or bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-count // 8),):
                fmt.check_supermask(bits, count, name)
        supermask, signs = (bits.to(self.device).contiguous() for bits in (supermask, signs))
        self._adopt(
            self._record()._replace(
                supermask=supermask, keep=None, draw=self.sign_plane(signs), dense=None, coats=None
            ),
            rescale,
        )

    @torch.no_grad()
    def adopt_supermask(self, supermask: Tensor, rescale: bool = True) -> None:
        """Take over a `supermask` that fits, without a wait; of stored signs with those of the scores as they are.

        As `set_supermask` without its checks; `rescale` as there.
        RuntimeError where stored signs have no scores and a weight would be kept that was dropped: its sign is gone.
        """
        if self.signed and self.scores is not None:
            negative = thresholds.pack_negative(self.scores, self.device)
            self.adopt_signs(supermask, negative, rescale)
            return
        if self.signed:
            self._check_signs_there(supermask)
        super().adopt_supermask(supermask, rescale)

    def _check_signs_there(self, supermask: Tensor) -> None:
        gone = int(torch.ops.frozen_kernels.popcount(supermask & ~self.packed_supermask()))
        if gone:
            raise RuntimeError(f"supermask: the layer is finalized, the signs of {gone} dropped weights are gone")

    @torch.no_grad()
    def adopt(self, made: Made, config: FreezeConfig, sigma: float, bias: Tensor | None = None) -> None:
        with swapping:
            if config.code == fmt.SIGNS:
                self._start = {"seed": config.seed, "stream": self.stream if self.signed else 0, "generation": 0}
            super().adopt(made, config, sigma, bias)

    def restore(self, header: Tensor, supermask: Tensor, config: FreezeConfig, sigma: float) -> None:
        if config.code == fmt.SIGNS:
            raise ValueError("state: stored signs are no part of a header and a supermask; give Made")
        super().restore(header, supermask, config, sigma)

    def share_with(self, other: FrozenStored) -> None:
        super().share_with(other)
        if self.signed and other is not self:
            other._weight = self._weight

    def _partition_counts(self, header: Tensor) -> tuple[int, ...]:
        return (0, 0, self.rows * self.cols) if self.signed else super()._partition_counts(header)
