"""What a ticket may hold beyond sections 1 to 7 of the format: one `Feature` for each that this release knows.

Section 8 of the format (docs/format.md). A feature is a few fields of a tensor's record and a few tensors of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import format as fmt
from .container import short

Record = Any  # a `file.TensorRecord`, which asks this module what it may hold


class Feature(NamedTuple):
    """One name of `frozen_kernels.requires`.

    `fields` of a record are None in one that lacks the feature, and then not in the file. `tensors` gives the dtype and
    shape of each tensor by the end of its name, `check_fields` and `check_tensors` raise a ValueError for what no
    writer makes; the caller names the record, or the file.
    """

    name: str
    fields: tuple[str, ...]
    used: Callable[[Record], bool]
    tensors: Callable[[Record], dict[str, tuple[torch.dtype, tuple[int, ...]]]]
    check_fields: Callable[[Mapping[str, Any]], None]
    check_tensors: Callable[[Record, Mapping[str, Tensor]], None]


def _stored_tensors(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "values": (fmt.VALUE_DTYPES[str(record.values)], (record.kept,))
    }
    if record.values == "int8":
        found["row_scale"] = (torch.float32, (record.rows,))
    return found


def check_undrawn(fields: Mapping[str, Any]) -> None:
    """ValueError for a record of weights that no seed draws and that says otherwise."""
    for name in ("seed", "stream", "generation", "tau_prune", "tau_freeze"):
        if fields[name]:
            raise ValueError(f"{name}: 0 of a {fields['code']} weight, got {fields[name]}")


def _check_stored(fields: Mapping[str, Any]) -> None:
    values = fields.get("values")
    if (values is None) != (fields["code"] != fmt.STORED):
        raise ValueError(f"values: of a stored weight and no other, got {short(values)} for code {fields['code']}")
    if values is None:
        return
    if not isinstance(values, str) or values not in fmt.VALUE_DTYPES:
        raise ValueError(f"values: one of {', '.join(fmt.VALUE_DTYPES)}, got {short(values)}")
    check_undrawn(fields)
    if fields["scale"] != 1:
        raise ValueError(f"scale: 1 of a stored weight, got {fields['scale']}")


def check_row_scale(record: Record, scale: Tensor) -> None:
    if not (scale.isfinite() & (scale >= 0)).all():
        raise ValueError(f"{short(record.name)}.row_scale: 0 or more and finite, got {short(scale.tolist())}")


def _check_values(record: Record, tensors: Mapping[str, Tensor]) -> None:
    if record.values == "int8":
        check_row_scale(record, tensors["row_scale"])


STORED = Feature(
    fmt.STORED, ("values",), lambda record: record.values is not None, _stored_tensors, _check_stored, _check_values
)


def _check_gain(record: Record, tensors: Mapping[str, Tensor]) -> None:
    gain = tensors["gain"]
    if not gain.isfinite().all():
        raise ValueError(f"{short(record.name)}.gain: finite numbers, got {short(gain.tolist())}")


# no field of a record says that it has one: the tensor itself does
GAIN = Feature(
    "gain",
    (),
    lambda record: record.gain,
    lambda record: {"gain": (torch.float32, (record.rows,))},
    lambda fields: None,
    _check_gain,
)
FEATURES: tuple[Feature, ...] = (STORED, GAIN)
OPTIONAL_FIELDS = frozenset(name for feature in FEATURES for name in feature.fields)


def features_of(record: Record) -> list[Feature]:
    """The features that a record needs, in the order of `FEATURES`."""
    return [feature for feature in FEATURES if feature.used(record)]


def tensors_of(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of the tensors of a record's features, by the end of their names; the supermask is not among
    them."""
    return {end: spec for feature in features_of(record) for end, spec in feature.tensors(record).items()}


def check_tensors(record: Record, tensors: Mapping[str, Tensor]) -> None:
    """ValueError where a tensor of a record's features is missing, or of another dtype, shape or range."""
    found: dict[str, Tensor] = {}
    for end, (dtype, shape) in tensors_of(record).items():
        name = f"{record.name}.{end}"
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f"{short(name)}: missing")
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{short(name)}: {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
        found[end] = tensor
    for feature in features_of(record):
        feature.check_tensors(record, found)
