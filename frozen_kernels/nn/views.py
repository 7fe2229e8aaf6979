"""Other masks of a layer, held ready: a view is the layer with the tensors of another mask."""

from __future__ import annotations

from typing import Any

import torch

from .. import format as fmt
from ..tensor import FrozenTensor
from .layer import FrozenLayer
from .masks import note_mask
from .state import RECORD, STORED, swapping


def view_of(layer: FrozenLayer, record: FrozenTensor, *, bias: bool = True) -> FrozenLayer:
    """A layer without scores that runs on `record`, which is in the layer's residency, device and dtype.

    It has the layer's bias, if `bias`, and no hooks. What the layer becomes later it does not follow: see `fits`.
    """
    view: FrozenLayer = object.__new__(type(layer))
    view.__dict__.update(layer.__dict__)
    view.__dict__["_parameters"] = {"scores": None, "bias": layer.bias if bias else None, "tuned": None}
    own: dict[str, Any] = {name: getattr(record, name) for name in RECORD}
    view.__dict__["_buffers"] = {**layer._buffers, **own}
    view.__dict__.update(_held=None, _kept=None, _words=record.header.tolist(), _seen=None)
    view.__dict__["training"] = False
    if record.dense is not None or record.keep is not None or (record.offsets is not None and record.values is None):
        view.prepare_calls()  # a searched stored weight without its dense one cannot run
    return view


def record_of(view: FrozenLayer) -> FrozenTensor:
    """The record of a view, and of a layer whose mask no other thread changes."""
    return view._record()


def fits(layer: FrozenLayer, view: FrozenLayer) -> bool:
    """Whether the layer can become the view by taking its tensors: same residency, device, dtype, geometry and bias."""
    ours, its = layer._buffers, view._buffers  # attributes of a module are looked up in three dicts
    if layer.in_place and ours["generations"] is not None and its["generations"] is None:
        return False  # the draws that they shared were written over
    return (
        layer.residency == view.residency
        and ours["_like"] is its["_like"]
        and layer._parameters["bias"] is view._parameters["bias"]
        and (not layer.stored or layer.packed == view.packed)
        and layer.geometry() == view.geometry()
    )


def check_draws(name: str, layer: FrozenLayer, view: FrozenLayer) -> None:
    """RuntimeError where the layer has become a weight of another seed or partition than the view's."""
    ours, its = layer._words[: fmt.SCALE], view._words[: fmt.SCALE]
    if ours != its:
        raise RuntimeError(
            f"model: {name!r} has become another weight, whose header begins with {ours}, than the masks are of, {its}"
        )


def made_ready(layer: FrozenLayer, view: FrozenLayer) -> FrozenLayer:
    """A view of the same mask that fits the layer as it is now."""
    record, device = record_of(view), layer.device
    moved: dict[str, Any] = {n: t.to(device) for n in RECORD if (t := getattr(record, n)) is not None}
    record = record._replace(**moved, scores=None)
    if layer.in_place and layer.generations is not None and record.generations is None:
        record = record._replace(draw=None)
    if record.dense is not None and view.dtype != layer.dtype:
        record = record._replace(dense=None)
    if not layer.stored or layer.packed:
        record = sharing(layer, record).hold(layer.residency, layer.dtype)
    return view_of(layer, sharing(layer, record))


def sharing(layer: FrozenLayer, record: FrozenTensor) -> FrozenTensor:
    """The record with those tensors of the layer that all its masks have in common, instead of equal ones."""
    common: tuple[str, ...] = ("offsets", "draw") if not layer.stored else () if layer.packed else ("values",)
    if layer.generations is not None or record.generations is not None:
        common = ("offsets",)  # each weight is drawn with a generation of its own
    ours: dict[str, Any] = {
        n: t for n in common if (t := layer._buffers[n]) is not None and getattr(record, n) is not None
    }
    return record._replace(**ours)


def show(layer: FrozenLayer, view: FrozenLayer) -> None:
    """Become a view that fits: on a CPU a finalized layer takes its tensors, and its prepared call, in one assignment.

    A layer with scores takes a copy, for its search may write to what it holds; so does one on a GPU.
    """
    if layer._parameters["scores"] is None and not layer.in_place:
        its = view._buffers
        with swapping:
            layer._buffers.update({name: its[name] for name in RECORD})
            # `_held` is one assignment: until then a forward runs on the old state
            layer.__dict__.update(_words=view._words, _kept=view._kept, _held=view._held)
            note_mask(layer)
        return
    record = record_of(view)
    with swapping, torch.inference_mode(False), torch.no_grad():
        if layer.scores is not None and layer.stored:
            assert record.supermask is not None
            layer.adopt_supermask(record.supermask.clone())
            return
        layer._words = view._words
        layer._note_mask()
        if layer.scores is not None:
            layer._take(copied_record(record)._replace(offsets=layer.offsets), layer.residency)
        else:
            layer._put(copied_record(record), layer.residency)


def copied_record(record: FrozenTensor) -> FrozenTensor:
    """The record in memory of its own, but for what all masks have in common."""
    of_values = () if record.values is None else ("offsets",)  # of kept values, and not of free weights
    names = ("header", "supermask", "keep", "dense", *STORED, *of_values)
    own: dict[str, Any] = {name: t.clone() for name in names if (t := getattr(record, name)) is not None}
    return record._replace(**own)
