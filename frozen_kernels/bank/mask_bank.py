"""`MaskBank`: named supermasks over one backbone, switched, mixed, and inferred from a batch (SupSup, Piggyback)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..memory.footprint import storage_bytes
from ..nn.layer import FrozenLayer
from ..nn.models import frozen_layers, spread, unwrapped, warn_of_stale_masks
from ..nn.views import check_draws, copied_record, fits, made_ready, record_of, sharing, show, view_of
from ..tensor import Residency
from ..text import listed
from ..tickets.bank import BankTask, bank_parts, load_bank
from ..tickets.features import check_mask_name
from ..tickets.model import write_parts
from . import stored, tasks
from .gate import Entrance
from .mixture import Branches, bias_of, entropy, mixing, no_bias


class _Task(NamedTuple):
    """One mask: a view of each layer by name, and what else is the task's."""

    views: dict[str, FrozenLayer]
    values: dict[str, Tensor]


class BankMemory(NamedTuple):
    """Bytes that a bank's model and masks hold, each storage once.

    `backbone`: what a layer needs whatever its mask is (headers, offsets, drawn planes, all values while stored weights
    are searched). `masks`: what masks have of their own in the residency, and `per_task` the tensors of the tasks.
    """

    backbone: int
    masks: int
    per_task: int

    @property
    def total(self) -> int:
        return sum(self)


class MaskBank:
    """Named supermasks over the weights of one frozen model, of which one is active (SupSup, Wortsman et al., 2020).

    `add(name)` takes the model's masks as they are, `use(name)` gives the model those of a name back. Masks are held
    ready in the residency of the layers, so that a switch of a finalized model on a CPU assigns tensors and makes none.
    `mix` runs a weighted sum of masks, with gradients to the weights, and `infer` tells by it which mask a batch is of.
    The seed, or the stored values (Piggyback, Mallya et al. 2018, and mask tuning), are there once: in memory, where
    kernels read drawn weights; in the file, always.

    A task's own are the tensors of `per_task`, too: a mask without its batch norm's statistics is of no use. They are
    copied by `add`, and written back by `use`.

    Forwards of the model in other threads see one mask or another in all layers: a switch waits for those that run.
    (Calls of a part of the model, and compiled ones, see one mask or another in each layer.)

    Args:
        model: with frozen layers, bare or in a wrapper; the bank holds it and adds hooks to its forward.
        per_task: names of ordinary tensors, or of modules with any (heads, biases), that each task has its own of;
            None for parameters and buffers of batch norms, `[]` for nothing.

    Raises:
        ValueError: no frozen layers, folded ones, ones on the meta device or with tuned values, ones of code "signs" or
            with coats or generations, whose masks share no backbone; a model that is spread over processes; or a name
            in `per_task` that is none of the model's.
    """

    def __init__(self, model: nn.Module, per_task: Iterable[str] | None = None) -> None:
        self._model = unwrapped(model)
        if spread(model):
            raise ValueError("model: spread over processes; a bank is of a model in one")
        self._layers = frozen_layers(self._model)
        if not self._layers:
            raise ValueError("model: no frozen layers, which are what has masks")
        self._check_layers(ValueError)
        self._places = tasks.places_of(self._model, per_task)
        self._tasks: dict[str, _Task] = {}
        self._unions: dict[str, stored.Union] = {}  # of finalized stored weights, by the name of the layer
        self._active: str | None = None
        self._entrance = Entrance(self._model)

    @property
    def model(self) -> nn.Module:
        """The model, without the wrappers that the bank was given it in."""
        return self._model

    @property
    def names(self) -> list[str]:
        """The names of the masks, in the order in which they came."""
        return list(self._tasks)

    @property
    def active(self) -> str | None:
        """The mask last added or used, None before; a search changes the model's masks and not the bank's."""
        return self._active

    @property
    def per_task(self) -> list[str]:
        """The ordinary tensors that each task has its own of."""
        return list(self._places)

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __repr__(self) -> str:
        held = self.memory()
        return (
            f"MaskBank({len(self)} masks of {len(self._layers)} layers: {listed(self.names)}; active {self._active!r}; "
            f"bytes: backbone {held.backbone:,}, masks {held.masks:,}, per task {held.per_task:,})"
        )

    def _check_layers(self, error: type[Exception]) -> None:
        for name, layer in self._layers.items():
            if layer.folded:
                raise error(f"model: {name or 'model'!r} has a folded gain or ReLU, which no mask of a bank has")
            if layer.tuned is not None:
                raise error(
                    f"model: {name or 'model'!r} tunes its values, which a bank's masks share; finalize it first"
                )
            if layer.signed:
                raise error(f"model: {name or 'model'!r} has code 'signs', and a mask without its signs is none")
            if layer.coats is not None or layer.generations is not None:
                what = "coats" if layer.coats is not None else "generations"
                raise error(
                    f"model: {name or 'model'!r} has {what} of its own mask, which others of a bank do not share"
                )
            if layer.device.type == "meta":
                raise error(f"model: {name or 'model'!r} is on the meta device: it has no supermask")

    def _task(self, name: str) -> _Task:
        if name not in self._tasks:
            raise KeyError(f"name: one of {listed(self.names) or 'no masks'}, got {name!r}")
        return self._tasks[name]

    def add(self, name: str) -> None:
        """Hold the model's masks as they are, and the tensors of `per_task`, under a new name.

        Raises:
            ValueError: a name that is there, or none: 1 to 200 printable characters without a dot.
            RuntimeError: layers were folded or tuned since, or became others by a load; or a stored layer is finalized
                without the bank, so that the values of other masks are gone.
        """
        check_mask_name(name)
        if name in self._tasks:
            raise ValueError(f"name: {name!r} is there already, remove it first")
        self._check_layers(RuntimeError)
        for place, layer in self._layers.items():
            for task in self._tasks.values():
                check_draws(place, layer, task.views[place])
            stored.check_values(place, layer, self._unions, bool(self._tasks))
        warn_of_stale_masks(self._layers)
        with torch.inference_mode(False):
            views = {place: self._snapshot(place, layer) for place, layer in self._layers.items()}
            self._tasks[name] = _Task(views, tasks.values_of(self._places))
        self._active = name

    def _snapshot(self, place: str, layer: FrozenLayer) -> FrozenLayer:
        record = record_of(layer)._replace(scores=None)
        if layer.stored:
            return stored.snapshot(place, layer, record, self._unions)
        # compiled steps of a search write into what the layer holds
        own: dict[str, Any] = {
            n: t.clone() for n in ("header", "supermask", "keep", "dense") if (t := getattr(record, n)) is not None
        }
        if layer.residency != "seed":
            own["offsets"] = None  # what gradients of scores need, while there are any
        view = view_of(layer, record._replace(**own))
        view.counts  # noqa: B018 counted now, not at a switch
        return view

    @torch.no_grad()
    def use(self, name: str) -> None:
        """Give every layer the mask of a name, and the model the task's tensors.

        Microseconds for a finalized layer on a CPU, after it was held in this residency, dtype and device once before;
        on a GPU copies of planes. While a search runs a layer takes a copy, its scores stay, and stored weights make
        their dense weight anew.

        Raises:
            KeyError: no mask of that name.
            RuntimeError: layers were folded or tuned since the mask was added, or became others by a load;
                `fk.finalize_` left the values of one mask alone, `MaskBank.finalize` keeps those of all; or two threads
                call this within forwards of the model: one waits and the other has the error. Nothing is changed.
        """
        task = self._task(name)
        self._make_ready(task)
        with self._entrance.gate.closed():
            for place, layer in self._layers.items():
                show(layer, task.views[place])
            tasks.put_values(self._places, task.values)
            self._active = name

    def _make_ready(self, task: _Task) -> None:
        """Bring a task's views into the state of the layers as they are now."""
        for place, layer in self._layers.items():
            view = task.views[place]
            tuned = layer._parameters["tuned"] is not None
            if tuned or layer.relu or layer._buffers["gain"] is not None:
                self._check_layers(RuntimeError)
            check_draws(place, layer, view)
            if not fits(layer, view):
                stored.check_fits(place, layer, view)
                with torch.inference_mode(False):
                    task.views[place] = made_ready(layer, view)

    def remove(self, name: str) -> None:
        """Forget a mask; the model goes on with it where it is active. KeyError where there is none of that name."""
        self._task(name)
        del self._tasks[name]
        self._active = None if self._active == name else self._active

    __delitem__ = remove

    @torch.no_grad()
    def finalize(self, values: str | None = None) -> None:
        """End the search of all layers: scores go, and of stored weights stay the values that any mask keeps.

        These are rounded once, as `values`: float32, float16, bfloat16, or int8 with a scale for each row of all masks
        together; in their own dtype by default. In memory each mask then has its kept values, for kernels read them
        packed. A model of drawn weights may as well be finalized by `fk.finalize_`.

        Raises:
            ValueError: no masks yet, another name, or a kept value that is not finite in it. Nothing is changed.
            RuntimeError: a layer is finalized already and holds other values.
        """
        if not self._tasks:
            raise ValueError("masks: none yet; add the model's before its search ends")
        views = {name: task.views for name, task in self._tasks.items()}
        found = stored.packed_bank(self._layers, views, self._unions, values)
        active = self._active or self.names[0]
        with self._entrance.gate.closed():
            for layer in self._layers.values():
                if not layer.stored:
                    layer.finalize()
            for place, (union, records) in found.items():
                layer = self._layers[place]
                layer.take_packed(copied_record(records[active]))  # which a GPU will write to
                self._unions[place] = union
                for name, record in records.items():
                    self._tasks[name].views[place] = view_of(layer, record)
                    self._tasks[name].views[place].counts  # noqa: B018
        self.use(active)

    def memory(self) -> BankMemory:
        """Bytes held by the model's frozen layers and all masks, each storage once."""
        layers = list(self._layers.items())
        shared: list[Tensor | None] = [t for union in self._unions.values() for t in union]
        for _, layer in layers:
            searched = layer.stored and not layer.packed
            names = ("offsets", "draw") if not layer.stored else ("values",) if searched else ()
            shared += [layer._buffers[n] for n in names] + [layer.scores]
        views = [task.views[place] for task in self._tasks.values() for place, _ in layers]
        held = [t for m in (*views, *(layer for _, layer in layers)) for t in record_of(m) if isinstance(t, Tensor)]
        backbone = storage_bytes(shared)
        own = [t for task in self._tasks.values() for t in task.values.values()]
        return BankMemory(backbone, storage_bytes([*shared, *held]) - backbone, storage_bytes(own))

    @contextlib.contextmanager
    def mix(self, alphas: Tensor | Mapping[str, Tensor | float] | Sequence[float]) -> Iterator[None]:
        """Within the block, forwards of the model in this thread run with `sum_i alphas_i W_i` in place of each weight.

        Each frozen layer gives `sum_i alpha_i (W_i x) + bias`, a fused call for each mask and no dense weight; layers
        with tensors of `per_task` give the sum of theirs in eval mode. Scores get no gradient. Other threads, and the
        active mask, are not touched: a thread that needs all layers of one task may run within `mix({name: 1.0})`.

        Args:
            alphas: of each mask in the order of `names`, floating [masks], whose gradient a backward gives; or by name,
                0 for those that are left out: masks of a Python 0 cost nothing.

        Raises:
            ValueError: another number of alphas, a tensor that is not floating, or a layer with parts of its own has
                tensors of `per_task`.
            KeyError: no mask of that name.
            RuntimeError: stored weights are still searched, or layers were folded since.
        """
        weights = self._weights(alphas)
        with mixing(self._branches([not isinstance(w, Tensor) and w == 0 for w in weights]), weights):
            yield

    def _weights(self, alphas: Tensor | Mapping[str, Tensor | float] | Sequence[float]) -> list[Tensor | float]:
        if isinstance(alphas, Mapping):
            for name in alphas:
                self._task(name)
            return [alphas.get(name, 0.0) for name in self.names]
        if isinstance(alphas, Tensor) and not alphas.is_floating_point():
            raise ValueError(f"alphas: floating [{len(self)}], got {alphas.dtype} {list(alphas.shape)}")
        shape = list(alphas.shape) if isinstance(alphas, Tensor) else [len(alphas)]
        if shape != [len(self)] or not self._tasks:
            raise ValueError(f"alphas: one for each of {len(self)} masks, got {shape}")
        return list(alphas.unbind()) if isinstance(alphas, Tensor) else list(alphas)

    def _branches(self, skipped: Sequence[bool]) -> Branches:
        """The forward of every layer under each mask; those that are skipped are not made ready."""
        found: dict[nn.Module, tuple[list[Callable[..., Tensor]], Callable[[], Tensor | None]]] = {}
        owners = {place.module for place in self._places.values()}
        for task, skip in zip(self._tasks.values(), skipped, strict=True):
            if not skip:
                self._make_ready(task)
        for place, layer in self._layers.items():
            if layer.stored and not layer.packed:
                raise RuntimeError(
                    f"{place or 'model'}: stored weights are mixed when finalized; call finalize() first"
                )
            views = [
                task.views[place] if skip else view_of(layer, record_of(task.views[place]), bias=False)
                for task, skip in zip(self._tasks.values(), skipped, strict=True)
            ]
            bias = bias_of(layer)
            if layer in owners:
                for view, task in zip(views, self._tasks.values(), strict=True):
                    view._parameters["bias"] = task.values[self._bias_name(layer)]  # type: ignore[assignment]
                    view.prepare_calls()
                bias = no_bias
            found[layer] = [view.forward for view in views], bias
        for module in owners - set(self._layers.values()):
            if any(True for _ in module.children()):
                raise ValueError(f"per_task: a {type(module).__name__} has parts of its own and cannot be mixed")
            forwards = [tasks.task_module(self._places, module, task.values) for task in self._tasks.values()]
            found[module] = forwards, no_bias
        return found

    def _bias_name(self, layer: FrozenLayer) -> str:
        return next(name for name, place in self._places.items() if place.module is layer)

    def infer(self, x: Tensor, method: Literal["one-shot", "binary"] = "one-shot") -> str:
        """The name of the mask that a batch of one task is most likely of, told without a label.

        SupSup (Wortsman et al. 2020): with equal alphas, the mask whose alpha lowers the entropy of the predictions
        fastest, by one backward for all masks; binary halves the masks by it until one is left, in log2(masks) steps.

        Args:
            x: the argument of the model's forward, which gives logits [..., classes].
            method: "one-shot" or "binary".

        Raises:
            ValueError: no masks, another method, a module in train mode (statistics would move, dropout would draw), or
                a model that does not give a tensor. And as `mix`.
        """
        if not self._tasks:
            raise ValueError("masks: none yet")
        if method not in ("one-shot", "binary"):
            raise ValueError(f"method: 'one-shot' or 'binary', got {method!r}")
        training = [name or "model" for name, m in self._model.named_modules() if m.training and not _is_frozen(m)]
        if training:
            raise ValueError(f"model: {training[0]!r} is in train mode; call model.eval() before a task is inferred")
        left = self.names
        while len(left) > 1:
            gradient = self._entropy_gradient(x, left)
            best = sorted(range(len(left)), key=lambda i: float(gradient[i]))
            left = [left[i] for i in sorted(best[: 1 if method == "one-shot" else -(-len(left) // 2)])]
        return left[0]

    def _entropy_gradient(self, x: Tensor, names: list[str]) -> Tensor:
        """float32 [names]: of the entropy with respect to the alphas of some masks, all equal."""
        device = next(iter(self._layers.values())).device
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x
            alphas = torch.full((len(names),), 1 / len(names), device=device, requires_grad=True)
            with self.mix(dict(zip(names, alphas.unbind(), strict=True))):
                logits = self._model(x)
            if not isinstance(logits, Tensor):
                raise ValueError(f"model: gives {type(logits).__name__}, a task is inferred from a tensor of logits")
            (gradient,) = torch.autograd.grad(entropy(logits), alphas)
        return gradient

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model and all masks to one file: the backbone once, for each task its bits and `per_task`.

        A ticket with the feature `bank` (docs/format.md): a further task of n free weights costs ceil(n / 8) bytes for
        each layer, its tensors of `per_task`, and about 200 bytes of names and hashes for each. Of stored weights the
        values that any mask keeps are there once. The same bank always gives the same bytes.

        Args:
            path: of the file, which is replaced in one step.

        Raises:
            ValueError: no masks, or a model that no ticket holds, as `save_ticket` says. Nothing is written.
            OSError: the file cannot be written; what was there before is still there.
        """
        if not self._tasks:
            raise ValueError("masks: none yet, a bank's file holds at least one")
        contents = {name: BankTask(task.views, task.values) for name, task in self._tasks.items()}
        values = stored.file_values(self._layers, {n: t.views for n, t in self._tasks.items()}, self._unions)
        write_parts(path, bank_parts(self._model, contents, values))

    @classmethod
    def load(
        cls,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        residency: Residency | None = None,
    ) -> MaskBank:
        """Read a bank's file into a model, in place, with its first mask active.

        Args:
            model: the plain model, whose layers are replaced by frozen ones; or a frozen one of the same backbone,
                whose layers stay, with the scores that they have: so a task can be searched and added.
            path: the file that `save` wrote.
            verify: compare the regenerated keep plane of each mask with the file's hash.
            residency: of layers that are replaced; `mask`, and of stored weights `packed`, by default.

        Raises:
            TicketError: no bank, not a whole one, or one of another backbone: other shapes, seeds, thresholds, stored
                values, coats or generations; a folded ReLU or tuned values; or a task's tensor that others share in
                the model. The message names the file, the tensor and both values; the model is unchanged.
            OSError: the file is missing or cannot be read.
            ValueError: another residency.
        """
        loaded = load_bank(model, path, verify, residency, tasks.places_of)
        bank = cls(model, loaded.per_task)
        for name in bank._layers:
            if name in loaded.unions:
                bank._unions[name] = stored.Union(*loaded.unions[name])
        for name, made in loaded.masks.items():
            views = {}
            for place, layer in bank._layers.items():
                record = made[place]
                if place in bank._unions:
                    record = record._replace(row_scale=bank._unions[place].row_scale)
                views[place] = view_of(layer, sharing(layer, record))
                views[place].counts  # noqa: B018
            bank._tasks[name] = _Task(views, loaded.values[name])
        bank.use(bank.names[0])
        return bank


def _is_frozen(module: nn.Module) -> bool:
    return isinstance(module, FrozenLayer)
