"""What a frozen layer holds: a header, and what its residency keeps of the mask, taken over whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from .. import calls
from .. import format as fmt
from ..coats import sum_of_squares
from ..config import FreezeConfig
from ..select import sharded
from ..tensor import FrozenTensor, Residency, check_residency, residencies_of

DERIVED = ("offsets", "keep", "draw", "dense")
STORED = ("values", "row_scale")  # of a stored weight; stored signs may have the latter
LAYERED = ("coats", "generations")  # of a weight that counts several times, or was drawn again
# what seed and scores make again, or values that never change: the same in every process
OWN_BUFFERS = ("_like", "header", "supermask", *DERIVED, *STORED, *LAYERED)
RECORD = ("header", "supermask", *DERIVED, *STORED, *LAYERED)  # the fields of a FrozenTensor
_READ = (*RECORD, "gain")  # by a forward
# what a prepared call was made of: assigning one makes the call anew
_PREPARED_FROM = {
    *_READ, "bias", "relu", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode",
}  # fmt: skip
swapping = threading.RLock()


class Held(NamedTuple):
    """One state of a layer, whole: what a forward reads, and what it needs to see that nobody else changed it.

    `main` names the buffer that holds most of the weight, `weight` is that buffer. `bias` is the parameter,
    `bias_values` its memory, at `bias_at`; that of `gain` is at `gain_at`. `words` are those that the header had.
    """

    record: FrozenTensor
    main: str
    header: Tensor
    weight: Tensor | None
    gain: Tensor | None
    gain_at: int
    relu: bool
    bias: nn.Parameter | None
    bias_values: Tensor | None
    bias_at: int
    words: list[int]
    call: calls.Prepared | None


def _own(tensor: Tensor | None) -> Tensor | None:
    """A tensor that autograd may save later, though it was made under `inference_mode`."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


class FrozenState(nn.Module):
    """The buffers of a frozen layer and how they change.

    torch's own machinery (`.to`, `state_dict`, wrappers) works on the buffers. A forward on a CPU reads `_held`, which
    is replaced in one assignment, with tensors that are never written again: whoever runs a forward in another thread
    meanwhile gets the old state or the new one. On a GPU buffers are written in place, for captured graphs and in the
    order of the stream.
    """

    header: Tensor
    supermask: Tensor | None
    offsets: Tensor | None
    keep: Tensor | None
    draw: Tensor | None
    dense: Tensor | None
    values: Tensor | None
    row_scale: Tensor | None
    coats: Tensor | None
    generations: Tensor | None
    bias: nn.Parameter | None
    gain: Tensor | None
    scores: nn.Parameter | None
    config: FreezeConfig
    _start: dict[str, int]  # seed, stream and generation that reset_parameters goes back to
    _seen: tuple[int, int] | None = None  # the scores that the mask was made of, and their version
    shape: tuple[int, ...]
    rows: int
    cols: int
    residency: str

    def __init__(self, shape: tuple[int, ...], device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        if dtype is not None and (not dtype.is_floating_point or dtype.itemsize < 2):
            raise TypeError(f"dtype: float32, bfloat16, float16 or float64, got {dtype}")
        self.shape = tuple(shape)
        self.rows, self.cols = fmt.matrix_shape(self.shape)
        self.residency = "mask"
        self._kept: int | None = None
        self._counts: tuple[int, ...] = (0, 0, 0)
        self._words: list[int] = []
        self._held: Held | None = None
        # layers of one weight that no seed draws have one list, which copies and pickles keep one
        self._weight: list[None] = []
        # carries the layer's dtype through .to(), and with four dimensions the layout of a dense weight
        like = torch.empty((0, 2, 2, 2) if len(self.shape) == 4 else (0,), device=device, dtype=dtype)
        self.register_buffer("_like", like, persistent=False)
        self.register_buffer("header", torch.empty(fmt.HEADER_WORDS, dtype=torch.int32, device=like.device))
        self.register_buffer("supermask", None)
        for name in DERIVED:
            self.register_buffer(name, None, persistent=False)
        for name in (*STORED, *LAYERED, "gain"):
            self.register_buffer(name, None)
        self.relu = False

    @property
    def masks_are_stale(self) -> bool:
        """Whether the scores moved since the mask was made, as after an optimizer's step without `search.step()`.

        False where that cannot be seen: finalized, sharded or copied layers, and steps of a compiled search.
        """
        scores = self.scores
        if scores is None or self._seen is None or sharded.is_sharded(scores):
            return False
        return self._seen[0] == id(scores) and self._seen[1] != scores._version

    @property
    def gain_dtype(self) -> torch.dtype:
        """The dtype of a gain: a layer of half precision keeps one in float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def outputs(self) -> int:
        """How many output channels the layer has, each with its own gain where there is one."""
        return self.rows

    def geometry(self) -> calls.Geometry | None:
        """The arguments of the layer's op, None where its calls are not prepared."""
        return None

    @property
    def code(self) -> str:
        """What the weights are: a drawn code, "stored" or "signs"."""
        return self.config.code

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's inputs, outputs and bias."""
        like: Tensor = self._buffers["_like"]  # type: ignore[assignment]
        return like.dtype

    @property
    def device(self) -> torch.device:
        """Where the layer's tensors are."""
        return self.header.device

    @property
    def channels_last(self) -> bool:
        """Whether `.to(memory_format=torch.channels_last)` asked for this layout, of a dense weight and of results."""
        like: Tensor = self._buffers["_like"]  # type: ignore[assignment]
        return like.dim() == 4 and like.stride(1) == 1

    @property
    def in_place(self) -> bool:
        """Whether changes are written into the buffers: on a GPU, and where torch.compile traces them."""
        return torch.compiler.is_compiling() or self._buffers["_like"].device.type == "cuda"  # type: ignore[union-attr]

    @property
    def seed(self) -> int:
        """The seed of the weight, 0 to 2^64 - 1."""
        return self._start["seed"]

    @property
    def stream(self) -> int:
        """The id of the weight under its seed, 0 to 2^32 - 1."""
        return self._start["stream"]

    @property
    def identity(self) -> tuple[object, ...]:
        """What layers of one weight have in common, and no others of a model: seed and stream, or what is stored."""
        if self.config.code in (fmt.STORED, fmt.SIGNS):
            return (self.config.code, id(self._weight))
        return (self.seed, self.stream)

    @property
    def scale(self) -> float:
        """The fp32 factor on every code."""
        return fmt.header_fields(self.header)["scale"]

    @property
    def residencies(self) -> tuple[Residency, ...]:
        """Those that the weight can be in."""
        return residencies_of(self.code, self.coats is not None, self.generations is not None)

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

    def _count_kept(self) -> int:
        # counted when first asked for: a search changes masks at each step and must not wait for them
        if self._kept is None:
            popcount = torch.ops.frozen_kernels.popcount
            if self.keep is not None:
                self._kept = int(popcount(self.keep))
            else:
                self._kept = self._counts[1] + int(popcount(self.supermask))
        return self._kept

    def _sum_of_squares(self) -> int:
        """Of how often each weight counts: of one coat, how many are kept."""
        kept = self._count_kept()
        return kept if self.coats is None else int(sum_of_squares(torch.tensor(kept), self.coats))

    def _record(self, scores: Tensor | None = None) -> FrozenTensor:
        b: Any = self._buffers  # attributes of a module are looked up in three dicts, one after the other
        return FrozenTensor(
            self.shape, self.config.code, b["header"], b["supermask"], b["offsets"], b["keep"], b["draw"], b["dense"],
            b["values"], b["row_scale"], scores, b["coats"], b["generations"],
        )  # fmt: skip

    def _partition_counts(self, header: Tensor) -> tuple[int, ...]:
        """Pruned, locked and free weights that a header on the CPU gives."""
        return tuple(torch.ops.frozen_kernels.partition_counts(header, self.rows, self.cols).tolist())

    def check_buffers(self) -> None:
        """ValueError where header or offsets hold other numbers than the layer put there: a mean of them is no tensor.

        Waits for the device.
        """
        if self.device.type == "meta":
            return
        self._check_header(self.header.tolist())
        drawn = self.values is None
        counted, what = (self.free, "free weights") if drawn else (self.values.numel(), "values")  # type: ignore[union-attr]
        if self.offsets is not None and int(self.offsets[-1]) != counted:
            raise ValueError(f"offsets: {int(self.offsets[-1])} {what} in a layer that has {counted}")

    def _check_header(self, found: list[int]) -> None:
        # a scale moves with the mask: who copies both, as an average of scores does, has a whole tensor
        if found[: fmt.SCALE] != self._words[: fmt.SCALE] or found[fmt.CODE] != self._words[fmt.CODE]:
            raise ValueError(
                f"header: {found} of a layer made with {self._words}: something else wrote it, as an average over a "
                "state does, or to_empty left it unfilled; load a state or a ticket, or call reset_parameters()"
            )

    def held(self) -> Held:
        """What a forward reads, all of one state.

        ValueError where somebody else changed the header on a CPU; on a GPU looking would wait for the device.
        """
        held = self._held
        if held is None or not self._is_current(held):
            with swapping:
                held = self._held
                if held is None or not self._is_current(held):
                    # buffers that a wrapper put here for the time of a call
                    held = self._now(prepared=False)
        if held.record.header.device.type == "cpu" and not calls.transformed():
            found = held.record.header.tolist()
            if found != held.words:
                self._check_header(found)
        return held

    def _is_current(self, held: Held) -> bool:
        b, record = self._buffers, held.record
        return (
            b["header"] is record.header
            and b["supermask"] is record.supermask
            and b["offsets"] is record.offsets
            and b["keep"] is record.keep
            and b["draw"] is record.draw
            and b["dense"] is record.dense
            and b["values"] is record.values
            and b["row_scale"] is record.row_scale
            and b["coats"] is record.coats
            and b["generations"] is record.generations
            and b["gain"] is held.gain
            and self._has_bias_of(held)
        )

    def _has_bias_of(self, held: Held) -> bool:
        bias = self._parameters.get("bias")
        return bias is held.bias and (held.bias_values is None or bias.data_ptr() == held.bias_at)  # type: ignore[union-attr]

    def _now(self, prepared: bool = True) -> Held:
        record, bias = self._record(), self._parameters.get("bias")
        gain: Any = self._buffers["gain"]
        on_cpu = record.header.device.type == "cpu" and type(record.header) is Tensor
        ours = prepared and on_cpu and bias is not None and not sharded.is_sharded(bias)
        values = bias.detach() if ours and bias is not None else None
        geometry = self.geometry() if prepared and on_cpu else None
        call = None
        if geometry is not None:
            call = calls.prepare(record, geometry, values, gain, self.relu, self.dtype)
        at = 0 if values is None else values.data_ptr()
        gain_at = gain.data_ptr() if call is not None and gain is not None else 0
        main = "dense" if record.dense is not None else "keep" if record.keep is not None else "supermask"
        return Held(
            record, main, record.header, getattr(record, main), gain, gain_at, self.relu, bias, values, at,
            self._words, call,
        )  # fmt: skip

    def prepare_calls(self) -> None:
        """Let the next calls run on the layer's tensors as they are now, whoever put them there."""
        self._held = None if torch.compiler.is_compiling() else self._now()

    def _take(self, record: FrozenTensor, residency: str) -> None:
        """Become a record in a residency: on a CPU with tensors of its own, and all of it at once."""
        self._put(record.hold(residency, self.dtype, with_offsets=self.scores is not None), residency)

    def _put(self, held: FrozenTensor, residency: str) -> None:
        """Hold a record that is in its residency already."""
        if held.dense is not None and self.channels_last:
            held = held._replace(dense=held.dense.contiguous(memory_format=torch.channels_last))
        if self.in_place:
            self._write(held, residency)
            self._held = None
            return
        with torch.inference_mode(False), torch.no_grad():
            new = {name: _own(getattr(held, name)) for name in RECORD}
        with swapping:
            old = [t for name, t in self._buffers.items() if name in new and t is not None and t is not new[name]]
            self._buffers.update(new)
            self.__dict__["residency"] = residency
            self.prepare_calls()
        # a backward that saved them must not go on with a mask that is gone
        increment_version([t for t in old if not t.is_inference()])

    def _write(self, held: FrozenTensor, residency: str) -> None:
        self.residency = residency
        self.supermask = held.supermask
        for name in ("header", *DERIVED, *STORED, *LAYERED):
            new, old = getattr(held, name), getattr(self, name)
            if new is not None and old is not None and new is not old and _alike(new, old):
                old.copy_(new)  # in place: captured graphs and views stay valid
            else:
                setattr(self, name, new)

    def set_residency(self, residency: str) -> None:
        """Hold the weight in another way; it does not change.

        Args:
            residency: seed, mask, planes or dense; of a stored weight packed or dense, of stored signs planes or dense.

        Raises:
            ValueError: one that the weight does not have.
            RuntimeError: a stored weight whose kept values are tuned; finalize it first.
        """
        check_residency(residency, self.code, self.coats is not None, self.generations is not None)
        if self.device.type == "meta":
            self.residency = residency
        else:
            self._take(self._record(), residency)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _PREPARED_FROM and not torch.compiler.is_compiling() and self.__dict__.get("_held") is not None:
            self.prepare_calls()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenState:
        before, held, stale = self.dtype, dict(self._buffers), self.masks_are_stale
        super()._apply(fn, recurse)
        values: Any = held["values"]
        packed = values is not None and values.dim() == 1 and not isinstance(values, nn.Parameter)
        packed = packed or self.config.code == fmt.SIGNS
        for name in ("header", "supermask", *DERIVED[:3], *LAYERED, *(STORED if packed else ())):
            old, new = held[name], self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                # bits are no numbers to cast, and what is packed is not rounded again
                self._buffers[name] = old.to(new.device)
        gain: Any = held["gain"]
        wide = self.gain_dtype
        if gain is not None and self._buffers["gain"].dtype != wide:  # type: ignore[union-attr]
            self._buffers["gain"] = gain.to(self.device, wide)  # a half precision layer keeps the gain it was given
        if not self.dtype.is_floating_point:
            cast, self._buffers["_like"] = self.dtype, held["_like"]
            raise TypeError(f"dtype: a frozen layer takes float32, bfloat16, float16 or float64, got {cast}")
        if self.dtype != before and self.dense is not None and self.device.type != "meta":
            # rounded once from the format, not twice through the old dtype
            self._take(self._record()._replace(dense=None), "dense")
        else:
            self.prepare_calls()
        if self._seen is not None and self.scores is not None and not stale:
            self._seen = (id(self.scores), self.scores._version)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.prepare_calls()


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
