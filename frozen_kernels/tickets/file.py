"""The ticket file by itself: what it says, whether it is whole, and whether its seeds still give its masks.

Section 7 of the format (docs/format.md): `<name>.supermask` of every frozen tensor, and the ordinary parameters and
buffers under their own names. The digest is the sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of the
list `[metadata, tensors]`: the other metadata as a mapping of strings, and the sorted `[name, dtype, shape, sha256]` of
every tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import format as fmt
from . import features
from .container import DTYPE_NAMES, bytes_of, integer, parse_json, read, short
from .regenerate import Regenerated, regenerate

PREFIX = "frozen_kernels."
KEYS = ("format", "requires", "tensors", "digest")
KNOWN_FEATURES: tuple[str, ...] = tuple(feature.name for feature in features.FEATURES)

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}")
_HEX_FLOAT = re.compile(r"[+-]?0[xX][0-9a-fA-F]{1,32}(\.[0-9a-fA-F]{0,32})?([pP][+-]?[0-9]{1,5})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_SHAPE = 64
# bytes of keep planes that are regenerated without a model, which would bound shapes: so many, and for each of the file
_PLANES, _PLANES_PER_BYTE = 1 << 30, 16


SEEN = frozenset({"gain"})  # of a record, but no field of the file: its tensors show it


class TicketError(ValueError):
    """A ticket that cannot be read, or that does not fit the model; nothing was changed."""


class BankMask(NamedTuple):
    """What a bank says of one of its masks: the fields of a record that each mask has its own of."""

    name: str
    scale: float
    kept: int
    keep_sha256: str


PER_MASK = BankMask._fields[1:]


@dataclass(frozen=True)
class TensorRecord:
    """What a ticket says of one frozen tensor; the fields are those of format section 7.

    Those with a default are of section 8. `values`, of a stored weight, is what its kept values are: float32, float16,
    bfloat16 or int8. `coats` is how often a weight counts at most, `coat_kept` how many weights each coat keeps, and
    `generations` how many draws there are. `masks`, of a bank: each mask; `scale`, `kept` and `keep_sha256` are then
    the first one's, and lists in the file. `gain`, no field of the file, is whether it has a gain for each row.
    """

    name: str
    shape: tuple[int, ...]
    seed: int
    stream: int
    code: fmt.Code
    generation: int
    scale: float
    tau_prune: int
    tau_freeze: int
    pruned: int
    locked: int
    free: int
    kept: int
    keep_sha256: str
    values: str | None = None
    coats: int | None = None
    coat_kept: tuple[int, ...] | None = None
    generations: int | None = None
    masks: tuple[BankMask, ...] | None = None
    gain: bool = False

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def cols(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def drawn(self) -> bool:
        """Whether the seed and stream are this weight's alone: it draws from them."""
        return self.code in fmt.CODES

    @property
    def supermask_name(self) -> str:
        return f"{self.name}.supermask"

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The tensors that the file may have of this weight: its supermask, and those of its features."""
        own = (self.supermask_name,) if self.masks is None else ()
        return (*own, *(f"{self.name}.{end}" for end in features.tensors_of(self)))

    @property
    def networks(self) -> tuple[TensorRecord, ...]:
        """The record of each mask of a bank as one without a bank would have it; itself where it is none."""
        if self.masks is None:
            return (self,)
        return tuple(replace(self, masks=None, **mask._asdict() | {"name": self.name}) for mask in self.masks)

    @property
    def supermask_names(self) -> tuple[str, ...]:
        """The tensors that hold the supermasks, in the order of `networks`."""
        if self.masks is None:
            return (self.supermask_name,)
        return tuple(f"{self.supermask_name}.{mask.name}" for mask in self.masks)

    def header(self) -> Tensor:
        """int32 [8] on the CPU, as `format.make_header`."""
        return fmt.make_header(
            self.seed, self.stream, generation=self.generation, tau_prune=self.tau_prune, tau_freeze=self.tau_freeze,
            scale=self.scale, code=self.code, device="cpu",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The object of `frozen_kernels.tensors`: seed as a decimal string, scale as C99 hex."""
        found = asdict(self) | {"seed": str(self.seed), "scale": self.scale.hex()}
        if self.masks is not None:
            found |= {name: [getattr(mask, name) for mask in self.masks] for name in PER_MASK}
            found |= {"masks": [m.name for m in self.masks], "scale": [m.scale.hex() for m in self.masks]}
        found = {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}
        left_out = features.OPTIONAL_FIELDS
        return {n: v for n, v in found.items() if n not in SEEN and (v is not None or n not in left_out)}

    @classmethod
    def from_json(cls, value: object) -> TensorRecord:
        """The record of one JSON object; ValueError that names the field where it is not one that a writer makes."""
        if not isinstance(value, dict):
            raise ValueError(f"an object for each tensor, got {short(value)}")
        known = {f.name for f in fields(cls)} - SEEN
        missing, extra = sorted(known - features.OPTIONAL_FIELDS - set(value)), sorted(set(value) - known)
        if missing or extra:
            raise ValueError(f"fields: missing {short(missing)}, unknown {short(extra)}")
        name = value["name"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: a string that is not empty, got {short(name)}")
        try:
            return cls._of_bank(value) if "masks" in value else cls._checked(value)
        except ValueError as why:
            raise ValueError(f"{short(name)}: {why}") from None

    @classmethod
    def _of_bank(cls, value: dict[str, Any]) -> TensorRecord:
        names = value["masks"]
        if names is None:
            raise ValueError("masks: null, which no writer gives")
        features.BANK.check_fields(value)
        for field in PER_MASK:
            if not isinstance(value[field], list) or len(value[field]) != len(names):
                raise ValueError(f"{field}: a list with one for each of {len(names)} masks, got {short(value[field])}")
        plain = {field: v for field, v in value.items() if field != "masks"}
        found = [cls._checked(plain | {field: value[field][i] for field in PER_MASK}) for i in range(len(names))]
        masks = (BankMask(n, *(getattr(r, f) for f in PER_MASK)) for n, r in zip(names, found, strict=True))
        return replace(found[0], masks=tuple(masks))

    @classmethod
    def _checked(cls, value: dict[str, Any]) -> TensorRecord:
        shape = value["shape"]
        if not isinstance(shape, list) or len(shape) > _LONGEST_SHAPE:
            raise ValueError(f"shape: a list of at most {_LONGEST_SHAPE} sizes, got {short(shape)}")
        sizes = tuple(integer("shape", size, 1 << 34) for size in shape)
        rows, cols = fmt.matrix_shape(sizes)
        seed, code, sha = value["seed"], value["code"], value["keep_sha256"]
        if not isinstance(seed, str) or not _DECIMAL.fullmatch(seed) or int(seed) >= 1 << 64:
            raise ValueError(f"seed: a decimal string in [0, 2^64), got {short(seed)}")
        if not isinstance(code, str) or code not in fmt.ALL_CODES:
            raise ValueError(f"code: one of {', '.join(fmt.ALL_CODES)}, got {short(code)}")
        if not isinstance(sha, str) or not _SHA256.fullmatch(sha):
            raise ValueError(f"keep_sha256: 64 lower-case hex digits, got {short(sha)}")
        numbers: dict[str, Any] = {
            name: integer(name, value[name], highest)
            for name, highest in (
                ("stream", (1 << 32) - 1), ("generation", (1 << 24) - 1), ("tau_prune", 65536), ("tau_freeze", 65536),
                ("pruned", rows * cols), ("locked", rows * cols), ("free", rows * cols), ("kept", rows * cols),
            )
        }  # fmt: skip
        if numbers["tau_prune"] > numbers["tau_freeze"]:
            raise ValueError(
                f"thresholds: tau_prune {numbers['tau_prune']} is above tau_freeze {numbers['tau_freeze']}"
            )
        pruned, locked, free, kept = (numbers[n] for n in ("pruned", "locked", "free", "kept"))
        if pruned + locked + free != rows * cols:
            raise ValueError(
                f"counts: pruned {pruned} + locked {locked} + free {free} = {pruned + locked + free}, "
                f"the shape {list(sizes)} has {rows * cols} weights"
            )
        if not locked <= kept <= locked + free:
            raise ValueError(f"kept: {kept} is outside locked {locked} to locked + free {locked + free}")
        scale = _scale(value["scale"])
        optional = {name: value[name] for name in features.OPTIONAL_FIELDS & set(value)}
        for name, given in optional.items():
            if given is None:
                raise ValueError(f"{name}: null, which no writer gives")
        checked = {"code": code, "seed": int(seed), "scale": scale, "rows": rows, "cols": cols, **numbers, **optional}
        for feature in features.FEATURES:
            feature.check_fields(checked)
        optional = {name: tuple(v) if isinstance(v, list) else v for name, v in optional.items()}
        return cls(
            name=value["name"],
            shape=sizes,
            seed=int(seed),
            code=code,
            scale=scale,
            keep_sha256=sha,
            **numbers,
            **optional,
        )


@dataclass(frozen=True)
class Ticket:
    """A ticket as read: metadata and counts checked, tensors in memory."""

    path: str
    metadata: dict[str, str]
    records: tuple[TensorRecord, ...]
    tensors: dict[str, Tensor]
    header_bytes: int
    file_bytes: int

    @property
    def masks(self) -> list[str] | None:
        """The names of the masks of a bank; None of the ticket of one network."""
        return _mask_names(self.records[0])

    @property
    def ordinary(self) -> dict[str, Tensor]:
        """The tensors that are no part of a frozen weight."""
        frozen = {name for record in self.records for name in record.tensor_names}
        return {name: t for name, t in self.tensors.items() if name not in frozen}


def _scale(value: object) -> float:
    if not isinstance(value, str) or not _HEX_FLOAT.fullmatch(value):
        raise ValueError(f"scale: a C99 hex float, got {short(value)}")
    try:
        scale = float.fromhex(value)
        exact = struct.unpack("<f", struct.pack("<f", scale))[0] == scale
    except OverflowError:
        raise ValueError(f"scale: {value} does not fit float32") from None
    if not exact:
        raise ValueError(f"scale: {value} is not a float32")
    if math.copysign(1.0, scale) < 0:
        raise ValueError(f"scale: 0 or more, got {value}")
    return scale


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def content_digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """The digest of a ticket with these metadata (a digest among them is left out) and tensors."""
    others = {key: value for key, value in metadata.items() if key != PREFIX + "digest"}
    listed = sorted(
        [name, DTYPE_NAMES[t.dtype], list(t.shape), hashlib.sha256(bytes_of(t).data).hexdigest()]
        for name, t in tensors.items()
    )
    return hashlib.sha256(_canonical([others, listed])).hexdigest()


def _check_metadata(metadata: dict[str, str]) -> None:
    """ValueError for a foreign file, another version, a feature not known here, or a key that this version lacks."""
    found = metadata.get(PREFIX + "format")
    if found is None:
        raise ValueError(f"no ticket: its metadata has no {PREFIX}format")
    if found != str(fmt.VERSION):
        raise ValueError(f"{PREFIX}format: {short(found)}, this release reads '{fmt.VERSION}'")
    for key in KEYS:
        if PREFIX + key not in metadata:
            raise ValueError(f"{PREFIX}{key}: missing")
    requires = parse_json(metadata[PREFIX + "requires"])
    if not isinstance(requires, list) or not all(isinstance(feature, str) for feature in requires):
        raise ValueError(f"{PREFIX}requires: a list of strings, got {short(requires)}")
    unknown = [feature for feature in requires if feature not in KNOWN_FEATURES]
    if unknown:
        known = ", ".join(KNOWN_FEATURES) or "none"
        raise ValueError(f"{PREFIX}requires: {short(unknown)}, which this release does not know (known: {known})")
    extra = [key for key in metadata if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in KEYS]
    if extra:
        raise ValueError(f"metadata: unknown keys {short(sorted(extra))}")


def _check_supermask(record: TensorRecord, tensors: dict[str, Tensor]) -> None:
    supermask = tensors.get(record.supermask_name)
    if supermask is None:
        raise ValueError(f"{short(record.supermask_name)}: missing")
    fmt.check_supermask(supermask, record.free, short(record.supermask_name))
    kept = record.locked + int(torch.ops.frozen_kernels.popcount(supermask))
    if kept != record.kept:
        raise ValueError(f"{short(record.name)}: kept is {record.kept}, locked and supermask bits are {kept}")


def _mask_names(record: TensorRecord) -> list[str] | None:
    return None if record.masks is None else [mask.name for mask in record.masks]


def _check_tensors(records: tuple[TensorRecord, ...], tensors: dict[str, Tensor]) -> None:
    """ValueError where records repeat or their supermasks do not fit them, or where a bool is neither 0 nor 1."""
    names: set[str] = set()
    streams: dict[tuple[int, int], str] = {}
    for record in records:
        if record.name in names:
            raise ValueError(f"{short(record.name)}: listed twice")
        names.add(record.name)
        if _mask_names(record) != _mask_names(records[0]):
            raise ValueError(
                f"{short(record.name)}: masks {short(_mask_names(record))}, {short(records[0].name)} has "
                f"{short(_mask_names(records[0]))}"
            )
        first = streams.setdefault((record.seed, record.stream), record.name) if record.drawn else record.name
        if first != record.name:
            raise ValueError(
                f"{short(record.name)}: seed {record.seed} and stream {record.stream} are those of {short(first)}"
            )
        if record.masks is None:
            _check_supermask(record, tensors)
        features.check_tensors(record, tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and bytes_of(tensor).max(initial=0) > 1:
            raise ValueError(f"{short(name)}: a bool that is neither 0 nor 1, got {bytes_of(tensor).max()}")


def features_used(records: Iterable[TensorRecord]) -> list[str]:
    """What `frozen_kernels.requires` names for these records."""
    needed = {feature.name for record in records for feature in features.features_of(record)}
    return [name for name in KNOWN_FEATURES if name in needed]


def _check_features(metadata: dict[str, str], records: tuple[TensorRecord, ...]) -> None:
    """ValueError where records need a feature that the ticket does not name, or it names one that none needs."""
    used = features_used(records)
    named = parse_json(metadata[PREFIX + "requires"])
    if named != used:
        raise ValueError(f"{PREFIX}requires: {short(named)}, its tensors need {short(used)}")


def read_ticket(path: str | os.PathLike[str]) -> Ticket:
    """Read a ticket and check all that needs no model and no regeneration: version, digest, records, supermasks.

    Raises:
        TicketError: anything that is not a ticket of this version, with the file, the tensor and both values.
        OSError: the file is missing or cannot be read.
    """
    path = os.fsdecode(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise TicketError(f"{path}: not a regular file")
    try:
        metadata, tensors, header_bytes, file_bytes = read(path)
        _check_metadata(metadata)
        found = content_digest(metadata, tensors)
        if metadata[PREFIX + "digest"] != found:
            raise ValueError(f"digest: {short(metadata[PREFIX + 'digest'])}, the contents give '{found}'")
        listed = parse_json(metadata[PREFIX + "tensors"])
        if not isinstance(listed, list) or not listed:
            raise ValueError(f"{PREFIX}tensors: a list that is not empty, got {short(listed)}")
        records = tuple(TensorRecord.from_json(value) for value in listed)
        records = tuple(replace(record, gain=f"{record.name}.gain" in tensors) for record in records)
        _check_features(metadata, records)
        _check_tensors(records, tensors)
    except ValueError as why:
        raise TicketError(f"{path}: {why}") from None
    return Ticket(path, metadata, records, tensors, header_bytes, file_bytes)


def check_regenerated(ticket: Ticket, record: TensorRecord, found: Regenerated, name: str | None = None) -> None:
    """TicketError where a seed has given other counts or, if it was made, another keep plane than the ticket says.

    The message calls the tensor `name`, by default as the record does.
    """
    name = record.name if name is None else name
    counts = found.pruned, found.locked, found.free
    if counts != (record.pruned, record.locked, record.free):
        said = f"pruned {record.pruned}, locked {record.locked}, free {record.free}"
        regenerated = "pruned {}, locked {}, free {}".format(*counts)
        raise TicketError(f"{ticket.path}: {short(name)}: {said}; the seed gives {regenerated}")
    if found.keep_sha256 not in (None, record.keep_sha256):
        raise TicketError(
            f"{ticket.path}: {short(name)}: keep_sha256 is {record.keep_sha256}, "
            f"the regenerated keep plane has {found.keep_sha256}"
        )


def verify_ticket(ticket: Ticket) -> None:
    """Regenerate the partition and keep plane of every tensor, without a model; TicketError where one differs.

    Planes are made in blocks and not held. TicketError for those of more than 2^30 bytes together, and 16 for each
    byte of the file: without a model, a few numbers in a file are all that says how large they are.
    """
    planes = sum(4 * r.rows * fmt.words(r.cols) * len(r.supermask_names) for r in ticket.records)
    most = _PLANES + _PLANES_PER_BYTE * ticket.file_bytes
    if planes > most:
        largest = max(ticket.records, key=lambda record: record.rows * fmt.words(record.cols))
        raise TicketError(
            f"{ticket.path}: keep planes of {planes} bytes, the largest that of {short(largest.name)}; "
            f"at most {most} are regenerated without a model"
        )
    for record in ticket.records:
        for network, name in zip(record.networks, record.supermask_names, strict=True):
            found = regenerate(network.header(), record.rows, record.cols, ticket.tensors[name])
            check_regenerated(ticket, network, found, record.name if record.masks is None else name)
