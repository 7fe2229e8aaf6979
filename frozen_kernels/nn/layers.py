"""Drop-in frozen twins of `torch.nn` layers: their positional signature, then `stream`, `generation`, `sigma` and any
field of `FreezeConfig` by keyword. See `FrozenLayer` for state and residencies."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .. import calls, functional
from ..config import FreezeConfig
from ..format import STORED, memory_format_of
from .layer import FrozenLayer

Size = int | tuple[int, ...]
_traced_by_dynamo = torch.compiler.is_dynamo_compiling


def adopt(new: nn.Module, module: nn.Module) -> Any:
    """Take over bias, train mode and hooks of the module that a layer replaces."""
    if getattr(new, "bias", None) is not None:
        new.bias = module.bias
    new.train(module.training)
    for name, value in vars(module).items():
        if isinstance(value, dict) and "_hooks" in name and hasattr(new, name):
            setattr(new, name, value)  # the same dict: the caller's handles go on removing their hooks
    new._is_full_backward_hook = module._is_full_backward_hook
    return new


def _stored_weight(module: Any, config: FreezeConfig, frozen: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a twin: with the module's weight where the config stores it and no state is given."""
    if config.code != STORED or frozen.get("state") is not None:
        return frozen
    return {"weight": module.weight, **frozen}


class FrozenLinear(FrozenLayer):
    """`torch.nn.Linear` with a frozen weight [out_features, in_features]: x [..., in] to [..., out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **frozen: Any,
    ) -> None:
        self.in_features, self.out_features = operator.index(in_features), operator.index(out_features)
        super().__init__(
            (self.out_features, self.in_features), self.out_features if bias else None, device, dtype, **frozen
        )

    @classmethod
    def from_module(cls, module: nn.Linear, config: FreezeConfig, *, stream: int = 0, **frozen: Any) -> FrozenLinear:
        """The frozen twin of a linear layer, with its bias, hooks, train mode, dtype and device.

        Args:
            module: a `torch.nn.Linear`.
            config: settings of the frozen layer.
            stream: id of the weight under the seed of the settings, in [0, 2^32).
            **frozen: other keyword arguments of `FrozenLayer`.

        Raises:
            ValueError: settings that the layer cannot have, as `freeze_` says.
        """
        w = module.weight
        layer = cls(
            module.in_features, module.out_features, module.bias is not None, w.device, w.dtype,
            config=config, stream=stream, **_stored_weight(module, config, frozen),
        )  # fmt: skip
        return adopt(layer, module)

    def _plain(self) -> nn.Linear:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.dtype)

    def geometry(self) -> calls.Geometry:
        return calls.Geometry("linear")

    def forward(self, input: Tensor) -> Tensor:
        """`relu(gain * input @ weight.T + bias)` for input [..., in_features]; returns [..., out_features]."""
        if not _traced_by_dynamo():
            y = self._call(input)
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        self._check_input(input)
        frozen, bias, gain = self._arguments_now()
        return functional.linear(input, frozen, bias, gain=gain, relu=self.relu)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {super().extra_repr()}"


def _as_channels_last(x: Tensor) -> Tensor:
    """Images in this layout, by their strides too where one channel or one pixel makes them contiguous as well."""
    x = x.contiguous(memory_format=torch.channels_last)
    if not x.is_contiguous():
        return x
    batch, channels, height, width = x.shape
    return x.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _FrozenConvBase(FrozenLayer):
    """Geometry of plain and transposed convolutions; a torch twin on the meta device checks the arguments."""

    _twin: type
    _function: Any
    transposed = False
    stride: Any
    padding: Any
    output_padding: Any
    dilation: Any
    kernel_size: tuple[int, ...]
    groups: int

    def _build(
        self, twin: Any, device: torch.device | str | None, dtype: torch.dtype | None, frozen: dict[str, Any]
    ) -> None:
        self.in_channels, self.out_channels, self.kernel_size = twin.in_channels, twin.out_channels, twin.kernel_size
        self.stride, self.padding, self.output_padding = twin.stride, twin.padding, twin.output_padding
        self.dilation, self.groups, self.padding_mode = twin.dilation, twin.groups, twin.padding_mode
        self._reversed_padding_repeated_twice = twin._reversed_padding_repeated_twice
        bias = twin.out_channels if twin.bias is not None else None
        FrozenLayer.__init__(self, tuple(twin.weight.shape), bias, device, dtype, **frozen)

    def geometry(self) -> calls.Geometry | None:
        numbers = (self.stride, self.padding, self.output_padding, self.dilation)
        if self.padding_mode != "zeros" or not all(isinstance(n, tuple) for n in numbers):
            return None
        op = f"conv{'_transpose' if self.transposed else ''}{len(self.kernel_size)}d"
        return calls.Geometry(op, *numbers, self.groups, self.channels_last)

    def _laid_out(self, input: Tensor) -> Tensor:
        """An input whose result is laid out as the layer was asked for; prepared calls need none."""
        return _as_channels_last(input) if self.channels_last and input.dim() == 4 else input

    @staticmethod
    def _arguments(m: Any) -> tuple:
        """The positional arguments, up to the device, that make a layer like `m`, frozen or torch's."""
        raise NotImplementedError

    @classmethod
    def from_module(cls, module: Any, config: FreezeConfig, *, stream: int = 0, **frozen: Any) -> Any:
        """The frozen twin of a convolution, with its bias, hooks, train mode, dtype and device.

        Args:
            module: a convolution of `torch.nn`.
            config: settings of the frozen layer.
            stream: id of the weight under the seed of the settings, in [0, 2^32).
            **frozen: other keyword arguments of `FrozenLayer`.

        Raises:
            ValueError: settings that the layer cannot have, as `freeze_` says.
        """
        w, make = module.weight, cast(Any, cls)
        frozen = _stored_weight(module, config, frozen)
        layer = make(*cls._arguments(module), w.device, w.dtype, config=config, stream=stream, **frozen)
        if memory_format_of(w) is torch.channels_last:
            layer.to(memory_format=torch.channels_last)
        return adopt(layer, module)

    def _plain(self) -> Any:
        return self._twin(*self._arguments(self), "meta", self.dtype)

    def extra_repr(self) -> str:
        described: Any = self._twin.extra_repr  # type: ignore[attr-defined]
        return f"{described(self)}, {super().extra_repr()}"


class _FrozenConv(_FrozenConvBase):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **frozen: Any,
    ) -> None:
        twin = self._twin(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta"
        )
        self._build(twin, device, dtype, frozen)

    @staticmethod
    def _arguments(m: Any) -> tuple:
        return (
            m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups,
            m.bias is not None, m.padding_mode,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of input [B, C, *spatial] or [C, *spatial], as torch's layer."""
        if not _traced_by_dynamo():
            y = self._call(input)
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        self._check_input(input)
        x, padding = self._laid_out(input), self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        function, geometry = type(self)._function, (self.stride, padding, self.dilation, self.groups)
        frozen, bias, gain = self._arguments_now()
        return function(x, frozen, bias, *geometry, gain=gain, relu=self.relu)


class FrozenConv1d(_FrozenConv):
    """`torch.nn.Conv1d` with a frozen weight [out, in / groups, k]."""

    _twin, _function = nn.Conv1d, staticmethod(functional.conv1d)


class FrozenConv2d(_FrozenConv):
    """`torch.nn.Conv2d` with a frozen weight [out, in / groups, kh, kw]."""

    _twin, _function = nn.Conv2d, staticmethod(functional.conv2d)


class FrozenConv3d(_FrozenConv):
    """`torch.nn.Conv3d` with a frozen weight [out, in / groups, kd, kh, kw]."""

    _twin, _function = nn.Conv3d, staticmethod(functional.conv3d)


class _FrozenConvTranspose(_FrozenConvBase):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **frozen: Any,
    ) -> None:
        twin = self._twin(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, "meta",
        )  # fmt: skip
        self._build(twin, device, dtype, frozen)

    @staticmethod
    def _arguments(m: Any) -> tuple:
        return (
            m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.output_padding, m.groups,
            m.bias is not None, m.dilation, m.padding_mode,
        )  # fmt: skip

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The transposed convolution of input [B, C, *spatial] or [C, *spatial], as torch's layer."""
        if output_size is None and not _traced_by_dynamo():
            y = self._call(input)
            if y is not None:
                return y
        if isinstance(input, fx.Proxy):
            return self._traced(input, output_size)
        self._check_input(input)
        x, output_padding = self._laid_out(input), self.output_padding
        if output_size is not None:
            dims = len(self.kernel_size)
            # torch's own rule, unbound: it reads nothing of the module
            rule: Any = nn.modules.conv._ConvTransposeNd._output_padding
            output_padding = rule(
                self, x, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
            )
        function = type(self)._function
        geometry = (self.stride, self.padding, output_padding, self.groups, self.dilation)
        frozen, bias, gain = self._arguments_now()
        return function(x, frozen, bias, *geometry, gain=gain, relu=self.relu)

    @property
    def outputs(self) -> int:
        return self.out_channels

    def _times_gain(self, weight: Tensor, gain: Tensor) -> Tensor:
        # columns are the channels of one group
        by_group = weight.view(self.groups, -1, *self.shape[1:])
        return (by_group * gain.view(self.groups, 1, -1, *[1] * len(self.kernel_size))).view(self.shape)


class FrozenConvTranspose1d(_FrozenConvTranspose):
    """`torch.nn.ConvTranspose1d` with a frozen weight [in, out / groups, k]."""

    _twin, _function = nn.ConvTranspose1d, staticmethod(functional.conv_transpose1d)


class FrozenConvTranspose2d(_FrozenConvTranspose):
    """`torch.nn.ConvTranspose2d` with a frozen weight [in, out / groups, kh, kw]."""

    _twin, _function = nn.ConvTranspose2d, staticmethod(functional.conv_transpose2d)


class FrozenConvTranspose3d(_FrozenConvTranspose):
    """`torch.nn.ConvTranspose3d` with a frozen weight [in, out / groups, kd, kh, kw]."""

    _twin, _function = nn.ConvTranspose3d, staticmethod(functional.conv_transpose3d)


class FrozenEmbedding(FrozenLayer):
    """`torch.nn.Embedding` with a frozen weight [num_embeddings, embedding_dim]; the row of `padding_idx` is zero.

    `max_norm`, `scale_grad_by_freq` and `sparse` rewrite or bypass the weight and are refused.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **frozen: Any,
    ) -> None:
        for name, value in (
            ("max_norm", max_norm is not None),
            ("scale_grad_by_freq", scale_grad_by_freq),
            ("sparse", sparse),
            ("_weight", _weight is not None),
        ):
            if value:
                raise ValueError(f"{name}: not possible with a frozen weight")
        self.num_embeddings, self.embedding_dim = operator.index(num_embeddings), operator.index(embedding_dim)
        self.padding_idx = None if padding_idx is None else functional.padding_row(self.num_embeddings, padding_idx)
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = max_norm, norm_type, False, False
        super().__init__((self.num_embeddings, self.embedding_dim), None, device, dtype, **frozen)

    @classmethod
    def from_module(
        cls, module: nn.Embedding, config: FreezeConfig, *, stream: int = 0, **frozen: Any
    ) -> FrozenEmbedding:
        """The frozen twin of an embedding, with its hooks, train mode, dtype and device.

        Args:
            module: a `torch.nn.Embedding`.
            config: settings of the frozen layer.
            stream: id of the weight under the seed of the settings, in [0, 2^32).
            **frozen: other keyword arguments of `FrozenLayer`.

        Raises:
            ValueError: settings that the layer cannot have, as `freeze_` says.
        """
        m = module
        layer = cls(
            m.num_embeddings, m.embedding_dim, m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse,
            device=m.weight.device, dtype=m.weight.dtype, config=config, stream=stream, **frozen,
        )  # fmt: skip
        return adopt(layer, module)

    def _config_gain(self) -> None:
        if not isinstance(self.config.gain, float):
            raise ValueError(f"gain: one factor for an embedding, got {self.config.gain}")

    def _plain(self) -> nn.Embedding:
        return nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta", dtype=self.dtype)

    def _effective(self) -> Tensor:
        """The effective weight, its padding row zero."""
        w = super()._effective()
        if self.padding_idx is None:
            return w
        return w.index_fill(0, torch.tensor([self.padding_idx], device=w.device), 0.0)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the weight for int64 or int32 input of any shape; returns [*input.shape, embedding_dim]."""
        if isinstance(input, fx.Proxy):
            return self._traced(input)
        return functional.embedding(input, self.frozen, self.padding_idx, dtype=self.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {super().extra_repr()}"


TWINS: dict[type[nn.Module], type[FrozenLayer]] = {
    nn.Linear: FrozenLinear,
    nn.Conv1d: FrozenConv1d,
    nn.Conv2d: FrozenConv2d,
    nn.Conv3d: FrozenConv3d,
    nn.ConvTranspose1d: FrozenConvTranspose1d,
    nn.ConvTranspose2d: FrozenConvTranspose2d,
    nn.ConvTranspose3d: FrozenConvTranspose3d,
    nn.Embedding: FrozenEmbedding,
}
"""The frozen layer of each torch layer; `TWINS[type(module)].from_module(module, config)` makes one."""


def plain_twin(layer: Any) -> Any:
    """The torch layer with the effective weight of a frozen one, times its gain, and its bias, hooks and train mode."""
    plain = layer._plain()
    weight = layer._effective().detach()
    if layer.gain is not None:
        exact = layer.frozen.weight(layer.gain.dtype).detach()
        weight = layer._times_gain(exact, layer.gain).to(layer.dtype)
    # a transposed one is a view, which writers of files refuse
    plain.weight = nn.Parameter(weight.contiguous())
    return adopt(plain, layer)
