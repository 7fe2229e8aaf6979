"""Thresholds and masks from scores that `fully_shard` spreads over processes.

Sharded scores are 1-D DTensors split on dimension 0. Every rank decides from reduced counts alone, so all ranks hold
the same masks bit for bit, those that one process would make of the whole scores. torch.distributed is imported here
when it is needed and not before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import format as fmt

_DIGITS = ((20, 11), (10, 10), (0, 10))  # shift and width of the digits of a 31-bit key, highest first
_BLOCK = 1 << 18  # scores, or bytes of a mask, that temporaries are made of at once


def loaded_class(module: str, name: str) -> Any:
    """A class of a torch module, None where nobody has imported that yet: then nothing can be of the class."""
    return getattr(sys.modules.get(module), name, None)


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether a tensor is a DTensor, of which each process holds a part."""
    kind = loaded_class("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(tensor, kind)


def may_shard() -> bool:
    """Whether this process may have modules under `fully_shard`: one of many, where somebody has imported that."""
    loaded = loaded_class("torch.distributed.fsdp", "FSDPModule") is not None
    return loaded and torch.distributed.is_initialized()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every process: a collective call where it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


class _Shard(NamedTuple):
    """The part [start, start + local.numel()) of `total` scores that this process holds."""

    local: Tensor
    total: int
    chunk: int
    start: int
    ranks: int
    group: Any


def _shard(scores: Tensor) -> _Shard:
    """This process's part of the scores; ValueError where they are not split as `fully_shard` splits."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if not isinstance(scores, DTensor):
        raise ValueError("scores: of some layers sharded and of others not; give the whole model to fully_shard")
    split = [i for i, p in enumerate(scores.placements) if not isinstance(p, Replicate)]
    if len(split) != 1 or type(scores.placements[split[0]]) is not Shard:
        raise ValueError(
            f"scores: placements {scores.placements} on mesh {scores.device_mesh}; one Shard(0) is possible, beside "
            "replicas: fully_shard on a mesh of one dimension, or of two (replicate, shard)"
        )
    mesh, dim = scores.device_mesh, split[0]
    ranks, total, local = mesh.size(dim), scores.numel(), scores.to_local().detach()
    chunk = -(-total // ranks)
    start = min(mesh.get_local_rank(dim) * chunk, total)
    if local.numel() != min(chunk, total - start):
        raise ValueError(f"scores: {local.numel()} of {total} in a part that should have {min(chunk, total - start)}")
    return _Shard(local, total, chunk, start, ranks, mesh.get_group(dim))


def _common_group(shards: Sequence[_Shard]) -> Any:
    """The processes that hold the parts; ValueError where tensors lie on different ones."""
    import torch.distributed as dist

    if len({tuple(dist.get_process_group_ranks(shard.group)) for shard in shards}) > 1:
        raise ValueError("scores: sharded over different meshes; one search needs one mesh")
    return shards[0].group


def copy_part_(scores: Tensor, values: Tensor) -> None:
    """Fill sharded scores from all their values, of which each process takes its own."""
    shard = _shard(scores)
    shard.local.copy_(values[shard.start : shard.start + shard.local.numel()])


def _key_blocks(local: Tensor) -> Iterator[Tensor]:
    """The keys of scores, a block at a time."""
    return (fmt.score_keys(block) for block in (local.split(_BLOCK) if local.numel() else ()))


def select(groups: Sequence[tuple[Sequence[Tensor], int]], device: torch.device) -> Tensor:
    """int64 keys [len(groups)] on `device`, where processes talk: the rank-th smallest |score| of each group.

    A group is its sharded scores and the rank, 1 to their number. Three all-reduces for all groups together, of
    2048, 1024 and 1024 counts a group; each process reads its own scores three times. Nothing waits for the device.
    Collective; ValueError for scores that are not split as `fully_shard` splits.
    """
    import torch.distributed as dist

    held = [[_shard(s) for s in scores] for scores, _ in groups]
    group = _common_group([shard for shards in held for shard in shards])
    keys = torch.zeros(len(groups), dtype=torch.int64, device=device)
    left = torch.tensor([rank for _, rank in groups]).to(device)
    for shift, width in _DIGITS:
        counts = torch.stack([_count(shards, keys[i], shift, width).to(device) for i, shards in enumerate(held)])
        dist.all_reduce(counts, group=group)
        upto = counts.cumsum(1)
        digit = torch.searchsorted(upto, left[:, None])
        left = left - (upto - counts).gather(1, digit)[:, 0]
        keys = keys << width | digit[:, 0]
    return keys


def _count(shards: Sequence[_Shard], prefix: Tensor, shift: int, width: int) -> Tensor:
    """int64 [2^width] counts of the digit at `shift`, over this process's keys that begin with `prefix`."""
    device = shards[0].local.device
    counts, prefix = torch.zeros(1 << width, dtype=torch.int64, device=device), prefix.to(device)
    for shard in shards:
        for keys in _key_blocks(shard.local):
            matching = (keys >> shift + width) == prefix
            counts.scatter_add_(0, (keys >> shift & (1 << width) - 1).to(torch.int64), matching.to(torch.int64))
    return counts


def pack_above(scores: Sequence[Tensor], keys: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """uint8 [ceil(count / 8)] supermasks on `device`: which of each tensor's scores order above its key.

    One all-gather of packed bits for all tensors together. Collective; ValueError as in `select`.
    """
    import torch.distributed as dist

    shards = [_shard(s) for s in scores]
    group, ranks = _common_group(shards), shards[0].ranks
    widths = [-(-shard.chunk // 8) for shard in shards]
    mine = torch.zeros(sum(widths), dtype=torch.uint8, device=device)
    for shard, key, part in zip(shards, keys, mine.split(widths), strict=True):
        if shard.local.numel():
            packed = torch.ops.frozen_kernels.pack_above(shard.local, key.to(shard.local.device))
            part[: packed.numel()] = packed.to(device)
    gathered = torch.empty(ranks, mine.numel(), dtype=torch.uint8, device=device)
    dist.all_gather(list(gathered.unbind()), mine, group=group)
    parts = gathered.split(widths, dim=1)
    return [join_bits(part, shard.chunk, shard.total) for part, shard in zip(parts, shards, strict=True)]


def join_bits(parts: Tensor, chunk: int, count: int) -> Tensor:
    """uint8 [ceil(count / 8)]: the first `count` bits of rows that hold `chunk` bits each, zero beyond their last.

    `parts` is uint8 [rows, ceil(chunk / 8)], bit i & 7 of byte i >> 3 as in every supermask.
    """
    out = torch.empty(-(-count // 8), dtype=torch.uint8, device=parts.device)
    width, flat = parts.shape[1], parts.reshape(-1)
    for first in range(0, out.numel(), _BLOCK):
        begin = torch.arange(first, min(first + _BLOCK, out.numel()), device=parts.device) * 8
        row = begin // chunk
        at = begin - row * chunk
        byte = flat[row * width + (at >> 3)].to(torch.int32)
        after = flat[row * width + ((at >> 3) + 1).clamp(max=width - 1)].to(torch.int32)
        has_after = (at >> 3) + 1 < width
        joined = (byte | torch.where(has_after, after, 0) << 8) >> (at & 7).to(torch.int32)
        for step in range(1, 1 + -(-7 // chunk)):
            # a later row begins within this byte
            shift = ((row + step) * chunk - begin).clamp(max=8).to(torch.int32)
            joined |= flat[((row + step) * width).clamp(max=flat.numel() - width)].to(torch.int32) << shift
        out[first : first + begin.numel()] = (joined & 255).to(torch.uint8)
    if count % 8:
        out[-1] &= (1 << count % 8) - 1
    return out
