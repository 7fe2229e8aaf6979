"""`nn.MultiheadAttention` with frozen projections, and how torch's attention is opened for them and closed again."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .. import functional
from ..config import FreezeConfig
from .layers import FrozenLinear
from .models import replace_module

_TOGETHER = {"in_proj": "in_proj_weight"}
_APART = {"q_proj": "q_proj_weight", "k_proj": "k_proj_weight", "v_proj": "v_proj_weight"}


def _parts(attention: nn.MultiheadAttention) -> dict[str, str]:
    """The parameter that holds the weight of each input projection, by the projection's name."""
    return _TOGETHER if attention._qkv_same_embed_dim else _APART


class Projection(nn.Linear):
    """A weight of torch's attention as a linear layer without bias: it stands for the weight until that is frozen."""

    def __init__(self, attention: nn.MultiheadAttention, part: str) -> None:
        nn.Module.__init__(self)
        weight = attention._parameters[part]
        assert weight is not None
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", None)
        self.place = attention, part  # in a tuple: no child of this module
        self.train(attention.training)


class FrozenProjection(FrozenLinear):
    """A frozen input projection of an attention, which holds the bias of all of them and gives its part along."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """`relu(gain * input @ weight.T + bias)` for input [..., in_features]; returns [..., out_features]."""
        if bias is None:
            return super().forward(input)
        self._check_input(input)
        frozen, _, gain = self._arguments_now()
        return functional.linear(input, frozen, bias, gain=gain, relu=self.relu)


def _become(kind: Any, module: nn.Module) -> Any:
    """A module of another class with everything that one has, its hooks among it; parts may be changed in either."""
    new = kind.__new__(kind)
    # what is bound to the old module goes on calling it
    bound = ("forward", "_compiled_call_impl")
    new.__dict__.update({name: value for name, value in vars(module).items() if name not in bound})
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(vars(module)[name])
    return new


def _is_torchs(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is torch's attention or one that was opened, and of no class derived from them."""
    return type(module) in (nn.MultiheadAttention, FrozenMultiheadAttention)


def input_projections(module: nn.Module) -> dict[str, Projection]:
    """What stands for the input weights of torch's own attention by name, or for those left of one that is opened.

    Empty for other modules: subclasses may read their weights elsewhere, and so may what makes them anew at each call.
    """
    if not _is_torchs(module):
        return {}
    parts = {name: part for name, part in _parts(module).items() if name not in module._modules}
    plain = all(isinstance(module._parameters.get(part), nn.Parameter) for part in parts.values())
    return {name: Projection(module, part) for name, part in parts.items()} if plain else {}


def open_attentions(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Replace every torch attention of which one of the layers is a projection by one that calls its projections.

    The layers stand in it under their names, to be replaced by frozen ones.
    """
    chosen = {id(layer): layer for layer in layers}
    standing = [layer for layer in chosen.values() if isinstance(layer, Projection)]
    for module in list(model.modules()):
        if not _is_torchs(module):
            continue
        own = {layer.place[1]: layer for layer in standing if layer.place[0] is module}
        if isinstance(module, FrozenMultiheadAttention):
            module._stand(own)
        elif own or id(module.out_proj) in chosen:
            replace_module(model, module, FrozenMultiheadAttention._opened(module, own))


def close_attention(attention: FrozenMultiheadAttention) -> nn.MultiheadAttention:
    """torch's attention with the weights of one whose projections are torch's layers again."""
    plain = _become(nn.MultiheadAttention, attention)
    weights = {part: plain._parameters.pop(part, None) for part in (*_APART.values(), *_TOGETHER.values())}
    for name, part in _parts(attention).items():
        inner = plain._modules.pop(name, None)
        weights[part] = weights[part] if inner is None else inner.weight
    plain._parameters = {**weights, **plain._parameters}  # in torch's order
    plain._modules["out_proj"] = _become(NonDynamicallyQuantizableLinear, attention.out_proj)
    return plain


class FrozenMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose projections are layers that it calls (Vaswani et al., arXiv 1706.03762).

    `in_proj`, one frozen weight [3 * embed_dim, embed_dim] of query, key and value, or `q_proj`, `k_proj` and `v_proj`
    where `kdim` or `vdim` differ, and `out_proj`. Biases stay where torch has them. A projection that is not frozen
    is the parameter that it is in torch's attention. `in_proj_weight` and its like are materialised for who reads them.
    Query, key and value that are one tensor take one call of `in_proj`. A frozen weight has no slices of rows: with
    other keys it computes all outputs for each of the tensors, and half or a third of them is used.
    The result is that of torch's own Python path; nested tensors, which only torch's fused path takes, are refused.

    Arguments are those of torch's attention, then keyword-only `settings`, fields of `FreezeConfig`, or `config` in
    place of them, and `stream`, the first of as many as there are weights. Several gains are those of `in_proj`'s
    parts.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        stream: int = 0,
        config: FreezeConfig | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise ValueError(f"config: given together with {', '.join(settings)}")
        config = FreezeConfig(**settings) if config is None else config
        plain = nn.MultiheadAttention(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self.__dict__.update(vars(self.from_module(plain, config, stream=stream)))

    @classmethod
    def from_module(
        cls, module: nn.MultiheadAttention, config: FreezeConfig, *, stream: int = 0
    ) -> FrozenMultiheadAttention:
        """The frozen twin of an attention, with its biases, hooks, train mode, dtype and device.

        Args:
            module: a `torch.nn.MultiheadAttention`.
            config: settings of its weights.
            stream: of the first weight; others follow in the order of the projections, `out_proj` last.

        Raises:
            ValueError: an attention whose weights are no parameters of their own.
        """
        standing = input_projections(module)
        if not standing:
            raise ValueError(f"module: torch's MultiheadAttention with its parameters, got {type(module).__name__}")
        new = cls._opened(module, {layer.place[1]: layer for layer in standing.values()})
        for name in (*standing, "out_proj"):
            kind, own = FrozenProjection if name in standing else FrozenLinear, config
            if name == "out_proj" and isinstance(config.gain, tuple):
                own = replace(config, gain=1.0)  # several are those of query, key and value
            new._modules[name] = kind.from_module(new._modules[name], own, stream=stream)  # type: ignore[arg-type]
            stream += 1
        return new

    @classmethod
    def _opened(cls, module: nn.MultiheadAttention, standing: dict[str, Projection]) -> FrozenMultiheadAttention:
        """An attention with the layers that stand for some of its input weights, by the names of these."""
        new: FrozenMultiheadAttention = _become(cls, module)
        new._stand(standing)
        return new

    def _stand(self, standing: dict[str, Projection]) -> None:
        """Hold layers in place of input weights, by the names of these."""
        inner: dict[str, nn.Module | None] = {}
        for name, part in _parts(self).items():
            if part in standing:
                inner[name] = standing[part]
                del self._parameters[part]
        self._modules = {**inner, **self._modules}

    def _weight(self, part: str) -> Tensor | None:
        inner: Any = self._modules.get(part.removesuffix("_weight"))
        if inner is None:
            return self._parameters.get(part)
        weight: Tensor = inner.weight
        gain = getattr(inner, "gain", None)
        if gain is None:
            return weight
        scaled = (weight.as_subclass(Tensor) * gain.unsqueeze(1)).to(weight.dtype)
        return scaled if torch.compiler.is_compiling() else scaled.as_subclass(type(weight))

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The weight of `in_proj`, materialised."""
        return self._weight("in_proj_weight")

    @property
    def q_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The weight of `q_proj`, materialised."""
        return self._weight("q_proj_weight")

    @property
    def k_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The weight of `k_proj`, materialised."""
        return self._weight("k_proj_weight")

    @property
    def v_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """The weight of `v_proj`, materialised."""
        return self._weight("v_proj_weight")

    def _project(self, name: str, x: Tensor, bias: Tensor | None) -> Tensor:
        layer = self._modules.get(name)
        if layer is None:
            return F.linear(x, self._parameters[f"{name}_weight"], bias)  # type: ignore[arg-type]
        return layer(x, bias)  # type: ignore[no-any-return]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value after their projections, each [..., embed_dim]."""
        bias = self.in_proj_bias
        if not self._qkv_same_embed_dim:
            biases = (None, None, None) if bias is None else bias.chunk(3)
            given = zip(_APART, (query, key, value), biases, strict=True)
            return tuple(self._project(name, x, b) for name, x, b in given)
        if query is key and key is value:
            return self._project("in_proj", query, bias).chunk(3, -1)
        kv = self._project("in_proj", key, bias)
        q = self._project("in_proj", query, bias)
        v = kv if value is key else self._project("in_proj", value, bias)
        e = self.embed_dim
        return q[..., :e], kv[..., e : 2 * e], v[..., 2 * e :]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as torch's: arguments, shapes and results are those of `torch.nn.MultiheadAttention.forward`.

        ValueError for tensors or masks of shapes that do not fit, TypeError for masks neither bool nor floating and for
        nested tensors; RuntimeError for `is_causal` without the mask that it describes, as torch's.
        """
        if isinstance(query, fx.Proxy):
            return self._traced(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if query.is_nested or key.is_nested or value.is_nested:
            raise TypeError(
                "query: nested tensors, which a frozen attention does not take; pad them and give key_padding_mask"
            )
        batched = query.dim() == 3
        length, keys = self._lengths(query, key, value)
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal: describes attn_mask, which is None; give the mask too")
        batch = query.shape[0 if self.batch_first else 1] if batched else 1
        padding = _additive(
            "key_padding_mask", key_padding_mask, [(batch, keys)] if batched else [(keys,)], query.dtype
        )
        shapes = [(length, keys), (batch * self.num_heads, length, keys)]
        mask = _additive("attn_mask", attn_mask, shapes, query.dtype)
        # as torch: with weights or padding the mask itself counts, else the hint in its place
        hinted = is_causal and padding is None and not need_weights
        q, k, v = (self._heads(t, batched) for t in self._projected(query, key, value))
        k, v = self._longer(k, self.bias_k), self._longer(v, self.bias_v)
        mask = self._merged(None if hinted else mask, padding, batch, k.shape[2] - keys)
        mask = mask if mask is None else mask.to(q.dtype)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, hinted)
        y = self._together(mixed, batched)
        if weights is None:
            return y, None
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return y, weights if batched else weights.squeeze(0)

    def _traced(self, query: Any, *others: Any) -> Any:
        """A call of this module in the graph that torch.fx makes of whatever holds it, as of torch's attention."""
        return query.tracer.create_proxy("call_module", query.tracer.path_of_module(self), (query, *others), {})

    def _lengths(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[int, int]:
        """How many queries and keys there are; ValueError where query, key and value do not fit each other."""
        for name, x, last in (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim)):
            if x.dim() not in (2, 3) or x.dim() != query.dim() or x.shape[-1] != last:
                dims = "2 or 3 dimensions" if name == "query" else f"{query.dim()} dimensions, as query"
                raise ValueError(f"{name}: {dims}, the last of {last}, got shape {tuple(x.shape)}")
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(f"value: shape {tuple(value.shape)} does not match key {tuple(key.shape)}")
        at = 1 if query.dim() == 3 and self.batch_first else 0
        if query.dim() == 3 and query.shape[1 - at] != key.shape[1 - at]:
            raise ValueError(f"key: batch of {key.shape[1 - at]}, query has {query.shape[1 - at]}")
        return query.shape[at], key.shape[at]

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """[N, heads, L, head_dim] of [L, E], [N, L, E] or [L, N, E]."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if not batched:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _together(self, x: Tensor, batched: bool) -> Tensor:
        """The output of what the heads give, in the shape of the query; in torch's memory order, as dropout draws."""
        y: Tensor = self.out_proj(x.permute(2, 0, 1, 3).flatten(-2))
        if not batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def _longer(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values [N, heads, S, head_dim] and what attention adds to them: its own, then zeros."""
        size = (x.shape[0], self.num_heads, 1, self.head_dim)
        added = [] if bias is None else [bias.to(x.dtype).view(1, *size[1:]).expand(size)]
        added += [x.new_zeros(size)] if self.add_zero_attn else []
        return torch.cat([x, *added], dim=2) if added else x

    def _merged(self, mask: Tensor | None, padding: Tensor | None, batch: int, added: int) -> Tensor | None:
        """One mask to add to [N, heads, L, S + added]; keys that attention adds itself are never masked."""
        if mask is not None and mask.dim() == 3:
            mask = mask.view(batch, self.num_heads, *mask.shape[1:])
        if padding is not None:
            padding = padding.view(batch, 1, 1, -1)
            mask = padding if mask is None else mask + padding
        return F.pad(mask, (0, added)) if mask is not None and added else mask


def _additive(name: str, mask: Tensor | None, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers to add, -inf where a bool one is True."""
    if mask is None:
        return None
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"{name}: shape {expected}, got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise TypeError(f"{name}: bool or floating, got {mask.dtype}")
    return mask
