"""Weights drawn again one by one: each free weight has a generation of its own."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import gather_free, matrix_of, stream_positions, weight_of
from torch import nn
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import cli
from frozen_kernels import format as fmt

CODES = ("sign", "uniform", "normal")


def redrawn(code="sign", residency="planes", rounds=3, **settings):
    """A convolution whose weights were drawn again, some of them often; and the generations by hand."""
    new = fk.nn.FrozenConv2d(6, 8, 3, padding=1, groups=2, **{"seed": 5, "code": code, **settings})
    new.set_residency(residency)
    numbers = torch.zeros(new.free, dtype=torch.uint8)
    for _ in range(rounds):
        which = torch.rand(new.free) < 0.5
        new.redraw(which)
        numbers += which
    return new, numbers


def codes_by_hand(new, numbers):
    """float32 of torch's shape: each free weight's code by its own generation, others' by generation 0."""
    rows, cols = new.rows, new.cols
    fields = fmt.header_fields(new.header)
    partition = matrix_of(new.partition())
    with fk.backends.use("reference"):
        every = [
            fmt.codes(rows, cols, seed=fields["seed"], stream=fields["stream"], code=fields["code"], generation=g)
            for g in range(int(numbers.max()) + 1)
        ]
    codes = every[0].float()
    for (row, column), number in zip(stream_positions(partition), numbers.tolist(), strict=True):
        codes[row, column] = every[number][row, column]
    return weight_of(codes, new.shape)


@pytest.mark.parametrize("residency", ["planes", "dense"])
@pytest.mark.parametrize("code", CODES)
def test_weights_and_gradients(backend, code, residency):
    new, numbers = redrawn(code, residency, sigma=fmt.RMS[code] / 4)
    assert new.residency == residency and torch.equal(new.generations_of(), numbers) and numbers.max() > 1
    codes = codes_by_hand(new, numbers)
    weight = codes * new.keep_mask() * new.scale
    assert new.scale == 0.25 and torch.equal(new.weight, weight)
    x = torch.randint(-4, 5, (2, 6, 5, 5)).float().requires_grad_()
    new.bias = None
    y = new(x)
    exact = x.detach().double().requires_grad_()
    weight = weight.double().requires_grad_()
    right = F.conv2d(exact, weight, padding=1, groups=2)
    assert torch.equal(y.double(), right)
    grad = torch.randint(-4, 5, y.shape).float()
    y.backward(grad)
    right.backward(grad.double())
    assert torch.equal(x.grad.double(), exact.grad)
    local = matrix_of(weight.grad * codes.double() * 0.25)
    wanted = gather_free(local, matrix_of(new.partition())) * new.scores.detach().double().sign()
    torch.testing.assert_close(new.scores.grad.double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("code", CODES)
def test_linear_embedding_and_coats(backend, code):
    torch.manual_seed(1)
    new = fk.nn.FrozenEmbedding(20, 70, seed=5, code=code)
    new.redraw(torch.rand(new.free) < 0.5)
    new.adopt_counts(counts := torch.randint(0, 4, (new.free,), dtype=torch.uint8), coats=3)
    new.redraw(torch.rand(new.free) < 0.5)
    weight = codes_by_hand(new, new.generations_of()) * new.coat_counts() * new.scale
    assert torch.equal(gather_free(new.coat_counts(), new.partition()), counts)
    indices = torch.tensor([3, 19, 3])
    assert torch.equal(new(indices), weight[indices]) and torch.equal(new.weight, weight)
    linear = fk.nn.FrozenLinear(70, 20, bias=False, seed=5, code=code)
    linear.load_state_dict(new.state_dict())
    x = torch.randn(3, 70)
    torch.testing.assert_close(linear(x), x @ weight.T)
    with fk.backends.use("reference"):
        tangent = torch.func.jvp(linear_of(linear, x), (linear.scores.detach(),), (torch.ones(linear.free),))[1]
    free = new.partition() == 0
    signs = torch.zeros(20, 70)
    for (row, column), score in zip(stream_positions(new.partition()), linear.scores.tolist(), strict=True):
        signs[row, column] = 1 if score > 0 else -1
    change = codes_by_hand(new, new.generations_of()) * new.scale * signs * free
    torch.testing.assert_close(tangent, x @ change.T, rtol=1e-4, atol=1e-5)


def linear_of(linear, x):
    """The layer as a function of its scores."""
    return lambda scores: fk.functional.linear(x, linear.frozen._replace(scores=scores))


def test_the_mask_stays_and_searches_go_on():
    new, _ = redrawn(rounds=0, residency="seed")
    before = new.keep_mask()
    new.redraw(torch.zeros(new.free, dtype=torch.bool))
    assert new.generations is None and new.residency == "seed"
    new.redraw(~gather_free(matrix_of(before), matrix_of(new.partition())))
    assert new.residency == "planes" and torch.equal(new.keep_mask(), before)
    draw = new.draw
    model = nn.Sequential(new)
    search = fk.EdgePopup(model)
    with torch.no_grad():
        new.scores.copy_(torch.randn_like(new.scores))
    search.step()
    assert new.draw is draw and not torch.equal(new.keep_mask(), before)
    y = model(torch.randn(1, 6, 4, 4)).sum()
    new.redraw(torch.ones(new.free, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_kernels_that_are_prepared_and_fused():
    """A finalized layer runs as any layer in planes, and the backends agree."""
    new, _ = redrawn("normal")
    new.finalize()
    x = torch.randn(2, 6, 5, 5)
    with torch.no_grad():
        y = new(x)
        with fk.backends.use("reference"):
            torch.testing.assert_close(y, new(x))


def unchanged(new, before):
    after = new.state_dict()
    return after.keys() == before.keys() and all(torch.equal(v, before[k]) for k, v in after.items())


def test_no_more_than_256():
    new = fk.nn.FrozenLinear(9, 4, seed=1)
    which = torch.zeros(new.free, dtype=torch.bool)
    which[0] = True
    often = fmt.pack_bits(which).expand(8, -1)
    new.load_state_dict({**new.state_dict(), "generations": often})
    assert new.generations.shape[0] == 8 and new.generations_of()[0] == 255
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match=r"which: 1 weights would get generation 256, .* at most 256 generations"):
        new.redraw(torch.ones_like(which))
    assert unchanged(new, before)
    which[:2] = torch.tensor([False, True])
    new.redraw(which)
    assert new.generations_of()[:3].tolist() == [255, 1, 0]


@pytest.mark.parametrize(
    ("settings", "which", "message"),
    [
        ({}, lambda n: torch.ones(n), r"which: bool \[\d+\], got torch.float32 \[\d+\]"),
        ({}, lambda n: torch.ones(n + 1, dtype=torch.bool), r"which: bool \[(\d+)\], got torch.bool \[\d+\]"),
        ({"code": "constant"}, None, "nothing is drawn for code 'constant'"),
        ({"generation": 7}, None, "beside generation 0 in the header, got 7"),
    ],
)
def test_wrong_calls(settings, which, message):
    new = fk.nn.FrozenLinear(9, 4, **settings)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match=message):
        new.redraw(torch.ones(new.free, dtype=torch.bool) if which is None else which(new.free))
    assert unchanged(new, before)


def test_residencies():
    new, _ = redrawn("uniform")
    weight = new.weight.clone()
    for residency in ("dense", "planes", "dense"):
        new.set_residency(residency)
        assert torch.equal(new.weight, weight)
    for residency in ("seed", "mask"):
        with pytest.raises(ValueError, match=rf"one of planes, dense .* of their own .* got '{residency}'"):
            new.set_residency(residency)
    new.finalize()
    assert new.draw is None
    for residency in ("dense", "planes"):
        new.set_residency(residency)
        held = sum(b.nbytes for b in new.buffers())
        assert held == fk.tensor.resident_bytes(new.shape, "uniform", new.free, residency, generations=4)
        assert torch.equal(new.weight, weight)


@pytest.mark.parametrize("residency", ["planes", "dense"])
def test_copies(residency):
    new, numbers = redrawn("normal", residency)
    file = io.BytesIO()
    torch.save(new.state_dict(), file)
    file.seek(0)
    loaded = fk.nn.FrozenConv2d(6, 8, 3, padding=1, groups=2, code="normal")
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(other.weight, new.weight) and torch.equal(other.generations_of(), numbers)
    before = copy.deepcopy(new.state_dict())
    wide = torch.full((9, new.generations.shape[1]), 0, dtype=torch.uint8)
    for wrong, message in (
        (wide, r"generations: uint8 \[1 to 8, \d+\] for \d+ free weights, got torch.uint8 \[9, \d+\]"),
        (torch.zeros_like(new.generations), "generations: 2 planes, and no bit is set in the last one"),
        (new.generations.int(), r"generations: uint8 \[.*, got torch.int32 \[2, \d+\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            new.load_state_dict({**before, "generations": wrong})
        assert unchanged(new, before)


def build():
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 9))


@pytest.mark.parametrize("code", ["sign", "normal"])
def test_tickets(tmp_path, capsys, code):
    model, path = build(), tmp_path / "ticket.safetensors"
    fk.freeze_(model, fk.FreezeConfig(seed=4, code=code))
    for _ in range(4):
        model[2].redraw(torch.rand(model[2].free) < 0.6)
    model[2].adopt_counts(torch.randint(0, 3, (model[2].free,), dtype=torch.uint8), coats=2)
    fk.save_ticket(model, path)
    ticket = fk.tickets.file.read_ticket(path)
    assert [r.generations for r in ticket.records] == [None, 5]
    stored = ticket.tensors["2.generation"]
    assert tuple(stored.shape) == (3, -(-model[2].free // 8))
    disk = fk.footprint(model).layers[1].disk
    assert disk == sum(ticket.tensors[name].nbytes for name in ticket.records[1].tensor_names)
    x = torch.randn(3, 40)
    for residency in ("planes", "dense", "mask", None):
        loaded = fk.load_ticket(build(), path, residency=residency)
        assert loaded[2].residency == ("dense" if residency == "dense" else "planes")
        assert torch.equal(loaded[2].weight, model[2].weight)
        torch.testing.assert_close(loaded(x), model(x))
        fk.save_ticket(loaded, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    for command in ("verify", "inspect", "footprint"):
        assert cli.main([command, str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{code}, 2 coats, 5 generations" in out and "2 keep planes regenerate" in out
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2] for line in out.splitlines() if len(line.split()) > 2}
    assert rows["generations"] == str(stored.nbytes)
