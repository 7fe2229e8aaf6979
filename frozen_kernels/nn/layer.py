"""`FrozenLayer`: a module whose weight is a seed, a partition and a supermask; `layers` adds shapes and forwards."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NoReturn, cast

import torch
import torch.compiler.config
from torch import Tensor, fx, nn

from .. import calls
from .. import format as fmt
from ..config import FreezeConfig
from ..functional import autocasting
from ..select import sharded
from ..tensor import FrozenTensor, default_residency
from .effective import HOW, EffectiveWeight
from .loading import FrozenLoading
from .masks import Made, check_recomputed
from .state import OWN_BUFFERS

__all__ = ["OWN_BUFFERS", "FrozenLayer", "Made"]

_gradients = torch.is_grad_enabled

# dynamo fixes the sizes of parameters and buffers, and these differ from layer to layer: it would compile each anew
_SIZES_VARY = r".*_parameters\['scores'\],.*_buffers\['(supermask|generations)'\]"
if hasattr(torch.compiler.config, "dynamic_sources"):
    _others = torch.compiler.config.dynamic_sources
    torch.compiler.config.dynamic_sources = f"{_others},{_SIZES_VARY}" if _others else _SIZES_VARY


class FrozenLayer(FrozenLoading):
    """A layer whose weight is a seed, a partition and a supermask.

    Saved state: `header` int32 [8] (seed, stream, generation, thresholds, scale, code), `supermask` uint8
    [ceil(free / 8)], `weight_shape`, `scores` [free] while searching, `bias`, and `gain` where the layer is folded.
    Planes and offsets are derived and not saved; `coats` int32 [C - 1, rows, words] and `generations` are, where
    `adopt_counts` or `redraw` made them.
    A folded layer gives `relu(gain * W x + bias)`: `gain`, a buffer with one float32 value per output channel (float64
    in a float64 layer), None unless the config has one for each part of the outputs, and `relu`, an attribute, False by
    default. Embeddings have neither.
    With code "stored" the state has `values`, all of them or once finalized the kept ones packed, and `row_scale`. With
    code "signs" it has `signs` uint8 [ceil(rows * columns / 8)], and `row_scale` where rows have one.

    A convolution that saw `.to(memory_format=torch.channels_last)` gives results in this layout, as torch's does.

    Layers for users are those with a torch twin, such as `FrozenLinear`: they take the arguments of the twin, and the
    keyword arguments below.

    Args:
        shape: of the torch weight.
        bias: how many outputs have a bias, None for none.
        device: of the layer.
        dtype: of inputs, outputs and bias.
        stream: 32-bit id of the tensor under its seed.
        generation: 0, or how often all weights were drawn again.
        sigma: standard deviation of the weights before the config's gain; Kaiming's `sqrt(2 / columns)` by default.
        config: settings, in place of single fields.
        ratios: this layer's prune and lock ratio where it is one of a network's; the config's by default.
        state: a header on the CPU and a supermask to hold without scores, or `Made` of them.
        masks: False where the caller makes the masks of many layers together, until when there is no forward.
        weight: with code "stored", the values, of torch's shape.
        kept: with code "stored", how many the mask keeps; the sparsity's by default.
        **settings: fields of `FreezeConfig`.

    Raises:
        ValueError: settings that do not fit each other or the layer, or `config` beside single fields.
        TypeError: a keyword that is no setting.
    """

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
        state: tuple[Tensor, Tensor] | Made | None = None,
        masks: bool = True,
        weight: Tensor | None = None,
        kept: int | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise ValueError(f"config: given together with {', '.join(settings)}")
        known = {f.name for f in fields(FreezeConfig)}
        for name in settings:
            if name not in known:
                raise TypeError(f"{name}: not a setting of a frozen layer; known: {', '.join(sorted(known))}")
        super().__init__(shape, device, dtype)
        self.config = FreezeConfig(**settings) if config is None else config
        self.ratios = self.config.ratios if ratios is None else ratios
        self.residency = default_residency(self.code)
        # a rule may change sigma, and a loaded scale does
        self.first_sigma = (fmt.kaiming_sigma(self.cols) if sigma is None else float(sigma)) * self.config.common_gain
        self.sigma = self.first_sigma
        self._start = {"seed": self.config.seed, "stream": stream, "generation": generation}
        self.register_parameter("scores", None)
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(torch.zeros(bias, device=device, dtype=dtype))
        self.register_parameter("tuned", None)
        if state is None and self.stored:
            self.start_stored(weight, kept)
        elif state is None:
            self.reset_parameters(masks)
        elif isinstance(state, Made):
            self.adopt(state, self.config, self.sigma)
        else:
            self.restore(*state, self.config, self.sigma)

    @property
    def frozen(self) -> FrozenTensor:
        """The record that `functional` takes, with the scores that receive gradients.

        RuntimeError where a backward computes a checkpointed forward again and the mask has changed between.
        ValueError where something else wrote the header.
        """
        return self._arguments_now()[0]

    def _arguments_now(self) -> tuple[FrozenTensor, Tensor | None, Tensor | None]:
        """The record with its scores, and the bias and the gain that belong to it."""
        scores, bias = self._parameters["scores"], cast(nn.Parameter, self._parameters["bias"])
        if torch.compiler.is_compiling():
            return self._record(scores), bias, self._buffers["gain"]
        if scores is not None:
            check_recomputed(self)
        held = self.held()
        if bias is not held.bias or held.bias_values is None or calls.transformed():
            values: Tensor | None = bias
        elif not _gradients():
            values = held.bias_values
        else:
            # a ticket that is loaded meanwhile gives the parameter other memory, which a view does not follow
            values = bias.view_as(bias)
            while values.data_ptr() != held.bias_at:
                held, values = self.held(), bias.view_as(bias)
        return held.record._replace(scores=scores), values, held.gain

    @property
    def weight(self) -> Tensor:
        """The effective weight, materialised in the layer's dtype, without a gain; its gradient goes to the scores.

        Made anew at each reading: writing it in place, or assigning it, is an error that says what to do instead.
        """
        weight = self._effective()
        return weight if torch.compiler.is_compiling() else weight.as_subclass(EffectiveWeight)

    @weight.setter
    def weight(self, value: object) -> NoReturn:
        raise AttributeError(HOW)

    def _effective(self) -> Tensor:
        return self.frozen.weight(self.dtype)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":
            raise AttributeError(HOW)
        super().register_parameter(name, param)

    def _times_gain(self, weight: Tensor, gain: Tensor) -> Tensor:
        return weight * gain.view(-1, *[1] * (weight.dim() - 1))

    def _call(self, x: Tensor) -> Tensor | None:
        """The result of a prepared call, None where the call takes the ordinary way through an op."""
        held = self._held
        if held is None:
            return None
        call, buffers, bias = held.call, self._buffers, self._parameters["bias"]
        if (
            call is None
            or type(x) is not Tensor
            or buffers["header"] is not held.header
            or buffers[held.main] is not held.weight
            or buffers["gain"] is not held.gain
            or (held.gain is not None and (held.gain.data_ptr() != held.gain_at or held.gain.requires_grad))
            or bias is not held.bias
            or (bias is not None and bias.data_ptr() != held.bias_at)
        ):
            return None
        scores = self._parameters["scores"]
        if scores is not None:
            check_recomputed(self)
        if not _gradients():
            return call.forward(x)
        if scores is None and not x.requires_grad and (bias is None or not bias.requires_grad):
            return call.forward(x)
        return call.train(x, bias, scores)

    def _traced(self, input: fx.Proxy, *others: Any) -> Any:
        """A call of this module in the graph that torch.fx makes of whatever holds it, as of torch's own layers."""
        tracer: Any = input.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (input, *others), {})

    def _check_input(self, x: Tensor) -> None:
        if x.dtype != self.dtype and not autocasting(x) and not self._cast_to(x.dtype):
            raise TypeError(f"x: {x.dtype} does not match the layer's {self.dtype}")

    def _cast_to(self, dtype: torch.dtype) -> bool:
        # mixed precision of fully_shard casts parameters for the time of a forward, and a layer without any follows x
        narrower = sharded.may_shard() and dtype.itemsize < self.dtype.itemsize
        return narrower and all(p is None or p.dtype == dtype for p in self._parameters.values())

    def extra_repr(self) -> str:
        config = self.config
        folded = f", gain={self.gain is not None}, relu={self.relu}" if self.folded else ""
        dtype = str(self.dtype).split(".")[-1]
        if self.stored:
            values = "" if self.values is None else f", values={str(self.values.dtype).split('.')[-1]}"
            kept = f"kept={self.counts['kept']} of {self.rows * self.cols}" if self.device.type != "meta" else "meta"
            return f"code=stored, {kept}, residency={self.residency}{values}, dtype={dtype}{folded}"
        coats = "" if self.coats is None else f", coats={1 + self.coats.shape[0]}"
        again = "" if self.generations is None else ", generations=True"
        if self.signed and self.scores is None:
            meta = self.device.type == "meta"
            scales = ", a scale per row" if self.row_scale is not None else "" if meta else f", scale={self.scale:.6g}"
            kept = "meta" if meta else f"kept={self.counts['kept']} of {self.rows * self.cols}"
            return f"code=signs, {kept}{scales}, residency={self.residency}, dtype={dtype}{folded}"
        return (
            f"code={config.code}, seed={self.seed}, stream={self.stream}, sparsity={config.sparsity:g}, "
            f"freeze_ratio={sum(self.ratios):.6g}{coats}{again}, residency={self.residency}, dtype={dtype}{folded}"
        )
