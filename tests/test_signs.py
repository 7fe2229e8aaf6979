"""Code "signs": weights of a keep bit and a sign bit, exact against dense layers, searched, saved and loaded."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import INTERPRETING
from helpers import distinct_levels
from signs_cases import LAYERS, imported, plain, record, whole
from stored_cases import in_stream
from torch import nn

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels.backends import cpu
from frozen_kernels.tickets.bits import deposit_bits, select_bits


def searched(*layers: nn.Module, sparsity: float = 0.5, **settings) -> nn.Sequential:
    model = nn.Sequential(*layers)
    fk.freeze_(model, fk.FreezeConfig(code="signs", sparsity=sparsity, **settings))
    return model


def small() -> tuple[nn.Module, ...]:
    return nn.Linear(37, 24), nn.ReLU(), nn.Linear(24, 5)


def bits(count: int, share: float = 0.5) -> torch.Tensor:
    return fmt.pack_bits(torch.rand(count) < share)


# exactness


@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "rows"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_those_of_torch_on_small_integers(name, by_row, backend):
    torch_layer, size = plain(name, by_row)
    layer = imported(torch_layer)
    assert torch.equal(layer.weight, torch_layer.weight)
    ours, theirs = (whole(3, *size).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours)
    y, expected = layer(ours), torch_layer(theirs)
    assert torch.equal(y, expected)
    grad = whole(*y.shape)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(ours.grad, theirs.grad) and torch.equal(layer.bias.grad, torch_layer.bias.grad)
    with torch.no_grad():
        assert torch.equal(layer(ours), expected)
    if INTERPRETING:
        return  # torch computes in `dense`
    layer.set_residency("dense")
    assert torch.equal(layer(ours), expected) and torch.equal(layer.weight, torch_layer.weight)
    layer.set_residency("planes")
    assert torch.equal(layer(ours), expected)


@pytest.mark.skipif(bool(cpu.reasons()), reason="the extension is not built")
@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "rows"])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv2d dilated", "depthwise", "conv_transpose2d"])
def test_every_instruction_set(name, by_row):
    from frozen_kernels import _C

    torch_layer, size = plain(name, by_row)
    layer, x, before = imported(torch_layer), whole(2, *size), _C.isa()
    try:
        for level in distinct_levels(_C.isa_available()):
            _C.set_isa(level)
            with torch.no_grad():
                assert torch.equal(layer(x), torch_layer(x)), level
            taken = x.clone().requires_grad_()
            layer(taken).sum().backward()
            theirs = x.clone().requires_grad_()
            torch_layer(theirs).sum().backward()
            assert torch.equal(taken.grad, theirs.grad), level
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d"])
def test_other_dtypes(name, dtype, backend):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("float64 runs on the reference")
    torch_layer, size = plain(name, True)
    layer, twin = imported(torch_layer).to(dtype), torch_layer.to(dtype)
    assert layer.row_scale.dtype == torch.float32
    x = whole(2, *size, dtype=dtype)
    assert torch.equal(layer(x), twin(x))
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "rows"])
def test_embedding(by_row, backend):
    frozen, weight = record((11, 35), by_row)
    indices = torch.tensor([[0, 10, 3], [3, 3, 7]])
    y = fk.functional.embedding(indices, frozen, padding_idx=7)
    assert torch.equal(y, nn.functional.embedding(indices, weight.index_fill(0, torch.tensor([7]), 0.0)))
    half = fk.functional.embedding(indices, frozen, dtype=torch.bfloat16)
    assert torch.equal(half, nn.functional.embedding(indices, weight.bfloat16()))


@pytest.mark.parametrize("by_row", [False, True], ids=["tensor", "rows"])
@pytest.mark.parametrize("op", ["linear", "conv2d", "conv_transpose2d", "embedding", "weight"])
def test_gradients_of_scores_have_neither_sign_nor_code(op, by_row, backend):
    """dL/dW * scale * row_scale: that of a score that has just changed its sign too."""
    shape = {"conv2d": (6, 5, 3, 3), "conv_transpose2d": (5, 6, 3, 3)}.get(op, (7, 33))
    frozen, weight = record(shape, by_row)
    scores = torch.randn(weight.numel(), requires_grad=True)
    frozen = frozen._replace(scores=scores)
    weight.requires_grad_()
    if op == "weight":
        ours, theirs = frozen.weight(), weight
    elif op == "embedding":
        indices = torch.tensor([1, 6, 1])
        ours, theirs = fk.functional.embedding(indices, frozen), nn.functional.embedding(indices, weight)
    else:
        x = whole(2, *((33,) if op == "linear" else (5, 6, 7)))
        ours, theirs = (getattr(where, op)(x, w) for where, w in ((fk.functional, frozen), (nn.functional, weight)))
    grad = whole(*ours.shape)
    ours.backward(grad)
    theirs.backward(grad)
    factor = 0.5 if frozen.row_scale is None else 0.5 * frozen.row_scale.view(-1, *[1] * (weight.dim() - 1))
    assert torch.equal(scores.grad, in_stream(weight.grad * factor))


def test_second_derivatives_and_forward_mode():
    frozen, weight = record((4, 9), True)
    scores = torch.randn(36, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    ours = fk.functional.linear(x, frozen._replace(scores=scores))
    (grad,) = torch.autograd.grad(ours.square().sum(), x, create_graph=True)
    (by_scores,) = torch.autograd.grad(grad.sum(), scores)
    # the same of a weight that is linear in a change of its scores
    change = torch.zeros(36, dtype=torch.float64, requires_grad=True)
    matrix = torch.zeros(36, dtype=torch.float64).index_put((in_stream(torch.arange(36).view(4, 9)),), change)
    w = weight.double() + matrix.view(4, 9) * 0.5 * frozen.row_scale.double()[:, None]
    (grad,) = torch.autograd.grad((x @ w.T).square().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(grad.sum(), change)
    torch.testing.assert_close(by_scores, expected)
    v = torch.randn(36, dtype=torch.float64)
    _, tangent = torch.func.jvp(
        lambda s: fk.functional.linear(x.detach(), frozen._replace(scores=s)), (scores.detach(),), (v,)
    )
    _, expected = torch.func.jvp(
        lambda c: x.detach() @ (matrix_from(c) * 0.5 * frozen.row_scale.double()[:, None]).T, (v * 0,), (v,)
    )
    torch.testing.assert_close(tangent, expected)


def matrix_from(stream: torch.Tensor) -> torch.Tensor:
    return stream[in_stream(torch.arange(36).view(4, 9)).argsort()].view(4, 9)


# records


@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (3, 33), (4, 3, 2, 2), (0, 3), (3, 0)])
def test_a_record_is_its_definition(shape):
    frozen, weight = record(shape, True)
    assert torch.equal(frozen.weight(), weight)
    dense = frozen.hold("dense")
    assert torch.equal(dense.weight(), weight) and dense.keep is None
    back = dense.hold("planes")
    assert all(torch.equal(a, b) for a, b in zip(back[2:], frozen[2:], strict=True) if a is not None)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"keep": torch.ones(3, 4)}, "keep: bool"),
        ({"negative": torch.ones(4, 3, dtype=torch.bool)}, r"negative: bool \[3, 4\], got torch.bool \[4, 3\]"),
        ({"scale": -1.0}, "scale: 0 or more, got -1.0"),
        ({"scale": float("inf")}, "scale: a finite float32"),
        ({"row_scale": torch.ones(4)}, r"row_scale: float32 \[3\], got torch.float32 \[4\]"),
        ({"row_scale": torch.tensor([1.0, float("nan"), 1.0])}, "row_scale: 0 or more and finite, got nan"),
        ({"residency": "mask"}, "planes and dense, got 'mask'"),
    ],
)
def test_records_that_are_refused(changed, told):
    whole_mask = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=told):
        fk.FrozenTensor.signs(**{"keep": whole_mask, "negative": whole_mask, **changed})


def test_planes_that_are_missing_are_not_drawn():
    frozen, _ = record((3, 4), False)
    with pytest.raises(ValueError, match="draw: stored signs need keep and draw planes"):
        fk.functional.linear(torch.ones(1, 4), frozen._replace(draw=None))


def test_what_is_resident():
    torch.manual_seed(0)
    layer = nn.Linear(1024, 1024, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-1, 2, (1024, 1024)) * torch.rand(1024, 1))
    model = nn.Sequential(layer)
    fk.importers.ternary_(model)
    found = fk.footprint(model)
    assert found.layers[0].resident == 2 * 1024 * 1024 // 8 + 4 * 1024 + 32
    assert found.bits("resident") <= 2.05
    kept = model[0].counts["kept"]
    assert found.layers[0].disk == 1024 * 1024 // 8 + -(-kept // 8) + 4 * 1024


# searches


def test_a_search_finds_signs_and_masks():
    model = searched(*small())
    search = fk.EdgePopup(model)
    optimizer = torch.optim.SGD(search.parameters(), lr=1.0)
    x, classes = torch.randn(64, 37), torch.randint(5, (64,))
    before, losses = [p.clone() for p in search.parameters()], []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        search.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
    assert any((a.sign() != b.sign()).any() for a, b in zip(before, search.parameters(), strict=True))
    for layer in search.layers:
        weight, scores = layer.weight.detach(), layer.scores_as_weight()
        kept = layer.keep_mask()
        assert torch.equal(weight, torch.where(kept, scores.sign() * layer.scale, 0.0))
    dropped = sum(int((~layer.keep_mask()).sum()) for layer in search.layers)
    assert dropped == (37 * 24 + 24 * 5) // 2
    fk.finalize_(model)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(y, model(x)) and all(layer.scores is None for layer in search._found.values())


def test_scores_are_drawn_from_seed_and_stream():
    a, b, c = (searched(*small(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a[0].scores, b[0].scores) and not torch.equal(a[0].scores, c[0].scores)
    assert [a[0].stream, a[2].stream] == [0, 1] and a[0].seed == 1
    drawn = nn.Sequential(*small())
    fk.freeze_(drawn, fk.FreezeConfig(seed=1, prune_ratio=0.0, lock_ratio=0.0))
    assert torch.equal(a[0].scores, drawn[0].scores)
    assert fmt.header_fields(a[0].header)["seed"] == 0
    scores = a[0].scores.detach().clone()
    with torch.no_grad():
        a[0].scores.zero_()
    a[0].reset_parameters()
    assert torch.equal(a[0].scores, scores)


def test_masks_by_hand_follow_the_scores():
    layer = searched(nn.Linear(33, 7))[0]
    keep = torch.rand(7, 33) < 0.5
    layer.set_keep_mask(keep)
    assert torch.equal(layer.weight.detach(), torch.where(keep, layer.scores_as_weight().sign() * layer.scale, 0.0))
    layer.finalize()
    layer.set_keep_mask(keep & (torch.rand(7, 33) < 0.5))
    before = layer.packed_supermask()
    with pytest.raises(RuntimeError, match=r"the signs of \d+ dropped weights are gone"):
        layer.set_keep_mask(torch.ones(7, 33, dtype=torch.bool))
    assert torch.equal(layer.packed_supermask(), before)


@pytest.mark.parametrize("residency", ["planes", "dense"])
def test_adopt_signs(residency):
    layer = searched(nn.Conv2d(3, 5, 3))[0]
    layer.set_residency(residency)
    supermask, signs = bits(135), bits(135)
    layer.adopt_signs(supermask, signs)
    keep, negative = (fmt.unpack_bits(stream, 135) for stream in (supermask, signs))
    weight = in_stream(layer.weight.detach())
    assert torch.equal(weight, torch.where(keep, torch.where(negative, -layer.scale, layer.scale), 0.0))
    assert torch.equal(layer.packed_signs(), fmt.pack_bits(negative & keep))


@pytest.mark.parametrize(
    ("supermask", "signs", "told"),
    [
        (bits(8), bits(21), r"supermask: uint8 \[3\] for 21"),
        (bits(21), torch.ones(21), r"signs: uint8 \[3\] for 21 free weights, got torch.float32 \[21\]"),
        (bits(21), torch.full((3,), 255, dtype=torch.uint8), "signs: bits are set after"),
    ],
)
def test_bits_that_do_not_fit(supermask, signs, told):
    layer = searched(nn.Linear(7, 3))[0]
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=told):
        layer.adopt_signs(supermask, signs)
    assert torch.equal(layer.weight, before)


def test_other_codes_have_no_signs():
    layer = fk.nn.FrozenLinear(7, 3)
    with pytest.raises(ValueError, match="signs: of code 'signs', the layer has 'sign'"):
        layer.adopt_signs(bits(21), bits(21))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"freeze_ratio": 0.5}, "freeze_ratio: every stored sign is free, 0, got 0.5"),
        ({"score_init": "magnitude"}, "score_init: 'magnitude' ties every weight of code 'signs'"),
        ({"score_init": "centred"}, "score_init: 'centred' with code 'stored'"),
        ({"rates": "l1"}, "rates: 'l1', but only code 'stored' has it"),
    ],
)
def test_settings_that_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        fk.FreezeConfig(code="signs", **settings)


def test_dynamic_scaling_follows_the_mask():
    layer = searched(nn.Linear(32, 8), sparsity=0.75, scaling="dynamic", scope="local")[0]
    assert layer.counts["kept"] == 64
    assert layer.scale == pytest.approx((2 / 32) ** 0.5 * 2)


def test_layers_of_one_parameter_are_one_weight():
    first, second = nn.Linear(9, 9), nn.Linear(9, 9)
    second.weight = first.weight
    model = searched(first, second)
    assert model[0].scores is model[1].scores and model[0].identity == model[1].identity
    assert torch.equal(model[0].weight, model[1].weight)
    copied = copy.deepcopy(model)
    assert copied[0].identity == copied[1].identity != model[0].identity


# state


def test_states_load_strictly_and_copies_are_equal():
    x = torch.randn(3, 37)
    model = searched(*small(), seed=4)
    fk.finalize_(model)
    model[0].adopt_signs(model[0].packed_supermask(), bits(37 * 24))
    y = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x), y)
    state = model.state_dict()
    assert {"0.signs", "0.supermask", "0.header"} <= set(state) and state["0.signs"].numel() == 37 * 24 // 8
    for residency in ("planes", "dense"):
        target = searched(*small())
        fk.finalize_(target)
        fk.set_residency(target, residency)
        target.load_state_dict(state)
        assert torch.equal(target[0].weight, model[0].weight)
        assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), state.values(), strict=True))
    with torch.device("meta"):
        target = nn.Sequential(*small())
        fk.freeze_(target, fk.FreezeConfig(code="signs"))
    fk.finalize_(target)
    target.load_state_dict(state, assign=True)
    assert torch.equal(target(x), y)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("0.signs"), "0.signs: missing"),
        (lambda s: s.update({"0.signs": bits(8)}), r"0.signs: uint8 \[111\]"),
        (lambda s: s.update({"0.row_scale": torch.full((24,), -1.0)}), "0.row_scale: 0 or more and finite, got -1.0"),
        (lambda s: s["0.header"].index_fill_(0, torch.tensor([fmt.CODE]), 0), "code sign, the layer has signs"),
    ],
)
def test_states_that_do_not_fit(change, told):
    model = searched(*small())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=told):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_row_scales_are_part_of_the_state():
    torch_layer, size = plain("conv2d", True)
    model, x = nn.Sequential(imported(torch_layer)), whole(2, *size)
    target = searched(nn.Conv2d(6, 9, (3, 2), (2, 1), 1, 1, 3))
    fk.finalize_(target)
    target.load_state_dict(model.state_dict())
    assert torch.equal(target(x), torch_layer(x))


def test_moves_and_modes():
    torch_layer, size = plain("conv2d", True)
    layer, x = imported(torch_layer), whole(2, *size)
    last = x.to(memory_format=torch.channels_last)
    assert layer(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.to(memory_format=torch.channels_last)(x), torch_layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, torch_layer(x).bfloat16())
    back = layer.bfloat16().float()
    assert torch.equal(back.weight, torch_layer.weight)
    with torch.inference_mode():
        assert torch.equal(back(x), torch_layer(x))
    assert "code=signs, kept=" in repr(layer) and "a scale per row" in repr(layer)


def test_compiled():
    torch_layer, size = plain("conv2d", True)
    model, x = nn.Sequential(imported(torch_layer)), whole(2, *size)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), torch_layer(x))
    taken = x.clone().requires_grad_()
    compiled(taken).sum().backward()
    theirs = x.clone().requires_grad_()
    torch_layer(theirs).sum().backward()
    assert torch.equal(taken.grad, theirs.grad)


# what is made of them


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_batch_norm_is_folded_over_row_scales(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(5, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.randint(-1, 2, model[0].weight.shape) * torch.rand(len(model[0].weight), 1, 1, 1))
        for t in (model[1].running_mean, model[1].running_var, model[1].weight, model[1].bias):
            t.uniform_(0.5, 1.5)
    x = torch.randn(2, 5, 6, 7)
    expected, error = model.double()(x.double()), (model.float()(x) - model.double()(x.double())).abs().max()
    model.float()
    fk.importers.ternary_(model)
    assert fk.fold_batch_norm_(model).folded and model[0].row_scale is not None
    for net in (model, fk.to_dense(model)):
        assert (net(x) - expected).abs().max() <= 2 * error


def test_auto_takes_one_that_they_have():
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 8))
    fk.freeze_(model, fk.FreezeConfig(code="signs"))
    fk.finalize_(model)
    for goal in ("speed", "memory"):
        report = fk.set_residency(model, "auto", auto=goal)
        assert set(report.values()) <= {"planes", "dense"}
    report = fk.set_residency(model, "planes")
    assert set(report.values()) == {"planes"}
    with pytest.raises(ValueError, match="'seed', which no layer of code signs has"):
        fk.set_residency(model, "seed")
    with pytest.raises(ValueError, match="one of planes, dense for code 'signs', got 'mask'"):
        model[0].set_residency("mask")


def test_streams_go_on_after_scores_alone():
    torch_layer, _ = plain("linear", False)
    model = nn.Sequential(torch_layer, nn.Linear(19, 3))
    fk.importers.ternary_(model, lambda module, name: name == "0")
    fk.freeze_(model, fk.FreezeConfig())
    assert model[1].stream == 0  # nothing is drawn for the imported layer


@pytest.mark.parametrize("count", [0, 7, 64, 1001, 4096])
def test_the_order_of_bits_is_that_of_a_stream(monkeypatch, count):
    monkeypatch.setattr("frozen_kernels.tickets.bits._BLOCK", 104)
    stream, chosen = bits(count), bits(count, 0.3)
    kept = select_bits(stream, chosen, count)
    every, where = fmt.unpack_bits(stream, count), fmt.unpack_bits(chosen, count)
    assert torch.equal(kept, fmt.pack_bits(every[where]))
    assert torch.equal(deposit_bits(kept, chosen, count), fmt.pack_bits(every & where))
