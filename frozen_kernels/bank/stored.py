"""Stored weights in a bank: the values that any mask keeps, once, and each mask's own out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .. import format as fmt
from ..nn.layer import FrozenLayer
from ..nn.views import copied_record, record_of, view_of
from ..tensor import FrozenTensor, stored_record
from ..tickets.bank import chosen_values

Views = Mapping[str, FrozenLayer]


class Union(NamedTuple):
    """What the masks of one stored weight keep together: bits uint8 [ceil(weights / 8)], values 1-D in stream order,
    and the float32 [rows] scale of int8 ones."""

    bits: Tensor
    kept: Tensor
    row_scale: Tensor | None


def check_values(place: str, layer: FrozenLayer, unions: Mapping[str, Union], has_tasks: bool) -> None:
    """RuntimeError where a stored layer's mask cannot join the others: it is finalized, and theirs are other values."""
    if not layer.stored or not layer.packed:
        if layer.stored and place in unions:
            raise RuntimeError(f"{place}: searched again, while the bank holds the values of finalized masks alone")
        return
    union, held = unions.get(place), record_of(layer).values
    assert held is not None
    if union is None:
        if has_tasks:
            raise RuntimeError(
                f"{place}: finalized with {held.numel()} values of one mask; MaskBank.finalize keeps those of all"
            )
        return
    bits = layer.packed_supermask()
    inside = not (bits & ~union.bits).any()
    if not inside or not torch.equal(chosen_values(union.kept, union.bits, bits, layer.free), held):
        raise RuntimeError(f"{place}: the layer keeps other values than the {union.kept.numel()} of the bank")


def snapshot(place: str, layer: FrozenLayer, record: FrozenTensor, unions: dict[str, Union]) -> FrozenLayer:
    """A view of a stored layer's mask as it is; while it is searched without the dense weight that it makes."""
    if layer.packed:
        record = copied_record(record)
        assert record.values is not None
        unions.setdefault(place, Union(layer.packed_supermask().clone(), record.values, record.row_scale))
    else:
        assert record.supermask is not None
        record = record._replace(dense=None, supermask=record.supermask.clone())
    view = view_of(layer, record)
    view.counts  # noqa: B018 counted now, not at a switch
    return view


def check_fits(place: str, layer: FrozenLayer, view: FrozenLayer) -> None:
    """RuntimeError where a stored layer was finalized, or made anew, without the bank."""
    if layer.stored and layer.packed != view.packed:
        now, then = ("finalized", "searched") if layer.packed else ("searched", "finalized")
        raise RuntimeError(
            f"{place}: the layer is {now}, its mask in the bank is of a {then} one; MaskBank.finalize ends the search "
            "of all masks together"
        )


def union_bits(views: Mapping[str, Views], place: str) -> Tensor:
    """uint8 [ceil(weights / 8)]: what any mask of a layer keeps."""
    found: Tensor | None = None
    for own in views.values():
        bits = own[place].packed_supermask()
        found = bits if found is None else found | bits
    assert found is not None
    return found


def _of_union(header: Tensor, shape: tuple[int, ...], union: Union, bits: Tensor) -> FrozenTensor:
    """One mask's packed weight."""
    record = FrozenTensor(shape, fmt.STORED, header, bits)
    values = chosen_values(union.kept, union.bits, bits, fmt.matrix_shape(shape)[0] * fmt.matrix_shape(shape)[1])
    return record._replace(values=values, row_scale=union.row_scale).hold("packed")


def _union_of(layer: FrozenLayer, views: Mapping[str, Views], place: str, dtype: str | None) -> Union:
    """The values of searched masks, rounded once; ValueError where one has no such value."""
    values = {id(own[place].values): own[place].values for own in views.values()}
    first, *others = values.values()
    assert first is not None
    if any(not torch.equal(first, other) for other in others if other is not None):
        raise ValueError("values: the masks were added over other values each, a bank has one backbone")
    own_name = str(first.dtype).removeprefix("torch.")
    wanted = own_name if dtype is None else dtype
    if wanted not in fmt.VALUE_DTYPES:
        raise ValueError(f"values: one of {', '.join(fmt.VALUE_DTYPES)}, got {wanted!r} for a layer of {own_name}")
    bits = union_bits(views, place)
    packed = stored_record(first, bits).pack_stored(wanted)
    assert packed.values is not None
    return Union(bits, packed.values, packed.row_scale)


def packed_bank(
    layers: Views, views: Mapping[str, Views], unions: Mapping[str, Union], values: str | None
) -> dict[str, tuple[Union, dict[str, FrozenTensor]]]:
    """Of each stored layer that is still searched: the union of its masks, and each mask's packed weight by name.

    ValueError for another name or values that have no such number, RuntimeError for values that are packed otherwise.
    """
    found: dict[str, tuple[Union, dict[str, FrozenTensor]]] = {}
    of_weight: dict[tuple[object, ...], tuple[Union, dict[str, FrozenTensor]]] = {}
    for place, layer in layers.items():
        if not layer.stored:
            continue
        if layer.packed:
            now = str(record_of(layer).values.dtype).removeprefix("torch.")  # type: ignore[union-attr]
            if place not in unions or values not in (None, now):
                raise RuntimeError(f"{place}: finalized already, with {now} values of its mask, got {values!r}")
            continue
        if layer.identity not in of_weight:
            try:
                union = _union_of(layer, views, place, values)
            except ValueError as why:
                raise ValueError(f"{place or 'model'}: {why}") from None
            header = layer.header.clone()
            records = {
                name: _of_union(header, layer.shape, union, own[place].packed_supermask())
                for name, own in views.items()
            }
            of_weight[layer.identity] = union, records
        found[place] = of_weight[layer.identity]
    return found


def file_values(layers: Views, views: Mapping[str, Views], unions: Mapping[str, Union]) -> dict[str, list[Tensor]]:
    """What a file stores of each stored layer, on the CPU: the values that any mask keeps, and scales of int8 rows."""
    found: dict[str, list[Tensor]] = {}
    for place, layer in layers.items():
        if not layer.stored:
            continue
        if place in unions:
            # masks that were removed since leave values that nobody keeps
            union, bits = unions[place], union_bits(views, place)
            union = union._replace(kept=chosen_values(union.kept, union.bits, bits, layer.rows * layer.cols))
        else:
            try:
                union = _union_of(layer, views, place, None)
            except ValueError as why:
                raise ValueError(f"model: {place!r}: {why}") from None
        found[place] = [t.detach().cpu() for t in (union.kept, union.row_scale) if t is not None]
    return found
