"""The mask of a frozen layer: scores, thresholds, the packed supermask, and both as tensors of the weight's shape."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import format as fmt
from ..coats import sum_of_squares
from ..config import FreezeConfig
from ..select import initial, sharded, thresholds
from ..tensor import FrozenTensor, all_kept, calibrated
from .state import FrozenState, swapping

# how often a layer's mask was made, and that number at its last forward: of this process, so neither copied nor pickled
_masks_made: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_mask_seen: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class Made(NamedTuple):
    """A finalized weight made elsewhere, for a layer to hold as it is: nobody else may write to its tensors.

    `frozen` holds what `residency` names, on the device where the layer is or, from the meta device, comes to be.
    `counts`: pruned, locked and free weights of the header. `gain`: float32 [rows], where the layer has one.
    """

    frozen: FrozenTensor
    counts: tuple[int, int, int]
    residency: str
    gain: Tensor | None = None


def note_mask(layer: nn.Module) -> None:
    """Count that a layer has another mask than before."""
    _masks_made[layer] = _masks_made.get(layer, 0) + 1


def check_recomputed(layer: nn.Module) -> None:
    """RuntimeError where a backward computes a checkpointed forward of a layer again after the mask changed."""
    # autograd sees no version of what a checkpoint computes again
    made = _masks_made.get(layer, 0)
    if torch._C._current_autograd_node() is None:
        _mask_seen[layer] = made
    elif _mask_seen.get(layer, made) != made:
        raise RuntimeError("supermask: changed between a checkpointed forward and its backward")


class FrozenMasks(FrozenState):
    """How the mask of a layer is made, changed and read."""

    ratios: tuple[float, float]
    sigma: float

    @property
    def competitor(self) -> thresholds.Competitor:
        """The layer as a threshold sees it."""
        return thresholds.Competitor(self.scores, self.rows * self.cols, self.pruned, self.config.sparsity)

    @torch.no_grad()
    def reset_parameters(self, masks: bool = True) -> None:
        """The state the constructor leaves: calibrated thresholds, initial scores, their local supermask, zero bias.

        Without `masks` there is none and no forward, until a caller makes the masks of several layers together.
        """
        config = self.config
        self.gain, self.relu = self._config_gain(), False
        score_dtype = getattr(torch, config.score_dtype)
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
            drawn, header, counts = self._started()
            self._describe(header, counts)
            if self.bias is not None:
                nn.init.zeros_(self.bias)
            if self.device.type == "meta":
                self._start_scores(torch.empty(self.free, device="meta", dtype=score_dtype))
                return
            offsets = torch.ops.frozen_kernels.offsets(header, self.rows, self.cols)
            scale = fmt.scale_of(self.code, self.sigma)
            scores = initial.initial_scores(
                drawn, offsets, self.code, self.rows, self.cols, self.free, str(config.score_init), scale
            )
            self._start_scores(scores.to(self.device, score_dtype))
        record = FrozenTensor(self.shape, self.code, header.to(self.device), None, offsets.to(self.device))
        if masks:
            key = thresholds.threshold([self.competitor], self.device)
            self._adopt(record._replace(supermask=self.mask_above(key)), rescale=True)
        else:
            self._put(record, self.residency)

    def _started(self) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
        """Headers that draw the initial scores and that the layer begins with, on the CPU, and the latter's counts."""
        seed, stream = self._start["seed"], self._start["stream"]
        tau_prune, tau_freeze, counts = calibrated(
            self.rows, self.cols, seed, stream, *self.ratios, self.config.threshold_bits
        )
        header = fmt.make_header(
            seed, stream, generation=self._start["generation"], tau_prune=tau_prune, tau_freeze=tau_freeze,
            code=self.code,
        )  # fmt: skip
        return header, header, counts

    def _config_gain(self) -> Tensor | None:
        """What the settings ask for each output: float32 [outputs], float64 in a float64 layer; None for one factor."""
        gains = self.config.row_gains(self.outputs)
        return None if gains is None else torch.tensor(gains, dtype=self.gain_dtype, device=self.device)

    def _start_scores(self, scores: Tensor) -> None:
        if self.scores is not None and sharded.is_sharded(self.scores):
            sharded.copy_part_(self.scores, scores)
        elif self.scores is not None and self.scores.shape == scores.shape and self.scores.device == scores.device:
            self.scores.copy_(scores)
        else:
            self.scores = nn.Parameter(scores) if scores.numel() else None

    @torch.no_grad()
    def restore(self, header: Tensor, supermask: Tensor, config: FreezeConfig, sigma: float) -> None:
        """Become the finalized tensor of a header (on the CPU) and a supermask, with the settings that describe it.

        ValueError where the supermask does not fit the header; the layer is then unchanged.
        """
        counts = self._partition_counts(header)
        fmt.check_supermask(supermask, counts[2])
        with swapping:
            self._drop_scores()
            self.config, self.ratios, self.sigma = config, config.ratios, sigma
            self._become(header, counts, supermask.to(self.device), rescale=False)

    @torch.no_grad()
    def adopt(self, made: Made, config: FreezeConfig, sigma: float, bias: Tensor | None = None) -> None:
        """Become the tensor made elsewhere, unchecked, with the settings that describe it; from meta, where that is.

        `bias` replaces the values of the layer's bias in the same moment.
        """
        frozen = made.frozen
        with swapping:
            self._drop_scores()
            self.config, self.ratios, self.sigma = config, config.ratios, sigma
            if self.device.type == "meta":
                self._buffers["_like"] = torch.empty_like(self._buffers["_like"], device=frozen.header.device)  # type: ignore[arg-type]
            if bias is not None:
                self._replace_bias(bias)
            if made.gain is not None:
                self._replace_gain(made.gain.to(frozen.header.device, self.gain_dtype, copy=True))
            self._describe(frozen.header.cpu(), made.counts)
            self._note_mask()
            self._put(frozen, made.residency)

    def _replace_gain(self, gain: Tensor) -> None:
        old = self.gain
        alike = old is not None and all(getattr(old, k) == getattr(gain, k) for k in ("shape", "dtype", "device"))
        if self.in_place and old is not None and alike:
            old.copy_(gain)  # as all that a layer holds there: captured graphs read it
        else:
            self._buffers["gain"] = gain

    def _replace_bias(self, bias: Tensor) -> None:
        assert self.bias is not None
        if self.device.type == "cpu":
            with torch.inference_mode(False), torch.no_grad():
                # not in place: a forward of another thread may be reading the old values
                self.bias.data = bias.clone()
        else:
            self.bias.copy_(bias)

    def _describe(self, header: Tensor, counts: tuple[int, ...]) -> None:
        """Note the numbers of a header on the CPU and of its partition."""
        fields = fmt.header_fields(header)
        self._counts, self._words, self._kept = counts, header.tolist(), counts[1] + counts[2]
        self._start = {name: fields[name] for name in ("seed", "stream", "generation")}

    def _become(
        self, header: Tensor, counts: tuple[int, ...], supermask: Tensor, rescale: bool, **stored: Tensor | None
    ) -> None:
        """Be another tensor from now on: `header` is on the CPU, others on the layer's device."""
        self._describe(header, counts)
        self._adopt(FrozenTensor(self.shape, self.code, header.to(self.device), supermask, **stored), rescale)

    def _adopt(self, record: FrozenTensor, rescale: bool) -> None:
        self._note_mask()
        if rescale:
            assert record.supermask is not None
            record = record._replace(header=self._rescaled(record.header, record.supermask, record.coats))
        # several coats, or generations, are not in every residency
        self._take(record, self.residency if self.residency in record.residencies else record.residencies[0])

    def _note_mask(self) -> None:
        self._kept = None
        if not torch.compiler.is_compiling():
            note_mask(self)
            self._seen = None if self.scores is None else (id(self.scores), self.scores._version)

    def _rescaled(self, header: Tensor, supermask: Tensor, coats: Tensor | None) -> Tensor:
        """The header with the scale that the settings ask for: a new tensor, or the same one written in place.

        A dynamic one makes the mean square of the weight the same whatever is kept, so several coats count squared.
        """
        weights = self.rows * self.cols
        if self.config.scaling == "dynamic":
            # nobody waits for the count
            kept = torch.ops.frozen_kernels.popcount(supermask) + self._counts[1]
            kept = kept if coats is None else sum_of_squares(kept, coats)
            header = header if self.in_place else header.clone()
            header[fmt.SCALE] = fmt.dynamic_scale_bits(self.code, self.sigma, kept, weights)
            return header
        bits = fmt.float32_bits(fmt.scale_of(self.code, self.sigma, self.config.factor(weights, weights)))
        if self.in_place:
            header[fmt.SCALE] = bits
        elif bits != self._words[fmt.SCALE]:
            self._words = [*self._words[: fmt.SCALE], bits, *self._words[fmt.SCALE + 1 :]]
            header = torch.tensor(self._words, dtype=torch.int32)
        return header

    def mask_above(self, key: Tensor | None) -> Tensor:
        """uint8 [ceil(free / 8)]: which |scores| order above `key` (see `search`), all of them where it is None.

        RuntimeError for a finalized layer: it has no scores to compare. Collective where the scores are sharded.
        """
        if self.scores is None and self._counts[2]:
            raise RuntimeError(f"scores: the layer is finalized, its {self._counts[2]} free weights have none")
        if key is None or self.scores is None:
            return all_kept(self.free, self.device)
        return thresholds.pack_above(self.scores, key, self.device)

    def search_draws(self, step: int) -> Tensor:
        """int32 [free]: what the generator draws for a search at a step, of each free weight in stream order."""
        ops, words = torch.ops.frozen_kernels, self._words
        # stored signs have a header without the seed and stream of their search
        header = fmt.make_header(
            self.seed, self.stream, generation=step % (1 << 24), tau_prune=words[fmt.TAU_PRUNE],
            tau_freeze=words[fmt.TAU_FREEZE], device=self.device,
        )  # fmt: skip
        offsets = ops.offsets(header, self.rows, self.cols) if self.offsets is None else self.offsets
        return ops.free_draws(header, offsets, self.rows, self.cols, fmt.SEARCH)  # type: ignore[no-any-return]

    @torch.no_grad()
    def set_supermask(self, supermask: Tensor, rescale: bool = True) -> None:
        """Replace the supermask, and what derives from it.

        Args:
            supermask: uint8 [ceil(free / 8)], one bit for each free weight in stream order.
            rescale: take the scale that the settings give for the mask; a dynamic one depends on how many are kept.

        Raises:
            ValueError: another dtype or size, or bits set behind the last free weight.
        """
        if supermask.dtype == torch.bool or tuple(supermask.shape) == self.shape:
            raise ValueError(
                f"supermask: packed bits, uint8 [{-(-self._counts[2] // 8)}], got {supermask.dtype} "
                f"{list(supermask.shape)}; set_keep_mask takes a bool of the weight's shape"
            )
        fmt.check_supermask(supermask, self._counts[2])
        self.adopt_supermask(supermask.to(self.device).contiguous(), rescale)

    @torch.no_grad()
    def adopt_supermask(self, supermask: Tensor, rescale: bool = True) -> None:
        """Take over a supermask that fits, on the layer's device, without a check or a wait; it is the only coat."""
        self._adopt(self._record()._replace(supermask=supermask, keep=None, dense=None, coats=None), rescale)

    @torch.no_grad()
    def set_keep_mask(self, keep: Tensor) -> None:
        """Keep the weights that `keep`, a bool of the weight's shape, says; the inverse of `keep_mask()`.

        ValueError for another dtype or shape, or where a pruned weight would be kept or a locked one dropped: only free
        weights are chosen (`partition() == 0`). Scores stay; the next `search.step()` makes the mask from them again.
        """
        if keep.dtype != torch.bool or tuple(keep.shape) != self.shape:
            raise ValueError(f"keep: bool {list(self.shape)}, got {keep.dtype} {list(keep.shape)}")
        matrix, partition = fmt.to_matrix(keep.to(self.device)), self._partition_matrix()
        pruned, locked = int((matrix & (partition == -1)).sum()), int((~matrix & (partition == 1)).sum())
        if pruned or locked:
            raise ValueError(
                f"keep: {pruned} pruned weights kept and {locked} locked ones dropped, expected 0 and 0: only free "
                "weights, where partition() is 0, are chosen"
            )
        self.adopt_supermask(fmt.pack(matrix.contiguous(), partition))

    def keep_mask(self) -> Tensor:
        """bool of the weight's shape: which weights are kept."""
        return fmt.from_matrix(fmt.unpack(self.packed_supermask(), self._partition_matrix()), self.shape)

    def partition(self) -> Tensor:
        """int8 of the weight's shape: -1 pruned, 0 free, +1 locked."""
        return fmt.from_matrix(self._partition_matrix(), self.shape)

    def _partition_matrix(self) -> Tensor:
        return torch.ops.frozen_kernels.partition(self.header, self.rows, self.cols, 0, 0)

    def _free_positions(self) -> Tensor:
        """int64 [free]: row * columns + column of each free weight in stream order."""
        part = self._partition_matrix()
        place = torch.arange(part.numel(), device=part.device).view_as(part)
        return fmt.stream_order(place)[fmt.stream_order(part) == 0]

    def _searched(self) -> nn.Parameter:
        if self.scores is None:
            raise RuntimeError(f"scores: the layer has none: finalized, or none of its {self.free} weights is free")
        return self.scores

    @torch.no_grad()
    def scores_as_weight(self) -> Tensor:
        """The scores at their weights' places: the weight's shape, the scores' dtype, NaN where a weight is not free.

        RuntimeError for a finalized layer. Collective where the scores are sharded.
        """
        scores = sharded.whole(self._searched().detach())
        matrix = torch.full((self.rows * self.cols,), torch.nan, dtype=scores.dtype, device=scores.device)
        matrix[self._free_positions()] = scores
        return fmt.from_matrix(matrix.view(self.rows, self.cols), self.shape)

    @torch.no_grad()
    def set_scores_as_weight(self, values: Tensor) -> None:
        """Take the scores of the free weights from `values`, floating of the weight's shape; others are not read.

        The inverse of `scores_as_weight()`; masks follow at the next `search.step()`.
        ValueError for another shape or dtype, or NaN at a free weight; RuntimeError for a finalized layer.
        """
        scores = self._searched()
        if not values.is_floating_point() or tuple(values.shape) != self.shape:
            raise ValueError(f"values: floating {list(self.shape)}, got {values.dtype} {list(values.shape)}")
        new = fmt.to_matrix(values.to(self.device)).reshape(-1)[self._free_positions()].to(scores.dtype)
        if new.isnan().any():
            raise ValueError(f"values: NaN at {int(new.isnan().sum())} of {self.free} free weights, expected none")
        if sharded.is_sharded(scores):
            sharded.copy_part_(scores, new)
        else:
            scores.copy_(new)

    def packed_supermask(self) -> Tensor:
        """uint8 [ceil(free / 8)]: the supermask, from whatever the residency holds."""
        return self._record().packed()

    @torch.no_grad()
    def finalize(self) -> None:
        """Drop the scores and keep the supermask: the search is over. RuntimeError where `fully_shard` holds them."""
        self._drop_scores()
        if self.residency != "seed" and self.offsets is not None:
            self._take(self._record(), self.residency)

    def _drop_scores(self) -> None:
        if sharded.is_sharded(self.scores):
            raise RuntimeError(
                "scores: fully_shard holds them and would bring them back; save_ticket the model as it is and load the "
                "ticket into one that is not sharded"
            )
        self.scores = None
