"""The `Conv1D` of GPT-2 in transformers, a linear layer that holds its weight transposed."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FreezeConfig
from ..format import STORED
from ..select.sharded import loaded_class
from .layers import FrozenLinear, adopt

_PLACE = "transformers.pytorch_utils"


def is_conv1d(module: nn.Module, derived: bool = True) -> bool:
    """Whether a module is transformers' Conv1D, or of a class derived from it; transformers is not imported for it."""
    kind = loaded_class(_PLACE, "Conv1D")
    return kind is not None and (isinstance(module, kind) if derived else type(module) is kind)


class FrozenTransposedLinear(FrozenLinear):
    """transformers' `Conv1D(nf, nx)` with a frozen weight: x [..., nx] to [..., nf].

    Frozen is the linear layer that it equals: rows are outputs, so that `shape`, header and ticket are those of a
    `FrozenLinear(nx, nf)`. `weight`, masks, partition and scores come and go in Conv1D's shape, [nx, nf].

    Args:
        nf: outputs.
        nx: inputs.
        bias: whether there is a bias [nf]; Conv1D always has one.
        device: of the layer.
        dtype: of inputs, outputs and bias.
        **frozen: keyword arguments of `FrozenLayer`.
    """

    def __init__(
        self,
        nf: int,
        nx: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **frozen: Any,
    ) -> None:
        super().__init__(nx, nf, bias, device, dtype, **frozen)
        self.nf, self.nx = self.out_features, self.in_features

    @classmethod
    def from_module(
        cls, module: Any, config: FreezeConfig, *, stream: int = 0, **frozen: Any
    ) -> FrozenTransposedLinear:
        """The frozen twin of a Conv1D, with its bias, hooks, train mode, dtype and device.

        Args:
            module: transformers' `Conv1D`.
            config: settings of the frozen layer.
            stream: id of the weight under the seed of the settings, in [0, 2^32).
            **frozen: other keyword arguments of `FrozenLayer`.

        Raises:
            ValueError: settings that the layer cannot have, as `freeze_` says.
        """
        w = module.weight
        if config.code == STORED and frozen.get("state") is None:
            frozen = {"weight": w.T, **frozen}
        layer = cls(module.nf, module.nx, True, w.device, w.dtype, config=config, stream=stream, **frozen)
        return adopt(layer, module)  # type: ignore[no-any-return]

    def _plain(self) -> Any:
        plain = importlib.import_module(_PLACE).Conv1D(0, 0)
        plain.nf, plain.nx = self.nf, self.nx
        return plain

    def _effective(self) -> Tensor:
        return super()._effective().T

    def _times_gain(self, weight: Tensor, gain: Tensor) -> Tensor:
        return super()._times_gain(weight, gain).T

    def partition(self) -> Tensor:
        return super().partition().T

    def keep_mask(self) -> Tensor:
        return super().keep_mask().T

    def set_keep_mask(self, keep: Tensor) -> None:
        super().set_keep_mask(self._turned("keep", keep))

    def scores_as_weight(self) -> Tensor:
        return super().scores_as_weight().T

    def set_scores_as_weight(self, values: Tensor) -> None:
        super().set_scores_as_weight(self._turned("values", values))

    def _turned(self, name: str, given: Tensor) -> Tensor:
        if tuple(given.shape) != (self.nx, self.nf):
            raise ValueError(f"{name}: shape {[self.nx, self.nf]}, as of Conv1D's weight, got {list(given.shape)}")
        return given.T
