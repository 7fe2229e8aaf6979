"""`fk.footprint` of a model in a wrapper is that of the model inside."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import distributed, nn

import frozen_kernels as fk


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_changes_neither_names_nor_bytes(wrapper, one_process):
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    fk.freeze_(model)
    alone = fk.footprint(model)
    found = fk.footprint(WRAPPERS[wrapper](model), torch.ones(4, 64))
    assert [layer.name for layer in found.layers] == ["0", "3"] and found.metadata is not None
    assert replace(found, peak=alone.peak) == alone
    assert found.peak.bytes is not None or "not measured: /proc" in found.peak.method
