"""Prepared calls: bitwise what the ops give, remade when a layer changes, and left where something watches a call."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import FUSED
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import frozen_kernels as fk
from frozen_kernels import calls

pytestmark = pytest.mark.skipif(fk.backends.report()["cpu"] != "live", reason="calls are prepared by the CPU kernels")

LAYERS = {
    "linear": (lambda **s: fk.nn.FrozenLinear(33, 7, **s), [(5, 33), (33,), (2, 3, 33)]),
    "linear without bias": (lambda **s: fk.nn.FrozenLinear(64, 40, bias=False, **s), [(1, 64)]),
    "conv1d": (lambda **s: fk.nn.FrozenConv1d(4, 6, 3, padding=2, dilation=2, **s), [(2, 4, 9)]),
    "conv2d": (lambda **s: fk.nn.FrozenConv2d(8, 12, (3, 2), (2, 1), (1, 0), groups=2, **s), [(2, 8, 7, 6)]),
    "depthwise": (lambda **s: fk.nn.FrozenConv2d(8, 8, 3, padding=1, groups=8, bias=False, **s), [(1, 8, 5, 5)]),
    "conv3d": (lambda **s: fk.nn.FrozenConv3d(3, 5, 2, **s), [(2, 3, 4, 3, 5)]),
    "transposed": (lambda **s: fk.nn.FrozenConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2, **s), [(2, 6, 4, 5)]),
}


class ordinary:
    """A block in which every call takes the ordinary way."""

    def __enter__(self):
        calls.skip(1)

    def __exit__(self, *_):
        calls.skip(-1)


def prepared(layer: fk.nn.FrozenLayer, x: torch.Tensor) -> torch.Tensor:
    """A call of a layer that must be a prepared one."""
    y = layer._call(x)
    assert y is not None, "took the ordinary way"
    assert torch.equal(y, layer(x))
    return y


def inputs(name: str, dtype=torch.float32) -> list[torch.Tensor]:
    sizes = LAYERS[name][1]
    found = [torch.randn(size).to(dtype) for size in sizes]
    if len(sizes[0]) == 4:
        found.append(found[0].contiguous(memory_format=torch.channels_last))
        found.append(torch.randn(*sizes[0][:3], 2 * sizes[0][3]).to(dtype)[..., ::2])
    return found


@pytest.mark.parametrize("residency", [*FUSED, "dense"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_prepared_call_is_the_op_bit_for_bit(name, residency):
    layer = LAYERS[name][0](code="uniform" if residency == "mask" else "sign")
    layer.finalize()
    layer.set_residency(residency)
    dtypes = (torch.float32, torch.bfloat16) if residency == "planes" else (torch.float32,)
    for dtype in dtypes:
        layer.to(dtype)
        for x in inputs(name, dtype):
            with torch.no_grad():
                y = prepared(layer, x)
            with ordinary(), torch.no_grad():
                right = layer(x)
            assert torch.equal(y, right) and y.stride() == right.stride() and y.dtype == right.dtype
            with torch.inference_mode():
                assert torch.equal(prepared(layer, x), right)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_prepared_call_are_those_of_the_op(name):
    layer = LAYERS[name][0]()
    layer.set_residency("planes")
    for x in inputs(name):
        found = []
        for way in (None, ordinary()):
            layer.zero_grad()
            own = x.detach().requires_grad_()
            if way:
                with way:
                    y = layer(own)
            else:
                y = layer._call(own)
                assert y is not None and "_Train" in y.grad_fn.name()
            # .sum() hands a gradient of stride 0 over, the square one that is dense
            (y.square().sum() + y.sum()).backward()
            found.append([y.detach(), own.grad, *(p.grad for p in layer.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_second_derivatives_go_through_a_prepared_call():
    layer, x = fk.nn.FrozenLinear(9, 5), torch.randn(3, 9, requires_grad=True)
    plain = fk.to_dense(nn.Sequential(layer))[0]

    def penalty(module):
        (grad,) = torch.autograd.grad(module(x).tanh().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(penalty(layer), penalty(plain))


def test_a_gain_and_relu_are_part_of_a_prepared_call():
    layer, x = fk.nn.FrozenConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    layer.finalize()
    layer.gain, layer.relu = torch.rand(12)[::2] + 0.5, True  # strided: every second value
    with torch.no_grad():
        y = prepared(layer, x)
        with ordinary():
            assert torch.equal(y, layer(x))
    assert torch.allclose(y, fk.to_dense(nn.Sequential(layer))(x), atol=1e-5)


def change_stride(layer):
    layer.stride = (2, 2)


def change_bias(layer):
    layer.bias = nn.Parameter(torch.full((6,), 3.0))


def change_bias_in_place(layer):
    with torch.no_grad():
        layer.bias.fill_(2.0)


def change_bias_data(layer):
    layer.bias.data = torch.full((6,), 5.0)


def change_mask(layer):
    layer.set_keep_mask(layer.partition() == 1)


def change_residency(layer):
    layer.set_residency("seed")


def change_state(layer):
    layer.load_state_dict(fk.nn.FrozenConv2d(4, 6, 3, padding=1, seed=9).state_dict(), strict=False)


def change_buffers_only(layer):
    # as wrappers do that bring a layer's tensors from elsewhere
    other = fk.nn.FrozenConv2d(4, 6, 3, padding=1, seed=0, sparsity=0.6)
    for name in ("header", "keep"):
        layer._buffers[name] = other._buffers[name]
    layer._words = other._words


@pytest.mark.parametrize(
    "change",
    [
        change_stride,
        change_bias,
        change_bias_in_place,
        change_bias_data,
        change_mask,
        change_residency,
        change_state,
        change_buffers_only,
    ],
)
def test_a_changed_layer_never_runs_on_what_it_was(change):
    layer, x = fk.nn.FrozenConv2d(4, 6, 3, padding=1), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        before = prepared(layer, x)
        change(layer)
        y = layer(x)
        with ordinary():
            right = layer(x)
    assert torch.equal(y, right)
    assert change is change_residency or not torch.equal(y, before)


@pytest.mark.parametrize("residency", FUSED)
@pytest.mark.parametrize("train", [False, True])
def test_a_header_that_somebody_else_wrote_is_an_error(residency, train):
    layer, x = fk.nn.FrozenLinear(16, 8, seed=123456789), torch.randn(2, 16, requires_grad=train)
    layer.set_residency(residency)
    with torch.no_grad():
        layer.header.copy_(0.999 * layer.header + (1 - 0.999) * layer.header)
    with (
        torch.set_grad_enabled(train),
        pytest.raises(ValueError, match=r"header: .* of a layer made with \[123456789, "),
    ):
        layer(x)
    layer.reset_parameters()
    assert layer(x).shape == (2, 8)


def test_a_backward_after_new_masks_is_an_error():
    model = nn.Sequential(nn.Linear(16, 8))
    fk.freeze_(model)
    search = fk.EdgePopup(model)
    y = model(torch.randn(2, 16))
    assert "_Train" in y.grad_fn.name()
    search.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


class Tagged(torch.Tensor):
    pass


def test_what_watches_a_call_sees_the_op():
    layer, x = fk.nn.FrozenLinear(16, 8), torch.randn(3, 16)
    layer.finalize()
    with torch.no_grad():
        right = prepared(layer, x)
        with Names() as names:
            y = layer(x)
        assert torch.equal(y, right) and names.seen[-1] == "linear"
        with torch.profiler.profile() as profile:
            layer(x)
        assert any("frozen_kernels::linear" in e.name for e in profile.events())
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert type(layer(x.as_subclass(Tagged))) is Tagged
        assert torch.equal(torch.func.vmap(layer)(x[:, None])[:, 0], right)
        assert torch.equal(torch.func.functional_call(layer, {"bias": layer.bias + 1}, x), right + 1)
        traced = torch.jit.trace(layer, x, check_trace=False)
        assert torch.equal(traced(x), right)
        with torch.device("meta"):
            assert layer(x).device.type == "cpu"
        assert torch.equal(layer(torch._neg_view(-x)), right)
        assert layer(x[:0]).shape == (0, 8)
    handle = layer.register_forward_hook(lambda module, args, y: y + 1)
    with torch.no_grad():
        assert torch.equal(layer(x), right + 1)
    handle.remove()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(tangent, torch.ones_like(x) @ layer.weight.T)


@pytest.mark.parametrize("layer, x, what", [
    (fk.nn.FrozenLinear(16, 8), torch.randn(2, 15), "last dimension"),
    (fk.nn.FrozenConv2d(4, 6, 3), torch.randn(2, 5, 6, 6), "5 channels"),
    (fk.nn.FrozenConv2d(4, 6, 3), torch.randn(2, 4, 2, 6), "too small"),
    (fk.nn.FrozenLinear(16, 8), torch.randn(2, 16, dtype=torch.float64), "does not match the layer"),
])  # fmt: skip
@pytest.mark.parametrize("residency", ["planes", "dense"])
def test_errors_stay_those_of_the_op(layer, x, what, residency):
    layer.set_residency(residency)
    layer.finalize()
    with torch.no_grad(), pytest.raises((ValueError, TypeError), match=what):
        layer(x)


@pytest.mark.parametrize("kind", ["prepared", "gain", "coats"])
def test_a_forward_in_another_thread_reads_one_state_whole(tmp_path, kind):
    """Loads, steps and residencies while others forward: each result is that of one ticket, bias and gain included.

    With a gain or coats a forward that records gradients takes the op, and the bias as a parameter.
    """
    models, x = [], torch.randn(4, 96)
    for seed in range(2):
        model = nn.Sequential(nn.Linear(96, 96))
        with torch.no_grad():
            model[0].bias.fill_(float(seed))
        fk.freeze_(model, fk.FreezeConfig(seed=seed))
        if kind == "gain":
            model[0].gain = torch.full((96,), 1.0 + seed)
        if kind == "coats":
            model[0].adopt_counts((torch.arange(model[0].free) % 3).to(torch.uint8), coats=2)
        fk.finalize_(model)
        fk.save_ticket(model, tmp_path / f"{seed}")
        models.append(model)
    rights = [m(x).detach() for m in models]
    served = fk.load_ticket(nn.Sequential(nn.Linear(96, 96)), tmp_path / "0")
    done, wrong, count = threading.Event(), [], [0]

    def work():
        with torch.set_grad_enabled(kind != "prepared"):
            while not done.is_set():
                y = served(x)
                count[0] += 1
                if not any(torch.equal(y, right) for right in rights):
                    wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    residencies = FUSED if kind != "coats" else ("mask", "planes")
    for turn in range(40):
        fk.load_ticket(served, tmp_path / str(turn % 2), verify=False)
        fk.set_residency(served, residencies[turn % len(residencies)])
    done.set()
    for thread in threads:
        thread.join()
    assert count[0] > 0 and not wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "channels_last"])
def test_a_large_result_is_a_tensor_like_any_other(kind, dtype):
    """Its memory is the extension's: layout and bits are those of the op, and it may be changed in place."""
    if kind == "linear":
        layer, x = fk.nn.FrozenLinear(64, 1024, dtype=dtype), torch.randn(2, 64, 64, dtype=dtype)
    else:
        layer, x = fk.nn.FrozenConv2d(8, 32, 3, padding=1, dtype=dtype), torch.randn(2, 8, 48, 48, dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if kind == "channels_last" else x
    with ordinary():
        expected = layer(x)
    y = prepared(layer, x)
    assert y.numel() > 1 << 16 and torch.equal(y, expected) and y.stride() == expected.stride()
    assert not y._is_view() and y.storage_offset() == 0 and y.untyped_storage().nbytes() == y.nbytes
    assert y.data_ptr() % 64 == 0
    layer(x.requires_grad_()).relu_().sum().backward()
    assert torch.isfinite(x.grad).all()
    with torch.inference_mode():
        assert layer(x.detach()).is_inference()
