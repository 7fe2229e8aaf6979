"""torch's wrappers around a model or parts of it: names, tickets, searches and reports are those of the inside."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

import frozen_kernels as fk
from frozen_kernels.nn.models import frozen_layers, named_modules


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    return nn.Sequential(nn.Linear(5, 6), block, nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()


def frozen() -> nn.Sequential:
    model = plain()
    fk.freeze_(model, fk.FreezeConfig(seed=3))
    return model


def whole(wrap):
    return wrap


def block(wrap):
    def inside(model: nn.Module) -> nn.Module:
        model[1] = wrap(model[1])
        return model

    return inside


def layer(wrap):
    def inside(model: nn.Module) -> nn.Module:
        model[1][0], model[3] = wrap(model[1][0]), wrap(model[3])
        return model

    return inside


WRAPPERS = {"compile": compiled, "DataParallel": nn.DataParallel, "checkpoint": checkpoint_wrapper}
PLACES = {"whole": whole, "block": block, "layer": layer}
NAMES = ["0", "1.0", "3"]
X = torch.arange(20.0).reshape(4, 5).cos()


@pytest.fixture(params=[(w, p) for w in WRAPPERS for p in PLACES], ids=lambda pair: "-".join(pair))
def wrap(request):
    wrapper, place = request.param
    torch.compiler.reset()
    return PLACES[place](WRAPPERS[wrapper])


def test_names_are_those_of_the_inside(wrap):
    model = plain()
    names = [name for name, _ in model.named_modules()]
    assert [name for name, _ in named_modules(wrap(model))] == names
    assert list(frozen_layers(wrap(frozen()))) == NAMES


def test_tickets_of_wrapped_models(wrap, tmp_path):
    bare, model = frozen(), wrap(frozen())
    fk.save_ticket(bare, tmp_path / "bare")
    fk.save_ticket(model, tmp_path / "wrapped")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()
    expected = bare(X)
    for target in (plain(), frozen()):
        target = wrap(target)
        target(X)  # what was compiled before must not be called after
        assert fk.load_ticket(target, tmp_path / "bare") is target
        assert torch.equal(target(X), expected) and list(frozen_layers(target)) == NAMES


def test_a_search_and_its_reports_see_the_layers_inside(wrap):
    bare, model = frozen(), wrap(frozen())
    for one in (bare, model):
        search = fk.EdgePopup(one)
        optimizer = torch.optim.SGD(search.parameters(), lr=1.0)
        one(X).square().sum().backward()
        optimizer.step()
        search.step()
    assert torch.equal(model(X), bare(X))
    assert [row.name for row in fk.footprint(model).layers] == NAMES
    assert list(fk.set_residency(model, "planes")) == NAMES
    fk.finalize_(model)
    assert torch.equal(model(X), bare(X))


def test_a_layer_that_is_wrapped_alone_has_no_name(tmp_path):
    with pytest.raises(ValueError, match="bare FrozenLinear"):
        fk.save_ticket(compiled(fk.nn.FrozenLinear(3, 3)), tmp_path / "t")
    fk.save_ticket(frozen(), tmp_path / "t")
    with pytest.raises(fk.TicketError, match="bare Linear"):
        fk.load_ticket(compiled(nn.Linear(3, 3)), tmp_path / "t")


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_spread_models_are_saved_and_not_loaded_into(one_process, tmp_path):
    fk.save_ticket(frozen(), tmp_path / "bare")
    for model in (DistributedDataParallel(frozen()), compiled(DistributedDataParallel(frozen()))):
        fk.save_ticket(model, tmp_path / "spread")
        assert (tmp_path / "bare").read_bytes() == (tmp_path / "spread").read_bytes()
        for target in (model, nn.Sequential(model)):
            with pytest.raises(fk.TicketError, match="load a ticket before DistributedDataParallel"):
                fk.load_ticket(target, tmp_path / "bare")


@pytest.mark.parametrize("place", PLACES)
def test_fully_sharded_data_parallel_is_refused_by_name(one_process, tmp_path, place):
    fk.save_ticket(frozen(), tmp_path / "t")

    def flat(module: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)

    model = PLACES[place](flat)(frozen())
    for call in (
        lambda: fk.save_ticket(model, tmp_path / "none"),
        lambda: fk.load_ticket(model, tmp_path / "t"),
        lambda: fk.EdgePopup(model),
        lambda: fk.footprint(model),
        lambda: fk.set_residency(model, "mask"),
        lambda: fk.finalize_(model),
    ):
        with pytest.raises(ValueError, match="FullyShardedDataParallel has flattened its parameters"):
            call()
    assert not (tmp_path / "none").exists()
