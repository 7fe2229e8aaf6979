"""What a ticket may hold beyond sections 1 to 7 of the format: one `Feature` for each that this release knows.

Section 8 of the format (docs/format.md). A feature is a few fields of a tensor's record and a few tensors of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import format as fmt
from ..coats import MOST as MOST_COATS
from ..generations import MOST as MOST_GENERATIONS
from ..generations import bits_of, check_generations, check_redrawn, numbers_of
from .container import integer, short

ANY = -1  # a size that the tensors say, and not the record
_LONGEST_NAME = 200
Record = Any  # a `file.TensorRecord`, which asks this module what it may hold


class Feature(NamedTuple):
    """One name of `frozen_kernels.requires`.

    `fields` of a record are None in one that lacks the feature, and then not in the file. `tensors` gives the dtype and
    shape of each tensor by the end of its name, of which a file may lack those that are `optional`. `check_fields` and
    `check_tensors` raise a ValueError for what no writer makes; the caller names the record, or the file.
    """

    name: str
    fields: tuple[str, ...]
    used: Callable[[Record], bool]
    tensors: Callable[[Record], dict[str, tuple[torch.dtype, tuple[int, ...]]]]
    check_fields: Callable[[Mapping[str, Any]], None]
    check_tensors: Callable[[Record, Mapping[str, Tensor]], None]
    optional: tuple[str, ...] = ()


def _stored_tensors(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    # of a bank the values are those that any mask keeps, as many as its bits say
    kept = record.kept if record.masks is None else ANY
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"values": (fmt.VALUE_DTYPES[str(record.values)], (kept,))}
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


def _signs_tensors(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {"signs": (torch.uint8, (-(-record.kept // 8),)), "row_scale": (torch.float32, (record.rows,))}


def _check_signs(fields: Mapping[str, Any]) -> None:
    if fields["code"] == fmt.SIGNS:
        check_undrawn(fields)


def _check_sign_bits(record: Record, tensors: Mapping[str, Tensor]) -> None:
    signs, kept = tensors["signs"], record.kept
    if kept % 8 and int(signs[-1]) >> (kept % 8):
        raise ValueError(
            f"{short(record.name)}.signs: bits are set after the last of {kept} kept weights (last byte "
            f"{int(signs[-1])})"
        )
    if "row_scale" in tensors:
        check_row_scale(record, tensors["row_scale"])


SIGNS = Feature(
    fmt.SIGNS, (), lambda record: record.code == fmt.SIGNS, _signs_tensors, _check_signs, _check_sign_bits,
    ("row_scale",),
)  # fmt: skip


def _coat_tensors(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {f"coat{i}": (torch.uint8, (-(-kept // 8),)) for i, kept in enumerate(record.coat_kept[:-1], 2)}


def _check_coat_fields(fields: Mapping[str, Any]) -> None:
    coats, kept = fields.get("coats"), fields.get("coat_kept")
    if (coats is None) != (kept is None):
        raise ValueError(f"coats: with coat_kept or without both, got {short(coats)} and {short(kept)}")
    if coats is None:
        return
    if fields["code"] == fmt.STORED:
        raise ValueError(f"coats: none of a stored weight, got {short(coats)}")
    coats = integer("coats", coats, MOST_COATS)
    if coats < 2:
        raise ValueError(f"coats: 2 to {MOST_COATS}, got {coats}")
    if not isinstance(kept, (list, tuple)) or len(kept) != coats:
        raise ValueError(f"coat_kept: a list of {coats} counts, got {short(kept)}")
    numbers = [integer("coat_kept", n, fields["kept"]) for n in kept]
    if numbers[0] != fields["kept"] or numbers != sorted(numbers, reverse=True):
        raise ValueError(f"coat_kept: counts from kept {fields['kept']} on that never rise, got {short(numbers)}")


def _check_coats(record: Record, tensors: Mapping[str, Tensor]) -> None:
    for i in range(2, record.coats + 1):
        before, wanted = record.coat_kept[i - 2 : i]
        stream, name = tensors[f"coat{i}"], short(f"{record.name}.coat{i}")
        if before % 8 and int(stream[-1]) >> before % 8:
            raise ValueError(f"{name}: bits are set after the last of {before} (last byte {int(stream[-1])})")
        found = int(torch.ops.frozen_kernels.popcount(stream))
        if found != wanted:
            raise ValueError(f"{name}: coat_kept says {wanted}, its bits are {found}")


def _generation_tensors(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {"generation": (torch.uint8, (bits_of(record.generations), -(-record.free // 8)))}


def _check_generation_fields(fields: Mapping[str, Any]) -> None:
    generations = fields.get("generations")
    if generations is None:
        return
    if integer("generations", generations, MOST_GENERATIONS) < 2:
        raise ValueError(f"generations: 2 to {MOST_GENERATIONS}, got {generations}")
    check_redrawn(fields["code"], fields["generation"])


def _check_generations(record: Record, tensors: Mapping[str, Tensor]) -> None:
    name = short(f"{record.name}.generation")
    check_generations(tensors["generation"], record.free, name)
    highest = int(numbers_of(tensors["generation"], record.free, torch.device("cpu")).max())
    if highest + 1 != record.generations:
        raise ValueError(f"{name}: generations is {record.generations}, its highest is {highest}")


COATS = Feature(
    "coats", ("coats", "coat_kept"), lambda record: record.coats is not None, _coat_tensors, _check_coat_fields,
    _check_coats,
)  # fmt: skip
GENERATIONS = Feature(
    "generations", ("generations",), lambda record: record.generations is not None, _generation_tensors,
    _check_generation_fields, _check_generations,
)  # fmt: skip


def check_mask_name(name: object) -> str:
    """The name of a mask in a bank; ValueError where it is none: it is a part of the names of tensors."""
    if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME or "." in name or not name.isprintable():
        raise ValueError(f"masks: names of 1 to {_LONGEST_NAME} printable characters without a dot, got {short(name)}")
    return name


def _bank_tensors(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {f"supermask.{mask.name}": (torch.uint8, (-(-record.free // 8),)) for mask in record.masks}


def _check_bank(fields: Mapping[str, Any]) -> None:
    names = fields.get("masks")
    if names is None:
        return
    if not isinstance(names, list) or not names:
        raise ValueError(f"masks: a list of names that is not empty, got {short(names)}")
    for name in names:
        check_mask_name(name)
    if len(set(names)) != len(names):
        raise ValueError(f"masks: a name is there twice in {short(names)}")
    for field in ("coats", "generations"):
        if fields.get(field) is not None:
            raise ValueError(
                f"masks: over weights in one coat and of one generation, got {field} {short(fields[field])}"
            )
    if fields["code"] == fmt.SIGNS:
        raise ValueError("masks: over drawn or stored weights, got code signs, whose signs are each mask's own")


def _check_bank_tensors(record: Record, tensors: Mapping[str, Tensor]) -> None:
    if record.gain:
        raise ValueError(f"{short(record.name)}.gain: none beside masks {short([m.name for m in record.masks])}")
    popcount, union = torch.ops.frozen_kernels.popcount, None
    for mask in record.masks:
        supermask, name = tensors[f"supermask.{mask.name}"], short(f"{record.name}.supermask.{mask.name}")
        fmt.check_supermask(supermask, record.free, name)
        kept = record.locked + int(popcount(supermask))
        if kept != mask.kept:
            raise ValueError(f"{name}: kept is {mask.kept}, locked and supermask bits are {kept}")
        union = supermask if union is None else union | supermask
    if record.values is not None and tensors["values"].numel() != int(popcount(union)):
        raise ValueError(
            f"{short(record.name)}.values: {tensors['values'].numel()} values, the masks keep {int(popcount(union))}"
        )


BANK = Feature(
    "bank", ("masks",), lambda record: record.masks is not None, _bank_tensors, _check_bank, _check_bank_tensors
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
FEATURES: tuple[Feature, ...] = (STORED, SIGNS, COATS, GENERATIONS, BANK, GAIN)
OPTIONAL_FIELDS = frozenset(name for feature in FEATURES for name in feature.fields)


def features_of(record: Record) -> list[Feature]:
    """The features that a record needs, in the order of `FEATURES`."""
    return [feature for feature in FEATURES if feature.used(record)]


def tensors_of(record: Record) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of the tensors of a record's features, by the end of their names; the supermask is not among
    them, those that a file may lack are."""
    return {end: spec for feature in features_of(record) for end, spec in feature.tensors(record).items()}


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (ANY, s) for s, w in zip(shape, wanted, strict=True))


def check_tensors(record: Record, tensors: Mapping[str, Tensor]) -> None:
    """ValueError where a tensor of a record's features is missing, or of another dtype, shape or range."""
    found: dict[str, Tensor] = {}
    optional = {end for feature in features_of(record) for end in feature.optional}
    for end, (dtype, shape) in tensors_of(record).items():
        name = f"{record.name}.{end}"
        tensor = tensors.get(name)
        if tensor is None and end in optional:
            continue
        if tensor is None:
            raise ValueError(f"{short(name)}: missing")
        if tensor.dtype != dtype or not _fits(tuple(tensor.shape), shape):
            raise ValueError(f"{short(name)}: {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
        found[end] = tensor
    for feature in features_of(record):
        feature.check_tensors(record, found)
