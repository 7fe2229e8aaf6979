"""Banks of masks: switching, mixing, inferring the task, and files of all masks together."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading
import time

import pytest
import torch
from bank_cases import STORED, bank_of, reshuffle, small, stored_bank
from helpers import FUSED, RESIDENCIES
from safetensors import safe_open
from ticket_cases import joined, parts
from torch import nn

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels.nn.models import frozen_layers
from frozen_kernels.tickets.file import read_ticket


@pytest.mark.parametrize("finalized", [False, True])
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_a_mask_used_is_the_mask_added(residency, finalized):
    bank, outputs, x = bank_of()
    if finalized:
        fk.finalize_(bank.model)
    fk.set_residency(bank.model, residency)
    for name in ["task1", "task0", "task2", "task1"]:
        bank.use(name)
        assert bank.active == name
        torch.testing.assert_close(bank.model(x), outputs[name], rtol=1e-4, atol=1e-5)
        assert all(layer.residency == residency for layer in frozen_layers(bank.model).values())
    # what the layers say of themselves is the mask's, too
    layer = frozen_layers(bank.model)["4"]
    assert layer.counts["kept"] == int(layer.keep_mask().sum())
    again = copy.deepcopy(layer)
    again.set_supermask(layer.packed_supermask())
    assert again.scale == layer.scale


@pytest.mark.parametrize("make", [bank_of, stored_bank])
def test_masks_are_copied_where_buffers_are_written_in_place(make, monkeypatch):
    """As on a GPU: what a layer holds is overwritten, and the bank's masks are not."""
    monkeypatch.setattr(fk.nn.FrozenLayer, "in_place", True)
    bank, outputs, x = make()
    for name in ["task1", "task0", "task2"]:
        bank.use(name)
        torch.testing.assert_close(bank.model(x), outputs[name], rtol=1e-4, atol=1e-5)
    bank.finalize()
    for residency in (bank.model[0].residency, "planes", "dense", "packed"):
        if residency in bank.model[0].residencies:
            if residency != bank.model[0].residency:
                fk.set_residency(bank.model, residency)
            for name in ["task1", "task0", "task2", "task1", "task0"]:
                bank.use(name)
                torch.testing.assert_close(bank.model(x), outputs[name], rtol=1e-4, atol=1e-5)


def test_a_search_goes_on_and_leaves_the_bank_as_it_is():
    bank, outputs, x = bank_of()
    bank.use("task0")
    search = fk.EdgePopup(bank.model)
    optimizer = torch.optim.SGD(search.parameters(), lr=1.0)
    for _ in range(3):
        bank.model(x).square().sum().backward()
        optimizer.step()
        search.step()
    assert not torch.equal(bank.model(x), outputs["task0"])
    bank.add("later")
    for name, expected in outputs.items():
        bank.use(name)
        assert torch.equal(bank.model(x), expected)


def test_dtypes_follow_the_layers():
    bank, outputs, x = bank_of()
    fk.finalize_(bank.model)
    bank.model.double()
    for name, expected in outputs.items():
        bank.use(name)
        torch.testing.assert_close(bank.model(x.double()).float(), expected, rtol=1e-3, atol=1e-4)
        assert frozen_layers(bank.model)["0"].dtype == torch.float64


def test_each_task_has_its_batch_norm_and_what_is_named():
    bank, _, x = bank_of(2, ["1", "6"])
    assert bank.per_task == ["1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "6.bias"]
    with torch.no_grad():
        bank.model[6].bias.fill_(7.0)
    bank.add("third")
    bank.use("task0")
    first = bank.model(x)
    assert not (bank.model[6].bias == 7).any()
    mean = bank.model[1].running_mean.clone()
    bank.use("third")
    assert (bank.model[6].bias == 7).all() and not torch.equal(bank.model[1].running_mean, mean)
    bank.use("task0")
    assert torch.equal(bank.model(x), first)
    shared = fk.MaskBank(bank.model, [])
    assert shared.per_task == []
    for wrong, what in (
        (["nothing"], "per_task: 'nothing' is no ordinary parameter or buffer"),
        (["4.scores"], "per_task: '4.scores' is no ordinary"),
        ("1", "per_task: a list of names, got the string '1'"),
    ):
        with pytest.raises(ValueError, match=what):
            fk.MaskBank(bank.model, wrong)


def test_names_and_models_that_are_refused():
    bank, outputs, x = bank_of(2)
    for name, what in (
        ("task0", "name: 'task0' is there already"), ("a.b", "masks: names of 1 to 200 printable"),
        ("", "masks: names of"), (3, "masks: names of"), ("x" * 201, "masks: names of"), ("a\n", "masks: names of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            bank.add(name)
    for call in (bank.use, bank.remove, lambda n: bank.mix({n: 1.0}).__enter__()):
        with pytest.raises(KeyError, match="name: one of task0, task1, got 'task9'"):
            call("task9")
    assert bank.names == ["task0", "task1"] and len(bank) == 2 and "task1" in bank
    del bank["task1"]
    assert bank.names == ["task0"] and bank.active is None
    torch.testing.assert_close(bank.model(x), outputs["task1"])  # the model goes on with it
    with pytest.raises(ValueError, match="no frozen layers"):
        fk.MaskBank(small())
    with pytest.raises(ValueError, match="masks: none yet"):
        fk.MaskBank(bank.model).infer(x)
    with pytest.raises(ValueError, match="masks: none yet"):
        fk.MaskBank(bank.model).save("nowhere")
    folded = bank.model
    fk.finalize_(folded)
    fk.fold_batch_norm_(folded)
    with pytest.raises(RuntimeError, match="'0' has a folded gain or ReLU"):
        bank.use("task0")
    with pytest.raises(ValueError, match="'0' has a folded gain or ReLU"):
        fk.MaskBank(folded)


LAYERS = {
    "linear": (lambda: nn.Linear(40, 7), (5, 40)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3, padding="same", padding_mode="circular"), (2, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2), (6, 5, 5)),
    "embedding": (lambda: nn.Embedding(20, 9, padding_idx=1), None),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("residency", ["mask", "dense"])
def test_a_mixture_is_that_of_the_weights(kind, residency):
    make, shape = LAYERS[kind]
    model = nn.Sequential(make()).double()
    fk.freeze_(model, fk.FreezeConfig(seed=2, freeze_ratio=0.3), lambda module, name: True)
    bank, weights = fk.MaskBank(model), []
    for step in range(3):
        model[0].scores.data.normal_()
        fk.EdgePopup(model).step()
        bank.add(str(step))
        weights.append(model[0].weight.detach().clone())
    fk.set_residency(model, residency)
    x = torch.randn(shape, dtype=torch.float64) if shape else torch.tensor([[1, 5], [19, 0]])
    alphas = torch.tensor([0.2, -0.5, 1.25], dtype=torch.float64, requires_grad=True)
    plain = make().double()
    if not isinstance(plain, nn.Embedding):
        plain.bias = model[0].bias
    reference = torch.tensor([0.2, -0.5, 1.25], dtype=torch.float64, requires_grad=True)
    mixed = sum(a * w for a, w in zip(reference, weights, strict=True))
    expected = torch.func.functional_call(plain, {"weight": mixed}, x)
    before = model(x).detach()
    with bank.mix(alphas):
        found = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    factor = torch.randn_like(expected)
    found.mul(factor).sum().backward()
    expected.mul(factor).sum().backward()
    torch.testing.assert_close(alphas.grad, reference.grad, rtol=1e-6, atol=1e-8)
    assert torch.equal(model(x), before) and "forward" not in vars(model[0])
    with bank.mix({"1": 1.0}):
        one = model(x)
    bank.use("1")
    torch.testing.assert_close(one, model(x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("residency", FUSED)
def test_a_mixture_makes_no_dense_weight(residency):
    model = nn.Sequential(nn.Linear(160, 96, bias=False))
    fk.freeze_(model)
    bank = fk.MaskBank(model)
    for name in "ab":
        bank.add(name)
    fk.finalize_(model)
    fk.set_residency(model, residency)
    x, alphas = torch.randn(3, 160), torch.tensor([0.5, 0.5], requires_grad=True)
    with fk.backends.use("cpu"), bank.mix(alphas), torch.profiler.profile(profile_memory=True) as profile:
        model(x).sum().backward()
    largest = max(e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    assert largest < 160 * 96 / 2


def test_mixtures_that_are_none_are_refused():
    bank, _, x = bank_of(2)
    for alphas, what in (
        (torch.ones(3), r"alphas: one for each of 2 masks, got \[3\]"),
        ([0.5], r"alphas: one for each of 2 masks, got \[1\]"),
        (torch.ones(2, dtype=torch.int64), r"alphas: floating \[2\], got torch.int64"),
    ):
        with pytest.raises(ValueError, match=what), bank.mix(alphas):
            pass
    searched, _, _ = stored_bank(2)
    with pytest.raises(RuntimeError, match="0: stored weights are mixed when finalized"), searched.mix([0.5, 0.5]):
        pass
    bank.model.train()
    with pytest.raises(ValueError, match="'model' is in train mode"):
        bank.infer(x)
    with pytest.raises(ValueError, match="method: 'one-shot' or 'binary', got 'two'"):
        bank.infer(x, "two")


@pytest.mark.parametrize("method", ["one-shot", "binary"])
def test_the_task_is_that_whose_mask_is_sure(method):
    """Of five random masks over one layer, a batch of weights of one is told to be of it."""
    model = nn.Sequential(nn.Linear(64, 10, bias=False)).eval()
    fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.0))
    bank = fk.MaskBank(model)
    weights = []
    for step in range(5):
        model[0].scores.data.normal_()
        fk.EdgePopup(model).step()
        bank.add(f"m{step}")
        weights.append(model[0].weight.detach().clone())
    for step, weight in enumerate(weights):
        assert bank.infer(weight[:4], method) == f"m{step}"


@pytest.mark.parametrize("values", [None, "float16", "int8"])
def test_stored_values_are_there_once(tmp_path, values):
    bank, outputs, x = stored_bank()
    bank.finalize(values)
    tolerance = {None: 1e-5, "float16": 1e-2, "int8": 0.1}[values]
    now = {}
    for name, expected in outputs.items():
        bank.use(name)
        now[name] = bank.model(x).detach()
        torch.testing.assert_close(now[name], expected, rtol=tolerance, atol=tolerance)
    path = tmp_path / "bank"
    bank.save(path)
    kept = {n: torch.zeros(m.shape, dtype=torch.bool) for n, m in frozen_layers(bank.model).items()}
    for name in bank.names:
        bank.use(name)
        for n, layer in frozen_layers(bank.model).items():
            kept[n] |= layer.keep_mask()
    with safe_open(path, "pt") as f:
        assert json.loads(f.metadata()["frozen_kernels.requires"]) == ["stored", "bank"]
        for n, union in kept.items():
            assert f.get_tensor(f"{n}.values").numel() == int(union.sum())
    for model in (small(), fk.MaskBank.load(small(), path).model):  # plain, and one with the bank's values
        loaded = fk.MaskBank.load(model, path)
        loaded.model.eval()
        for residency in ("packed", "dense"):
            fk.set_residency(loaded.model, residency)
            for name, expected in now.items():
                loaded.use(name)
                torch.testing.assert_close(loaded.model(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="0: finalized already, with"):
        bank.finalize("bfloat16")
    bank.remove("task1")
    bank.save(path)
    assert fk.MaskBank.load(small(), path).names == ["task0", "task2"]


def test_stored_masks_that_lost_their_values_are_refused():
    bank, outputs, x = stored_bank()
    fk.finalize_(bank.model)
    with pytest.raises(RuntimeError, match="0: the layer is finalized, its mask in the bank is of a searched one"):
        bank.use("task0")
    with pytest.raises(RuntimeError, match=r"0: finalized with \d+ values of one mask; MaskBank.finalize keeps"):
        bank.add("more")
    torch.testing.assert_close(bank.model(x), outputs["task2"])
    assert bank.names == ["task0", "task1", "task2"]


def test_a_bank_of_a_searched_model_has_the_values_of_all_masks(tmp_path):
    bank, outputs, x = stored_bank()
    bank.save(tmp_path / "bank")
    loaded = fk.MaskBank.load(small(), tmp_path / "bank")
    loaded.model.eval()
    for name, expected in outputs.items():
        loaded.use(name)
        torch.testing.assert_close(loaded.model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_file_is_the_backbone_and_the_bits(tmp_path):
    sizes, records = {}, None
    for tasks in (1, 2, 5):
        bank, outputs, x = bank_of(tasks)
        bank.save(tmp_path / "bank")
        sizes[tasks] = bank_file = read_ticket(tmp_path / "bank")
        records = bank_file.records
        data = bank_file.file_bytes - bank_file.header_bytes
        bits = sum(-(-record.free // 8) for record in records)
        own = 4 * 4 * 5 + 8  # batch norm: weight, bias, mean, variance, and the count of batches
        assert data == 4 * (5 + 33 + 4) + tasks * (bits + own)
    per_task = (sizes[5].header_bytes - sizes[2].header_bytes) / 3
    assert per_task < 200 * (len(records) + 5)
    loaded = fk.MaskBank.load(small(), tmp_path / "bank")
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "bank").read_bytes()
    loaded.model.eval()
    for name, expected in outputs.items():
        bank.use(name)
        loaded.use(name)
        torch.testing.assert_close(loaded.model(x), expected, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(*(frozen_layers(b.model).values() for b in (bank, loaded)), strict=True):
            assert torch.equal(ours.weight, theirs.weight)
    with pytest.raises(fk.TicketError, match=r"a bank of 5 masks .*, not one network; MaskBank.load loads it"):
        fk.load_ticket(small(), tmp_path / "bank")
    fk.save_ticket(loaded.model, tmp_path / "one")
    with pytest.raises(fk.TicketError, match="one network and no bank; load_ticket loads it"):
        fk.MaskBank.load(small(), tmp_path / "one")
    with pytest.raises(ValueError, match="residency: one of seed"):
        fk.MaskBank.load(small(), tmp_path / "bank", residency="fast")


def test_a_task_is_added_to_a_bank_from_a_file(tmp_path):
    """Into a model that is searched over the same backbone: its layers and scores stay."""
    for make, settings in ((bank_of, {}), (bank_of, STORED)):
        torch.manual_seed(1)
        bank, outputs, x = make(2, **settings)
        start = {k: v for k, v in bank.model.state_dict().items() if "values" in k}
        bank.save(tmp_path / "bank")
        again = make(0, **settings)[0].model
        again.load_state_dict({**again.state_dict(), **start})
        layers = list(again.modules())
        scores = [layer.scores.clone() for layer in frozen_layers(again).values()]
        loaded = fk.MaskBank.load(again, tmp_path / "bank")
        assert list(again.modules()) == layers
        assert all(torch.equal(a, m.scores) for a, m in zip(scores, frozen_layers(again).values(), strict=True))
        reshuffle(again, 7)
        loaded.add("new")
        outputs["new"] = again(x).detach()
        for name, expected in outputs.items():
            loaded.use(name)
            torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-5)
        loaded.save(tmp_path / "more")
        assert fk.MaskBank.load(small(), tmp_path / "more").names == ["task0", "task1", "new"]


def test_a_bank_of_another_backbone_is_refused(tmp_path):
    bank, _, _ = bank_of(2)
    bank.save(tmp_path / "drawn")
    stored, _, _ = stored_bank(2)
    stored.save(tmp_path / "stored")
    narrow = small()
    narrow[4] = nn.Linear(80, 32)
    others = {
        r"'0': seed 9 in the bank, 8 in the model": (bank_of(0, seed=8)[0].model, "drawn"),
        r"'0': tau_prune \d+ in the bank, \d+ in the model": (bank_of(0, freeze_ratio=0.2)[0].model, "drawn"),
        r"'0': code sign in the bank, uniform in the model": (bank_of(0, code="uniform")[0].model, "drawn"),
        r"'0': code sign in the bank, stored in the model": (stored_bank(0)[0].model, "drawn"),
        r"'4': shape \[33, 80\] in the ticket, \[32, 80\] in the model": (narrow, "drawn"),
        r"'0.values': \S+ at weight \d+ of the stream in the bank, \S+ in the model": (
            stored_bank(0)[0].model,
            "stored",
        ),
    }
    for what, (model, name) in others.items():
        before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
        hooks = dict(model._forward_pre_hooks)
        with pytest.raises(fk.TicketError, match=what):
            fk.MaskBank.load(model, tmp_path / name)
        after = model.state_dict()
        assert list(model.modules()) == modules and model._forward_pre_hooks == hooks
        assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())


def test_a_forward_of_another_thread_sees_one_mask_in_all_layers():
    bank, _, x = bank_of(2, [])
    fk.finalize_(bank.model)
    expected = []
    for name in bank.names:
        bank.use(name)
        expected.append(bank.model(x))
    seen, stop, errors = [], threading.Event(), []

    def run() -> None:
        with torch.no_grad():
            while not stop.is_set():
                y = bank.model(x)
                found = [i for i, e in enumerate(expected) if torch.equal(y, e)]
                (seen if found else errors).extend(found or [y])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while (len(seen) < 300 or len(set(seen)) < 2) and not errors and time.monotonic() < deadline:
        for name in bank.names:
            bank.use(name)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {0, 1} and not errors


def test_a_mixture_is_of_its_thread_alone():
    bank, _, x = bank_of(2, [])
    bank.use("task1")
    alone, found = bank.model(x).detach(), []
    with bank.mix([1.0, 0.0]):
        thread = threading.Thread(target=lambda: found.append(bank.model(x).detach()))
        thread.start()
        thread.join()
        assert not torch.equal(bank.model(x), alone)
    assert torch.equal(found[0], alone)


def test_weights_whose_masks_share_no_backbone_are_refused():
    signs, coats, drawn_again = (small() for _ in range(3))
    fk.freeze_(signs, fk.FreezeConfig(code="signs"))
    with pytest.raises(ValueError, match="'0' has code 'signs', and a mask without its signs is none"):
        fk.MaskBank(signs)
    for model in (coats, drawn_again):
        fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.0))
    bank, other = fk.MaskBank(coats), fk.MaskBank(drawn_again)
    bank.add("one")
    coats[4].adopt_counts(torch.full((coats[4].free,), 2, dtype=torch.uint8), coats=2)
    drawn_again[4].redraw(torch.ones(drawn_again[4].free, dtype=torch.bool))
    for held, what in ((bank, "coats"), (other, "generations")):
        with pytest.raises(RuntimeError, match=f"'4' has {what} of its own mask"):
            held.add("two")
        with pytest.raises(ValueError, match=f"'4' has {what} of its own mask"):
            fk.MaskBank(held.model)
    bank.use("one")
    assert coats[4].coats is None


def test_a_forward_that_fails_keeps_nobody_waiting():
    bank, outputs, x = bank_of(2)
    with pytest.raises((RuntimeError, ValueError)):
        bank.model(torch.randn(3, 2, 6, 6))
    done = threading.Thread(target=lambda: bank.use("task0"))
    done.start()
    done.join(10)
    assert not done.is_alive() and torch.equal(bank.model(x), outputs["task0"])


def test_models_with_a_bank_are_copied_and_pickled():
    bank, outputs, x = bank_of(2)
    bank.use("task0")
    written = io.BytesIO()
    pickle.dump(bank.model, written)
    for again in (copy.deepcopy(bank.model), pickle.loads(written.getvalue())):
        assert torch.equal(again(x), outputs["task0"])
        fk.MaskBank(again).add("own")
    bank.use("task1")
    assert torch.equal(bank.model(x), outputs["task1"])


@pytest.mark.long
def test_models_with_a_bank_are_compiled():
    bank, outputs, x = bank_of(2)
    fk.finalize_(bank.model)
    compiled = torch.compile(bank.model, backend="eager", fullgraph=True)
    for name in ("task0", "task1"):
        bank.use(name)
        torch.testing.assert_close(compiled(x), outputs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_memory_is_what_the_command_line_says(capsys, tmp_path, residency):
    bank_of(4)[0].save(tmp_path / "bank")
    bank = fk.MaskBank.load(small(), tmp_path / "bank", residency=residency)
    held = bank.memory()
    assert cli.main(["footprint", str(tmp_path / "bank")]) == 0
    rows = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line}
    assert rows[residency] == f"{held.backbone + held.masks:,}"
    assert held.per_task == 4 * (4 * 4 * 5 + 8) and held.total == sum(held)
    assert f"backbone {held.backbone:,}, masks {held.masks:,}" in repr(bank)


def test_the_command_line_tells_a_bank(capsys, tmp_path):
    path = tmp_path / "bank"
    for make in (bank_of, stored_bank):
        make(3)[0].save(path)
        assert cli.main(["inspect", str(path)]) == 0
        out = capsys.readouterr().out
        assert "a bank of 3 masks: 'task0', 'task1', 'task2'" in out and "1.running_mean.mask.task2" in out
        assert cli.main(["verify", str(path)]) == 0
        assert "whole; 9 keep planes regenerate as written" in capsys.readouterr().out
        assert cli.main(["footprint", str(path)]) == 0
        out = capsys.readouterr().out
        assert "a bank of 3 masks" in out and f"{path.stat().st_size:,}" in out


@pytest.mark.parametrize(("field", "value", "what"), [
    ("kept", [1, 2], "kept: a list with one for each of 3 masks"),
    ("scale", "0x1p-3", "scale: a list with one for each of 3 masks"),
    ("keep_sha256", ["0" * 64] * 3, "supermask.task0': keep_sha256 is 0000"),
    ("masks", ["task0", "task0", "task2"], "masks: a name is there twice"),
    ("masks", ["task0", "task2", "task1"], r"'4': masks \['task0', 'task2', 'task1'\], '0' has"),
    ("masks", [], "masks: a list of names that is not empty"),
    ("masks", None, "masks: null"),
    ("masks", ["task0", "a.b", "task2"], "masks: names of 1 to 200"),
    ("coats", 2, "masks: over weights in one coat and of one generation, got coats 2"),
    ("generations", 2, "masks: over weights in one coat and of one generation, got generations 2"),
    ("masks", ["task0", "task1", "other"], r"'4': masks \['task0', 'task1', 'other'\], '0' has"),
])  # fmt: skip
def test_records_that_no_writer_makes(tmp_path, field, value, what):
    path = tmp_path / "bank"
    bank_of(3)[0].save(path)
    metadata, entries, body = parts(path.read_bytes())
    records = json.loads(metadata["frozen_kernels.tensors"])
    records[1][field] = value
    metadata["frozen_kernels.tensors"] = json.dumps(records)
    path.write_bytes(joined(metadata, entries, body))
    model = small()
    with pytest.raises(fk.TicketError, match=what):
        fk.MaskBank.load(model, path)
    assert not frozen_layers(model)


def test_tensors_of_one_mask_in_two(tmp_path):
    """Embeddings and layers of one weight come once, and follow every switch."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, ids):
            return self.b(self.a(self.table(ids)))

    ids = torch.arange(8)
    for records, settings in ((2, {"seed": 4, "freeze_ratio": 0.0}), (1, {"code": "stored", "sparsity": 0.5})):
        model = Tied()
        fk.freeze_(model, fk.FreezeConfig(**settings), lambda module, name: True)
        bank, outputs = fk.MaskBank(model), {}
        for step in range(2):
            packed = fk.masks(model)
            fk.load_masks(model, packed.roll(step))
            bank.add(str(step))
            outputs[str(step)] = model(ids).detach()
        bank.save(tmp_path / "bank")
        assert len(read_ticket(tmp_path / "bank").records) == records  # embeddings have no stored weights
        loaded = fk.MaskBank.load(Tied(), tmp_path / "bank")
        loaded.model.load_state_dict({k: v for k, v in model.state_dict().items() if "bias" in k}, strict=False)
        bank.finalize()
        for held in (bank, loaded):
            for name, expected in outputs.items():
                held.use(name)
                torch.testing.assert_close(held.model(ids), expected, rtol=1e-4, atol=1e-5)
                assert torch.equal(held.model.a.keep_mask(), held.model.b.keep_mask())
