"""Second derivatives, forward mode and vmap of frozen layers, against plain torch with the same weights."""

from __future__ import annotations

import pytest
import torch
from helpers import make_frozen, score_gradient
from torch import nn
from torch.autograd import forward_ad
from torch.autograd import functional as AF
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import frozen_kernels as fk
from frozen_kernels import functional

ops = torch.ops.frozen_kernels

MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4, bias=False)), (9,)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, padding=1), nn.Tanh(), nn.Conv2d(4, 4, (1, 2), groups=2)),
        (2, 3, 4),  # without a batch dimension: the layers add one
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(3, 4, 3, 2, 1, 1, groups=1), nn.Tanh(), nn.Conv1d(4, 2, 2)),
        (2, 3, 3),
    ),
}


def pair(name: str, residency: str = "mask") -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """A frozen model, its dense twin, an input and a direction."""
    make, shape = MODELS[name]
    model = make()
    fk.freeze_(model, fk.FreezeConfig(freeze_ratio=0.5))
    fk.set_residency(model, residency)
    return model, fk.to_dense(model), torch.randn(shape), torch.randn(shape)


def loss(model):
    return lambda x: model(x).pow(3).sum()


def forward_mode(model, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model(forward_ad.make_dual(x, v))).tangent


def double_backward(model, x, v):
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(model)(x), x, create_graph=True)
    return torch.autograd.grad(first.pow(2).sum(), x)[0]


def penalty_through_checkpoint(model, x, v):
    x = x.clone().requires_grad_()
    y = checkpoint(model, x, use_reentrant=False)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(first.pow(2).sum(), x)[0]


def several(x, n=3):
    return torch.stack([x * (i + 1) for i in range(n)])


# what is asked of (model, input, direction)
ASKED = {
    "double_backward": double_backward,
    "double_backward_checkpointed": penalty_through_checkpoint,
    "forward_ad": forward_mode,
    "functional.hessian": lambda m, x, v: AF.hessian(loss(m), x),
    "functional.hvp": lambda m, x, v: AF.hvp(loss(m), x, v)[1],
    "functional.vhp": lambda m, x, v: AF.vhp(loss(m), x, v)[1],
    "functional.jvp": lambda m, x, v: AF.jvp(m, x, v)[1],
    "functional.jacobian_forward": lambda m, x, v: AF.jacobian(m, x, vectorize=True, strategy="forward-mode"),
    "func.jvp": lambda m, x, v: jvp(m, (x,), (v,))[1],
    "func.vjp": lambda m, x, v: vjp(m, x)[1](torch.ones_like(m(x)))[0],
    "jacfwd": lambda m, x, v: jacfwd(m)(x),
    "jacrev": lambda m, x, v: jacrev(m)(x),
    "forward_over_reverse": lambda m, x, v: hessian(loss(m))(x),
    "reverse_over_reverse": lambda m, x, v: jacrev(jacrev(loss(m)))(x),
    "reverse_over_forward": lambda m, x, v: jacrev(jacfwd(loss(m)))(x),
    "forward_over_forward": lambda m, x, v: jacfwd(jacfwd(loss(m)))(x),
    "third": lambda m, x, v: jvp(lambda a: grad(lambda b: (grad(loss(m))(b) * v).sum())(a), (x,), (v,))[1],
    "vmap": lambda m, x, v: vmap(m, in_dims=1, out_dims=1)(several(x).movedim(0, 1)),
    "vmap_of_vmap": lambda m, x, v: vmap(vmap(m))(several(several(x))),
    "vmap_of_grad": lambda m, x, v: vmap(grad(loss(m)))(several(x)),
    "vmap_of_hessian": lambda m, x, v: vmap(hessian(loss(m)))(several(x, 2)),
    "grad_of_vmap": lambda m, x, v: grad(lambda a: vmap(m)(a).pow(3).sum())(several(x)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("asked", ASKED)
def test_as_of_the_dense_model(name, asked):
    model, dense, x, v = pair(name)
    got, expected = ASKED[asked](model, x, v), ASKED[asked](dense, x, v)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("residency", ["seed", "planes", "dense"])
@pytest.mark.parametrize("asked", ["double_backward", "forward_ad", "vmap_of_hessian"])
def test_other_residencies_and_backends(residency, asked, backend):
    model, dense, x, v = pair("conv2d", residency)
    torch.testing.assert_close(ASKED[asked](model, x, v), ASKED[asked](dense, x, v), rtol=1e-4, atol=1e-4)


# the op, the shapes of input and weight, and the geometry
LAYERS = {
    "linear": ((2, 5), (3, 5), ()),
    "conv1d": ((2, 2, 5), (4, 1, 2), ([2], [1], [2], 2)),
    "conv2d": ((1, 2, 4, 3), (2, 2, 3, 2), ([1, 2], [1, 1], [1, 1], 1)),
    "conv_transpose1d": ((2, 2, 3), (2, 2, 3), ([2], [1], [1], [1], 2)),
    # an output padding of the stride and more, which a dilation allows
    "conv_transpose2d": ((1, 2, 3, 2), (2, 3, 2, 2), ([1, 2], [0, 1], [2, 1], [3, 1], 1)),
}
EPILOGUES = {"plain": (False, False), "gain": (True, False), "relu": (False, True), "both": (True, True)}


def sample(name: str, dtype=torch.float64, residency: str = "mask"):
    """Frozen tensor, dense weight, input, bias, scores, gain and the size of a result."""
    x_shape, w_shape, geometry = LAYERS[name]
    frozen, weight = make_frozen(w_shape, "uniform", residency, dtype, scale=2.0**-7)
    x, scores = torch.randn(x_shape, dtype=dtype), frozen.scores.to(dtype)
    y = getattr(ops, name)(x, None, None, *frozen.pack(), *geometry)
    channels = y.shape[-1] if name == "linear" else y.shape[1]
    bias, gain = torch.randn(channels, dtype=dtype), torch.linspace(-1, 2, channels, dtype=dtype)
    return frozen, weight.to(dtype), x, bias, scores, gain, y.shape


def check(function, *inputs):
    """Both modes, first and second order, and each under vmap, by finite differences."""
    inputs = tuple(t.detach().clone().requires_grad_() for t in inputs)
    options = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, **options)


@pytest.fixture
def reference():
    with fk.backends.use("reference"):
        yield


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_layers_by_finite_differences(name, epilogue, reference):
    frozen, _, x, bias, _, gain, _ = sample(name)
    with_gain, relu = EPILOGUES[epilogue]
    geometry = LAYERS[name][2]
    op, gain = getattr(ops, name), gain if with_gain else None
    check(lambda x, b: op(x, b, None, *frozen.pack(), *geometry, gain, relu), x, bias)


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_ops_by_finite_differences(name, reference):
    frozen, _, x, _, scores, _, size = sample(name)
    geometry, v = LAYERS[name][2], torch.randn(size, dtype=x.dtype)
    sizes = () if name == "linear" else (x.shape,)
    grad_input, grad_scores = getattr(ops, f"{name}_grad_input"), getattr(ops, f"{name}_grad_scores")
    check(lambda v: grad_input(v, *sizes, *frozen.pack(), *geometry, scores), v)
    check(lambda v, x: grad_scores(v, x, scores, *frozen.pack(), *geometry), v, x)


def test_gradients_of_weight_and_embedding_by_finite_differences(reference):
    frozen, _ = make_frozen((5, 34), "uniform", scale=2.0**-7)
    scores, indices = frozen.scores.double(), torch.tensor([[0, 4], [2, 2]])
    check(lambda v: ops.weight_grad_scores(v, scores, *frozen.pack()), torch.randn(5, 34).double())
    v = torch.randn(2, 2, 34).double()
    check(lambda v: ops.embedding_grad_scores(v, indices, scores, *frozen.pack(), 2), v)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("residency", ["mask", "dense"])
def test_a_gradient_penalty_trains_the_scores(name, residency, backend):
    """The straight-through gradient of a penalty on the input's gradient, by torch's double backward on the weight."""
    frozen, weight, x, bias, scores, gain, _ = sample(name, torch.float32, residency)
    geometry = LAYERS[name][2]
    x.requires_grad_(), scores.requires_grad_(), weight.requires_grad_()

    def penalty(product):
        y = (product() * gain.view(-1, *[1] * (x.dim() - 2)) + bias.view(-1, *[1] * (x.dim() - 2))).tanh()
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0].pow(2).sum()

    penalty(lambda: getattr(ops, name)(x, None, scores, *frozen.pack(), *geometry)).backward()
    got, x.grad = (scores.grad, x.grad), None
    penalty(lambda: product_of(name, x, weight, geometry)).backward()
    close(got[0], score_gradient(frozen, weight.grad, scores).float())
    close(got[1], x.grad)


def product_of(name, x, weight, geometry):
    if name == "linear":
        return F.linear(x, weight)
    stride, padding, *output_padding, dilation, groups = geometry
    if output_padding:
        return getattr(F, name)(x, weight, None, stride, padding, output_padding[0], groups, dilation)
    return getattr(F, name)(x, weight, None, stride, padding, dilation, groups)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("epilogue", ["plain", "both"])
def test_a_tangent_of_scores_is_adjoint_to_their_gradient(name, epilogue, backend):
    frozen, _, x, bias, scores, gain, size = sample(name, torch.float32)
    with_gain, relu = EPILOGUES[epilogue]
    geometry, v, grad_y = LAYERS[name][2], torch.randn_like(scores), torch.randn(size)
    rest = (*frozen.pack(), *geometry, gain if with_gain else None, relu)
    y, tangent = jvp(lambda s: getattr(ops, name)(x, bias, s, *rest), (scores,), (v,))
    scores.requires_grad_()
    z = getattr(ops, name)(x, bias, scores, *rest)
    assert torch.equal(y, z)
    z.backward(grad_y)
    close((tangent * grad_y).sum(), (scores.grad * v).sum())


@pytest.mark.parametrize("code", ["sign", "normal"])
def test_tangents_of_weight_and_embedding_are_adjoint_to_their_gradients(code, backend):
    frozen, _ = make_frozen((5, 70), code)
    v, indices = torch.randn_like(frozen.scores), torch.tensor([[0, 4, 4], [2, 1, 0]])
    for function in (
        lambda s: frozen._replace(scores=s).weight(),
        lambda s: functional.embedding(indices, frozen._replace(scores=s), 4),
    ):
        y, tangent = jvp(function, (frozen.scores,), (v,))
        grad_y = torch.randn_like(y)
        close((tangent * grad_y).sum(), (vjp(function, frozen.scores)[1](grad_y)[0] * v).sum())


def test_gradients_of_scores_have_tangents(backend):
    """Forward over reverse: what the forward saved for the score gradient varies with the input."""
    frozen, weight, x, _, scores, _, _ = sample("linear", torch.float32)
    scores.requires_grad_(), weight.requires_grad_()
    v = torch.randn_like(x)

    def tangent(product, of):
        with forward_ad.dual_level():
            y = product(forward_ad.make_dual(x, v)).pow(3).sum()
            return forward_ad.unpack_dual(torch.autograd.grad(y, of)[0]).tangent

    got = tangent(lambda x: functional.linear(x, frozen._replace(scores=scores)), scores)
    close(got, score_gradient(frozen, tangent(lambda x: F.linear(x, weight), weight), scores).float())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_each_sample(name):
    """vmap(grad) over the parameters: one gradient of all scores and biases for each entry of the batch."""
    model, _, x, _ = pair(name)
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    batch = several(x)

    def of_one(parameters, x):
        return functional_call(model, parameters, (x,)).pow(3).sum()

    found = vmap(grad(of_one), in_dims=(None, 0))(parameters, batch)
    for i, one in enumerate(batch):
        model.zero_grad()
        loss(model)(one).backward()
        for key, p in model.named_parameters():
            close(found[key][i], p.grad)


def test_embedding_under_vmap():
    frozen, _ = make_frozen((7, 6))
    indices = torch.randint(7, (4, 3, 2))
    together = functional.embedding(indices, frozen, 3)
    assert torch.equal(vmap(lambda i: functional.embedding(i, frozen, 3), in_dims=1)(indices), together.movedim(1, 0))


def test_an_ensemble_is_refused_by_the_name_of_what_it_stacks():
    models = [fk.nn.FrozenLinear(6, 5, seed=0) for _ in range(2)]
    parameters, buffers = stack_module_state(models)
    x = torch.randn(3, 6)
    for own, shared in ((parameters, {}), ({"scores": parameters["scores"]}, {"bias": models[0].bias.detach()})):
        with pytest.raises(RuntimeError, match=r"(scores|bias): vmap.*linear"):
            vmap(lambda p, shared=shared: functional_call(models[0], {**p, **shared}, (x,)))(own)
    with pytest.raises(RuntimeError, match=r"header: vmap.*linear"):
        vmap(lambda b: functional_call(models[0], b, (x,)))({"header": buffers["header"]})


def test_a_gain_gets_no_derivative_of_any_kind():
    frozen, _ = make_frozen((3, 5))
    x, gain = torch.randn(2, 5), torch.ones(3)
    with pytest.raises(ValueError, match=r"gain: requires_grad"):
        functional.linear(x, frozen, gain=gain.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"gain: has a tangent"):
        jvp(lambda g: functional.linear(x, frozen, gain=g), (gain,), (gain,))
    with pytest.raises(RuntimeError, match=r"gain: vmap"):
        vmap(lambda g: functional.linear(x, frozen, gain=g))(torch.ones(2, 3))
