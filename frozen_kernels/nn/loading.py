"""A frozen layer's part of `state_dict`: what is saved under its names, and what may be loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import format as fmt
from ..coats import check_coats
from ..generations import check_generations, check_redrawn
from ..tensor import FrozenTensor, check_row_scale
from .coats import FrozenCoats
from .state import LAYERED, STORED, swapping

_CHECKPOINT = "torch.distributed.checkpoint.state_dict"


class FrozenLoading(FrozenCoats):
    """Saving and loading of the state: header, supermask, shape, and scores while searching.

    A state says all of a layer: one without coats or generations loads as a layer without them.
    """

    @property
    def weight_shape(self) -> Tensor:
        """int64: the shape of the torch weight, as a state holds it."""
        return torch.tensor(self.shape, device=self.device)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """As torch's.

        torch.distributed.checkpoint looks here for the names of a state, and is also told those that no buffer bears.
        """
        found = dict(super().named_buffers(prefix, recurse, remove_duplicate))
        if not recurse and sys._getframe(1).f_globals.get("__name__") == _CHECKPOINT:
            dot = f"{prefix}." if prefix else ""
            for name, value in self._derived_state().items():
                found.setdefault(dot + name, value)
        return iter(found.items())

    def _derived_state(self) -> dict[str, Tensor]:
        """What a state holds beside parameters and buffers."""
        meta = self.device.type == "meta"
        empty = torch.empty(-(-self._counts[2] // 8), dtype=torch.uint8, device="meta")
        # weights of other shapes can have the same counts, so nothing else in a state tells them apart
        found = {"supermask": empty if meta else self.packed_supermask(), "weight_shape": self.weight_shape}
        if self.signed:
            found["signs"] = empty if meta else self.packed_signs()
        return found

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self._derived_state().items():
            destination[prefix + name] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = ("header", "supermask", "weight_shape", *(("signs",) if self.signed else ()))
        state = dict(state_dict)
        found = {name: state.pop(prefix + name, None) for name in own}
        header, supermask = found["header"], found["supermask"]
        if strict:
            missing_keys += [f"{prefix}{name}" for name, value in found.items() if value is None]
        trouble = self._state_trouble(prefix, header, supermask, found["weight_shape"], state)
        if trouble is None and self.signed and header is not None and header.device.type != "meta":
            trouble = self._signs_trouble(prefix, found["signs"], state.get(prefix + "row_scale"))
        names = STORED if self.stored else STORED[1:] if self.signed else ()
        stored = {name: state.pop(prefix + name, None) for name in names}
        layered = {name: state.pop(prefix + name, None) for name in LAYERED}
        if trouble is not None:
            error_msgs.append(trouble)
            return
        with swapping, torch.inference_mode(False), torch.no_grad():
            # buffers that torch must not write: a forward of another thread may be reading them
            kept = {name: self._buffers[name] for name in (*own[:2], *stored, *layered)}
            self._held = None
            self._buffers.update(dict.fromkeys(kept))
            super()._load_from_state_dict(
                state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            self._buffers.update(kept)
            if local_metadata.get("assign_to_params_buffers", False) and header is not None:
                # tensors of the state take the place of the layer's, with their device and dtype
                self._buffers["header"] = header
                dtype = self.dtype if self.bias is None else self.bias.dtype
                self._buffers["_like"] = torch.empty_like(self._buffers["_like"], dtype=dtype, device=header.device)  # type: ignore[arg-type]
            if header is None or supermask is None or "meta" in (self.device.type, header.device.type):
                self.prepare_calls()
                return
            header = header.detach().to("cpu", copy=True)
            held = {name: self._held_values(value) for name, value in stored.items()}
            held |= {name: None if v is None else v.to(self.device, copy=True) for name, v in layered.items()}
            if self.signed:
                held["draw"] = self.sign_plane(found["signs"].to(self.device), header.to(self.device))
            supermask = supermask.to(self.device, copy=True)
            self._become(header, self._partition_counts(header), supermask, rescale=False, **held)
            self._tie_tuned()
            self._follow_scale()

    def _held_values(self, value: Tensor | None) -> Tensor | None:
        """Values of a state as the layer holds them: packed ones as they are, all of them in the layer's dtype."""
        if value is None:
            return None
        # row scales are float32 in a layer of any dtype
        dtype = value.dtype if value.dim() == 1 else self.dtype
        return value.detach().to(self.device, dtype, copy=True)

    def _follow_scale(self) -> None:
        """Take the sigma that explains a loaded scale, so that a later step rescales from it and not from our own."""
        if self.stored:
            return
        factor = self.config.factor(self._sum_of_squares(), self.rows * self.cols)
        if factor and fmt.scale_of(self.code, self.sigma, factor) != self.scale:
            self.sigma = self.scale * fmt.rms_of(self.code) / factor

    def _state_trouble(self, prefix: str, header: Any, supermask: Any, shape: Any, state: dict[str, Any]) -> str | None:
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
        gain = state.get(prefix + "gain")
        if gain is not None and gain.device.type != "meta" and not gain.isfinite().all():
            return f"{prefix}gain: finite numbers, got {int((~gain.isfinite()).sum())} of {gain.numel()} that are not"
        if header is None or header.device.type == "meta":
            return None
        try:
            fields = fmt.header_fields(header)
            if fields["code"] != self.code:
                return f"{prefix}header: code {fields['code']}, the layer has {self.code}"
            free = self._partition_counts(header.cpu())[2]
            fmt.check_supermask(supermask, free, prefix + "supermask")
            self._check_layered(header, supermask, *(state.get(prefix + name) for name in LAYERED))
        except ValueError as why:
            return f"{prefix.rstrip('.')}: {why}"
        if self.scores is not None and self.scores.numel() != free:
            return f"{prefix}scores: the state's partition has {free} free weights, the layer {self.scores.numel()}"
        if scores is not None and tuple(scores.shape) != (free,):
            return f"{prefix}scores: {list(scores.shape)} for {free} free weights"
        return self._values_trouble(prefix, supermask, state) if self.stored else None

    def _check_layered(
        self, header: Tensor, supermask: Tensor, coats: Tensor | None, generations: Tensor | None
    ) -> None:
        """ValueError for coats or generations that the layer cannot have."""
        if coats is not None:
            if self.stored:
                raise ValueError(f"coats: 1 of a stored weight, got {1 + coats.shape[:1].numel()}")
            # whatever device each came from
            record = FrozenTensor(self.shape, self.code, header.cpu(), supermask.cpu())
            check_coats(coats.cpu(), record.keep_plane())
        if generations is not None:
            check_redrawn(self.code, fmt.header_fields(header)["generation"])
            check_generations(generations, self._partition_counts(header.cpu())[2])

    def _signs_trouble(self, prefix: str, signs: Tensor | None, row_scale: Tensor | None) -> str | None:
        if signs is None:
            return f"{prefix}signs: missing, and the weight is made of them"
        try:
            fmt.check_supermask(signs, self.rows * self.cols, prefix + "signs")
            if row_scale is not None:
                check_row_scale(row_scale, self.rows, prefix + "row_scale")
        except ValueError as why:
            return str(why)
        return None

    def _values_trouble(self, prefix: str, supermask: Tensor, state: dict[str, Any]) -> str | None:
        values, scale = (state.get(prefix + name) for name in STORED)
        if values is None:
            return f"{prefix}values: missing, and a stored weight is made of them"
        if values.device.type == "meta":
            return None
        kept = int(torch.ops.frozen_kernels.popcount(supermask))
        wanted = (kept,) if self.packed else self.shape
        if self.tuned is not None:
            tuned = state.get(prefix + "tuned")
            found = None if tuned is None else list(tuned.shape)
            if found != list(self.tuned.shape) or kept != self.tuned.numel():
                return (
                    f"{prefix}tuned: {found} in a state that keeps {kept} weights, the layer tunes "
                    f"{self.tuned.numel()}; finalize the model to load a packed state"
                )
        if tuple(values.shape) != wanted:
            return f"{prefix}values: {list(values.shape)} in the state, {list(wanted)} in the layer"
        if values.dim() == 1 and values.dtype not in fmt.VALUE_DTYPES.values():
            return f"{prefix}values: {values.dtype}, one of {', '.join(fmt.VALUE_DTYPES)} expected"
        rows = None if scale is None else list(scale.shape)
        if rows != ([self.rows] if values.dtype == torch.int8 else None):
            return f"{prefix}row_scale: {rows} for {values.dtype} values of {self.rows} rows"
        if scale is not None and (scale.dtype != torch.float32 or not (scale.isfinite() & (scale >= 0)).all()):
            return f"{prefix}row_scale: float32, 0 or more and finite, got {scale.dtype} from {float(scale.min()):g} on"
        return None
