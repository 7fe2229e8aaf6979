"""`fold_batch_norm_`: batch norm in eval mode becomes the gain and bias of the frozen layer before it."""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nn.layer import FrozenLayer
from ..nn.layers import TWINS
from ..nn.models import frozen_layers, replace_module, unwrapped

# what may follow a layer: a batch norm that has its channels where the layer has them
_NORM_AFTER: dict[type, type] = {
    TWINS[layer]: norm
    for norm, layers in (
        (nn.BatchNorm1d, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)),
        (nn.BatchNorm2d, (nn.Conv2d, nn.ConvTranspose2d)),
        (nn.BatchNorm3d, (nn.Conv3d, nn.ConvTranspose3d)),
    )
    for layer in layers
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Folded:
    """A batch norm, and the ReLU behind it if any, that are now part of a layer; by name."""

    layer: str
    norm: str
    relu: str | None


@dataclass
class FoldReport:
    """What `fold_batch_norm_` folded, and which batch norms it left and why; `print` it.

    `folded`: batch norm, layer and ReLU by name. `skipped`: name and reason. `not_traced`: why the model could not be
    traced, None where it could.
    """

    folded: list[Folded] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    not_traced: str | None = None

    def __str__(self) -> str:
        lines = [f"{len(self.folded)} batch norms folded"]
        lines += [f"  {f.norm} into {f.layer}" + (f", with {f.relu}" if f.relu else "") for f in self.folded]
        if self.skipped:
            lines.append(f"{len(self.skipped)} batch norms skipped")
            lines += [f"  {name}: {why}" for name, why in self.skipped]
        if self.not_traced is not None:
            lines.append(f"not traced, so only neighbours in nn.Sequential were folded: {self.not_traced}")
        return "\n".join(lines)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a forward that changes a buffer must not change it now

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FrozenLayer) or super().is_leaf_module(m, module_qualified_name)


@dataclass
class _Calls:
    """How modules, by id, are called in a forward: how often, and whose result they are given to read alone."""

    count: Counter[int] = field(default_factory=Counter)
    before: dict[int, list[nn.Module | None]] = field(default_factory=dict)
    parameters_read: set[str] = field(default_factory=set)  # names of modules

    def add(self, module: nn.Module, before: nn.Module | None) -> None:
        self.count[id(module)] += 1
        self.before.setdefault(id(module), []).append(before)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)


def _passing(model: nn.Module) -> tuple[type, ...]:
    """Types of modules that hand on what they get: none where hooks, of whatever holds such a module, could look in."""
    return () if any(_has_hooks(m) for m in model.modules() if m is not model) else (nn.Identity,)


def _trace(model: nn.Module) -> fx.Graph:
    """The graph of a forward with its required arguments alone; no hook runs, and attributes are as they were."""
    parameters = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    attributes = [(m, dict(vars(m))) for m in model.modules()]
    try:
        for module in model.modules():
            vars(module).update({name: OrderedDict() for name in _HOOKS})
        return _Tracer().trace(model, concrete_args=defaults or None)
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)


def _traced_calls(model: nn.Module) -> _Calls:
    calls = _Calls()
    modules = dict(model.named_modules(remove_duplicate=False))
    passing = _passing(model)

    def read_alone(node: fx.Node) -> nn.Module | None:
        """The module whose result is this node's only argument and read by nothing else, Identity aside."""
        given = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(given, fx.Node) or given.op != "call_module" or len(given.users) != 1:
            return None
        module = modules[str(given.target)]
        return read_alone(given) if type(module) in passing else module

    for node in _trace(model).nodes:
        if node.op == "call_module":
            calls.add(modules[node.target], read_alone(node))
        elif node.op == "get_attr":
            calls.parameters_read.add(node.target.rpartition(".")[0])
    return calls


def _sequential_calls(model: nn.Module) -> _Calls:
    """As if each place of a module were one call, and each nn.Sequential called as a whole."""
    calls, passing = _Calls(), _passing(model)
    for parent in model.modules():
        before: nn.Module | None = None
        for child in parent._modules.values():
            if child is None:
                continue
            calls.add(child, before if type(parent).forward is nn.Sequential.forward else None)
            before = before if type(child) in passing else child
    return calls


def _calls_of(model: nn.Module) -> tuple[_Calls, str | None]:
    try:
        return _traced_calls(model), None
    except Exception as why:  # a forward may fail in any way on what stands for a tensor
        return _sequential_calls(model), f"{type(why).__name__}: {str(why).splitlines()[0] if str(why) else ''}"


class _Folder:
    """Finds what can be folded in a model, changing nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(m): name for name, m in model.named_modules()}
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self.relus = [m for m in model.modules() if type(m) is nn.ReLU and not _has_hooks(m)]
        self.hooked = [name for name, m in model.named_modules() if _has_hooks(m)]
        self.calls, self.not_traced = _calls_of(model)

    def layer_before(self, norm: nn.Module) -> tuple[FrozenLayer | None, str]:
        """The layer that a batch norm can be folded into, or None and why not.

        ValueError for a batch norm in training mode, and for a layer that is still searched.
        """
        places = self.calls.before.get(id(norm), [])
        if len(places) != 1:
            return None, f"called {len(places)} times"
        layer = places[0]
        if not isinstance(layer, FrozenLayer):
            return None, "does not follow a frozen layer alone"
        name = self.names[id(layer)]
        if self.calls.count[id(layer)] != 1:
            return None, f"follows {name!r}, which is called {self.calls.count[id(layer)]} times"
        if _NORM_AFTER.get(type(layer)) is not type(norm):
            return None, f"{type(norm).__name__} after {type(layer).__name__} {name!r}"
        assert isinstance(norm, _BatchNorm)
        why = self._reason(layer, norm)
        return (layer, "") if why is None else (None, why)

    def _reason(self, layer: FrozenLayer, norm: _BatchNorm) -> str | None:
        name, norm_name = self.names[id(layer)], self.names[id(norm)]
        if norm.running_mean is None or norm.running_var is None:
            return "has no running statistics"
        if norm.num_features != _outputs(layer):
            return f"{norm.num_features} features after {_outputs(layer)} channels of {name!r}"
        if layer.relu:
            return f"follows the ReLU of {name!r}"
        hooked = self.hook_between(layer, norm)
        if hooked is not None:
            return f"a hook on {hooked!r} sees what lies between {name!r} and it"
        if self.calls.parameters_read & {name, norm_name}:
            return f"its parameters or those of {name!r} are read without a call"
        if layer.scores is not None:
            raise ValueError(f"model: {name!r} still has scores; finalize_ the model before folding")
        return None

    def relus_after(self, norms: dict[int, FrozenLayer]) -> Iterator[tuple[nn.Module, list[int]]]:
        """ReLUs that follow nothing but batch norms (by id) that are folded, and those."""
        for relu in self.relus:
            places = self.calls.before.get(id(relu), [])
            if places and all(id(norm) in norms and self.hook_between(norm, relu) is None for norm in places):
                yield relu, [id(norm) for norm in places]

    def hook_between(self, first: nn.Module | None, second: nn.Module) -> str | None:
        """The name of a hooked module that holds one of two and not the other, so that it sees what lies between."""
        names = self.names[id(first)], self.names[id(second)]
        for hooked in self.hooked:
            inside = [not hooked or name == hooked or name.startswith(hooked + ".") for name in names]
            if inside[0] != inside[1]:
                return hooked
        return None


def _outputs(layer: FrozenLayer) -> int:
    """Output channels of a linear layer or a convolution."""
    return layer.out_features if hasattr(layer, "out_features") else layer.out_channels  # type: ignore[return-value]


@torch.inference_mode(False)
@torch.no_grad()
def _fold(layer: FrozenLayer, norm: _BatchNorm) -> None:
    """relu(norm(gain * W x + bias)) as gain and bias, in float64 and rounded once."""
    assert norm.running_mean is not None and norm.running_var is not None

    def exact(t: Tensor | None, otherwise: float) -> Tensor:
        given = torch.tensor(otherwise) if t is None else t
        return given.to(layer.device, torch.float64)

    factor = exact(norm.weight, 1.0) / torch.sqrt(exact(norm.running_var, 1.0) + norm.eps)
    bias = (exact(layer.bias, 0.0) - exact(norm.running_mean, 0.0)) * factor + exact(norm.bias, 0.0)
    trained = layer.bias is not None and layer.bias.requires_grad
    layer.gain = (factor * exact(layer.gain, 1.0)).to(torch.promote_types(layer.dtype, torch.float32))
    layer.bias = nn.Parameter(bias.to(layer.dtype), requires_grad=trained)


def fold_batch_norm_(model: nn.Module) -> FoldReport:
    """Fold each BatchNorm1d, 2d or 3d that follows a frozen layer into its gain and bias, in place, for inference.

    A ReLU module that follows goes along where all its calls do; folded modules become `nn.Identity`. What follows
    what is read off a symbolic trace (torch.fx) of a call with the required arguments, and where a model cannot be
    traced, off neighbours in an nn.Sequential, which is then taken to be called as a whole. Inputs are taken to be
    batches: [batch, features] before a linear layer. Outputs change by rounding alone. Save the ticket first: one of a
    folded model loads into a model that was folded alike, and none holds a ReLU.

    Returns:
        A report of what was folded, and which batch norms were skipped and why.

    Raises:
        ValueError: the model or a batch norm is in training mode, a layer before one is not finalized, or there are
            no frozen layers. The model is unchanged.
    """
    model = unwrapped(model)
    if not frozen_layers(model):
        raise ValueError("model: no frozen layers to fold batch norms into")
    for name, module in model.named_modules():
        if module.training and isinstance(module, _BatchNorm):
            raise ValueError(f"model: {name!r} is in training mode; call model.eval() before folding")
    if model.training:
        raise ValueError("model: in training mode; call model.eval() before folding")
    folder = _Folder(model)
    report = FoldReport(not_traced=folder.not_traced)
    layer_of: dict[int, FrozenLayer] = {}
    for norm in folder.norms:
        layer, why = folder.layer_before(norm)
        if layer is None:
            report.skipped.append((folder.names[id(norm)], why))
        else:
            layer_of[id(norm)] = layer
    relu_of = {norm: relu for relu, norms in folder.relus_after(layer_of) for norm in norms}
    # nothing above has changed the model
    for norm in folder.norms:
        if id(norm) not in layer_of:
            continue
        layer, relu = layer_of[id(norm)], relu_of.get(id(norm))
        _fold(layer, norm)
        layer.relu = relu is not None
        replace_module(model, norm, nn.Identity().eval())
        names = folder.names[id(layer)], folder.names[id(norm)], folder.names[id(relu)] if relu is not None else None
        report.folded.append(Folded(*names))
    for relu in {id(relu): relu for relu in relu_of.values()}.values():
        replace_module(model, relu, nn.Identity().eval())
    return report
