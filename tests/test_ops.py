"""Every layer op against plain torch on the weight that the format defines: values, gradients, shapes and contracts."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import (
    CODES,
    FUSED,
    RESIDENCIES,
    codes_of,
    make_frozen,
    pairwise,
    partition_of,
    score_gradient,
    weight_of,
)
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format as fmt
from frozen_kernels import functional
from frozen_kernels.ops import SCHEMAS

# name: input shape, weight shape, arguments of the function
CASES = {
    "linear": ((5, 33), (7, 33), {}),
    "linear-vector": ((67,), (3, 67), {}),
    "linear-deep": ((2, 1, 3, 130), (31, 130), {}),
    "linear-one": ((1, 1), (1, 1), {}),
    "linear-empty": ((0, 33), (7, 33), {}),
    "conv1d": ((2, 3, 11), (5, 3, 3), {"stride": 2, "padding": 1}),
    "conv1d-groups": ((2, 6, 9), (4, 3, 2), {"groups": 2, "dilation": 3}),
    "conv1d-unbatched": ((3, 11), (5, 3, 3), {}),
    "conv1d-same": ((2, 3, 8), (5, 3, 4), {"padding": "same", "dilation": 3}),
    "conv2d": ((2, 5, 7, 9), (6, 5, 3, 3), {"padding": 1}),
    "conv2d-pointwise": ((2, 33, 4, 5), (7, 33, 1, 1), {}),
    "conv2d-strided": ((1, 3, 9, 11), (4, 3, 3, 2), {"stride": (2, 3), "padding": (2, 1), "dilation": (1, 2)}),
    "conv2d-groups": ((2, 8, 5, 5), (4, 2, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
    "conv2d-depthwise": ((2, 6, 5, 4), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
    "conv2d-empty": ((0, 5, 7, 9), (6, 5, 3, 3), {"padding": 1}),
    "conv2d-same": ((2, 5, 7, 6), (6, 5, 2, 5), {"padding": "same"}),
    "conv3d": ((2, 3, 4, 5, 6), (4, 3, 2, 3, 2), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
    "conv3d-groups": ((1, 4, 3, 4, 5), (6, 2, 2, 2, 3), {"groups": 2, "dilation": (1, 2, 1)}),
    "conv_transpose1d": ((2, 3, 7), (3, 5, 4), {"stride": 3, "padding": 1, "output_padding": 2}),
    "conv_transpose1d-dilated": (
        (2, 3, 5),
        (3, 4, 3),
        {"stride": 2, "padding": 2, "dilation": 3, "output_padding": 2},
    ),
    "conv_transpose2d": ((2, 4, 5, 3), (4, 3, 3, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    "conv_transpose2d-groups": ((2, 6, 4, 5), (6, 2, 2, 3), {"groups": 3, "dilation": 2, "stride": (1, 3)}),
    "conv_transpose2d-point": ((2, 3, 4, 5), (3, 4, 1, 1), {"dilation": 2, "output_padding": (0, 1)}),
    "conv_transpose2d-empty": ((0, 4, 5, 3), (4, 3, 3, 2), {"stride": 2}),
    "conv_transpose3d": ((1, 2, 3, 4, 2), (2, 3, 2, 3, 2), {"stride": (2, 1, 2), "padding": (0, 1, 0)}),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# codes whose sums stay inside float16
SCALES = {"sign": 0.5, "uniform": 2.0**-8, "normal": 2.0**-8, "constant": 0.25}
# sums of small integers are exact in float32 in any order; half precision rounds the result
TOLERANCE = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def integers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randint(-4, 5, shape).to(dtype)


def op_name(name: str) -> str:
    return name.split("-")[0]


def outputs(name: str, w_shape: tuple, options: dict) -> int:
    return w_shape[1] * options.get("groups", 1) if "transpose" in name else w_shape[0]


def close(actual: torch.Tensor, expected: torch.Tensor, sums: bool = False) -> None:
    rtol = TOLERANCE[actual.dtype]
    # a sum of rounded terms is off by the rounding of its largest ones
    atol = rtol * float(expected.detach().abs().max()) if sums and expected.numel() else 0.0
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=rtol, atol=atol)


def refuses(dtype: torch.dtype, backend: str) -> bool:
    """A fused backend may leave float16 and float64 to the reference; it then says so when it is forced."""
    if backend == "reference" or dtype in (torch.float32, torch.bfloat16):
        return False
    try:
        functional.linear(torch.ones(1, 3, dtype=dtype), make_frozen((2, 3))[0])
    except RuntimeError as why:
        assert f"backend '{backend}' cannot run" in str(why) and str(dtype).split(".")[1] in str(why)
        return True
    return False


def run_both(name, code, residency, dtype, backend, strides=lambda x: x):
    """The op's result and gradients, and those of torch in float64 on the weight by the definition."""
    x_shape, w_shape, options = CASES[name]
    frozen, weight = make_frozen(w_shape, code, residency, dtype, scale=SCALES[code])
    x = strides(integers(*x_shape, dtype=dtype)).detach().requires_grad_()
    bias = integers(outputs(name, w_shape, options), dtype=dtype).requires_grad_()
    scores = frozen.scores.requires_grad_()
    y = getattr(functional, op_name(name))(x, frozen, bias, **options)
    x64, bias64, weight.requires_grad = x.detach().double().requires_grad_(), bias.detach().double(), True
    bias64.requires_grad_()
    y64 = getattr(F, op_name(name))(x64, weight, bias64, **options)
    grad = integers(*y.shape, dtype=dtype)
    y.backward(grad)
    y64.backward(grad.double())
    expected = score_gradient(frozen, weight.grad, scores)
    return (y, x.grad, bias.grad, scores.grad), (y64, x64.grad, bias64.grad, expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("residency", RESIDENCIES)
def test_values_and_gradients(name, residency, backend):
    actual, expected = run_both(name, "sign", residency, torch.float32, backend)
    assert actual[0].dtype == torch.float32 and actual[0].shape == expected[0].shape
    for a, e in zip(actual, expected, strict=True):
        close(a, e)


OTHER_CODES = pairwise(["linear", "conv2d", "conv1d-groups", "conv_transpose2d-groups"], CODES[1:], FUSED)


@pytest.mark.parametrize(("name", "code", "residency"), OTHER_CODES)
def test_other_codes(name, code, residency, backend):
    for a, e in zip(*run_both(name, code, residency, torch.float32, backend), strict=True):
        close(a, e)


OTHER_DTYPES = pairwise(
    ["linear-deep", "conv2d-strided", "conv3d", "conv_transpose1d", "linear-empty"],
    DTYPES[1:],
    ["seed", "planes", "dense"],
)


@pytest.mark.parametrize(("name", "dtype", "residency"), OTHER_DTYPES, ids=str)
def test_other_dtypes(name, dtype, residency, backend):
    if refuses(dtype, backend):
        return
    actual, expected = run_both(name, "uniform", residency, dtype, backend)
    assert [t.dtype for t in actual] == [dtype, dtype, dtype, torch.float32]
    for a, e in zip(actual[:3], expected[:3], strict=True):
        close(a, e, sums=True)
    # bfloat16 and float16 gradients of scores are summed in float32: products of small integers are exact there
    close(actual[3], expected[3])


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.mT.contiguous().mT


STRIDES = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": channels_last,
    "stepped": lambda x: torch.stack((x, x), -1)[..., 0],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("name", ["linear", "linear-deep", "conv1d", "conv2d", "conv2d-groups", "conv_transpose2d"])
@pytest.mark.parametrize("strides", STRIDES)
def test_inputs_of_any_stride(name, strides, backend):
    for a, e in zip(*run_both(name, "sign", "seed", torch.float32, backend, STRIDES[strides]), strict=True):
        close(a, e)


@pytest.mark.parametrize("residency", ["mask", "planes"])
def test_score_gradients_need_no_offsets(residency, backend):
    frozen = make_frozen((7, 33), residency=residency)[0]
    frozen = frozen._replace(offsets=None)
    scores, grad = frozen.scores.requires_grad_(), integers(7, 33, dtype=torch.float32)
    expected = score_gradient(frozen, grad, scores)
    close(torch.autograd.grad(frozen.weight(), scores, grad)[0], expected)
    close(torch.autograd.grad(functional.embedding(torch.arange(7), frozen), scores, grad)[0], expected)
    close(torch.autograd.grad(functional.linear(torch.eye(33), frozen), scores, grad.T)[0], expected)


@pytest.mark.parametrize("name", CASES)
def test_sum_hands_over_a_gradient_of_stride_zero(name, backend):
    x_shape, w_shape, options = CASES[name]
    frozen, weight = make_frozen(w_shape)
    x = integers(*x_shape, dtype=torch.float32).requires_grad_()
    frozen.scores.requires_grad_()
    bias = torch.zeros(outputs(name, w_shape, options), requires_grad=True)
    y = getattr(functional, op_name(name))(x, frozen, bias, **options)
    y.sum().backward()
    weight.requires_grad = True
    x64 = x.detach().double().requires_grad_()
    getattr(F, op_name(name))(x64, weight, **options).sum().backward()
    close(x.grad, x64.grad)
    close(frozen.scores.grad, score_gradient(frozen, weight.grad, frozen.scores))
    assert torch.equal(bias.grad, torch.full_like(bias, y.numel() / len(bias)))


@pytest.mark.parametrize("name", ["linear-deep", "conv2d-groups", "conv1d", "conv_transpose2d"])
@pytest.mark.parametrize("code", CODES)
def test_fused_residencies_agree_bitwise(name, code, backend):
    """With real inputs too, where every order of summation would give other bits."""
    x_shape, w_shape, options = CASES[name]
    x, results = torch.randn(x_shape), []
    record = make_frozen(w_shape, code, "seed", scale=0.1)[0]
    for residency in FUSED:
        frozen = record.hold(residency, with_offsets=True)
        inputs = x.clone().requires_grad_(), record.scores.clone().requires_grad_()
        y = getattr(functional, op_name(name))(inputs[0], frozen._replace(scores=inputs[1]), **options)
        y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape))
        results.append((y.detach(), *(t.grad for t in inputs)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


WEIGHTS = pairwise(CODES, RESIDENCIES, [(5, 33), (3, 2, 5), (4, 3, 2, 3), (2, 3, 2, 2, 2), (3, 1, 1, 1)])


@pytest.mark.parametrize(("code", "residency", "shape"), WEIGHTS)
def test_weight_and_its_gradient(code, residency, shape, backend):
    frozen, expected = make_frozen(shape, code, residency, scale=0.1)
    frozen.scores.requires_grad_()
    weight = frozen.weight()
    # code * scale in float32 is one multiplication
    scale32 = torch.tensor(0.1)
    exact = (codes_of(frozen).float() * scale32).reshape(-1)
    assert set(weight.flatten().tolist()) <= {*exact.tolist(), 0.0}
    assert torch.equal(weight != 0, expected != 0)
    torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=0)
    grad = torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))
    weight.backward(grad)
    torch.testing.assert_close(
        frozen.scores.grad.double(), score_gradient(frozen, grad, frozen.scores), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_is_rounded_once(dtype, backend):
    if refuses(dtype, backend):
        return
    frozen, _ = make_frozen((9, 65), "normal", "seed", scale=0.0123)
    assert torch.equal(frozen.weight(dtype), frozen.weight(torch.float32).to(dtype))


EMBEDDINGS = pairwise([None, 0, 4, -1], RESIDENCIES, [torch.int64, torch.int32])


@pytest.mark.parametrize(("padding_idx", "residency", "indices_dtype"), EMBEDDINGS)
def test_embedding(padding_idx, residency, indices_dtype, backend):
    frozen, table = make_frozen((11, 6), "uniform", residency, scale=0.5)
    if padding_idx is not None:
        table[padding_idx] = 0
    table.requires_grad_()
    frozen.scores.requires_grad_()
    indices = torch.tensor([[0, 4, 4], [10, 3, 0]], dtype=indices_dtype)
    for index in (indices, indices.T, indices[:0], indices[0, 0]):
        frozen.scores.grad = table.grad = None
        y = functional.embedding(index, frozen, padding_idx)
        assert torch.equal(y.double(), F.embedding(index, table))
        grad = integers(*y.shape, dtype=torch.float32)
        y.backward(grad)
        F.embedding(index, table, padding_idx).backward(grad.double())
        assert torch.equal(frozen.scores.grad.double(), score_gradient(frozen, table.grad, frozen.scores))


def test_embedding_refusals(backend):
    frozen, _ = make_frozen((11, 6))
    for bad in (11, -1, 2**40):
        with pytest.raises((IndexError, RuntimeError), match=r"range|index|11"):
            functional.embedding(torch.tensor([0, bad]), frozen)
    with pytest.raises(TypeError, match=r"int32.*float32"):
        functional.embedding(torch.zeros(2), frozen)
    for padding_idx in (11, -12):
        with pytest.raises(ValueError, match=rf"padding_idx.*11.*{padding_idx}"):
            functional.embedding(torch.tensor([0]), frozen, padding_idx)


@pytest.mark.parametrize("scores_dtype", [torch.float32, torch.bfloat16])
def test_score_gradient_at_special_scores(scores_dtype, backend):
    """sign(0) = sign(NaN) = 0, as torch's."""
    frozen, _ = make_frozen((4, 40), scores_dtype=scores_dtype)
    with torch.no_grad():
        special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), -1e-30])
        frozen.scores[:6] = special.to(scores_dtype)
    frozen.scores.requires_grad_()
    x = integers(3, 40, dtype=torch.float32)
    functional.linear(x, frozen).sum().backward()
    assert frozen.scores.grad.dtype == scores_dtype
    grad_weight = x.sum(0).expand(4, 40).double()
    expected = score_gradient(frozen, grad_weight, torch.where(frozen.scores.isnan(), 0.0, frozen.scores))
    assert torch.equal(frozen.scores.grad.double(), expected)
    assert expected[:2].tolist() == [0, 0] and expected[2:].any()


@pytest.mark.parametrize(
    ("name", "geometry"),
    [("linear", {}), ("conv2d", {"stride": 2, "padding": 1}), ("conv1d", {"groups": 2}), ("conv_transpose2d", {})],
)
def test_gradcheck_in_float64(name, geometry):
    shapes = {"linear": (3, 5), "conv2d": (2, 2, 3, 3), "conv1d": (4, 1, 2), "conv_transpose2d": (2, 3, 2, 2)}
    inputs = {"linear": (2, 5), "conv2d": (1, 2, 4, 4), "conv1d": (2, 2, 5), "conv_transpose2d": (1, 2, 3, 2)}
    frozen = make_frozen(shapes[name])[0]._replace(scores=None)
    bias = torch.randn(outputs(name, shapes[name], geometry), dtype=torch.float64, requires_grad=True)
    x = torch.randn(inputs[name], dtype=torch.float64, requires_grad=True)
    with fk.backends.use("reference"):
        assert torch.autograd.gradcheck(lambda x, b: getattr(functional, name)(x, frozen, b, **geometry), (x, bias))


def sample(op: str) -> list[tuple]:
    """Arguments of an op, contiguous and not."""
    base = op.replace("_grad_input", "").replace("_grad_scores", "")
    header = fk.format.make_header(1, 2, tau_prune=20000, tau_freeze=40000)
    ops, rows, cols = torch.ops.frozen_kernels, 5, 70
    offsets = ops.offsets(header, rows, cols)
    partition = ops.partition(header, rows, cols, 0, 0)
    keep = torch.rand(rows, cols) < 0.5
    stream, scores = ops.pack(keep, partition), torch.randn(30, requires_grad=True)
    extent, plane = (rows, cols), ops.planes(ops.unpack(ops.pack(keep, partition), partition))
    plain = {
        "codes": [(header, code, *extent, 0, 0) for code in CODES],
        "draws": [(header, *extent, 1, 2)],
        "partition": [(header, *extent, 1, 2)],
        "uniform_scores": [(header, 0.5, *extent, 1, 2)],
        "histogram": [(header, *extent)],
        "partition_counts": [(header, *extent)],
        "offsets": [(header, *extent)],
        "free_draws": [(header, offsets, *extent, purpose) for purpose in (fmt.SCORE, fmt.SEARCH)],
        "pack": [(keep, partition), (keep.T.contiguous().T, partition)],
        "unpack": [(stream, partition)],
        "planes": [(keep,), (keep.T,)],
        "keep_plane": [(header, stream, offsets, *extent)],
        "pack_plane": [(header, plane, offsets, *extent)],
        "draw_plane": [(header, code, *extent) for code in CODES[:3]],
        "popcount": [(plane,), (stream,)],
        "select": [([scores.detach(), scores.detach().bfloat16()], 7)],
        "pack_above": [(scores.detach(), torch.tensor(1 << 29))],
        "plane_offsets": [(plane, cols)],
        "pack_values": [(torch.randn(rows, cols), plane), (torch.randn(rows, 10, 7).mT.half().mT, plane)],
        "swap": [(scores.detach(), torch.tensor([255, 3, 0, 0], dtype=torch.uint8), 10, 0.5)],
        "flip": [(stream, torch.tensor([[3, 4], [11, 9]]))],
    }
    if op in plain:
        return plain[op]
    if base == "weight":
        frozen, weight = make_frozen((4, 3, 2, 2))
        scores, grad = frozen.scores.requires_grad_(), torch.randn_like(weight.float())
        if op == "weight":
            return [(scores, *frozen.pack(), torch.float32), (None, *frozen.pack(), torch.bfloat16)]
        return [
            (g, scores.detach(), *frozen.pack())
            for g in (grad, grad.mT.contiguous().mT, grad[:1, :1, :1, :1].expand(4, 3, 2, 2))
        ]
    if base == "embedding":
        frozen, _ = make_frozen((11, 6))
        indices, scores = torch.randint(11, (2, 5)), frozen.scores.requires_grad_()
        if op == "embedding":
            return [
                (indices, scores, *frozen.pack(), torch.float32, 3),
                (indices.T, None, *frozen.pack(), torch.float32, -1),
            ]
        return [(torch.randn(2, 6).unsqueeze(1).expand(2, 5, 6), indices, scores.detach(), *frozen.pack(), 3)]
    return layer_samples(op, base)


def layer_samples(op: str, name: str) -> list[tuple]:
    x_shape, w_shape, _ = CASES[name]
    frozen, _ = make_frozen(w_shape)
    dims = len(w_shape) - 2
    geometry = () if name == "linear" else ([2] * dims, [1] * dims, [1] * dims, 1)
    if "transpose" in name:
        geometry = ([2] * dims, [1] * dims, [1] * dims, [1] * dims, 1)
    found = []
    for strides in (lambda x: x, channels_last, STRIDES["expanded"]):
        x = strides(torch.randn(x_shape)).detach().requires_grad_()
        scores = frozen.scores.clone().requires_grad_()
        bias = torch.randn(outputs(name, w_shape, {}), requires_grad=True)
        forward = (x, bias, scores, *frozen.pack(), *geometry)
        with torch.no_grad():
            y = getattr(torch.ops.frozen_kernels, name)(*forward)
            grad = strides(torch.randn_like(y))
        if op == name:
            found.append(forward)
        elif op.endswith("_grad_input"):
            size = () if name == "linear" else (list(x.shape),)
            found.append((grad, *size, *frozen.pack(), *geometry))
        else:
            found.append((grad, x.detach(), scores.detach(), *frozen.pack(), *geometry))
    return found


def check_op(op: str, args: tuple, backend: str) -> None:
    """What a backend returns on all of them; registrations and graphs, which are the op's own, on one."""
    other = backend == "reference" and fk.backends.report()["cpu"] == "live"
    own = {"test_utils": ("test_schema", "test_faketensor")} if other else {}
    torch.library.opcheck(getattr(torch.ops.frozen_kernels, op).default, args, **own)


@pytest.mark.parametrize("op", SCHEMAS)
def test_opcheck(op, backend):
    for args in sample(op):
        tensors = [isinstance(a, torch.Tensor) and a.dtype.is_floating_point for a in args]
        args = tuple(a.detach().requires_grad_() if t else a for a, t in zip(args, tensors, strict=True))
        check_op(op, args, backend)


X = torch.ones(2, 5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda f: functional.linear(torch.ones(2, 4), f), r"\(2, 4\).*5"),
        (lambda f: functional.linear(torch.ones(()), f), r"\(\).*5"),
        (lambda f: functional.linear(X.int(), f), r"x.*int32"),
        (lambda f: functional.linear(X, f, torch.zeros(4)), r"bias.*\(4,\).*\(3,\)"),
        (lambda f: functional.linear(X, f, torch.zeros(3).double()), r"bias.*float64.*float32"),
        (lambda f: functional.linear(X.to("meta"), f), r"x.*meta.*cpu"),
        (lambda f: functional.conv2d(X, f), r"4 dimensions.*\(3, 5\)"),
        (lambda f: f.hold("sparse"), r"residency.*sparse"),
    ],
)
def test_linear_refusals(call, named):
    frozen, _ = make_frozen((3, 5))
    with pytest.raises((ValueError, TypeError), match=named):
        call(frozen)


@pytest.mark.parametrize(
    ("x_shape", "options", "named"),
    [
        ((2, 3, 9, 9), {}, r"3 channels.*4"),
        ((2, 4, 9), {"padding": "full"}, r"4 channels|padding.*full|4"),
        ((1, 2, 4, 9, 9), {}, r"\(1, 2, 4, 9, 9\)"),
        ((2, 4, 9, 9), {"groups": 4}, r"groups.*4.*6"),
        ((2, 4, 9, 9), {"groups": 0}, r"groups.*0"),
        ((2, 4, 9, 9), {"stride": 0}, r"stride.*0"),
        ((2, 4, 9, 9), {"stride": (1, 2, 3)}, r"stride.*\(1, 2, 3\)"),
        ((2, 4, 9, 9), {"padding": -1}, r"padding.*-1"),
        ((2, 4, 9, 9), {"padding": "full"}, r"padding.*full"),
        ((2, 4, 9, 9), {"padding": "same", "stride": 2}, r"same.*stride.*2"),
        ((2, 4, 2, 9), {}, r"output size \[0, 7\].*\[2, 9\].*\[3, 3\]"),
    ],
)
def test_convolution_refusals(x_shape, options, named):
    frozen, _ = make_frozen((6, 4, 3, 3))
    with pytest.raises(ValueError, match=named):
        functional.conv2d(torch.ones(x_shape), frozen, **options)


def test_transposed_refuses_output_padding_of_a_stride():
    frozen, _ = make_frozen((4, 6, 3, 3))
    with pytest.raises(ValueError, match=r"output_padding.*2"):
        functional.conv_transpose2d(torch.ones(1, 4, 5, 5), frozen, stride=2, output_padding=2)


def test_forced_backends_never_fall_back():
    with pytest.raises(ValueError, match=r"backend.*numpy"), fk.backends.use("numpy"):
        pass
    for name, why in fk.backends.report().items():
        if why != "live":
            with pytest.raises(RuntimeError, match=f"'{name}' is not live: {re.escape(why)}"), fk.backends.use(name):
                pass
    with fk.backends.use("reference"):
        with fk.backends.use("reference"):
            pass
        assert fk.backends.forced.name == "reference"
    assert fk.backends.forced.name is None


def test_weight_layout_helper_agrees_with_the_package():
    matrix = torch.arange(24.0).reshape(2, 12)
    assert torch.equal(weight_of(matrix, (2, 3, 2, 2)), fk.format.from_matrix(matrix, (2, 3, 2, 2)))
    assert partition_of(make_frozen((2, 3))[0]).shape == (2, 3)
