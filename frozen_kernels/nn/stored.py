"""Stored weights: values that a layer was given, of which a mask is searched (Zhang et al., arXiv 2104.08700).

While a search runs a layer holds all values, a bit and a score for each, and the effective weight. Finalized it holds
the kept values alone, packed, and the bits.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..config import FreezeConfig, kept_of_pattern
from ..select import sharded, swaps
from ..tensor import FrozenTensor, stored_record
from .masks import FrozenMasks, Made
from .state import swapping


def kept_of(count: int, sparsity: float) -> int:
    """How many of `count` weights a sparsity keeps: what is dropped is rounded, halves to even."""
    return count - round(count * sparsity)


class FrozenStored(FrozenMasks):
    """What differs where the code is "stored"."""

    tuned: nn.Parameter | None

    @property
    def stored(self) -> bool:
        """Whether the weights are values that the layer was given, not drawn from a seed."""
        return self.config.code == fmt.STORED

    @property
    def packed(self) -> bool:
        """Whether the layer holds kept values alone."""
        return self.values is not None and self.values.dim() == 1

    @torch.no_grad()
    def start_stored(self, weight: Tensor | None, kept: int | None) -> None:
        """Take a weight of torch's shape and begin with the mask of its largest magnitudes, and centred scores.

        `kept` weights, by default those that the sparsity keeps, or the pattern of the settings. NaN counts as larger
        than all. ValueError where there is no weight, or columns do not divide into the groups of the pattern.
        """
        if weight is None or tuple(weight.shape) != self.shape:
            found = None if weight is None else list(weight.shape)
            raise ValueError(f"weight: a stored layer is made of one {list(self.shape)}, got {found}; use from_module")
        count, config = self.rows * self.cols, self.config
        self.residency, self.ratios, self.sigma = "dense", (0.0, 0.0), 0.0
        self._describe(fmt.make_header(0, 0, code=fmt.STORED, device="cpu"), (0, 0, count))
        dtype = getattr(torch, config.score_dtype)
        kept = kept_of(count, config.sparsity) if kept is None else kept
        if weight.device.type == "meta":
            self.values, self._kept = weight.detach(), kept
            self._start_scores(torch.empty(count, device="meta", dtype=dtype))
            return
        with torch.inference_mode(False):
            values = weight.detach().clone()
            magnitudes = fmt.stream_order(fmt.to_matrix(values)).abs().to(torch.float32)
            if config.pattern is None:
                mask = swaps.best(magnitudes, kept)
            else:
                mask = swaps.best_of_groups(magnitudes, self.shape, self._pattern())
            self._start_scores(swaps.centred(mask, count).to(dtype))
        self._adopt(stored_record(values, mask), rescale=False)

    def _pattern(self) -> tuple[int, int]:
        kept, of = kept_of_pattern(self.config.pattern or "")
        if self.cols % of:
            raise ValueError(
                f"pattern: {self.config.pattern} needs columns in groups of {of}, the weight has {self.cols}"
            )
        return kept, of

    def wanted_swaps(self, kept: int, rate: float) -> Tensor:
        """int64 [2, swaps]: positions of weights that the scores want in, and of those that go for them.

        `kept` is how many the mask keeps, `rate` the share of wanted swaps that are made (see `fk.Jackpot`). ValueError
        where the mask keeps another number. Collective where the scores are sharded.
        """
        scores, supermask = sharded.whole(self._searched().detach()), self.supermask
        assert supermask is not None
        if self.config.pattern is None:
            found: Tensor = torch.ops.frozen_kernels.swap(scores, supermask, kept, rate)
            return found
        now = int(torch.ops.frozen_kernels.popcount(supermask))
        if now != kept:
            raise ValueError(f"supermask: {now} weights kept, expected {kept}")
        return swaps.swap_in_groups(scores, supermask, self.shape, self._pattern(), rate)

    def swap_(self, positions: Tensor) -> int:
        """Keep the weights at positions [0] in place of those at [1], which makes the mask that of the scores.

        Returns how many those are.
        """
        if positions.numel():
            with torch.inference_mode(False):
                self._take_mask(torch.ops.frozen_kernels.flip(self.supermask, positions), positions)
        else:
            self._note_mask()
        return positions.shape[1]

    def _take_mask(self, mask: Tensor, positions: Tensor) -> None:
        """Hold a mask in which the weights at positions [0] entered and those at [1] left."""
        dense, values = self.dense, self.values
        assert dense is not None and values is not None
        dense = dense.clone()  # a forward of another thread may be reading the old one
        flat, source = _flat(dense), _flat(values)
        enter, leave = places = fmt.weight_offsets(positions, dense)
        if values.stride() != dense.stride():
            places = fmt.weight_offsets(positions, values)
        flat.index_copy_(0, enter, source[places[0]].to(dense.dtype))
        flat.index_fill_(0, leave, 0.0)
        self._note_mask()
        self._put(self._record()._replace(supermask=mask, dense=dense), "dense")

    @torch.no_grad()
    def tune_weights(self) -> nn.Parameter:
        """Finalize the layer, in its own dtype, and make the kept values trainable: `tuned`, 1-D in stream order.

        A forward that records gradients makes the dense weight of them. ValueError for int8 values, and for a float64
        layer.
        """
        if self.tuned is None:
            self.finalize()
            assert self.values is not None
            if not self.values.is_floating_point():
                raise ValueError(
                    f"values: float32, float16 or bfloat16 can be tuned, the layer has {self.values.dtype}"
                )
            with swapping, torch.inference_mode(False):
                self.set_residency("packed")
                self.tuned = nn.Parameter(self.values.clone())
                self._tie_tuned()
        return self.tuned

    def _tie_tuned(self) -> None:
        if self.tuned is not None:
            self._buffers["values"] = self.tuned
            self.prepare_calls()

    def set_residency(self, residency: str) -> None:
        if self.tuned is not None and residency != "packed":
            raise RuntimeError(
                f"residency: 'packed' while the kept values are tuned, got {residency!r}; finalize first"
            )
        super().set_residency(residency)

    @torch.no_grad()
    def finalize(self, values: str | None = None) -> None:
        """Drop the scores and keep the supermask: the search is over. RuntimeError where `fully_shard` holds them.

        Of a stored weight the kept values stay, packed, as `values`: float32, float16, bfloat16 or int8 with a scale
        for each row; in their own dtype by default. ValueError for another name, of a float64 layer without one, and
        for int8 values that would become something else.
        """
        if not self.stored:
            super().finalize()
            return
        if not self.is_finalized_as(values):
            self.take_packed(self.packed_record(values))

    def is_finalized_as(self, values: str | None) -> bool:
        """Whether nothing is left for `finalize` to do."""
        own = None if self.values is None else str(self.values.dtype).removeprefix("torch.")
        return (
            self.scores is None and self.tuned is None and (not self.stored or (self.packed and values in (None, own)))
        )

    @torch.no_grad()
    def packed_record(self, values: str | None = None) -> FrozenTensor:
        """The stored weight as `finalize` leaves it; the layer does not change. ValueError as there, or on meta."""
        if self.device.type == "meta":
            raise ValueError("values: the layer is on the meta device and has none to pack")
        own = str(self.values.dtype).removeprefix("torch.")  # type: ignore[union-attr]
        values = own if values is None else values
        if values not in fmt.VALUE_DTYPES:
            raise ValueError(f"values: one of {', '.join(fmt.VALUE_DTYPES)}, got {values!r} for a layer of {own}")
        if self.packed and self.tuned is None and values == own:
            return self._record().hold("packed")
        packed = self._record().pack_stored(values)
        assert packed.values is not None
        return packed._replace(values=packed.values.detach().clone()) if self.packed else packed

    @torch.no_grad()
    def take_packed(self, packed: FrozenTensor) -> None:
        """Become a packed weight, without scores."""
        with swapping:
            self._drop_scores()
            self.tuned = None
            self._put(packed, "packed")

    def tie_to(self, first: FrozenStored) -> None:
        """Count as a layer of the same stored weight as another, which has the same values."""
        self._weight = first._weight

    def share_with(self, other: FrozenStored) -> None:
        """Give another layer of the same weight the scores, and all that is stored: both are one tensor then."""
        if other is self:
            return
        other.scores = self.scores
        if self.stored:
            other._weight, other.tuned = self._weight, self.tuned
            other._note_mask()
            other._put(self._record(), self.residency)

    @torch.no_grad()
    def reset_parameters(self, masks: bool = True) -> None:
        if self.stored:
            raise RuntimeError("weight: a stored layer has no seed to draw it from again; load a state or a ticket")
        super().reset_parameters(masks)

    @torch.no_grad()
    def adopt_supermask(self, supermask: Tensor, rescale: bool = True) -> None:
        if self.stored:
            if self.packed:
                self._refuse_mask()
            rescale = False
        super().adopt_supermask(supermask, rescale)

    def _refuse_mask(self) -> NoReturn:
        dropped = self.rows * self.cols - self.counts["kept"]
        raise RuntimeError(f"supermask: the layer is finalized, the values of its {dropped} dropped weights are gone")

    def _partition_counts(self, header: Tensor) -> tuple[int, ...]:
        return (0, 0, self.rows * self.cols) if self.stored else super()._partition_counts(header)

    @torch.no_grad()
    def adopt(
        self,
        made: Made,
        config: FreezeConfig,
        sigma: float,
        bias: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> None:
        with swapping:
            self.tuned, self._weight = None, []
            super().adopt(made, config, sigma, bias, gain)

    def restore(self, header: Tensor, supermask: Tensor, config: FreezeConfig, sigma: float) -> None:
        if config.code == fmt.STORED:
            raise ValueError("state: a stored layer needs its values, got header and supermask; give Made")
        super().restore(header, supermask, config, sigma)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self._tie_tuned()
        return self


def _flat(t: Tensor) -> Tensor:
    """The memory of a dense tensor in one line."""
    return t.as_strided((t.numel(),), (1,))
