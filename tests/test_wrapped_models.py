"""Conversion, search and residency of models in wrappers: they see the model inside or refuse the wrapper by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frozen_kernels as fk


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()


def compiled(module: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(module, backend="eager")


X = torch.randn(2, 3, 6, 6)


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_a_wrapped_model_is_the_model_inside(wrap):
    plain, inside = net(), net()
    wrapped = wrap(inside)
    before = wrapped(X)
    fk.freeze_(plain, fk.FreezeConfig(seed=3))
    assert [c.name for c in fk.freeze_(wrapped, fk.FreezeConfig(seed=3)).converted] == ["0", "4"]
    assert torch.equal(wrapped(X), plain(X)) and not torch.equal(wrapped(X), before)
    search = fk.EdgePopup(wrapped)
    assert [id(p) for p in search.parameters()] == [id(inside[0].scores), id(inside[4].scores)]
    with torch.no_grad():
        for model in (plain, inside):
            model[4].scores.copy_(model[4].scores.flip(0))
    search.step()
    fk.EdgePopup(plain).step()
    assert torch.equal(wrapped(X), plain(X))
    for model in (plain, wrapped):
        fk.finalize_(model)
    assert inside[4].scores is None
    assert (
        set(fk.set_residency(wrapped, "auto", X)) == {"0", "4"} and fk.set_residency(wrapped, "planes")["4"] == "planes"
    )
    assert fk.footprint(wrapped).weights == fk.footprint(plain).weights
    dense = fk.to_dense(wrapped)
    assert type(dense) is nn.Sequential and type(dense[0]) is nn.Conv2d
    torch.testing.assert_close(dense(X), plain(X))
    y = plain(X)
    assert [f.layer for f in fk.fold_batch_norm_(wrapped).folded] == ["0"]
    torch.testing.assert_close(wrapped(X), y)


def test_a_part_compiled_by_itself_calls_its_frozen_layer():
    torch.manual_seed(0)
    model = nn.Sequential(compiled(nn.Linear(20, 20)), torch.compile(nn.Sequential(nn.Linear(20, 20)), backend="eager"))
    x = torch.randn(2, 20)
    model(x)
    plain = nn.Sequential(nn.Linear(20, 20), nn.Sequential(nn.Linear(20, 20)))
    plain.load_state_dict({n.replace("_orig_mod.", ""): p for n, p in model.state_dict().items()})
    reports = [fk.freeze_(m) for m in (plain, model)]
    assert [[c.name for c in r.converted] for r in reports] == [["0", "1.0"]] * 2
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_a_bare_layer_is_refused_in_a_wrapper_too(wrap):
    with pytest.raises(ValueError, match="bare Linear"):
        fk.freeze_(wrap(nn.Linear(4, 4)))


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_what_holds_on_to_parameters_is_refused_by_name(one_process):
    from torch.distributed.fsdp import FullyShardedDataParallel

    ddp = nn.parallel.DistributedDataParallel(net())
    weight = ddp.module[0].weight
    with pytest.raises(ValueError, match=r"is in DistributedDataParallel; freeze the model before"):
        fk.freeze_(ddp)
    with pytest.raises(ValueError, match=r"'part' is in DistributedDataParallel"):
        fk.freeze_(nn.ModuleDict({"first": nn.Linear(3, 3), "part": ddp}))
    assert ddp.module[0].weight is weight
    flat = FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    for refusing in (fk.freeze_, fk.finalize_, fk.EdgePopup, fk.to_dense, lambda m: fk.set_residency(m, "auto")):
        with pytest.raises(ValueError, match="FullyShardedDataParallel"):
            refusing(flat)


def test_ddp_is_told_of_buffers_by_the_names_that_it_sees(one_process):
    model = nn.Sequential(nn.Linear(4, 4), compiled(nn.Linear(4, 4)))
    fk.freeze_(model)
    fk.distributed.prepare_ddp_(model)
    ignored = set(model._ddp_params_and_buffers_to_ignore)
    assert {"0.header", "1._orig_mod.header"} <= ignored
    assert {n for n, _ in model.named_buffers()} <= ignored


def test_what_is_made_in_inference_mode_trains_later():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.inference_mode():
        fk.freeze_(model)
        fk.EdgePopup(model).refresh()
        for residency in ("planes", "dense", "mask"):
            fk.set_residency(model, residency, torch.ones(1, 8))
        dense = fk.to_dense(model)
    held = [*model.parameters(), *model.buffers(), *dense.parameters()]
    assert not any(t.is_inference() for t in held)
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=0.1)
    model(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()
    search.step()
