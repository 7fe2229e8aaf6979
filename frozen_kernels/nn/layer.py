"""`FrozenLayer`: the state of a frozen weight inside a module; `nn` adds the layers' shapes and forwards."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.compiler.config
from torch import Tensor, nn

from .. import format as fmt
from ..config import FreezeConfig
from ..functional import autocasting
from ..select import initial, sharded, thresholds
from ..tensor import RESIDENCIES, FrozenTensor, all_kept, calibrated

_DERIVED = ("offsets", "keep", "draw", "dense")
# what seed and scores make again, the same in every process
OWN_BUFFERS = ("_like", "header", "supermask", *_DERIVED)
# dynamo fixes the sizes of parameters and buffers, and these differ from layer to layer: it would compile each anew
_SIZES_VARY = r".*_parameters\['scores'\],.*_buffers\['supermask'\]"
if hasattr(torch.compiler.config, "dynamic_sources"):
    _others = torch.compiler.config.dynamic_sources
    torch.compiler.config.dynamic_sources = f"{_others},{_SIZES_VARY}" if _others else _SIZES_VARY
# how often a layer's mask was made, and that number at its last forward: of this process, so neither copied nor pickled
_masks_made: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_mask_seen: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class FrozenLayer(nn.Module):
    """A layer whose weight is a seed, a partition and a supermask.

    Saved state: `header` int32 [8] (seed, stream, generation, thresholds, scale, code), `supermask` uint8
    [ceil(free / 8)], `weight_shape`, `scores` [free] while searching, `bias`, and `gain` where the layer is folded.
    Planes and offsets are derived and not saved.
    A folded layer gives `relu(gain * W x + bias)`: `gain`, a buffer with one float32 value per output channel (float64
    in a float64 layer), None by default, and `relu`, an attribute, False by default. Embeddings have neither.
    Keyword arguments of every frozen layer: `stream` (32-bit id of the tensor under its seed), `generation`, `sigma`
    (standard deviation of the weights; Kaiming's sqrt(2 / columns) by default), and any field of `FreezeConfig`; or
    `config` in place of those fields, `ratios`, this layer's prune and lock ratio where it is one of a network's (the
    config's by default), `state`, a header on the CPU and a supermask to hold without scores, and `masks`, False where
    the caller makes the masks of many layers together: until then there is none and no forward.
    """

    header: Tensor
    supermask: Tensor | None
    offsets: Tensor | None
    keep: Tensor | None
    draw: Tensor | None
    dense: Tensor | None
    bias: Tensor | None
    gain: Tensor | None
    scores: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        bias: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        stream: int = 0,
        generation: int = 0,
        sigma: float | None = None,
        config: FreezeConfig | None = None,
        ratios: tuple[float, float] | None = None,
        state: tuple[Tensor, Tensor] | None = None,
        masks: bool = True,
        **settings,
    ) -> None:
        super().__init__()
        if config is not None and settings:
            raise ValueError(f"config: given together with {', '.join(settings)}")
        known = {f.name for f in fields(FreezeConfig)}
        for name in settings:
            if name not in known:
                raise TypeError(f"{name}: not a setting of a frozen layer; known: {', '.join(sorted(known))}")
        self.config = FreezeConfig(**settings) if config is None else config
        self.ratios = self.config.ratios if ratios is None else ratios
        self._kept: int | None = None
        self.shape = tuple(shape)
        self.rows, self.cols = fmt.matrix_shape(self.shape)
        self.sigma = fmt.kaiming_sigma(self.cols) if sigma is None else float(sigma)
        self.residency = "mask"
        self._identity = {"seed": self.config.seed, "stream": stream, "generation": generation}
        like = torch.empty(0, device=device, dtype=dtype)
        self.register_buffer("_like", like, persistent=False)  # carries the layer's dtype through .to()
        self.register_buffer("header", torch.empty(fmt.HEADER_WORDS, dtype=torch.int32, device=like.device))
        self.register_buffer("supermask", None)
        for name in _DERIVED:
            self.register_buffer(name, None, persistent=False)
        self.register_buffer("gain", None)
        self.relu = False
        self.register_parameter("scores", None)
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.zeros(bias, device=device, dtype=dtype))
        if state is None:
            self.reset_parameters(masks)
        else:
            self.restore(*state, self.config, self.sigma)

    @property
    def code(self) -> str:
        return self.config.code

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's inputs, outputs and bias."""
        like: Tensor = self._buffers["_like"]  # type: ignore[assignment]
        return like.dtype

    @property
    def device(self) -> torch.device:
        return self.header.device

    @property
    def seed(self) -> int:
        return self._identity["seed"]

    @property
    def stream(self) -> int:
        return self._identity["stream"]

    @property
    def scale(self) -> float:
        """The fp32 factor on every code."""
        return fmt.header_fields(self.header)["scale"]

    @property
    def folded(self) -> bool:
        """Whether the layer applies a gain or a ReLU beside its weight and bias."""
        return self.gain is not None or self.relu

    @property
    def counts(self) -> dict[str, int]:
        """How many weights are pruned, locked and free, and how many of all are kept."""
        pruned, locked, free = self._counts
        return {"pruned": pruned, "locked": locked, "free": free, "kept": self._count_kept()}

    @property
    def pruned(self) -> int:
        """How many weights are pruned; unlike `counts` this waits for no device."""
        return self._counts[0]

    @property
    def free(self) -> int:
        """How many weights are free; unlike `counts` this waits for no device."""
        return self._counts[2]

    @property
    def competitor(self) -> thresholds.Competitor:
        """The layer as a threshold sees it."""
        return thresholds.Competitor(self.scores, self.rows * self.cols, self.pruned, self.config.sparsity)

    def _count_kept(self) -> int:
        # counted when first asked for: a search changes masks at each step and must not wait for them
        if self._kept is None:
            popcount = torch.ops.frozen_kernels.popcount
            if self.keep is not None:
                self._kept = int(popcount(self.keep))
            else:
                self._kept = self._counts[1] + int(popcount(self.supermask))
        return self._kept

    @torch.no_grad()
    def reset_parameters(self, masks: bool = True) -> None:
        """The state the constructor leaves: calibrated thresholds, initial scores, their local supermask, zero bias."""
        self.gain, self.relu = None, False
        config, on_cpu = self.config, torch.device("cpu")
        score_dtype = getattr(torch, config.score_dtype)
        with on_cpu:
            seed, stream = self._identity["seed"], self._identity["stream"]
            tau_prune, tau_freeze, counts = calibrated(
                self.rows, self.cols, seed, stream, *self.ratios, config.threshold_bits
            )
            header = fmt.make_header(
                seed,
                stream,
                generation=self._identity["generation"],
                tau_prune=tau_prune,
                tau_freeze=tau_freeze,
                code=self.code,
            )
            self._adopt_header(header, counts)
            if self.bias is not None:
                nn.init.zeros_(self.bias)
            free = counts[2]
            if self.device.type == "meta":
                scores = torch.empty(free, device="meta", dtype=score_dtype)
            else:
                offsets = torch.ops.frozen_kernels.offsets(header, self.rows, self.cols)
                scale = fmt.scale_of(self.code, self.sigma)
                scores = initial.initial_scores(
                    header, offsets, self.code, self.rows, self.cols, free, config.score_init, scale
                ).to(self.device, score_dtype)
                self.offsets = offsets.to(self.device)
        if self.scores is not None and sharded.is_sharded(self.scores):
            sharded.copy_part_(self.scores, scores)
        elif self.scores is not None and self.scores.shape == scores.shape and self.scores.device == scores.device:
            self.scores.copy_(scores)
        else:
            self.scores = nn.Parameter(scores) if free else None
        if masks and self.device.type != "meta":
            self.apply_threshold(thresholds.threshold([self.competitor], self.device))

    @torch.no_grad()
    def restore(self, header: Tensor, supermask: Tensor, config: FreezeConfig, sigma: float) -> None:
        """Become the finalized tensor of a header (on the CPU) and a supermask, with the settings that describe it.

        ValueError where the supermask does not fit the header; the layer is then unchanged.
        """
        counts = self._partition_counts(header)
        fmt.check_supermask(supermask, counts[2])
        self._drop_scores()
        self.config, self.ratios, self.sigma = config, config.ratios, sigma
        self._adopt_header(header, counts)
        self.set_supermask(supermask, rescale=False)

    def _partition_counts(self, header: Tensor) -> tuple[int, ...]:
        """Pruned, locked and free weights that a header on the CPU gives."""
        return tuple(torch.ops.frozen_kernels.partition_counts(header, self.rows, self.cols).tolist())

    def _adopt_header(self, header: Tensor, counts: tuple[int, ...]) -> None:
        """Take over a header and its partition counts: `header` is on the CPU, the buffer may be anywhere."""
        self._counts = counts
        fields = fmt.header_fields(header)
        self._identity = {name: fields[name] for name in ("seed", "stream", "generation")}
        self._words = _all_but_scale(header)
        self.header.copy_(header)
        self.offsets = self.supermask = self.keep = self.draw = self.dense = None
        self._kept = self._counts[1] + self._counts[2]

    def check_buffers(self) -> None:
        """ValueError where header or offsets hold other numbers than the layer put there: a mean of them is no tensor.

        Waits for the device.
        """
        if self.device.type == "meta":
            return
        if _all_but_scale(self.header) != self._words:
            raise ValueError(f"header: {_all_but_scale(self.header)} of a layer made with {self._words}")
        if self.offsets is not None and int(self.offsets[-1]) != self.free:
            raise ValueError(f"offsets: {int(self.offsets[-1])} free weights in a layer that has {self.free}")

    def apply_threshold(self, key: Tensor | None) -> None:
        """Keep the free weights whose |score| orders above `key` (see `search`), all of them where it is None.

        RuntimeError for a finalized layer: it has no scores to compare. Collective where the scores are sharded.
        """
        if self.scores is None and self._counts[2]:
            raise RuntimeError(f"scores: the layer is finalized, its {self._counts[2]} free weights have none")
        if key is None or self.scores is None:
            supermask = all_kept(self._counts[2], self.device)
        else:
            supermask = thresholds.pack_above(self.scores, key, self.device)
        self.adopt_supermask(supermask)

    @torch.no_grad()
    def set_supermask(self, supermask: Tensor, rescale: bool = True) -> None:
        """Replace the supermask, uint8 [ceil(free / 8)], and what derives from it; ValueError where it does not fit."""
        fmt.check_supermask(supermask, self._counts[2])
        self.adopt_supermask(supermask.to(self.device).contiguous(), rescale)

    @torch.no_grad()
    def adopt_supermask(self, supermask: Tensor, rescale: bool = True) -> None:
        """Take over a supermask that fits, on the layer's device, without a check or a wait."""
        self._kept = None
        if not torch.compiler.is_compiling():
            _masks_made[self] = _masks_made.get(self, 0) + 1
        if rescale:
            self._rescale(supermask)
        before = self._record()
        self._take(before._replace(supermask=supermask, keep=None, dense=None), self.residency)

    def _rescale(self, supermask: Tensor) -> None:
        """The scale that the settings ask for, written into the header where it lies."""
        count, held = self.rows * self.cols, self.header[fmt.SCALE]
        if self.config.scaling == "dynamic":
            kept = torch.ops.frozen_kernels.popcount(supermask) + self._counts[1]
            held.copy_(fmt.dynamic_scale_bits(self.code, self.sigma, kept, count))
        else:
            held.fill_(fmt.float32_bits(fmt.scale_of(self.code, self.sigma, self.config.factor(count, count))))

    def _take(self, record: FrozenTensor, residency: str) -> None:
        held = record.hold(residency, self.dtype, with_offsets=self.scores is not None)
        self.residency = residency
        self.supermask = held.supermask
        for name in _DERIVED:
            new, old = getattr(held, name), getattr(self, name)
            if new is not None and old is not None and new is not old and _alike(new, old):
                old.copy_(new)  # in place: captured graphs and views stay valid
            else:
                setattr(self, name, new)

    def _record(self, scores: Tensor | None = None) -> FrozenTensor:
        b: Any = self._buffers  # attributes of a module are looked up in three dicts, one after the other
        return FrozenTensor(
            self.shape, self.config.code, b["header"], b["supermask"], b["offsets"], b["keep"], b["draw"], b["dense"],
            scores,
        )  # fmt: skip

    @property
    def frozen(self) -> FrozenTensor:
        """The record that `functional` takes, with the scores that receive gradients.

        RuntimeError where a backward computes a checkpointed forward again and the mask has changed between.
        """
        scores = self._parameters["scores"]
        if scores is not None and not torch.compiler.is_compiling():
            self._check_recomputed()
        return self._record(scores)

    def _check_recomputed(self) -> None:
        # autograd sees no version of what a checkpoint computes again
        made = _masks_made.get(self, 0)
        if torch._C._current_autograd_node() is None:
            _mask_seen[self] = made
        elif _mask_seen.get(self, made) != made:
            raise RuntimeError("supermask: changed between a checkpointed forward and its backward")

    @property
    def weight(self) -> Tensor:
        """The effective weight, materialised in the layer's dtype, without a gain; its gradient goes to the scores."""
        return self.frozen.weight(self.dtype)

    def _times_gain(self, weight: Tensor, gain: Tensor) -> Tensor:
        return weight * gain.view(-1, *[1] * (weight.dim() - 1))

    def partition(self) -> Tensor:
        """int8 of the weight's shape: -1 pruned, 0 free, +1 locked."""
        matrix = torch.ops.frozen_kernels.partition(self.header, self.rows, self.cols, 0, 0)
        return fmt.from_matrix(matrix, self.shape)

    def keep_mask(self) -> Tensor:
        """bool of the weight's shape: which weights are kept."""
        part = torch.ops.frozen_kernels.partition(self.header, self.rows, self.cols, 0, 0)
        return fmt.from_matrix(fmt.unpack(self.packed_supermask(), part), self.shape)

    @property
    def weight_shape(self) -> Tensor:
        """int64: the shape of the torch weight, as a state holds it."""
        return torch.tensor(self.shape, device=self.device)

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True):
        """As torch's; without `recurse` also what a state holds under a name that no buffer bears.

        torch.distributed.checkpoint.state_dict finds there which names of a state are the module's own.
        """
        held = dict(super().named_buffers(prefix, recurse, remove_duplicate))
        if not recurse:
            dot = f"{prefix}." if prefix else ""
            for name, value in self._derived_state().items():
                held.setdefault(dot + name, value)
        yield from held.items()

    def _derived_state(self) -> dict[str, Tensor]:
        """What a state holds beside parameters and buffers."""
        if self.device.type == "meta":
            supermask = torch.empty(-(-self._counts[2] // 8), dtype=torch.uint8, device="meta")
        else:
            supermask = self.packed_supermask()
        # weights of other shapes can have the same counts, so nothing else in a state tells them apart
        return {"supermask": supermask, "weight_shape": self.weight_shape}

    def packed_supermask(self) -> Tensor:
        """uint8 [ceil(free / 8)]: the supermask, from whatever the residency holds."""
        return self._record().packed()

    def set_residency(self, residency: str) -> None:
        """Hold the weight as seed, mask, planes or dense; the weights themselves do not change."""
        if residency not in RESIDENCIES:
            raise ValueError(f"residency: one of {', '.join(RESIDENCIES)}, got {residency!r}")
        if self.device.type == "meta":
            self.residency = residency
        else:
            self._take(self._record(), residency)

    def finalize(self) -> None:
        """Drop the scores and keep the supermask: the search is over. RuntimeError where `fully_shard` holds them."""
        self._drop_scores()
        if self.residency != "seed":
            self.offsets = None

    def _drop_scores(self) -> None:
        if sharded.is_sharded(self.scores):
            raise RuntimeError(
                "scores: fully_shard holds them and would bring them back; save_ticket the model as it is and load the "
                "ticket into one that is not sharded"
            )
        self.scores = None

    def _check_input(self, x: Tensor) -> None:
        if x.dtype != self.dtype and not autocasting(x) and not self._cast_to(x.dtype):
            raise TypeError(f"x: {x.dtype} does not match the layer's {self.dtype}")

    def _cast_to(self, dtype: torch.dtype) -> bool:
        # mixed precision of fully_shard casts parameters for the time of a forward, and a layer without any follows x
        narrower = sharded.may_shard() and dtype.itemsize < self.dtype.itemsize
        return narrower and all(p is None or p.dtype == dtype for p in self._parameters.values())

    def _apply(self, fn, recurse: bool = True):
        before, gain = self.dtype, self.gain
        super()._apply(fn, recurse)
        wide = torch.promote_types(self.dtype, torch.float32)
        if gain is not None and self._buffers["gain"].dtype != wide:  # type: ignore[union-attr]
            self.gain = gain.to(self.device, wide)  # a half precision layer keeps the gain it was given
        if self.dtype != before and self.dense is not None and self.device.type != "meta":
            # rounded once from the format, not twice through the old dtype
            self._take(self._record()._replace(dense=None), "dense")
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self._derived_state().items():
            destination[prefix + name] = value

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors):
        state = dict(state_dict)
        supermask, shape = (state.pop(prefix + name, None) for name in ("supermask", "weight_shape"))
        header = state.get(prefix + "header")
        if strict:
            derived = {"supermask": supermask, "weight_shape": shape}
            missing_keys += [prefix + name for name, value in derived.items() if value is None]
        trouble = self._state_trouble(prefix, header, supermask, shape, state)
        if trouble is not None:
            errors.append(trouble)
            return
        held, self.supermask = self.supermask, None  # a buffer to torch only where the residency is seed or dense
        super()._load_from_state_dict(state, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors)
        if local_metadata.get("assign_to_params_buffers", False):
            # tensors of the state took the place of the layer's, with their device and dtype
            dtype = self.dtype if self.bias is None else self.bias.dtype
            self._like = torch.empty(0, dtype=dtype, device=self.device)
        if header is None or supermask is None or self.device.type == "meta" or header.device.type == "meta":
            self.supermask = held
            return
        with torch.no_grad():
            header = header.cpu()
            self._adopt_header(header, self._partition_counts(header))
            self.set_supermask(supermask.clone(), rescale=False)
            self._follow_scale()

    def _follow_scale(self) -> None:
        """Take the sigma that explains a loaded scale, so that a later step rescales from it and not from our own."""
        factor = self.config.factor(self._count_kept(), self.rows * self.cols)
        if factor and fmt.scale_of(self.code, self.sigma, factor) != self.scale:
            self.sigma = self.scale * fmt.RMS[self.code] / factor

    def _state_trouble(self, prefix: str, header, supermask, shape, state: dict) -> str | None:
        """Why a state cannot be loaded, found before anything is changed."""
        if shape is not None and shape.device.type != "meta" and shape.tolist() != list(self.shape):
            return f"{prefix}weight_shape: {shape.tolist()} in the state, {list(self.shape)} in the layer"
        if (header is None) != (supermask is None):
            present, absent = ("header", "supermask") if supermask is None else ("supermask", "header")
            return f"{prefix}{present}: the state has no {prefix}{absent}, and one means nothing without the other"
        scores = state.get(prefix + "scores")
        for name, own in (("bias", self.bias), ("gain", self.gain)):
            given = state.get(prefix + name)
            if given is not None and own is not None and given.shape != own.shape:
                return f"{prefix}{name}: {list(given.shape)} in the state, {list(own.shape)} in the layer"
        if header is None or header.device.type == "meta":
            return None
        try:
            fields = fmt.header_fields(header)
            if fields["code"] != self.code:
                return f"{prefix}header: code {fields['code']}, the layer has {self.code}"
            free = self._partition_counts(header.cpu())[2]
            fmt.check_supermask(supermask, free, prefix + "supermask")
        except ValueError as why:
            return f"{prefix.rstrip('.')}: {why}"
        if self.scores is not None and self.scores.numel() != free:
            return f"{prefix}scores: the state's partition has {free} free weights, the layer {self.scores.numel()}"
        if scores is not None and tuple(scores.shape) != (free,):
            return f"{prefix}scores: {list(scores.shape)} for {free} free weights"
        return None

    def extra_repr(self) -> str:
        config = self.config
        folded = f", gain={self.gain is not None}, relu={self.relu}" if self.folded else ""
        dtype = str(self.dtype).split(".")[-1]
        return (
            f"code={config.code}, seed={self.seed}, stream={self.stream}, sparsity={config.sparsity:g}, "
            f"freeze_ratio={sum(self.ratios):.6g}, residency={self.residency}, dtype={dtype}{folded}"
        )


def _all_but_scale(header: Tensor) -> list[int]:
    words = header.tolist()
    return words[: fmt.SCALE] + words[fmt.SCALE + 1 :]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
