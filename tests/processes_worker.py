"""What two processes check together, on gloo. `test_processes` starts them and reads what each check said."""

from __future__ import annotations

import copy
import hashlib
import io
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from training import processes

import frozen_kernels as fk
from frozen_kernels.nn.models import frozen_layers
from frozen_kernels.search.rule import update_masks

RANKS = 2
FULL = dsd.StateDictOptions(full_state_dict=True)
FROM_FIRST = dsd.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(steps)]


def own_half() -> slice:
    return slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)


def build(scope: str = "global", **settings) -> nn.Sequential:
    """Four frozen layers, the third of them with no free weight, and three biases."""
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(216, 37), nn.ReLU(), nn.Linear(37, 33, bias=False), nn.ReLU(), nn.Linear(33, 10),
    )  # fmt: skip
    searched = fk.FreezeConfig(scope=scope, freeze_ratio=0.6, scaling="dynamic", **settings)
    frozen = fk.FreezeConfig(scope=scope, prune_ratio=0.5, lock_ratio=0.5)
    fk.freeze_(model, lambda module, name: frozen if name == "5" else searched)
    assert [layer.scores is None for layer in frozen_layers(model).values()] == [False, False, True, False]
    return model


def shard(model: nn.Module, **options) -> nn.Module:
    for module in [m for m in model.modules() if isinstance(m, fk.nn.FrozenLayer)]:
        fully_shard(module, **options)
    fully_shard(model, **options)
    return model


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(fk.distributed.prepare_ddp_(model))


WRAPPERS = {"ddp": ddp, "fsdp": shard}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def masks(model: nn.Module) -> list[Tensor]:
    return [t for layer in frozen_layers(model).values() for t in (layer.header, layer.packed_supermask())]


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in masks(model))).hexdigest()


def values(model: nn.Module) -> list[Tensor]:
    return [fk.select.sharded.whole(p.detach()).clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def one_digest_of_all(model: nn.Module) -> str:
    found = [None] * RANKS
    dist.all_gather_object(found, digest(model))
    assert found[0] == found[1], "the ranks hold different masks"
    return found[0]


def train(model, optimizer, search, data, rows: slice, ranks_agree: bool = True) -> list[str]:
    """Digests of the masks after each step."""
    seen = []
    for x, y in data:
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        search.step()
        seen.append(one_digest_of_all(model) if ranks_agree else digest(model))
    return seen


def trained(wrap: str, steps: int = 3, **settings) -> tuple[nn.Module, torch.optim.Optimizer, fk.EdgePopup]:
    model = WRAPPERS[wrap](build(**settings))
    optimizer, search = sgd(model), fk.EdgePopup(model)
    train(model, optimizer, search, batches(steps), own_half())
    return model, optimizer, search


def check_two_processes_agree_with_each_other_and_with_one(folder: Path) -> None:
    data = batches(6)
    for scope in ("global", "local"):
        one = build(scope)
        before = digest(one)
        alone = train(one, sgd(one), fk.EdgePopup(one), data, slice(0, 8), ranks_agree=False)
        assert before not in alone and len(set(alone)) == len(alone), "masks must move for this to prove anything"
        ways = {"ddp": ddp(build(scope)), "ddp, not prepared": DistributedDataParallel(build(scope))}
        for reshard in (True, False):
            ways[f"fsdp, reshard {reshard}"] = shard(build(scope), reshard_after_forward=reshard)
        ways["fsdp, root only"] = fully_shard(build(scope))
        found = {}
        for name, model in ways.items():
            found[name] = train(model, sgd(model), fk.EdgePopup(model), data, own_half()), values(model)
        seen, held = found["ddp"]
        for name, (other_seen, other_held) in found.items():
            assert other_seen == seen and same(other_held, held), f"{name} beside ddp, {scope}"
        for mine, theirs in zip(held, values(one), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        pairs = zip(masks(ways["ddp"])[1::2], masks(one)[1::2], strict=True)
        differ = [int(torch.ops.frozen_kernels.popcount(a ^ b)) for a, b in pairs]
        assert sum(differ) <= 4, f"{differ} bits of a mask differ from one process"


SCORES = {
    "normal": lambda n: torch.randn(n),
    "ties": lambda n: torch.randint(-2, 3, (n,)).float(),
    "special": lambda n: torch.tensor([0.0, -0.0, 1e-40, 3e38, torch.inf, -torch.inf, torch.nan])[
        torch.randint(7, (n,))
    ],
}


def check_selection_over_shards_equals_that_over_whole_scores(folder: Path) -> None:
    mesh, cpu = init_device_mesh("cpu", (RANKS,)), torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for kind, draw in SCORES.items():
            torch.manual_seed(3)
            wholes = [draw(n).to(dtype) for n in (1, 2, 3, 9, 16, 31, 1000, 4099)]
            parts = [distribute_tensor(w, mesh, [Shard(0)]) for w in wholes]
            if dtype == torch.float64:
                wholes = [w.float() for w in wholes]  # compared as float32, as kernels do
            total = sum(w.numel() for w in wholes)
            ranks = [1, total // 3, total - 1, total]
            asked = [(parts, rank) for rank in ranks] + [([p], p.numel() // 2 + 1) for p in parts]
            expected = [torch.ops.frozen_kernels.select(wholes, rank) for rank in ranks]
            expected += [torch.ops.frozen_kernels.select([w], w.numel() // 2 + 1) for w in wholes]
            keys = fk.select.sharded.select(asked, cpu)
            assert keys.tolist() == [int(k) for k in expected], f"{kind}, {dtype}"
            packed = fk.select.sharded.pack_above(parts, list(keys[-len(parts) :]), cpu)
            for mask, w, key in zip(packed, wholes, expected[-len(parts) :], strict=True):
                assert torch.equal(mask, torch.ops.frozen_kernels.pack_above(w, key)), f"{kind}, {dtype}, {w.numel()}"


def check_keys_are_counted_in_blocks(folder: Path) -> None:
    mesh, cpu, block = init_device_mesh("cpu", (RANKS,)), torch.device("cpu"), fk.select.sharded._BLOCK
    torch.manual_seed(4)
    w = torch.randn(5001)
    part = distribute_tensor(w, mesh, [Shard(0)])
    try:
        fk.select.sharded._BLOCK = 100
        key = fk.select.sharded.select([([part], 2000)], cpu)[0]
        (mask,) = fk.select.sharded.pack_above([part], [key], cpu)
    finally:
        fk.select.sharded._BLOCK = block
    assert int(key) == int(torch.ops.frozen_kernels.select([w], 2000))
    assert torch.equal(mask, torch.ops.frozen_kernels.pack_above(w, key))


def check_few_collectives_a_step(folder: Path) -> None:
    for scope in ("global", "local"):
        model = shard(build(scope))
        search = fk.EdgePopup(model)
        with torch.profiler.profile() as profile:
            search.step()
        seen = {e.key: e.count for e in profile.key_averages() if e.key.startswith("c10d::")}
        assert sum(seen.values()) == 4, seen


def check_other_placements_are_refused(folder: Path) -> None:
    mesh, cpu = init_device_mesh("cpu", (RANKS,)), torch.device("cpu")
    whole = distribute_tensor(torch.randn(9), mesh, [Replicate()])
    part = distribute_tensor(torch.randn(9), mesh, [Shard(0)])
    other = distribute_tensor(torch.randn(9), init_device_mesh("cpu", (RANKS, 1)), [Replicate(), Shard(0)])
    with pytest.raises(ValueError, match=r"scores: placements .*Replicate"):
        fk.select.sharded.select([([whole], 1)], cpu)
    with pytest.raises(ValueError, match=r"scores: of some layers sharded and of others not"):
        fk.select.sharded.select([([part, torch.randn(9)], 1)], cpu)
    with pytest.raises(ValueError, match="scores: sharded over different meshes"):
        fk.select.sharded.select([([part, other], 1)], cpu)
    model = build()
    fully_shard(model[3])
    with pytest.raises(ValueError, match="give the whole model to fully_shard"):
        fk.EdgePopup(model).step()


def check_hybrid_sharding(folder: Path) -> None:
    expected, _, _ = trained("ddp")
    for sizes in ((RANKS, 1), (1, RANKS)):
        model = shard(build(), mesh=init_device_mesh("cpu", sizes, mesh_dim_names=("replicate", "shard")))
        train(model, sgd(model), fk.EdgePopup(model), batches(3), own_half())
        assert same(masks(model), masks(expected)) and same(values(model), values(expected)), sizes


def check_parameters_on_the_cpu(folder: Path) -> None:
    expected, _, _ = trained("fsdp")
    model = shard(build(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    train(model, sgd(model), fk.EdgePopup(model), batches(3), own_half())
    assert same(masks(model), masks(expected)) and same(values(model), values(expected))


def check_a_step_reads_scores_that_the_optimizer_changed(folder: Path) -> None:
    """Also where fully_shard leaves the gathered ones of the forward in the module."""
    expected, _, _ = trained("fsdp", steps=1)
    model = shard(build(), reshard_after_forward=False)
    model.set_reshard_after_backward(False)
    train(model, sgd(model), fk.EdgePopup(model), batches(1), own_half())
    assert same(masks(model), masks(expected))
    with torch.no_grad():
        model(batches(1)[0][0])
    assert not fk.select.sharded.is_sharded(model[3].scores), "the case that this is about"
    search = fk.EdgePopup(model)
    assert all(fk.select.sharded.is_sharded(p) for p in search.parameters())
    search.step()
    assert same(masks(model), masks(expected))


def check_layers_without_a_free_weight(folder: Path) -> None:
    frozen = fk.FreezeConfig(prune_ratio=0.5, lock_ratio=0.5)
    x = torch.randn(3, 20)
    for bias in (False, True):
        model = nn.Sequential(nn.Linear(20, 30, bias=bias), nn.ReLU(), nn.Linear(30, 4, bias=bias))
        fk.freeze_(model, frozen)
        expected = model(x)
        assert torch.equal(shard(model)(x), expected)
        with pytest.raises(ValueError, match="no free weight"):
            fk.EdgePopup(model)
    finalized = build()
    finalized[3].finalize()
    before = finalized[3].packed_supermask()
    for wrap in WRAPPERS.values():
        model = wrap(copy.deepcopy(finalized))
        layer = frozen_layers(fk.nn.models.unwrapped(model))["3"]
        train(model, sgd(model), fk.EdgePopup(model), batches(2), own_half())
        assert torch.equal(layer.packed_supermask(), before)


def check_everything_kept_and_nothing_kept(folder: Path) -> None:
    for sparsity in (0.0, 1.0):
        for scope in ("global", "local"):
            model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 4))
            fk.freeze_(model, fk.FreezeConfig(sparsity=sparsity, freeze_ratio=0.0, scope=scope))
            expected = masks(model)
            shard(model)
            for layer in model:
                layer.set_supermask(torch.zeros_like(layer.packed_supermask()), rescale=False)
            fk.EdgePopup(model).step()
            assert same(masks(model), expected), (sparsity, scope)


def check_mixed_precision(folder: Path) -> None:
    x, y = batches(1)[0]
    one = build()
    nn.functional.cross_entropy(one(x), y).backward()
    for wrap in (shard, fully_shard):
        model = wrap(build(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))
        optimizer, search = sgd(model), fk.EdgePopup(model)
        out = model(x[own_half()])
        assert out.dtype == torch.bfloat16
        nn.functional.cross_entropy(out.float(), y[own_half()]).backward()
        for name, p in model.named_parameters():
            grad, exact = p.grad.full_tensor(), one.get_parameter(name).grad
            assert grad.dtype == p.dtype == torch.float32
            assert (grad - exact).norm() < 0.03 * exact.norm(), name
        optimizer.step()
        search.step()
        one_digest_of_all(model)
        other = build()
        other.load_state_dict(dsd.get_model_state_dict(model, options=FULL))
        expected = digest(model)
        update_masks(frozen_layers(other).values())
        assert digest(other) == expected, "masks come from the float32 scores"


def check_half_precision_scores(folder: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        one, model = build().to(dtype), shard(build().to(dtype))
        fk.EdgePopup(model).step()
        fk.EdgePopup(one).step()
        assert model[3].scores.dtype == dtype and same(masks(model), masks(one))


def check_activation_checkpointing(folder: Path) -> None:
    expected, _, _ = trained("fsdp")
    for reshard in (True, False):
        model = build()
        for i in (0, 3, 5, 7):
            model[i] = fully_shard(checkpoint_wrapper(model[i]), reshard_after_forward=reshard)
        fully_shard(model, reshard_after_forward=reshard)
        train(model, sgd(model), fk.EdgePopup(model), batches(3), own_half())
        assert same(masks(model), masks(expected)) and same(values(model), values(expected))


def check_a_model_made_on_the_meta_device(folder: Path) -> None:
    expected = build("local")
    with torch.device("meta"):
        model = build("local")
    shard(model)
    model.to_empty(device="cpu")
    for layer in frozen_layers(model).values():
        layer.reset_parameters()
    assert same([t for t in values(model) if t.numel() > 40], [t for t in values(expected) if t.numel() > 40])
    assert same(masks(model), masks(expected))


def check_ddp_leaves_derived_buffers_alone(folder: Path) -> None:
    model = ddp(build())
    model(batches(1)[0][0])
    assert model.modules_buffers == []
    with_norm = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))
    fk.freeze_(with_norm, fk.FreezeConfig())
    with_norm._ddp_params_and_buffers_to_ignore = ["1.num_batches_tracked"]
    model = ddp(with_norm)
    model(torch.randn(3, 5))
    assert [id(t) for t in model.modules_buffers] == [id(with_norm[1].running_mean), id(with_norm[1].running_var)]


def check_two_forwards_before_a_backward(folder: Path) -> None:
    (x, y), rows = batches(1)[0], own_half()

    def twice(model: nn.Module) -> None:
        first, second = model(x[rows]), model(x[rows])
        (nn.functional.cross_entropy(first, y[rows]) + nn.functional.cross_entropy(second, y[rows])).backward()

    twice(ddp(build()))
    twice(shard(build()))


def check_ranks_with_different_seeds_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="model: frozen layers of rank 1 have another seed, value, setting, mask or"):
        ddp(build(seed=dist.get_rank()))
    with pytest.raises(ValueError, match="model: no frozen layers"):
        ddp(nn.Linear(2, 2))


def stored_state(model: nn.Module, optimizer: torch.optim.Optimizer, options) -> tuple[dict, dict]:
    """Model and optimizer state, as a file would hand them to this rank."""
    file = io.BytesIO()
    state = (
        dsd.get_model_state_dict(model, options=options),
        dsd.get_optimizer_state_dict(model, optimizer, options=options),
    )
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def check_state_dicts_resume_bitwise(folder: Path) -> None:
    data = batches(5)
    for wrap in WRAPPERS:
        for options, residency in ((dsd.StateDictOptions(), "mask"), (FULL, "seed"), (FROM_FIRST, "dense")):
            model, optimizer, search = trained(wrap)
            fk.set_residency(model, residency)
            state = stored_state(model, optimizer, options)
            assert "3.scores" in state[0] and "3.supermask" in state[0] and "5.weight_shape" in state[0]
            unbroken = train(model, optimizer, search, data[3:], own_half())
            again = WRAPPERS[wrap](build())
            fk.set_residency(again, residency)
            resumed = sgd(again)
            if options is FROM_FIRST and dist.get_rank():
                state = {}, {}
            dsd.set_model_state_dict(again, state[0], options=options)
            dsd.set_optimizer_state_dict(again, resumed, state[1], options=options)
            continued = train(again, resumed, fk.EdgePopup(again), data[3:], own_half())
            assert continued == unbroken and same(values(again), values(model)), (wrap, options)


def check_sharded_checkpoints_resume_bitwise(folder: Path) -> None:
    data = batches(5)
    for wrap in WRAPPERS:
        model, optimizer, search = trained(wrap)
        names = dsd.get_state_dict(model, optimizer)
        dcp.save({"model": names[0], "optimizer": names[1]}, checkpoint_id=folder / f"states-{wrap}")
        unbroken = train(model, optimizer, search, data[3:], own_half())
        for other in WRAPPERS:
            again = WRAPPERS[other](build())
            resumed = sgd(again)
            held = dict(zip(("model", "optimizer"), dsd.get_state_dict(again, resumed), strict=True))
            dcp.load(held, checkpoint_id=folder / f"states-{wrap}")
            dsd.set_state_dict(again, resumed, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
            continued = train(again, resumed, fk.EdgePopup(again), data[3:], own_half())
            assert continued == unbroken and same(values(again), values(model)), (wrap, other)


def check_a_full_state_moves_to_one_process(folder: Path) -> None:
    expected = []
    for wrap in WRAPPERS:
        model, _, _ = trained(wrap)
        one = build()
        one.load_state_dict(dsd.get_model_state_dict(model, options=FULL))
        assert same(masks(one), masks(model)) and same(values(one), values(model))
        x = batches(1)[0][0]
        assert torch.equal(one(x), fk.nn.models.unwrapped(model)(x))
        expected.append(values(one))
    assert same(*expected)


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(216, 37), nn.ReLU(), nn.Linear(37, 33, bias=False), nn.ReLU(), nn.Linear(33, 10),
    )  # fmt: skip


def check_tickets(folder: Path) -> None:
    rank, x = dist.get_rank(), batches(1)[0][0]
    for wrap in WRAPPERS:
        model, _, _ = trained(wrap)
        one = build()
        one.load_state_dict(dsd.get_model_state_dict(model, options=FULL))
        fk.save_ticket(model, folder / f"{wrap}-{rank}")
        fk.save_ticket(one, folder / f"one-{wrap}-{rank}")
        written = (folder / f"{wrap}-{rank}").read_bytes()
        assert written == (folder / f"one-{wrap}-{rank}").read_bytes()
        assert torch.equal(fk.load_ticket(plain(), folder / f"{wrap}-{rank}")(x), one(x))
        fk.save_ticket(model, folder / wrap)  # every rank to one path
        dist.barrier()
        assert (folder / wrap).read_bytes() == written
        with pytest.raises(fk.TicketError, match="load a ticket before DistributedDataParallel or fully_shard"):
            fk.load_ticket(model, folder / wrap)


def check_tied_parameters_in_a_ticket(folder: Path) -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6))
        fk.freeze_(model, fk.FreezeConfig())
        model[3].weight = model[1].weight
        return model

    paths = [folder / f"tied-{kind}-{dist.get_rank()}" for kind in ("one", "fsdp")]
    fk.save_ticket(tied(), paths[0])
    fk.save_ticket(fully_shard(tied()), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def check_what_a_wrapped_model_refuses(folder: Path) -> None:
    model = shard(build())
    for call in (fk.finalize_, lambda m: m[3].finalize()):
        with pytest.raises(ValueError, match="spread over processes by fully_shard"):
            fk.footprint(model)
        with pytest.raises(RuntimeError, match=r"scores: fully_shard holds them.*save_ticket"):
            call(model)
    assert model[3].scores is not None
    with pytest.raises(AssertionError, match="deepcopy"):
        fk.to_dense(model)
    with pytest.raises(ValueError, match="freeze the model before fully_shard"):
        fk.freeze_(fully_shard(plain()))
    wrapped, x = ddp(build()), batches(1)[0][0]
    expected = wrapped(x)
    torch.testing.assert_close(fk.to_dense(wrapped)(x), expected)
    fk.finalize_(wrapped)
    with torch.no_grad():
        assert torch.equal(wrapped.eval()(x), expected)


def with_norm() -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.6))
    return model


def check_the_trainers_processes(folder: Path) -> None:
    """Both ways give the same course and the same averages of batch norm, and each takes up the other's state."""
    data, cpu, found = batches(5), torch.device("cpu"), {}
    for way in ("ddp", "fsdp"):
        group = processes.Processes(dist.get_rank(), RANKS, cpu, way)
        plain = with_norm()
        model = processes.wrap(plain, group)
        search = fk.EdgePopup(plain)
        optimizer = torch.optim.SGD(search.parameters(), lr=0.1, momentum=0.9)
        train(model, optimizer, search, data[:3], own_half())
        held = [processes.full_state(model, optimizer)]
        dist.broadcast_object_list(held, src=0)
        assert set(held[0]["optimizer"]["state"]) == {"0.scores", "4.scores"}
        for other in ("ddp", "fsdp"):
            inner = with_norm()
            again = processes.wrap(inner, processes.Processes(dist.get_rank(), RANKS, cpu, other))
            search = fk.EdgePopup(inner)
            resumed = torch.optim.SGD(search.parameters(), lr=0.1, momentum=0.9)
            processes.load_full_state(again, resumed, copy.deepcopy(held[0]))
            seen = train(again, resumed, search, data[3:], own_half())
            found[way, other] = seen, [*values(again), *masks(again)], again.eval()(data[0][0])
            assert same(*gathered_averages(inner))
    seen, held, outputs = found["ddp", "ddp"]
    for way, other in found.items():
        assert other[0] == seen and same(other[1], held) and torch.equal(other[2], outputs), way
    assert processes.total(torch.tensor([dist.get_rank() + 1]), group).tolist() == [3]


def gathered_averages(model: nn.Module) -> list[list[Tensor]]:
    """Buffers of batch norm in each process."""
    found: list[list[Tensor]] = [[] for _ in range(RANKS)]
    dist.all_gather_object(found, [b.clone() for b in model[1].buffers()])
    return found


def check_ranks_with_different_stored_values_are_refused(folder: Path) -> None:
    torch.manual_seed(dist.get_rank())
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.0))  # all masks are the same
    with pytest.raises(ValueError, match="frozen layers of rank 1 have another seed, value, setting, mask or gain"):
        fk.distributed.prepare_ddp_(model)


def check_jackpots_of_shards_and_of_whole_scores_agree(folder: Path) -> None:
    data, found = batches(4), {}
    for restriction in ("short", None):
        for way in ("ddp", "fsdp", "one"):
            torch.manual_seed(7)
            plain = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 37), nn.Linear(37, 10))
            fk.freeze_(plain, fk.FreezeConfig.preset("jackpot", sparsity=0.8, rates="l1"))
            model = plain if way == "one" else WRAPPERS[way](plain)
            search = fk.Jackpot(model, epochs=2, steps_per_epoch=2, restriction=restriction)
            optimizer = torch.optim.SGD(search.parameters(), lr=0.5, momentum=0.9)
            rows = slice(0, 8) if way == "one" else own_half()
            found[way] = train(model, optimizer, search, data, rows, ranks_agree=way != "one"), search
            assert len(set(found[way][0])) == len(data), "masks must move for this to prove anything"
        assert found["fsdp"][0] == found["ddp"][0], restriction
        differ = [
            int(torch.ops.frozen_kernels.popcount(a ^ b))
            for a, b in zip(*(found[way][1].state_dict()["masks"].values() for way in ("ddp", "one")), strict=True)
        ]
        assert sum(differ) <= 8, f"{differ} bits of a mask differ from one process"
        if restriction == "short":
            path = folder / f"jackpot.{dist.get_rank()}"
            fk.save_ticket(model := found["fsdp"][1]._model, path)
            assert fk.tickets.file.read_ticket(path).records[0].values == "float32"
            with pytest.raises(RuntimeError, match="fully_shard holds them"):
                fk.finalize_(model)


def check_signs_of_shards_are_those_of_whole_scores(folder: Path) -> None:
    found = []
    for sharded in (False, True):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 33, bias=False), nn.ReLU(), nn.Linear(33, 10, bias=False))
        fk.freeze_(model, fk.FreezeConfig(code="signs", seed=3))
        model = shard(model) if sharded else model
        search, before, path = fk.EdgePopup(model), model[1].packed_signs(), folder / f"{sharded}.{dist.get_rank()}"
        optimizer = torch.optim.SGD(search.parameters(), lr=2.0)
        for x, _ in batches(3):
            model(x).square().mean().backward()
            optimizer.step()
            search.step()
            optimizer.zero_grad()
        assert not torch.equal(before, model[1].packed_signs()), "signs must change for this to prove anything"
        fk.save_ticket(model, path)
        found.append(path.read_bytes())
    assert found[0] == found[1]


CHECKS = [function for name, function in list(globals().items()) if name.startswith("check_")]


def run(rank: int, folder: Path) -> None:
    """One process: what each check said goes to a file, and the first failure ends the run of both."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    for check in CHECKS:
        said = folder / f"{check.__name__}.{rank}.said"
        try:
            check(folder)
        except BaseException:
            said.write_text(traceback.format_exc())
            raise
        said.write_text("passed")
    dist.barrier()
    dist.destroy_process_group()
