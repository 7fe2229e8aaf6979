"""`FrozenTensor`: the record behind a layer, and what each residency holds of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from . import format as fmt
from .generations import bits_of, own_draws

Residency = Literal["seed", "mask", "planes", "packed", "dense"]
RESIDENCIES: tuple[Residency, ...] = ("seed", "mask", "planes", "dense")  # of drawn weights
STORED_RESIDENCIES: tuple[Residency, ...] = ("packed", "dense")
SIGNS_RESIDENCIES: tuple[Residency, ...] = ("planes", "dense")
ALL_RESIDENCIES: tuple[Residency, ...] = get_args(Residency)


def residencies_of(code: str, coats: bool = False, generations: bool = False) -> tuple[Residency, ...]:
    """Those that a weight of this code can be in, with several coats or generations where it has them."""
    if code not in fmt.CODES:
        return STORED_RESIDENCIES if code == fmt.STORED else SIGNS_RESIDENCIES
    # kernels draw one generation; coats are planes, beside which a packed mask saves nothing
    return RESIDENCIES[2:] if generations else RESIDENCIES[1:] if coats else RESIDENCIES


def default_residency(code: str, coats: bool = False, generations: bool = False) -> Residency:
    """The one that such a weight is in where nobody asks for another."""
    possible = residencies_of(code, coats, generations)
    return "mask" if "mask" in possible else possible[0]


def check_residency(residency: str, code: str, coats: bool = False, generations: bool = False) -> None:
    """ValueError, with the reason, for a residency that such a weight cannot be in."""
    known = residencies_of(code, coats, generations)
    if residency in known:
        return
    why = f"for code {code!r}"
    if residency in residencies_of(code):
        why += ", whose weights have generations of their own and kernels draw one" if generations else " in coats"
    raise ValueError(f"residency: one of {', '.join(known)} {why}, got {residency!r}")


class FrozenTensor(NamedTuple):
    """A weight that is a function of its header, its partition and a supermask.

    Fields: `shape` of the torch weight and `code`; `header` int32 [8] (see `format.make_header`); then what a residency
    holds. seed: `supermask` uint8 and `offsets` int64. mask: `keep` int32 [rows, words]. planes: `keep` and `draw`
    (sign plane int32 [rows, words], or bytes uint8 [rows, cols]). dense: `dense`, the effective weight. `scores`, 1-D
    in stream order, receives gradients; `offsets` beside it save making them at each.

    Code "stored" has values instead of draws. While a search runs it is dense: `values` of the weight's shape,
    `supermask` and `dense`. Packed (`pack_stored`) it keeps `values`, the kept ones alone, 1-D in stream order, and
    `row_scale` float32 [rows] where they are int8; packed: `keep` and `offsets` of kept values; dense: `supermask`
    and `dense`.

    Code "signs" has stored signs: `(1 - 2 * bit) * scale`, times the row's `row_scale` float32 [rows] where there is
    one. planes: `keep` and `draw`, the sign plane, whose bits of dropped weights are 0; dense: `supermask`, `draw` and
    `dense`.

    In several coats the weight is `count * code * scale`: `coats` int32 [C - 1, rows, words] are the keep planes after
    the first, each within the one before, in every residency but seed. `generations` uint8 [ceil(log2 G), ceil(free /
    8)] are bit planes of the free weights' own generations, with which they are drawn: planes or dense.
    """

    shape: tuple[int, ...]
    code: str
    header: Tensor
    supermask: Tensor | None = None
    offsets: Tensor | None = None
    keep: Tensor | None = None
    draw: Tensor | None = None
    dense: Tensor | None = None
    values: Tensor | None = None
    row_scale: Tensor | None = None
    scores: Tensor | None = None
    coats: Tensor | None = None
    generations: Tensor | None = None

    @classmethod
    def create(
        cls,
        shape: Sequence[int],
        *,
        seed: int,
        stream: int = 0,
        code: str = "sign",
        prune_ratio: float = 0.0,
        lock_ratio: float = 1.0,
        threshold_bits: int = 16,
        generation: int = 0,
        scale: float | None = None,
        supermask: Tensor | None = None,
        residency: str = "mask",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> FrozenTensor:
        """A frozen tensor from its seed.

        Args:
            shape: of the torch weight, two dimensions or more.
            seed: in [0, 2^64).
            stream: id of the tensor under its seed, in [0, 2^32).
            code: sign, uniform, normal or constant.
            prune_ratio: share of the weights that is pruned.
            lock_ratio: share that is locked, the rest is free.
            threshold_bits: 1 to 16, of the thresholds that meet the ratios.
            generation: 0, or how often the weights were drawn again.
            scale: factor on every code; Kaiming's by default.
            supermask: uint8 [ceil(free / 8)]; all free weights are kept by default.
            residency: seed, mask, planes or dense.
            dtype: of the dense residency.
            device: of what it holds.

        Raises:
            ValueError: ratios, a seed or a supermask that do not fit, or a code that nothing draws.
        """
        fmt.check_code(code)
        rows, cols = fmt.matrix_shape(shape)
        tau_prune, tau_freeze, counts = calibrated(rows, cols, seed, stream, prune_ratio, lock_ratio, threshold_bits)
        scale = fmt.scale_of(code, fmt.kaiming_sigma(cols)) if scale is None else scale
        header = fmt.make_header(
            seed, stream, generation=generation, tau_prune=tau_prune, tau_freeze=tau_freeze, scale=scale, code=code
        )
        if supermask is None:
            supermask = all_kept(counts[2])
        fmt.check_supermask(supermask, counts[2])
        record = cls(tuple(shape), code, header.to(device=device), supermask.to(device=device))
        return record.hold(residency, dtype)

    @classmethod
    def stored(
        cls,
        weight: Tensor,
        keep: Tensor | None = None,
        *,
        values: str = "float32",
        residency: str = "packed",
        dtype: torch.dtype = torch.float32,
    ) -> FrozenTensor:
        """A stored weight: the values of `weight` that bool `keep` of its shape keeps (all by default), packed.

        `values`: float32, float16, bfloat16 or int8, what they are rounded to; `dtype`: of the dense residency.
        ValueError for a mask of another shape or dtype, or another name.
        """
        keep = torch.ones_like(weight, dtype=torch.bool) if keep is None else keep
        if keep.dtype != torch.bool or keep.shape != weight.shape:
            raise ValueError(f"keep: bool {list(weight.shape)}, got {keep.dtype} {list(keep.shape)}")
        record = stored_record(weight, fmt.pack_bits(fmt.stream_order(fmt.to_matrix(keep))))
        return record.pack_stored(values).hold(residency, dtype)

    @classmethod
    def signs(
        cls,
        keep: Tensor,
        negative: Tensor,
        scale: float = 1.0,
        row_scale: Tensor | None = None,
        *,
        residency: str = "planes",
        dtype: torch.dtype = torch.float32,
    ) -> FrozenTensor:
        """A weight of stored signs: `scale` where bool `keep` is set, times -1 where bool `negative` is set too.

        Both have the weight's shape. `row_scale`: float32 [rows] beside the scale; `dtype`: of the dense residency.
        ValueError for masks of another shape or dtype, and for a scale that is negative or not finite.
        """
        for name, mask in (("keep", keep), ("negative", negative)):
            if mask.dtype != torch.bool or mask.shape != keep.shape:
                raise ValueError(f"{name}: bool {list(keep.shape)}, got {mask.dtype} {list(mask.shape)}")
        rows, _ = fmt.matrix_shape(keep.shape)
        if not scale >= 0:
            raise ValueError(f"scale: 0 or more, got {scale!r}")
        if row_scale is not None:
            check_row_scale(row_scale, rows)
        header = fmt.make_header(0, scale=scale, code=fmt.SIGNS).to(keep.device)
        plane, draw = (fmt.planes(fmt.to_matrix(mask).contiguous()) for mask in (keep, negative & keep))
        return cls(tuple(keep.shape), fmt.SIGNS, header, keep=plane, draw=draw, row_scale=row_scale).hold(
            residency, dtype
        )

    @property
    def residencies(self) -> tuple[Residency, ...]:
        """Those that this weight can be in."""
        return residencies_of(self.code, self.coats is not None, self.generations is not None)

    @property
    def is_packed(self) -> bool:
        """Whether a stored weight holds its kept values alone."""
        return self.values is not None and self.values.dim() == 1

    def pack_stored(self, values: str) -> FrozenTensor:
        """The stored weight with its kept values alone, as float32, float16, bfloat16 or int8: rounded once.

        An int8 value is `round(value / row_scale)` with the row's largest magnitude at 127. ValueError where one is not
        finite in the new dtype.
        """
        if values not in fmt.VALUE_DTYPES:
            raise ValueError(f"values: one of {', '.join(fmt.VALUE_DTYPES)}, got {values!r}")
        assert self.values is not None
        rows, cols = fmt.matrix_shape(self.shape)
        ops, exact, scale = torch.ops.frozen_kernels, self.values.detach(), None
        keep = self.keep_plane()
        offsets = ops.plane_offsets(keep, cols)
        if not exact.is_floating_point():
            raise ValueError(f"values: they are {exact.dtype} already and stay so, got {values!r}")
        exact = exact if self.is_packed else ops.pack_values(exact, keep)
        if values == "int8":
            kept, scale = quantized(exact, stored_counts(offsets, rows))
        else:
            kept = exact.to(fmt.VALUE_DTYPES[values])
        lost = exact.isfinite() & ~kept.isfinite() if scale is None else ~exact.isfinite()
        if lost.any():
            raise ValueError(f"values: {int(lost.sum())} of the {exact.numel()} kept have no {values}")
        return self._replace(
            supermask=None, offsets=offsets, keep=keep, dense=None, values=kept, row_scale=scale, scores=None
        )

    def keep_plane(self, offsets: Tensor | None = None) -> Tensor:
        """int32 [rows, words]: the keep plane, that of the first coat, from whichever residency.

        `offsets` of free weights, where somebody has made them.
        """
        if self.keep is not None:
            return self.keep
        (rows, cols), ops = fmt.matrix_shape(self.shape), torch.ops.frozen_kernels
        offsets = ops.offsets(self.header, rows, cols) if offsets is None else offsets
        plane: Tensor = ops.keep_plane(self.header, self.supermask, offsets, rows, cols)
        return plane

    def _hold_stored(self, residency: str, dtype: torch.dtype) -> FrozenTensor:
        if residency not in STORED_RESIDENCIES:
            raise ValueError(f"residency: a stored weight has {' and '.join(STORED_RESIDENCIES)}, got {residency!r}")
        base = self._replace(supermask=None, offsets=None, keep=None, dense=None)
        if residency == "dense":
            base = base._replace(supermask=self.packed())
            return base._replace(dense=self._replace(dense=None, scores=None).weight(dtype).detach())
        if not self.is_packed:
            raise ValueError("residency: 'packed' is for a finalized layer; while a search runs it is 'dense'")
        keep = self.keep_plane()
        offsets = torch.ops.frozen_kernels.plane_offsets(keep, fmt.matrix_shape(self.shape)[1])
        return base._replace(keep=keep, offsets=offsets)

    def _hold_signs(self, residency: str, dtype: torch.dtype, with_offsets: bool) -> FrozenTensor:
        if residency not in SIGNS_RESIDENCIES:
            raise ValueError(f"residency: stored signs have {' and '.join(SIGNS_RESIDENCIES)}, got {residency!r}")
        rows, cols = fmt.matrix_shape(self.shape)
        offsets = self.offsets
        if offsets is None and (with_offsets or self.keep is None or residency == "dense"):
            offsets = torch.ops.frozen_kernels.offsets(self.header, rows, cols)
        keep = self.keep_plane(offsets)
        # the sign of a dropped weight means nothing: two tensors of one weight hold the same bits
        draw = None if self.draw is None else self.draw & keep
        base = self._replace(supermask=None, offsets=offsets if with_offsets else None, draw=draw, dense=None)
        if residency == "planes":
            return base._replace(keep=keep)
        source = base._replace(keep=keep, scores=None)
        return base._replace(keep=None, supermask=self.packed(offsets), dense=source.weight(dtype).detach())

    def hold(self, residency: str, dtype: torch.dtype = torch.float32, with_offsets: bool = False) -> FrozenTensor:
        """The same weight in another residency, `dtype` that of a dense weight.

        `with_offsets` keeps what a score gradient needs. ValueError for a residency that the weight does not have.
        """
        if self.code == fmt.STORED:
            return self._hold_stored(residency, dtype)
        if self.code == fmt.SIGNS:
            return self._hold_signs(residency, dtype, with_offsets)
        check_residency(residency, self.code, self.coats is not None, self.generations is not None)
        rows, cols = fmt.matrix_shape(self.shape)
        ops = torch.ops.frozen_kernels
        offsets = self.offsets if self.offsets is not None else ops.offsets(self.header, rows, cols)
        base = self._replace(supermask=None, offsets=None, keep=None, draw=None, dense=None)
        if residency == "seed":
            return base._replace(supermask=self.packed(offsets), offsets=offsets)
        if with_offsets:
            base = base._replace(offsets=offsets)
        if residency == "dense":
            supermask = self.packed(offsets)
            draw = self._draw_plane(offsets) if self.generations is not None else None
            source = base._replace(supermask=supermask, offsets=offsets, draw=draw)
            # a score gradient reads draws, and the header gives those of one generation
            base = base._replace(draw=draw if with_offsets else None)
            return base._replace(supermask=supermask, dense=source.weight(dtype).detach())
        draw = self._draw_plane(offsets) if residency == "planes" and self.code != "constant" else None
        return base._replace(keep=self.keep_plane(offsets), draw=draw)

    def _draw_plane(self, offsets: Tensor) -> Tensor:
        if self.draw is not None:
            return self.draw
        rows, cols = fmt.matrix_shape(self.shape)
        if self.generations is not None:
            return own_draws(self.header, self.code, self.generations, offsets, rows, cols)
        draw: Tensor = torch.ops.frozen_kernels.draw_plane(self.header, self.code, rows, cols)
        return draw

    def packed(self, offsets: Tensor | None = None) -> Tensor:
        """uint8 [ceil(free / 8)]: the supermask, from whichever residency holds it.

        `offsets` of free weights, where somebody has made them.
        """
        if self.supermask is not None:
            return self.supermask
        rows, cols = fmt.matrix_shape(self.shape)
        offsets = self.offsets if offsets is None and self.code != fmt.STORED else offsets
        if offsets is None:
            offsets = torch.ops.frozen_kernels.offsets(self.header, rows, cols)
        return torch.ops.frozen_kernels.pack_plane(self.header, self.keep, offsets, rows, cols)

    def pack(self) -> fmt.Pack:
        """The arguments that every op takes of a frozen tensor, in the order of its schema; of the first coat."""
        fields = (
            self.header, self.supermask, self.offsets, self.keep, self.draw, self.dense, self.values, self.row_scale,
            self.code, list(self.shape),
        )  # fmt: skip
        if torch.compiler.is_dynamo_compiling():  # that of torch 2.6 knows no __new__ of a tuple
            return fmt.Pack(*fields)
        return tuple.__new__(fmt.Pack, fields)  # Pack(*fields) takes twice as long

    def each_coat(self) -> list[FrozenTensor]:
        """A record of each coat by itself, which the ops take; scores are with the first."""
        assert self.coats is not None
        rest = self._replace(supermask=None, offsets=None, scores=None, coats=None)
        return [self._replace(coats=None), *(rest._replace(keep=plane) for plane in self.coats.unbind())]

    # a method, since the compiler of torch 2.6 reads no property of a tuple
    def in_coats(self) -> bool:
        """Whether ops are called for each coat; a dense weight has the counts in it."""
        return self.coats is not None and self.dense is None

    def counted(self, dtype: torch.dtype, read: Callable[[FrozenTensor, torch.dtype], Tensor]) -> Tensor:
        """What `read(record of one coat, dtype)` gives of the weight, of `float32(count * code) * scale`.

        The gradient of scores is that of one coat: straight through.
        """
        first, *others = self.each_coat()
        # codes alone are integers, whose sum is exact
        unscaled = fmt.with_scale(self.header, 1.0)
        whole = read(first._replace(header=unscaled, scores=None), torch.float32)
        for coat in others:
            whole = whole + read(coat._replace(header=unscaled), torch.float32)
        value = (whole * self.header[fmt.SCALE].view(torch.float32)).to(dtype)
        if first.scores is None or not torch.is_grad_enabled():
            return value
        once = read(first, dtype)
        return value + (once - once.detach())

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The effective weight of torch's shape: `float32(code) * scale` where kept, rounded once to `dtype`.

        In several coats `float32(count * code) * scale`.
        """
        op = torch.ops.frozen_kernels.weight
        if self.in_coats():
            return self.counted(dtype, lambda one, kind: op(one.scores, *one.pack(), kind))
        return op(self.scores, *self.pack(), dtype)


def stored_record(weight: Tensor, supermask: Tensor) -> FrozenTensor:
    """All values of a weight and a supermask, as they are while a search runs; without the dense effective weight."""
    header = fmt.make_header(0, 0, code=fmt.STORED).to(weight.device)
    return FrozenTensor(tuple(weight.shape), fmt.STORED, header, supermask, values=weight.detach())


def check_row_scale(scale: Tensor, rows: int, name: str = "row_scale") -> None:
    """ValueError unless `scale` is float32 [rows], 0 or more and finite."""
    if scale.dtype != torch.float32 or tuple(scale.shape) != (rows,):
        raise ValueError(f"{name}: float32 [{rows}], got {scale.dtype} {list(scale.shape)}")
    wrong = ~(scale.isfinite() & (scale >= 0))
    if wrong.any():
        raise ValueError(f"{name}: 0 or more and finite, got {float(scale[wrong][0])}")


def stored_counts(offsets: Tensor, rows: int) -> Tensor:
    """int64 [rows]: how many values each row keeps, from their offsets."""
    if rows == 0:
        return offsets.new_zeros(0)
    return offsets[:: (offsets.numel() - 1) // rows].diff() if offsets.numel() > 1 else offsets.new_zeros(rows)


def quantized(kept: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and the float32 scale of each row, whose largest magnitude becomes 127; rows keep `counts` each."""
    row = torch.arange(counts.numel(), device=kept.device).repeat_interleave(counts)
    exact = kept.to(torch.float32)
    largest = exact.new_zeros(counts.numel()).scatter_reduce(0, row, exact.abs(), "amax")
    scale = largest / 127
    # a row of zeros, or of values too small to have a scale, is zero
    steps = torch.where(scale[row] > 0, exact / scale[row], 0.0)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def all_kept(free: int, device: torch.device | str | None = None) -> Tensor:
    """uint8 [ceil(free / 8)]: a supermask with every free weight kept."""
    stream = torch.full((-(-free // 8),), 255, dtype=torch.uint8, device=device)
    if free % 8:
        stream[-1].fill_((1 << free % 8) - 1)
    return stream


def calibrated(
    rows: int, cols: int, seed: int, stream: int, prune_ratio: float, lock_ratio: float, bits: int
) -> tuple[int, int, tuple[int, int, int]]:
    """Thresholds that bring the pruned and frozen counts as near to the ratios as they get (format section 5).

    Returns tau_prune, tau_freeze, and how many weights are then pruned, locked and free.
    """
    count = rows * cols
    targets = [round(prune_ratio * count), min(round((prune_ratio + lock_ratio) * count), count)]
    if prune_ratio < 0 or lock_ratio < 0 or targets[1] < targets[0] or prune_ratio + lock_ratio > 1 + 1e-9:
        raise ValueError(f"ratios: prune_ratio {prune_ratio} and lock_ratio {lock_ratio} must be >= 0 and sum to <= 1")
    histogram = torch.ops.frozen_kernels.histogram(fmt.make_header(seed, stream), rows, cols)
    tau_prune, tau_freeze = (fmt.threshold_for(histogram, n, bits) for n in targets)
    pruned, frozen = (int(histogram[:tau].sum()) for tau in (tau_prune, tau_freeze))
    return tau_prune, tau_freeze, (pruned, frozen - pruned, count - frozen)


def stored_bytes(shape: Sequence[int], kept: int, values: str, residency: str, itemsize: int = 4) -> int:
    """Bytes that `FrozenTensor.hold` keeps of a finalized stored weight; `itemsize`: of the dense dtype."""
    rows, cols = fmt.matrix_shape(shape)
    held = 4 * fmt.HEADER_WORDS + kept * fmt.VALUE_DTYPES[values].itemsize + (4 * rows if values == "int8" else 0)
    if residency == "dense":
        return held + -(-rows * cols // 8) + rows * cols * itemsize
    return held + 4 * rows * fmt.words(cols) + 8 * (rows * fmt.chunks(cols) + 1)


def resident_bytes(
    shape: Sequence[int],
    code: str,
    free: int,
    residency: str,
    itemsize: int = 4,
    coats: int = 1,
    generations: int = 1,
    row_scaled: bool = False,
) -> int:
    """Bytes that `FrozenTensor.hold` keeps of a tensor with `free` free weights; `itemsize`: of the dense dtype.

    `row_scaled`: whether stored signs have a scale for each row.
    """
    rows, cols = fmt.matrix_shape(shape)
    check_residency(residency, code, coats > 1, generations > 1)
    supermask, plane = -(-free // 8), 4 * rows * fmt.words(cols)
    held = 4 * fmt.HEADER_WORDS + (coats - 1) * plane + bits_of(generations) * supermask
    if code == fmt.SIGNS:
        held += plane + (4 * rows if row_scaled else 0)
        return held + (supermask + rows * cols * itemsize if residency == "dense" else plane)
    if residency == "seed":
        return held + supermask + 8 * (rows * fmt.chunks(cols) + 1)
    if residency == "dense":
        return held + supermask + rows * cols * itemsize
    draw = {"constant": 0, "sign": plane}.get(code, rows * cols) if residency == "planes" else 0
    return held + plane + draw
