"""Layers whose weights count several times, or are drawn again one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import format as fmt
from ..coats import MOST as MOST_COATS
from ..coats import coat_streams
from ..generations import MOST as MOST_GENERATIONS
from ..generations import check_redrawn, numbers_of, planes_of
from ..select import thresholds
from ..tensor import FrozenTensor
from .signs import FrozenSigns


class FrozenCoats(FrozenSigns):
    """How a layer gets and tells its coats and generations."""

    @torch.no_grad()
    def adopt_counts(self, counts: Tensor, coats: int, rescale: bool = True, signs: Tensor | None = None) -> None:
        """Let each free weight count so often: `count * code * scale` (Okoshi et al. 2022, multicoated supermasks).

        The scores' gradient stays that of one coat, `sign(S) * dL/dW * code * scale`. A layer in the residency seed
        moves to mask. `rescale`: by dynamic scaling the mean square of `count * code * scale` is that of a full weight:
        `sqrt(weights / sum of count^2)`, with one coat the `1 / sqrt(density)` of every layer. The paper's code divides
        by the density of the first coat alone, and weights grow with their counts.

        Args:
            counts: uint8 [free] in stream order, 0 (dropped) to `coats`. Locked weights count once.
            coats: how many there are, 2 to 255.
            signs: of code "signs" alone, uint8 [ceil(rows * columns / 8)] in stream order, 1 = negative; those of the
                scores by default, and of a finalized layer those that it has.

        Raises:
            ValueError: another dtype or shape, a count above `coats`, a stored layer, or signs of another code.
            RuntimeError: a finalized layer of code "signs" would keep a weight that was dropped: its sign is gone.
                The layer is unchanged.
        """
        if self.stored:
            raise ValueError("counts: of drawn weights and signs, got those of a stored layer")
        number = fmt.as_integer(coats)
        if number is None or not 2 <= number <= MOST_COATS:
            raise ValueError(f"coats: an integer from 2 to {MOST_COATS}, got {coats!r}")
        if counts.dtype != torch.uint8 or tuple(counts.shape) != (self.free,):
            raise ValueError(f"counts: uint8 [{self.free}], got {counts.dtype} {list(counts.shape)}")
        counts = counts.to(self.device)
        most = int(counts.max()) if counts.numel() else 0
        if most > number:
            raise ValueError(f"counts: 0 to {number} with as many coats, got {most}")
        streams = [fmt.pack_bits(counts >= coat) for coat in range(1, number + 1)]
        self._adopt_streams(streams, self._record_with_signs(streams[0], signs), rescale)

    def _record_with_signs(self, supermask: Tensor, signs: Tensor | None) -> FrozenTensor:
        """The record, of code "signs" with the signs that go with a supermask."""
        record = self._record()
        if signs is not None:
            self._check_signed()
            fmt.check_supermask(signs, self.rows * self.cols, "signs")
            return record._replace(draw=self.sign_plane(signs.to(self.device).contiguous()))
        if self.signed and self.scores is not None:
            return record._replace(draw=self.sign_plane(thresholds.pack_negative(self.scores, self.device)))
        if self.signed:
            self._check_signs_there(supermask)
        return record

    def _adopt_streams(self, streams: list[Tensor], record: FrozenTensor, rescale: bool) -> None:
        """Take over coats as supermasks uint8 [ceil(free / 8)], first to last."""
        ops = torch.ops.frozen_kernels
        offsets = record.offsets if record.offsets is not None else ops.offsets(record.header, self.rows, self.cols)

        def plane(stream: Tensor) -> Tensor:
            found: Tensor = ops.keep_plane(record.header, stream, offsets, self.rows, self.cols)
            return found

        locked = plane(torch.zeros_like(streams[0]))
        planes = torch.stack([plane(stream) ^ locked for stream in streams[1:]])
        first = record._replace(supermask=streams[0], keep=None, dense=None, offsets=offsets, coats=planes)
        self._adopt(first, rescale)

    def coat_counts(self) -> Tensor:
        """uint8 of the weight's shape: how often each weight counts, 0 where it is dropped."""
        if self.coats is None:
            return self.keep_mask().to(torch.uint8)
        unscaled = self._record()._replace(header=fmt.with_scale(self.header, 1.0), code="constant", scores=None)
        kept = unscaled._replace(keep=unscaled.keep_plane(), draw=None, dense=None)
        return kept.weight().to(torch.uint8)

    def coat_kept(self) -> list[int]:
        """How many weights each coat keeps, first to last; of one coat, of all that are kept."""
        popcount = torch.ops.frozen_kernels.popcount
        planes = () if self.coats is None else self.coats.unbind()
        return [self._count_kept(), *(int(popcount(plane)) for plane in planes)]

    def coat_streams(self) -> list[Tensor]:
        """uint8 each: of the coats after the first, what a ticket stores (see `frozen_kernels.coats`)."""
        return [] if self.coats is None else coat_streams(self._record().keep_plane(), self.coats)

    def generations_of(self) -> Tensor:
        """uint8 [free] in stream order: the generation that each free weight is drawn with."""
        return numbers_of(self.generations, self.free, self.device)

    @torch.no_grad()
    def redraw(self, which: Tensor) -> None:
        """Draw free weights again, each with its next generation (IteRand, Chijiwa et al. 2021); the mask stays.

        A layer in the residency seed or mask moves to planes: kernels draw one generation. Locked weights keep that of
        the header, 0.

        Args:
            which: bool [free] in stream order.

        Raises:
            ValueError: another dtype or shape, a code that draws nothing, a header of another generation than 0, or a
                weight that would be drawn more than 256 times. The layer is unchanged.
        """
        if which.dtype != torch.bool or tuple(which.shape) != (self.free,):
            raise ValueError(f"which: bool [{self.free}], got {which.dtype} {list(which.shape)}")
        check_redrawn(self.code, self._start["generation"])
        which, now = which.to(self.device), self.generations_of()
        beyond = int((which & (now == MOST_GENERATIONS - 1)).sum())
        if beyond:
            raise ValueError(
                f"which: {beyond} weights would get generation {MOST_GENERATIONS}, and a weight has at most "
                f"{MOST_GENERATIONS} generations"
            )
        planes, record = planes_of(now + which), self._record()
        # a keep plane made anew, so that a backward of the old draws is an error, as after a new mask
        mask = record.packed()
        again: FrozenTensor = record._replace(generations=planes, supermask=mask, keep=None, draw=None, dense=None)
        self._adopt(again, rescale=False)
