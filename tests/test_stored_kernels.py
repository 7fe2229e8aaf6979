"""Products of packed stored weights on the CPU kernels, against dense torch with the same effective weight."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from helpers import distinct_levels, each_isa, pairwise
from torch.nn import functional as F

import frozen_kernels as fk
from frozen_kernels import format as fmt

extension = pytest.importorskip("frozen_kernels._C", reason="the extension is not built")

from frozen_kernels.backends import Unsupported, cpu  # noqa: E402

ISAS = distinct_levels(extension.isa_available())
THREADS = (1, 2, 3, 7)
VALUES = tuple(fmt.VALUE_DTYPES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DENSITIES = (0.0, 0.1, 0.5, 1.0)


isa = each_isa(extension, ISAS)


@functools.cache
def integer_weight(shape, density, values="float32"):
    """A packed stored weight of small integers (int8 ones times powers of 2) and its dense value.

    Of two rows of the first few the one keeps nothing, the other everything.
    """
    generator = torch.Generator().manual_seed(1000 * shape[0] + shape[1])
    weight = torch.randint(-2, 3, shape, generator=generator).float()
    keep = torch.rand(shape, generator=generator) < density
    if shape[0] > 5:
        keep[2], keep[4] = False, True
    frozen = fk.FrozenTensor.stored(weight, keep, values="float32" if values == "int8" else values)
    assert frozen.values is not None
    weight = torch.where(keep, weight, 0.0)
    if values == "int8":
        scale = 2.0 ** -(torch.arange(shape[0]) % 3)
        frozen = frozen._replace(values=frozen.values.to(torch.int8), row_scale=scale)
        weight = weight * scale.view(-1, *[1] * (len(shape) - 1))
    assert frozen.values.dtype == fmt.VALUE_DTYPES[values]
    return frozen, weight


@functools.cache
def real_weight(shape, values, density=0.1):
    generator = torch.Generator().manual_seed(shape[0])
    weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    frozen = fk.FrozenTensor.stored(weight, torch.rand(shape, generator=generator) < density, values=values)
    with fk.backends.use("reference"):
        return frozen, frozen.weight(torch.float64)


def integers(shape, seed, dtype=torch.float32, last=False):
    x = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LINEAR_SIZES = ((1, 1), (3, 31), (33, 33), (70, 130), (19, 1030), (300, 64))


def test_linear_is_exact_on_integers(isa):
    turns = itertools.cycle(itertools.product(VALUES, DENSITIES))
    for (rows, cols), batch in itertools.product(LINEAR_SIZES, (0, 1, 2, 3, 5, 33, 70)):
        values, density = next(turns)
        frozen, weight = integer_weight((rows, cols), density, values)
        x, grad, bias = integers((batch, cols), batch), integers((batch, rows), batch + 1), integers((rows,), 5)
        pack = frozen.pack()
        assert torch.equal(cpu.linear(x, bias, None, *pack), F.linear(x, weight, bias)), (rows, cols, batch)
        assert torch.equal(cpu.linear_grad_input(grad, *pack), grad @ weight), (rows, cols, batch)


def test_every_kind_of_value_meets_every_dtype(isa):
    for values, dtype, density, batch in pairwise(VALUES, DTYPES, DENSITIES, (1, 2, 3, 4, 65)):
        frozen, weight = integer_weight((40, 97), density, values)
        x, bias = integers((batch, 97), 1, dtype), integers((40,), 2, dtype)
        want = F.linear(x.float(), weight, bias.float()).to(dtype)
        assert torch.equal(cpu.linear(x, bias, None, *frozen.pack()), want), (values, dtype, density, batch)
        grad = integers((batch, 40), 3, dtype)
        want = (grad.float() @ weight).to(dtype)
        assert torch.equal(cpu.linear_grad_input(grad, *frozen.pack()), want), (values, dtype, density, batch)


def test_few_pixels_of_sparse_rows(isa):
    """Inputs gathered by position, which takes two bytes, and rows too wide for that; a dropped infinity stays out."""
    for cols, values, density, batch in pairwise((1, 95, 1030, 1 << 16, (1 << 16) + 5), VALUES, (0.01, 0.15), (1, 2)):
        frozen, weight = integer_weight((9, cols), density, values)
        x = integers((batch, cols), cols)
        assert torch.equal(cpu.linear(x, None, None, *frozen.pack()), F.linear(x, weight)), (cols, values, density)
        x[0, ::7] = float("inf")
        meets = (weight[:, ::7] != 0) | _kept(frozen)[:, ::7]
        got = cpu.linear(x, None, None, *frozen.pack())[0].isfinite()
        assert torch.equal(got, ~meets.any(1)), (cols, values, density)


def test_an_infinity_changes_no_other_sample(isa):
    for batch, values in ((2, "float32"), (3, "float16")):
        frozen, _ = real_weight((20, 130), values)
        x = seeded(batch, 130)
        want = cpu.linear(x, None, None, *frozen.pack())[0]
        x[1, ::3] = float("inf")
        assert torch.equal(cpu.linear(x, None, None, *frozen.pack())[0], want), (batch, values)


CONVOLUTIONS = [
    # batch, in, out, size, kernel, stride, padding, dilation, groups
    (1, 1, 1, (1, 1), (1, 1), 1, 0, 1, 1),
    (2, 3, 7, (9, 11), (3, 3), 1, 1, 1, 1),
    (2, 3, 16, (20, 17), (7, 7), 2, 3, 1, 1),
    (1, 33, 31, (7, 7), (3, 3), 1, 1, 1, 1),
    (3, 64, 40, (5, 6), (1, 1), 1, 0, 1, 1),
    (2, 129, 33, (6, 5), (1, 1), 2, 0, 1, 1),
    (2, 16, 24, (8, 9), (3, 2), (2, 1), (1, 0), (1, 3), 2),
    (2, 48, 96, (6, 6), (3, 3), 2, 1, 1, 2),
    (1, 37, 37, (9, 8), (3, 3), 1, 1, 1, 37),
    (2, 19, 38, (9, 8), (3, 3), 2, 1, 2, 19),
    (1, 130, 260, (4, 4), (3, 3), 1, 2, 1, 1),
    (2, 4, 5, (3, 3), (5, 5), 1, 4, 1, 1),
    (2, 4, 5, (3, 3), (1, 1), 1, 2, 1, 1),
    (2, 5, 4, (3, 13), (1, 5), (3, 4), (0, 2), 2, 1),
    (0, 4, 6, (5, 5), (3, 3), 1, 1, 1, 1),
    (2, 6, 300, (4, 3), (2, 2), 2, 0, 1, 3),
    (1, 20, 24, (31, 30), (3, 3), 1, 1, 1, 1),
    (1, 40, 9, (3, 3), (3, 3), 1, 0, 1, 1),
]


def spatial(case):
    *sizes, stride, padding, dilation, groups = case
    return *sizes, [[s] * 2 if isinstance(s, int) else list(s) for s in (stride, padding, dilation)], groups


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d_is_exact_on_integers(isa, case):
    batch, cin, cout, size, kernel, (stride, padding, dilation), groups = spatial(case)
    for values, density, last in (("float32", 0.1, False), ("int8", 0.5, True), ("float16", 1.0, False)):
        frozen, weight = integer_weight((cout, cin // groups, *kernel), density, values)
        x, bias = integers((batch, cin, *size), 1, last=last).requires_grad_(), integers((cout,), 2)
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        grad = integers(y.shape, 3, last=last)
        y.backward(grad)
        rest = (*frozen.pack(), stride, padding, dilation, groups)
        assert torch.equal(cpu.conv2d(x.detach(), bias, None, *rest), y.detach())
        assert torch.equal(cpu.conv2d_grad_input(grad, list(x.shape), *rest), x.grad)


def test_one_and_three_dimensions(isa):
    frozen, weight = integer_weight((12, 10, 3), 0.5)
    x = integers((2, 20, 37), 1)
    got = cpu.conv1d(x, None, None, *frozen.pack(), [2], [1], [1], 2)
    assert torch.equal(got, F.conv1d(x, weight, None, 2, 1, groups=2))
    frozen, weight = integer_weight((33, 11, 3, 2, 3), 0.5)
    x = integers((2, 11, 5, 6, 7), 1).requires_grad_()
    y = F.conv3d(x, weight, None, (1, 2, 1), (1, 0, 2), (1, 1, 2))
    rest = (*frozen.pack(), [1, 2, 1], [1, 0, 2], [1, 1, 2], 1)
    assert torch.equal(cpu.conv3d(x.detach(), None, None, *rest), y.detach())
    grad = integers(y.shape, 2)
    y.backward(grad)
    assert torch.equal(cpu.conv3d_grad_input(grad, list(x.shape), *rest), x.grad)


TRANSPOSED = [
    # in, out, size, kernel, stride, padding, output padding, dilation, groups
    (33, 31, (7, 6), (3, 3), 1, 1, 0, 1, 1),
    (16, 24, (6, 5), (4, 4), 2, 1, 0, 1, 1),
    (18, 40, (5, 7), (3, 2), (3, 2), (1, 0), (2, 1), (1, 2), 2),
    (40, 70, (4, 5), (1, 1), 2, 0, 1, 1, 1),
    (40, 70, (4, 5), (1, 1), 1, 0, 0, 1, 1),
    (9, 9, (5, 5), (3, 3), 2, 1, 1, 1, 9),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed_convolutions_are_exact_on_integers(isa, case):
    cin, cout, size, kernel, *steps, groups = case
    stride, padding, extra, dilation = ([s] * 2 if isinstance(s, int) else list(s) for s in steps)
    for values, density, last in (("float32", 0.1, True), ("int8", 0.5, False), ("bfloat16", 1.0, False)):
        frozen, weight = integer_weight((cin, cout // groups, *kernel), density, values)
        x, bias = integers((2, cin, *size), 1, last=last).requires_grad_(), integers((cout,), 2)
        y = F.conv_transpose2d(x, weight, bias, stride, padding, extra, groups, dilation)
        grad = integers(y.shape, 3, last=last)
        y.backward(grad)
        rest = (*frozen.pack(), stride, padding, extra, dilation, groups)
        assert torch.equal(cpu.conv_transpose2d(x.detach(), bias, None, *rest), y.detach())
        assert torch.equal(cpu.conv_transpose2d_grad_input(grad, list(x.shape), *rest), x.grad)


def test_inputs_of_any_strides_are_read(isa):
    frozen, weight = integer_weight((130, 70), 0.5)
    base = integers((2, 3, 70, 10), 1)
    for x in (base.movedim(2, 3), base[:, :, :, ::2].movedim(2, 3), integers((9, 1), 2).expand(9, 70)):
        assert torch.equal(cpu.linear(x, None, None, *frozen.pack()), F.linear(x, weight))
        one = x[(slice(1),) * (x.dim() - 1)]
        assert torch.equal(cpu.linear(one, None, None, *frozen.pack()), F.linear(one, weight))
    grad = integers((5, 1), 2).expand(5, 130)  # a sum's backward hands over stride 0
    assert torch.equal(cpu.linear_grad_input(grad, *frozen.pack()), grad @ weight)
    frozen, weight = integer_weight((48, 20, 3, 3), 0.5)
    wide = integers((2, 24, 12, 22), 3)
    for x in (wide[:, 2:22, ::2, 1::2], integers((2, 24, 12, 22), 3, last=True)[:, 2:22, :, ::2]):
        for stride in (1, 2):
            got = cpu.conv2d(x, None, None, *frozen.pack(), [stride] * 2, [1, 1], [1, 1], 1)
            assert torch.equal(got, F.conv2d(x, weight, None, stride, 1))


def test_the_epilogue_scales_shifts_and_cuts(isa):
    frozen, weight = integer_weight((70, 33), 0.5, "int8")
    gain, bias = 2.0 ** (torch.arange(70) % 4 - 1), integers((70,), 4)
    for batch in (1, 6, 80):
        x = integers((batch, 33), batch)
        want = (F.linear(x, weight) * gain + bias).relu()
        assert torch.equal(cpu.linear(x, bias, None, *frozen.pack(), gain, True), want)
    frozen, weight = integer_weight((70, 9, 3, 3), 0.5)
    for last in (False, True):
        x = integers((2, 9, 6, 5), 1, last=last)
        want = (F.conv2d(x, weight, None, 1, 1) * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)).relu()
        got = cpu.conv2d(x, bias, None, *frozen.pack(), [1, 1], [1, 1], [1, 1], 1, gain, True)
        assert torch.equal(got, want)


# shape of the weight, input, stride, groups
DRAWS = 4  # of inputs, whose results are compared together

LAYERS = [
    ((96, 40, 3, 3), (3, 40, 15, 14), 1, 1),
    ((64, 32, 3, 3), (2, 64, 15, 14), 2, 2),
    ((64, 3, 7, 7), (2, 3, 30, 29), 2, 1),
    ((200, 170, 1, 1), (2, 170, 9, 8), 1, 1),
    ((24, 64, 7, 7), (1, 64, 7, 7), 1, 1),
]


def test_bits_do_not_depend_on_threads_or_layout(isa):
    for shape, size, stride, groups in LAYERS:
        frozen, _ = real_weight(shape, "float16")
        x, rest = seeded(*size), (*frozen.pack(), [stride] * 2, [shape[2] // 2] * 2, [1, 1], groups)
        grad = seeded(*cpu.conv2d(x, None, None, *rest).shape)
        found = []
        for threads, last in itertools.product(THREADS, (False, True)):
            torch.set_num_threads(threads)
            layout = torch.channels_last if last else torch.contiguous_format
            y = cpu.conv2d(x.contiguous(memory_format=layout), None, None, *rest)
            back = cpu.conv2d_grad_input(grad.contiguous(memory_format=layout), list(size), *rest)
            found.append((y, back))
        assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, found[0], strict=True)), shape
    frozen, _ = real_weight((300, 500), "float32")
    for batch in (1, 2, 40):
        x, grad, found = seeded(batch, 500), seeded(batch, 300), []
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.append((cpu.linear(x, None, None, *frozen.pack()), cpu.linear_grad_input(grad, *frozen.pack())))
        assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, found[0], strict=True)), batch


def errors(got, exact):
    off = (got.double() - exact).abs()
    return off.max().item(), off.square().mean().sqrt().item()


def assert_close(got, theirs, exact):
    for ours, torchs in zip(errors(got, exact), errors(theirs, exact), strict=True):
        assert ours <= 2 * torchs + 1e-30, f"error {ours}, torch's own {torchs}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_torchs_own(isa, dtype):
    for values, density in (("float32", 0.1), ("float32", 1.0), ("float16", 0.5), ("int8", 0.1)):
        frozen, exact = real_weight((300, 1500), values, density)
        weight = exact.to(dtype) if dtype == torch.float32 else exact.float()
        for batch in (1, 2, 33):
            # of few results the largest error is a matter of luck
            xs = [seeded(batch, 1500, seed=draw).to(dtype) for draw in range(DRAWS)]
            grads = [seeded(batch, 300, seed=draw).to(dtype) for draw in range(DRAWS)]
            got = torch.cat([cpu.linear(x, None, None, *frozen.pack()) for x in xs])
            back = torch.cat([cpu.linear_grad_input(grad, *frozen.pack()) for grad in grads])
            # torch rounds a weight to the dtype of x, the kernels do not
            theirs = torch.cat([(x.to(weight.dtype) @ weight.T).to(dtype) for x in xs])
            assert_close(got, theirs, torch.cat(xs).double() @ exact.T)
            theirs = torch.cat([(grad.to(weight.dtype) @ weight).to(dtype) for grad in grads])
            assert_close(back, theirs, torch.cat(grads).double() @ exact)
        shape, size, stride, groups = LAYERS[0]
        frozen, exact = real_weight(shape, values, density)
        x, rest = seeded(*size).to(dtype), ([stride] * 2, [1, 1], [1, 1], groups)
        theirs = F.conv2d(x.float(), exact.float(), None, *rest).to(dtype)
        assert_close(cpu.conv2d(x, None, None, *frozen.pack(), *rest), theirs, F.conv2d(x.double(), exact, None, *rest))


def test_infinity_and_nan_pass_where_a_weight_is_kept(isa):
    """The dense layer makes NaN of a dropped weight times infinity; a product of what is kept leaves it out."""
    weight, keep = torch.ones(40, 60), torch.rand(40, 60) < 0.5
    frozen = fk.FrozenTensor.stored(weight, keep)
    for batch, value in itertools.product((1, 3, 40), (float("inf"), float("nan"))):
        x, grad = torch.ones(batch, 60), torch.ones(batch, 40)
        x[0, 7] = grad[0, 9] = value
        y, back = cpu.linear(x, None, None, *frozen.pack()), cpu.linear_grad_input(grad, *frozen.pack())
        assert torch.equal(y[0].isfinite(), ~keep[:, 7]) and torch.equal(back[0].isfinite(), ~keep[9])
        assert y[1:].isfinite().all() and back[1:].isfinite().all()
    frozen = fk.FrozenTensor.stored(torch.ones(20, 8, 3, 3), torch.rand(20, 8, 3, 3) < 0.3)
    x = torch.ones(1, 8, 6, 6)
    x[0, 3, 2, 2] = float("inf")
    y = cpu.conv2d(x, None, None, *frozen.pack(), [1, 1], [1, 1], [1, 1], 1)
    mask = frozen.keep is not None and fmt.from_matrix(_kept(frozen), frozen.shape)
    meets = F.conv2d((~x.isfinite()).float(), mask.float(), None, 1, 1) > 0
    assert torch.equal(y.isfinite(), ~meets)


def _kept(frozen):
    with fk.backends.use("reference"):
        return fmt.to_matrix(frozen._replace(values=torch.ones_like(frozen.values)).weight(torch.float32)) != 0


def test_prepared_calls_serve_packed_weights(isa):
    frozen, weight = integer_weight((40, 97), 0.5, "int8")
    bias = integers((40,), 3)
    call = cpu.prepared.prepare(frozen, fk.calls.Geometry("linear"), bias, None, False, torch.float32)
    x = integers((4, 97), 1).requires_grad_()
    with torch.no_grad():
        assert torch.equal(call.forward(x.detach()), F.linear(x, weight, bias))
    y, grad = call.train(x, bias, None), integers((4, 40), 2)
    y.backward(grad)
    assert torch.equal(y, F.linear(x, weight, bias)) and torch.equal(x.grad, grad @ weight)
    frozen, weight = integer_weight((24, 10, 3, 3), 0.5)
    at = fk.calls.Geometry("conv2d", (2, 2), (1, 1), (), (1, 1), 1)
    call = cpu.prepared.prepare(frozen, at, None, None, False, torch.float32)
    x = integers((2, 10, 7, 7), 1).requires_grad_()
    y = call.train(x, None, None)
    grad = integers(y.shape, 2)
    y.backward(grad)
    theirs = x.detach().clone().requires_grad_()
    want = F.conv2d(theirs, weight, None, 2, 1)
    want.backward(grad)
    assert torch.equal(y, want) and torch.equal(x.grad, theirs.grad)


def test_the_ops_choose_these_kernels():
    frozen, weight = integer_weight((33, 64), 0.5)
    x = integers((3, 64), 1)
    with fk.backends.use("cpu"):
        assert torch.equal(torch.ops.frozen_kernels.linear(x, None, None, *frozen.pack()), F.linear(x, weight))


def test_what_does_not_fit_is_refused():
    frozen, _ = integer_weight((33, 64), 0.5)
    x, values = integers((3, 64), 1), frozen.values
    assert values is not None
    with pytest.raises(ValueError, match=rf"values is {values.numel() - 1}, expected {values.numel()}"):
        cpu.linear(x, None, None, *frozen._replace(values=values[:-1]).pack())
    with pytest.raises(ValueError, match="a stored weight needs keep, offsets and values"):
        cpu.linear(x, None, None, *frozen._replace(offsets=None).pack())
    with pytest.raises(ValueError, match="row_scale"):
        cpu.linear(x, None, None, *frozen._replace(values=values.to(torch.int8)).pack())
    scores = torch.zeros(33 * 64)
    with pytest.raises((Unsupported, ValueError), match="stored weight"):
        cpu.linear_grad_scores(integers((3, 33), 2), x, scores, *frozen.pack())
    with pytest.raises(Unsupported, match="not packed"):
        cpu.linear(x, None, None, *frozen._replace(values=torch.zeros(33, 64)).pack())
    pack = cpu.extension.pack_args(frozen.pack(), product=True)[0]
    for more in ((9, 0), (3, 0), (0, 64)):
        with pytest.raises(ValueError, match="dtype id of values"):
            extension.kernel_of("convolve", [*pack[:-2], *more], [1, 1, *[1, 1, 1, 1, 0, 1] * 3], *[[0] * 7] * 2)
    with pytest.raises(ValueError, match="code id is 4, a stored weight"):
        extension.kernel_of("score_gradient", pack, [1, 1, *[1, 1, 1, 1, 0, 1] * 3], *[[0] * 7] * 2)
