"""DistributedDataParallel and fully_shard on two processes; `processes_worker` holds the checks."""

from __future__ import annotations

import contextlib

import processes_worker
import pytest
import torch
import torch.multiprocessing as mp

import frozen_kernels as fk


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_bits_of_uneven_and_empty_parts_are_joined(block, monkeypatch):
    monkeypatch.setattr(fk.select.sharded, "_BLOCK", block)
    for count in (*range(1, 40), 257):
        bits = torch.randint(2, (count,), dtype=torch.uint8)
        for ranks in (1, 2, 3, 5, 8, 9):
            chunk = -(-count // ranks)
            rows = torch.zeros(ranks, -(-chunk // 8) * 8, dtype=torch.uint8)
            for row, part in zip(rows, bits.split(chunk), strict=False):
                row[: part.numel()] = part
            assert torch.equal(fk.select.sharded.join_bits(packed(rows), chunk, count), packed(bits[None])[0])


def packed(bits: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, ceil(bits / 8)], bit i & 7 of byte i >> 3."""
    whole = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).view(bits.shape[0], -1, 8).int()
    return (whole << torch.arange(8)).sum(2).to(torch.uint8)


def test_on_two_processes(tmp_path):
    """Starting processes takes longer than most checks: all share two."""
    with contextlib.suppress(mp.ProcessRaisedException, mp.ProcessExitedException):  # the files say it
        mp.spawn(processes_worker.run, (tmp_path,), nprocs=processes_worker.RANKS)
    said = {f.name: f.read_text() for f in tmp_path.glob("*.said")}
    failed = [f"{name}: {text}" for name, text in said.items() if text != "passed"]
    assert not failed, "\n".join(failed)
    ranks = range(processes_worker.RANKS)
    assert set(said) == {f"{check.__name__}.{rank}.said" for check in processes_worker.CHECKS for rank in ranks}
