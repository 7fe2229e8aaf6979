"""Tickets: one `.safetensors` file with everything of a frozen network that no seed regenerates.

Section 7 of the format (docs/format.md). `file` knows the file by itself; this module moves it out of a model and into
one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import format as fmt
from ..coats import check_coats
from ..config import FreezeConfig
from ..convert.freeze import candidates
from ..files import write_whole
from ..nn.attention import open_attentions
from ..nn.layer import OWN_BUFFERS, FrozenLayer, Made
from ..nn.models import (
    frozen_layers,
    named_modules,
    replace_modules,
    reshard,
    spread,
    unwrapped,
    warn_of_stale_masks,
)
from ..nn.twins import frozen_shape, is_layer, twin_of, weight_place
from ..process import release_memory
from ..select.sharded import whole
from ..tensor import ALL_RESIDENCIES, Residency
from .bits import select_bits
from .container import DTYPE_NAMES, DTYPES, LARGEST_HEADER, bytes_of, parse_header, short
from .features import check_tensors
from .file import (
    PREFIX,
    TensorRecord,
    Ticket,
    TicketError,
    content_digest,
    features_used,
    read_ticket,
    verify_ticket,
)
from .gain import check_gain, gain_of, unsaved_part
from .made import Pairs, make
from .regenerate import hash_plane, regenerate

__all__ = ["TensorRecord", "Ticket", "TicketError", "load_ticket", "read_ticket", "save_ticket", "verify_ticket"]

_FROZEN_STATE = (
    "header",
    "scores",
    "supermask",
    "values",
    "row_scale",
    "tuned",
    "coats",
    "generations",
    "gain",
)  # what of a frozen layer is in its record, or not saved
_NAMES_SHOWN = 5


class _Slot(NamedTuple):
    """A parameter or buffer of the model that a ticket stores as it is."""

    name: str
    owner: nn.Module
    tensor: Tensor


def _slots(model: nn.Module, to_freeze: Collection[nn.Module]) -> Iterator[_Slot]:
    """Ordinary parameters and saved buffers, each module once; `to_freeze`: layers about to be replaced."""
    replaced = {id(module) for module in to_freeze}
    weights = {(id(owner), name) for owner, name in map(weight_place, to_freeze)}
    for prefix, module in named_modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or name in module._non_persistent_buffers_set:
                continue
            if isinstance(module, FrozenLayer) and name in _FROZEN_STATE:
                continue
            if (id(module) in replaced and name != "bias") or (id(module), name) in weights:
                continue
            yield _Slot(f"{prefix}.{name}" if prefix else name, module, tensor)


def _may_be_frozen(slot: _Slot) -> bool:
    """Whether a reader's model may have a frozen layer in the place of a slot's."""
    return twin_of(slot.owner) is not None or isinstance(slot.owner, nn.MultiheadAttention)


def _gathered(slots: Iterator[_Slot]) -> Iterator[_Slot]:
    """The same slots with sharded tensors whole, tied ones still tied; collective where there are any."""
    found: dict[int, Tensor] = {}
    for slot in slots:
        if id(slot.tensor) not in found:
            found[id(slot.tensor)] = whole(slot.tensor)
        yield slot._replace(tensor=found[id(slot.tensor)])


def _tied(slots: Iterator[_Slot]) -> list[list[_Slot]]:
    """Slots grouped by the memory that they show, in traversal order; ValueError for what no file can hold.

    On the meta device, where nothing has memory, one tensor alone is tied to itself.
    """
    groups: dict[object, list[_Slot]] = {}
    for slot in slots:
        t = slot.tensor
        if isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise ValueError(f"model: {slot.name!r} is lazy: run a batch through the model first")
        if t.layout != torch.strided or t.dtype not in DTYPE_NAMES:
            raise ValueError(
                f"model: {slot.name!r} is {t.dtype}, {t.layout}; a ticket holds {', '.join(DTYPES)}, strided"
            )
        same_memory = (t.device, t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        groups.setdefault(same_memory if t.numel() and not t.is_meta else id(t), []).append(slot)
    return list(groups.values())


def _check_root(model: nn.Module) -> None:
    if isinstance(model, FrozenLayer) or is_layer(model):
        raise ValueError(f"model: a bare {type(model).__name__} has no name in a ticket; put it in a module")


def _check_not_spread(model: nn.Module) -> None:
    if spread(model):
        raise ValueError("model: spread over processes; load a ticket before DistributedDataParallel or fully_shard")


def _record_of(name: str, layer: FrozenLayer, supermask: Tensor, features: dict[str, Any]) -> TensorRecord:
    """What a ticket says of a layer; ValueError that names it where a reader would refuse that."""
    try:
        layer.check_buffers()
        fmt.check_supermask(supermask, layer.free)
    except ValueError as why:
        raise ValueError(f"model: {name!r} is no longer the layer it was: {why}") from None
    header = layer.header.cpu()
    found = regenerate(header, layer.rows, layer.cols, supermask)
    given, kept = layer.counts, found.locked + int(torch.ops.frozen_kernels.popcount(supermask))
    counts = {"pruned": found.pruned, "locked": found.locked, "free": found.free, "kept": kept}
    if given != counts:
        raise ValueError(f"model: {name!r} is no longer the layer it was: counts {given}, its seed gives {counts}")
    assert found.keep_sha256 is not None
    if layer.keep is not None and hash_plane(layer.keep) != found.keep_sha256:
        raise ValueError(f"model: {name!r} is no longer the layer it was: keep is not the plane that its seed gives")
    known: dict[str, Any] = {**fmt.header_fields(header), **counts, **features}
    record = TensorRecord(name=name, shape=layer.shape, keep_sha256=found.keep_sha256, **known)
    checked = TensorRecord.from_json(record.to_json())  # refuses what a reader would
    return replace(checked, gain=layer.gain is not None)


def frozen_state(layers: Mapping[str, FrozenLayer]) -> tuple[list[TensorRecord], dict[str, Tensor]]:
    """Records in stream order, and what they store by tensor name; layers of one weight are one tensor."""
    if not layers:
        raise ValueError("model: no frozen layers; a ticket holds what freeze_ made")
    first_of: dict[tuple[object, ...], TensorRecord] = {}
    tensors: dict[str, Tensor] = {}
    owned: dict[str, dict[str, Tensor]] = {}
    for name, layer in layers.items():
        if layer.device.type == "meta":
            raise ValueError(f"model: {name!r} is on the meta device: it has no supermask")
        part = unsaved_part(layer)
        if part is not None:
            raise ValueError(f"model: {name!r} has {part}, which no ticket holds: save it before folding")
        supermask = layer.packed_supermask().cpu()
        features, own = _features_of(name, layer)
        record = _record_of(name, layer, supermask, features)
        first = first_of.setdefault(layer.identity, record)
        if first is record:
            owned[name] = own
            tensors |= {f"{name}.{end}": t for end, t in own.items()} | {record.supermask_name: supermask}
        elif first.to_json() != record.to_json() | {"name": first.name} or not _same_bytes(own, owned[first.name]):
            shared = f"both have seed {layer.seed} and stream {layer.stream}" if record.drawn else "share their weight"
            raise ValueError(
                f"model: {first.name!r} and {name!r} {shared}, but not the same shape, code, scale, mask and gain"
                + ("; give one of them another stream" if record.drawn else "")
            )
    return sorted(first_of.values(), key=lambda r: (r.stream, r.seed)), tensors


def _same_bytes(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether both have the same tensors by name, those of NaN too."""
    return tensors.keys() == others.keys() and all(
        np.array_equal(bytes_of(t), bytes_of(others[end])) for end, t in tensors.items()
    )


def _features_of(name: str, layer: FrozenLayer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of a record that a layer needs beyond section 7, and its tensors by the end of their names."""
    fields: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if layer.signed:
        supermask, signs = layer.packed_supermask().cpu(), layer.packed_signs().cpu()
        tensors["signs"] = select_bits(signs, supermask, layer.rows * layer.cols)
        tensors |= {} if layer.row_scale is None else {"row_scale": layer.row_scale}
    if layer.stored:
        try:
            packed = layer.packed_record()
        except ValueError as why:
            raise ValueError(f"model: {name!r}: {why}") from None
        assert packed.values is not None
        tensors |= {"values": packed.values}
        tensors |= {} if packed.row_scale is None else {"row_scale": packed.row_scale}
        fields["values"] = str(packed.values.dtype).removeprefix("torch.")
    if layer.coats is not None:
        try:
            check_coats(layer.coats, layer.frozen.keep_plane())
        except ValueError as why:
            raise ValueError(f"model: {name!r} is no longer the layer it was: {why}") from None
        tensors |= {f"coat{i}": stream for i, stream in enumerate(layer.coat_streams(), 2)}
        fields |= {"coats": 1 + layer.coats.shape[0], "coat_kept": tuple(layer.coat_kept())}
    if layer.generations is not None:
        tensors["generation"] = layer.generations
        fields["generations"] = 1 + int(layer.generations_of().max())
    tensors |= gain_of(layer)
    return fields, {end: t.detach().cpu() for end, t in tensors.items()}


@torch.no_grad()
def ticket_parts(model: nn.Module) -> list[bytes | memoryview]:
    """The bytes of the file that `save_ticket` writes, in order, and its errors; collective under `fully_shard`."""
    model = writable(model)
    records, tensors = frozen_state(frozen_layers(model))
    return file_parts(records, tensors | ordinary_state(model, records))


def writable(model: nn.Module) -> nn.Module:
    """The model inside wrappers, for a ticket to be written of; ValueError where it is a bare layer."""
    model = unwrapped(model)
    _check_root(model)
    reshard(model)
    return model


def ordinary_state(model: nn.Module, records: Sequence[TensorRecord]) -> dict[str, Tensor]:
    """The ordinary tensors of a file by name, in memory of their own; collective under `fully_shard`."""
    tensors: dict[str, Tensor] = {}
    shapes = {record.shape for record in records}
    for group in _tied(_gathered(_slots(model, ()))):
        for slot in group:
            if slot.tensor.is_meta:
                raise ValueError(f"model: {slot.name!r} is on the meta device: it has no values")
            # a reader takes a tied layer without a stored weight for a frozen one, so those are stored again
            if slot is group[0] or (_may_be_frozen(slot) and tuple(slot.tensor.shape) in shapes):
                tensors[slot.name] = slot.tensor.detach().cpu().contiguous().clone()
    return tensors


def file_parts(records: Sequence[TensorRecord], tensors: dict[str, Tensor]) -> list[bytes | memoryview]:
    """The bytes of a file with these records and tensors; ValueError where a reader would refuse it."""
    for record in records:
        try:
            check_tensors(record, tensors)  # as a reader does
        except ValueError as why:
            raise ValueError(f"model: {why}") from None
    metadata = {
        PREFIX + "format": str(fmt.VERSION),
        PREFIX + "requires": json.dumps(features_used(records)),
        PREFIX + "tensors": json.dumps([r.to_json() for r in records], separators=(",", ":"), ensure_ascii=False),
    }
    import safetensors.torch  # importing the package needs torch and numpy only

    metadata[PREFIX + "digest"] = content_digest(metadata, tensors)
    try:
        data = safetensors.torch.save(tensors, metadata)
        header, body = _ordered_header(data)
        parse_header(header[8:], len(body))  # what a reader of the file does
    except (safetensors.SafetensorError, ValueError) as why:
        raise ValueError(f"model: {why}") from None
    if len(header) - 8 > LARGEST_HEADER:
        raise ValueError(f"model: a header of {len(header) - 8} bytes; readers take at most {LARGEST_HEADER}")
    return [header, body]


def save_ticket(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the frozen network in `model` to one file: seeds, thresholds, supermasks, and every other parameter.

    Scores are not saved: a ticket holds the masks as they are, with a warning where the scores have moved since. Tied
    parameters are stored once. The file appears whole or not at all, and the same model always gives the same bytes,
    compiled or within `DistributedDataParallel` too. Under `fully_shard` ordinary parameters are gathered: call it on
    every rank, each with its path or all with one.

    Raises:
        ValueError: no frozen layers, a bare layer, one with a folded ReLU or a gain that is not one float32 for each
            row (a model folded otherwise loads into one folded alike), tensors on the meta device or of a dtype that
            safetensors lacks, a layer whose header or mask others have changed, two layers that share seed and stream
            but not their state, or FullyShardedDataParallel. Nothing is written.
        OSError: the file cannot be written; what was there before is still there.
    """
    warn_of_stale_masks(frozen_layers(model))
    write_parts(path, ticket_parts(model))


def write_parts(path: str | os.PathLike[str], parts: list[bytes | memoryview]) -> None:
    """Write a file whole or not at all."""

    def write(file: IO[bytes]) -> None:
        file.writelines(parts)

    write_whole(path, write)


def _ordered_header(data: bytes) -> tuple[bytes, memoryview]:
    """The header of a safetensors file with its metadata sorted, which the library leaves to chance, and the rest."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, memoryview(data)[8 + size :]


def _restored_config(record: TensorRecord) -> tuple[FreezeConfig, float]:
    """Settings and sigma that give a record's seed, code, thresholds and scale again."""
    total = record.rows * record.cols
    squares = sum((2 * i + 1) * kept for i, kept in enumerate(record.coat_kept or (record.kept,)))
    sparsity = (total - record.kept) / total if total else 0.0
    if record.values is not None:
        return FreezeConfig(code=fmt.STORED, sparsity=sparsity, scope="local"), 0.0
    grid = record.tau_prune | record.tau_freeze
    if record.code == fmt.SIGNS:
        config = FreezeConfig(code=fmt.SIGNS, sparsity=sparsity)
    else:
        config = FreezeConfig(
            seed=record.seed,
            code=record.code,
            sparsity=sparsity,
            prune_ratio=record.pruned / total if total else 0.0,
            lock_ratio=record.locked / total if total else 0.0,
            threshold_bits=16 - min((grid & -grid).bit_length() - 1, 15) if grid else 1,
        )
    sigma = fmt.kaiming_sigma(record.cols)
    for scaling in ("none", "dynamic"):
        scaled = replace(config, scaling=scaling)
        if fmt.scale_of(record.code, sigma, scaled.factor(squares, total)) == record.scale:
            return scaled, sigma
    return config, record.scale * fmt.rms_of(record.code)


def _weight_of(layer: nn.Module) -> tuple[object, tuple[int, ...]]:
    """What layers of one weight have in common, and its shape."""
    if isinstance(layer, FrozenLayer):
        return layer.identity, layer.shape
    return id(layer.weight), frozen_shape(layer)


def _weight_name(name: str, layer: nn.Module) -> str:
    """What the weight of a plain layer is called in a state."""
    owner, weight = weight_place(layer)
    return f"{name}.{weight}" if owner is layer else ".".join((*name.split(".")[:-1], weight))


def _pair_layers(model: nn.Module, ticket: Ticket) -> Pairs:
    """Which record each layer takes; layers of one weight take the record of the one that the ticket names."""
    modules = dict(named_modules(model))
    raw = {**modules, **dict(model.named_modules())}  # with the names of wrappers too
    chosen, skipped = candidates(model, lambda module, name: True)
    reasons = {id(raw[name]): why for name, why in skipped if name in raw}
    layers = {name: m for name, m in modules.items() if isinstance(m, FrozenLayer)} | chosen
    pairs: Pairs = {}
    named_by_weight: dict[object, list[TensorRecord]] = {}
    for record in ticket.records:
        layer = layers.get(record.name)
        if layer is None:
            found = modules.get(record.name)
            why = "the model has no such module" if found is None else f"the model has a {type(found).__name__} there"
            raise ValueError(f"{short(record.name)}: frozen in the ticket; {reasons.get(id(found), why)}")
        check_gain(layer, record)
        weight, shape = _weight_of(layer)
        if shape != record.shape:
            raise ValueError(
                f"{short(record.name)}: shape {list(record.shape)} in the ticket, {list(shape)} in the model"
            )
        pairs[record.name] = layer, record
        named_by_weight.setdefault(weight, []).append(record)
    for name, layer in layers.items():
        frozen = isinstance(layer, FrozenLayer)
        if name in pairs or (not frozen and _weight_name(name, layer) in ticket.tensors):
            continue
        weight, shape = _weight_of(layer)
        named = [record for record in named_by_weight.get(weight, []) if record.shape == shape]
        if len(named) == 1:
            check_gain(layer, named[0])
            pairs[name] = layer, named[0]
        elif named:
            tied = ", ".join(short(record.name) for record in named)
            raise ValueError(f"{name!r}: shares its weight in the model with {tied}, which are several in the ticket")
        elif frozen:
            raise ValueError(f"{name!r}: frozen in the model, not in the ticket")
    return pairs


def _pair_tensors(model: nn.Module, ticket: Ticket, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """(tensor of the model, stored tensor) for all ordinary tensors; ValueError where any does not fit."""
    stored = ticket.ordinary
    plain = [layer for layer, _ in pairs.values() if not isinstance(layer, FrozenLayer)]
    copies, missing, used = [], [], set()
    for group in _tied(_slots(model, plain)):
        given = [slot for slot in group if slot.name in stored]
        for slot in given:
            old, new = slot.tensor, stored[slot.name]
            if old.shape != new.shape or old.dtype != new.dtype:
                raise ValueError(
                    f"{slot.name!r}: {new.dtype} {list(new.shape)} in the ticket, "
                    f"{old.dtype} {list(old.shape)} in the model"
                )
            if not np.array_equal(bytes_of(new), bytes_of(stored[given[0].name])):
                raise ValueError(f"{slot.name!r}: tied to {given[0].name!r} in the model, other values in the ticket")
            expanded = any(s == 0 and n > 1 for s, n in zip(old.stride(), old.shape, strict=True))
            if not old.is_meta and (old.is_inference() or expanded):
                raise ValueError(
                    f"{slot.name!r}: an expanded or inference tensor of the model cannot be loaded in place"
                )
        if given:
            copies.append((group[0].tensor, stored[given[0].name]))
            used |= {slot.name for slot in given}
        else:
            missing.append(group[0].name)
    extra = sorted(set(stored) - used)
    if missing or extra:
        raise ValueError(f"tensors: not in the ticket {_some(missing)}, not in the model {_some(extra)}")
    return copies


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{short(names[:_NAMES_SHOWN])}{more}"


def _check_meta_buffers(model: nn.Module) -> None:
    """ValueError for buffers on the meta device that no ticket holds: nothing says what is in them."""
    left = [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in named_modules(model)
        for name in module._non_persistent_buffers_set
        if not (isinstance(module, FrozenLayer) and name in OWN_BUFFERS)
        and (held := module._buffers.get(name)) is not None
        and held.is_meta
    ]
    if left:
        raise ValueError(
            f"model: buffers {_some(sorted(left))} are on the meta device and not in a ticket, for they are not "
            "persistent; give them their values first"
        )


def _with_memory(meta: Tensor, stored: Tensor) -> Tensor:
    """A parameter or buffer like one on the meta device, with stored values, on the CPU."""
    value = stored if meta.stride() == stored.stride() else torch.empty_like(meta, device="cpu").copy_(stored)
    return nn.Parameter(value, meta.requires_grad) if isinstance(meta, nn.Parameter) else value


def _put_in_place(model: nn.Module, by_id: dict[int, Tensor]) -> None:
    """Give every module the tensor that stands for the id of one of its own."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if id(tensor) in by_id:
                    held[name] = by_id[id(tensor)]  # type: ignore[assignment]
        if isinstance(module, FrozenLayer):
            module.prepare_calls()


@torch.no_grad()
def load_ticket(
    model: nn.Module, path: str | os.PathLike[str], *, verify: bool = True, residency: Residency | None = None
) -> nn.Module:
    """Load a ticket into `model`, in place, and return it; its frozen layers are finalized.

    Each partition is generated once. The model owns what it holds: the file may be changed or removed afterwards.
    Memory rises by what stays, and by less than half of that on the way.

    Args:
        model: the plain model, whose layers are replaced by frozen ones, or a frozen one of the same shapes; compiled,
            or in `DataParallel`, too. What is on the meta device gets memory on the CPU: tied parameters stay tied,
            and each keeps its requires_grad.
        path: the file.
        verify: compare each regenerated keep plane with the ticket's hash; the counts are compared in any case.
        residency: how the frozen layers hold their weights; by default `mask`, of stored weights `packed`, and frozen
            layers keep their own. It counts for the layers that have it.

    Raises:
        TicketError: not a whole ticket of this version, or one for another model; the message names the file, the
            tensor and both values. Or a model that is spread over processes, or with buffers on the meta device that
            are not persistent. The model is unchanged.
        OSError: the file is missing or cannot be read.
        ValueError: another residency.
    """
    if residency is not None and residency not in ALL_RESIDENCIES:
        raise ValueError(f"residency: one of {', '.join(ALL_RESIDENCIES)}, got {residency!r}")
    inside = loadable(model, path)
    ticket = read_ticket(path)
    if ticket.masks is not None:
        raise TicketError(
            f"{ticket.path}: a bank of {len(ticket.masks)} masks ({_some(ticket.masks)}), not one network; "
            "MaskBank.load loads it"
        )
    pairs, copies = fitted(inside, ticket)
    made = make(ticket, pairs, residency, verify)
    place(inside, pairs, copies, made)
    del ticket, copies, pairs
    release_memory()
    return model


def loadable(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """The model inside wrappers, for a ticket to be loaded into; TicketError where none can be."""
    try:
        inside = unwrapped(model)
        _check_root(inside)
        _check_not_spread(model)
    except ValueError as why:
        raise TicketError(f"{os.fsdecode(path)}: {why}") from None
    return inside


Copies = list[tuple[Tensor, Tensor]]


def fitted(model: nn.Module, ticket: Ticket) -> tuple[Pairs, Copies]:
    """Which record each layer takes, and which stored tensor each ordinary one; TicketError where any does not fit."""
    try:
        pairs = _pair_layers(model, ticket)
        copies = _pair_tensors(model, ticket, pairs)
        _check_meta_buffers(model)
    except ValueError as why:
        raise TicketError(f"{ticket.path}: {why}") from None
    return pairs, copies


def place(inside: nn.Module, pairs: Pairs, copies: Copies, made: dict[str, Made], stay: Collection[str] = ()) -> None:
    """Put what a ticket says into a model, which is refused nothing here; `made` is used up.

    The frozen layers named in `stay` keep what they hold.
    """
    settings = {record.name: _restored_config(record) for _, record in pairs.values()}
    new: dict[str, FrozenLayer] = {}
    for name, (layer, record) in pairs.items():
        if not isinstance(layer, FrozenLayer):
            (config, sigma), twin = settings[record.name], twin_of(layer)
            new[name] = twin.from_module(layer, config, stream=record.stream, sigma=sigma, state=made.pop(name))
    by_id = {id(old): _with_memory(old, stored) for old, stored in copies if old.is_meta}
    # a frozen layer takes its bias over together with its weight
    adopting = {n: layer for n, (layer, _) in pairs.items() if isinstance(layer, FrozenLayer) and n not in stay}
    biases = {id(layer.bias) for layer in adopting.values()}
    values = {id(old): stored for old, stored in copies if id(old) in biases and not old.is_meta}
    # nothing above has changed the model
    for old, stored in copies:
        if not old.is_meta and id(old) not in values:
            old.copy_(stored)
    open_attentions(inside, [layer for layer, _ in pairs.values()])
    replace_modules(inside, [(pairs[name][0], layer) for name, layer in new.items()])
    first_of: dict[str, FrozenLayer] = {}
    for name, (layer, record) in pairs.items():
        if name in adopting:
            adopting[name].adopt(made.pop(name), *settings[record.name], bias=values.get(id(layer.bias)))
        held = adopting.get(name) or new.get(name)
        if held is not None:
            held.tie_to(first_of.setdefault(record.name, held))
    _put_in_place(inside, by_id)
