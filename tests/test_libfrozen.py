"""libfrozen and `frozen_kernels.runtime`: the bits of the torch layers, and errors for whatever does not fit."""

from __future__ import annotations

import copy
import ctypes
import json
import pickle
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import each_isa
from libfrozen_cases import CASES, DRAWN, KINDS, LIBRARY, call, inputs_of, library_on, model_of, same_bits, with_gains
from test_ticket_mutations import consistent_mutation, raw_mutation
from ticket_cases import gain_ticket, good_ticket, joined, layered_ticket, parts, signs_ticket, stored_ticket
from training.models import digits_net

import frozen_kernels as fk
from frozen_kernels import runtime
from frozen_kernels.backends.cpu import _C
from frozen_kernels.runtime import library as bindings
from frozen_kernels.tickets.file import read_ticket, verify_ticket

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY} is not built")
ISAS = _C.isa_available() if _C is not None else []


isa = each_isa(_C, ISAS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("libfrozen")


@pytest.fixture(scope="module")
def saved(folder):
    """The path of a ticket of each kind, made once."""
    made = {}

    def ticket_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = folder / f"{kind}.safetensors"
            torch.manual_seed(0)
            model = model_of(kind)
            if kind == "normal":
                with_gains(model)
            fk.save_ticket(model, made[kind])
        return made[kind]

    return ticket_of


def loaded(kind: str, path: Path, residency: str) -> torch.nn.ModuleDict:
    model = torch.nn.ModuleDict({name: case.layer() for name, case in CASES.items()})
    return fk.load_ticket(model, path, residency=residency).eval()


def compare(kind: str, path: Path, residency: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # where a weight cannot be in a residency, both take another one, with the same bits
        model = loaded(kind, path, "planes" if residency == "default" else residency)
        with torch.no_grad(), runtime.open(path, residency=residency, threads=threads) as ticket:
            for name in ticket.weights:
                for x in inputs_of(name):
                    assert same_bits(call(ticket, name, x), model[name](x)), (name, list(x.shape))
            # a matrix is one, whatever the layer: its rows by number are those of the weight
            rows = torch.tensor([[0, 127, 7], [1, 1, 5]])
            assert same_bits(ticket.embedding("wide", rows.numpy()), model["wide"].weight[rows])
    finally:
        torch.set_num_threads(before)


def test_bits_on_every_instruction_set(isa, folder, saved, monkeypatch):
    with library_on(isa, folder, monkeypatch):
        for kind, residency, threads in (("sign", "planes", 1), ("normal", "mask", 2), ("int8", "default", 1)):
            compare(kind, saved(kind), residency, threads)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_every_code_and_residency(isa, folder, saved, monkeypatch, kind):
    """With teams of several sizes: results of one thread and of three may differ, those of both sides may not."""
    with library_on(isa, folder, monkeypatch):
        for threads, residency in enumerate(("default", "seed", "mask") if kind in DRAWN else ("default",), 1):
            compare(kind, saved(kind), residency, threads)


@pytest.mark.parametrize("kind", ["sign", "float16", "signs in coats", "generations"])
def test_what_is_held_is_listed(saved, kind):
    model = loaded(kind, saved(kind), "mask")
    with runtime.open(saved(kind), residency="mask") as ticket:
        assert set(ticket.weights) == {n for n, layer in model.named_children() if isinstance(layer, fk.nn.FrozenLayer)}
        for name, weight in ticket.weights.items():
            layer = model[name]
            assert weight.shape == tuple(layer.weight.shape)
            assert weight.code == layer.code
            assert weight.residency == layer.residency
        parameters = dict(model.named_parameters())
        assert ticket.ordinary == sorted(parameters)
        for name in ticket.ordinary:
            assert same_bits(ticket.tensor(name), parameters[name])


def test_epilogues(saved):
    """Bias and gain of the ticket, others in their place, none, and a ReLU, as the functions have them."""
    model = loaded("normal", saved("normal"), "planes")
    with torch.no_grad(), runtime.open(saved("normal")) as ticket:
        for name, function in (("linear", fk.functional.linear), ("pointwise", fk.functional.conv2d)):
            x, frozen = inputs_of(name)[1], model[name].frozen if hasattr(model[name], "frozen") else None
            frozen = model[name]._record() if frozen is None else frozen
            outputs = frozen.shape[0]
            bias, gain = torch.randn(outputs), torch.rand(outputs)
            own = model[name].gain
            for options, expected in (
                ({"bias": bias.numpy(), "gain": gain.numpy(), "relu": True}, (bias, gain, True)),
                ({"bias": None}, (None, own, False)),
                ({"gain": None, "bias": "ticket"}, (model[name].bias, None, False)),
                ({"relu": True}, (model[name].bias, own, True)),
                ({"gain": gain.numpy()}, (model[name].bias, gain, False)),
            ):
                b, g, relu = expected
                assert same_bits(call(ticket, name, x, **options), function(x, frozen, b, gain=g, relu=relu)), options


def test_empty_batches(saved):
    with runtime.open(saved("sign")) as ticket:
        assert ticket.linear("linear", np.empty((0, 70), np.float32)).shape == (0, 33)
        assert ticket.conv("pointwise", np.empty((0, 48, 4, 4), np.float32)).shape == (0, 64, 4, 4)
        assert ticket.embedding("embedding", np.empty((0, 2), np.int64)).shape == (0, 2, 37)


@pytest.fixture(scope="module")
def good(folder):
    return {
        "drawn": good_ticket(folder / "drawn")[0],
        "layered": layered_ticket(folder / "layered"),
        "int8": stored_ticket(folder / "int8", "int8"),
        "signs": signs_ticket(folder / "signs")[0],
        "gain": gain_ticket(folder / "gain"),
    }


def opens(data: bytes) -> bool:
    """Whether libfrozen takes a ticket; then every one of its layers is run."""
    try:
        ticket = runtime.open_bytes(data)
    except runtime.TicketError as why:
        assert str(why)
        return False
    with ticket:
        for name, weight in ticket.weights.items():
            if len(weight.shape) == 2 and all(weight.shape):
                ticket.linear(name, np.ones((3, weight.shape[1]), np.float32), bias=None)
    return True


def python_opens(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        ticket = read_ticket(path)
        verify_ticket(ticket)
    except fk.TicketError:
        return False
    return ticket.masks is None


def mutated(tmp_path: Path, good: dict[str, bytes], count: int) -> None:
    rng, taken = random.Random(3), 0
    for i in range(count):
        data = good[sorted(good)[i % len(good)]]
        try:
            one = (raw_mutation if i % 3 == 0 else consistent_mutation)(rng, data)
        except KeyError:  # a field that another record of the ticket has not
            continue
        found = opens(one)
        assert found == python_opens(tmp_path / "one", one), one
        taken += found
    assert count / 50 < taken < count / 2


def test_mutated_tickets(tmp_path, good):
    """Taken where the Python reader takes them, and an error elsewhere."""
    mutated(tmp_path, good, 200)


@pytest.mark.long
def test_many_mutated_tickets(tmp_path, good):
    mutated(tmp_path, good, 1500)


def test_tickets_cut_anywhere(good):
    for data in good.values():
        for size in range(0, len(data), 37):
            assert not opens(data[:size])


@pytest.mark.parametrize("residency", ["seed", "packed"])
def test_a_bank_is_refused_by_its_name(tmp_path, residency):
    model = torch.nn.Sequential(torch.nn.Linear(40, 8))
    fk.freeze_(model, fk.FreezeConfig(seed=0))
    fk.finalize_(model)
    bank = fk.MaskBank(model)
    bank.add("first")
    bank.save(tmp_path / "bank")
    with pytest.raises(runtime.TicketError, match="unsupported feature 'bank'"):
        runtime.open(tmp_path / "bank", residency=residency)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        runtime.open(tmp_path / "missing")
    with pytest.raises(OSError, match="regular file"):
        runtime.open(tmp_path)
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(runtime.TicketError, match=r"short: no safetensors file: it has 3 bytes"):
        runtime.open(tmp_path / "short")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda t: t.linear("nothing", np.ones((1, 70), np.float32)), LookupError, "'nothing'"),
        (lambda t: t.linear("linear", np.ones((1, 70))), TypeError, "x: a float32 array, got one of float64"),
        (lambda t: t.linear("linear", np.float32(1)), TypeError, "got an object of type float32"),
        (lambda t: t.linear("linear", np.array(1, np.float32)), ValueError, r"got \[\]"),
        (lambda t: t.linear("linear", np.ma.ones((1, 70), np.float32)), TypeError, "type MaskedArray"),
        (lambda t: t.linear("linear", np.ones((1, 70), np.float32), bias=True), TypeError, "bias: .* type bool"),
        (lambda t: t.linear("linear", np.ones((1, 70), np.float32), gain="none"), TypeError, "gain: .* type str"),
        (lambda t: t.linear("linear", [1.0]), TypeError, "type list"),
        (lambda t: t.linear("linear", np.ones((1, 71), np.float32)), ValueError, r"x: \[..., 70\].*got \[1, 71\]"),
        (lambda t: t.linear("conv2d", np.ones((1, 70), np.float32)), ValueError, "2 dimensions expected"),
        (lambda t: t.linear("linear", np.ones((1, 70), np.float32), bias=np.ones(3, np.float32)), ValueError,
         r"bias: \[33\], got \[3\]"),
        (lambda t: t.conv("conv2d", np.ones((1, 23, 9, 9), np.float32)), ValueError, "has 23 channels, expected 24"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 2, 9), np.float32)), ValueError, "less than the kernel's reach"),
        (lambda t: t.conv("conv2d", np.ones((24, 9, 9), np.float32)), ValueError, r"got \[24, 9, 9\]"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), stride=0), ValueError, "stride 0"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), stride=(1, 1, 1)), ValueError, "stride: "),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), dilation=1.5), TypeError,
         "dilation: an integer or 2 of them, got 1.5"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), padding="a"), TypeError, "padding: .*got 'a'"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), groups=5), ValueError, "groups is 5"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), padding=1 << 62), ValueError, "padding"),
        (lambda t: t.conv("conv2d", np.ones((1, 24, 9, 9), np.float32), padding=1 << 39), ValueError, "2.40 elements"),
        (lambda t: t.embedding("embedding", np.array([0, 50])), ValueError, "is 50, expected 0 to 49"),
        (lambda t: t.embedding("embedding", np.array([0.0])), TypeError, "integers, got one of float64"),
        (lambda t: t.embedding("embedding", np.array([2**64 - 1], np.uint64)), ValueError, "got 18446744073709551615"),
        (lambda t: t.embedding("embedding", np.array([0]), padding_idx=50), ValueError, "padding_idx: -50 to 49"),
        (lambda t: t.embedding("embedding", np.array([0]), padding_idx=-51), ValueError, "padding_idx: -50 to 49"),
        (lambda t: setattr(t, "threads", 0), ValueError, "threads: an integer from 1 to 1024, got 0"),
        (lambda t: t.tensor("linear"), LookupError, "no ordinary tensor"),
        (lambda t: t.close() or t.linear("linear", np.ones((1, 70), np.float32)), ValueError, "closed"),
    ],
)  # fmt: skip
def test_calls_that_do_not_fit(saved, call, error, says):
    with runtime.open(saved("sign")) as ticket, pytest.raises(error, match=says):
        call(ticket)


def test_arguments_of_open(saved):
    with pytest.raises(ValueError, match="residency: one of default, seed"):
        runtime.open(saved("sign"), residency="dense")
    for threads in (0, 1025, True, 1.5):
        with pytest.raises(ValueError, match="threads"):
            runtime.open(saved("sign"), threads=threads)
    with pytest.raises(TypeError, match="data: bytes"):
        runtime.open_bytes("text")


def test_what_torch_takes_too(saved):
    """Integers of numpy, rows from the end, and memory that begins anywhere."""
    x = np.random.default_rng(0).normal(size=(1, 24, 9, 9)).astype(np.float32)
    moved = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    moved[...] = x
    with runtime.open(saved("sign"), threads=np.int64(2)) as ticket:
        y = ticket.conv("conv2d", x, stride=np.int64(2), padding=np.array([1, 0]))
        assert y.shape == (1, 32, 5, 4)
        assert np.array_equal(ticket.conv("conv2d", moved, stride=(2, np.int8(2)), padding=[1, 0]), y)
        rows = ticket.embedding("embedding", np.array([[49, 3]], np.uint8), padding_idx=np.int64(-1))
        assert not rows[0, 0].any() and rows[0, 1].any()


# size, stride, padding, dilation of a kernel of 3: what once divided by a product that had wrapped round to zero, read
# out of bounds, or took memory for the whole padded input
TOO_LARGE = [
    ((5, 9), (1 << 32, 1 << 32), (1 << 33, 1 << 33), (1, 1)),
    ((9, 1), ((1 << 33) + 1, (1 << 31) + 5), ((1 << 39), (1 << 31) - 1), ((1 << 32) - 1, (1 << 31) - 1)),
    ((3, 3), (1 << 16, 1 << 16), (1 << 16, 1 << 16), (1 << 15, 1 << 15)),
]


@pytest.mark.parametrize(("size", "stride", "padding", "dilation"), TOO_LARGE)
@pytest.mark.parametrize("name", ["conv2d", "depthwise"])
def test_a_padded_input_is_bounded(saved, name, size, stride, padding, dilation):
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    groups = CASES[name].options.get("groups", 1)
    x = torch.ones(1, 20 if groups > 1 else 24, *size)
    with runtime.open(saved("sign")) as ticket:
        for batch in (1, 0):
            with pytest.raises(ValueError, match=r"stride \[|elements"):
                ticket.conv(name, x[:batch].numpy(), groups=groups, **options)
    frozen = loaded("sign", saved("sign"), "planes")[name]._record()
    layer = fk.nn.FrozenConv2d(x.shape[1], 20, 3, groups=groups, seed=1, **options)
    fk.set_residency(layer, "planes")
    with torch.no_grad():  # by the op, and by the prepared call
        for run in (lambda: fk.functional.conv2d(x, frozen, groups=groups, **options), lambda: layer(x)):
            with pytest.raises(ValueError, match=r"stride \[1, "):
                run()


def test_a_vast_dilation_costs_no_more_than_its_results(isa, saved, folder, monkeypatch):
    """One tap of three reads the input: the layer of that tap alone, in no time and no memory for the padding."""
    x = torch.randn(1, 20, 3, 4)
    vast = {"dilation": (1, 1 << 24), "padding": (0, 1 << 24), "groups": 20}
    frozen = loaded("sign", saved("sign"), "planes")["depthwise"]._record()
    with torch.no_grad(), library_on(isa, folder, monkeypatch), runtime.open(saved("sign")) as ticket:
        y = fk.functional.conv2d(x, frozen, **vast)
        dense = loaded("sign", saved("sign"), "planes")["depthwise"].weight
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, dense[..., 1:2], groups=20))
        assert same_bits(ticket.conv("depthwise", x.numpy(), bias=None, **vast), y)


@pytest.mark.parametrize("name", ["conv2d", "depthwise", "strided"])
def test_strides_past_the_input(isa, saved, folder, monkeypatch, name):
    """The first pixel alone is read, whatever the stride; a dilation of one tap is none."""
    groups = CASES[name].options.get("groups", 1)
    x = torch.randn(2, 8 if name == "strided" else 24 if groups == 1 else 20, 7, 6)
    with library_on(isa, folder, monkeypatch), runtime.open(saved("sign")) as ticket:
        for residency in ("planes", "seed"):
            frozen = loaded("sign", saved("sign"), residency)[name]._record()
            plain = fk.functional.conv2d(x, frozen, stride=20, padding=1, groups=groups)
            for stride in (1 << 31, 1 << 39):
                options = {"stride": (stride, stride), "padding": 1, "groups": groups}
                assert same_bits(ticket.conv(name, x.numpy(), bias=None, **options), plain)
                assert torch.equal(fk.functional.conv2d(x, frozen, **options), plain)


def test_empty_batches_of_large_inputs(saved):
    lib, handle = bindings.library(), ctypes.c_void_p()
    assert lib.frozen_open(str(saved("sign")).encode(), 0, 0, ctypes.byref(handle)) == 0
    conv = bindings.Conv(2, 1, *((ctypes.c_int64 * 3)(1, 1, 1) for _ in range(3)))
    sizes, out = (ctypes.c_int64 * 4)(0, 24, 1 << 39, 1 << 39), (ctypes.c_int64 * 4)()
    assert lib.frozen_conv_shape(handle, b"conv2d", ctypes.byref(conv), sizes, out) == 1
    lib.frozen_close(handle)


def test_a_ticket_is_one(saved):
    with runtime.open(saved("sign")) as ticket:
        for again in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="open its file again"):
                again(ticket)
        assert ticket.linear("linear", np.ones((1, 70), np.float32)).shape == (1, 33)


def test_close_while_another_thread_computes(saved):
    """The call ends with its result; the next one is refused."""
    ticket, x = runtime.open(saved("sign")), np.ones((30_000, 256), np.float32)
    expected, results, begun = ticket.linear("wide", x), [], threading.Event()

    def compute():
        try:
            while True:
                begun.set()
                results.append(ticket.linear("wide", x))
        except ValueError as why:
            results.append(str(why))

    thread = threading.Thread(target=compute)
    thread.start()
    begun.wait()
    ticket.close()
    thread.join()
    assert results.pop() == "the ticket is closed"
    assert all(np.array_equal(y, expected) for y in results)
    assert ticket._handle is None


def with_tensor(data: bytes, name: str, dtype: str, shape: list[int], values: bytes) -> bytes:
    """A ticket with one more tensor, and the digest that it has then."""
    metadata, entries, body = parts(data)
    entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(values)]}
    return joined(metadata, entries, body + values)


def test_a_tensor_named_as_row_scales_is_ordinary(tmp_path):
    """Only int8 values and stored signs have scales of rows."""
    for values in ("float32", "int8"):
        data = stored_ticket(tmp_path / values, values)
        if values == "float32":
            data = with_tensor(data, "0.row_scale", "F32", [2], np.float32([3, 4]).tobytes())
        with runtime.open_bytes(data) as ticket:
            assert ("0.row_scale" in ticket.ordinary) == (values == "float32")
            if values == "float32":
                assert ticket.tensor("0.row_scale").tolist() == [3, 4]


def test_memory_is_limited(saved):
    """Before any is made: what is held afterwards is what is counted, but for what the file has itself."""
    for kind, residency in (("sign", "planes"), ("normal", "planes"), ("sign", "mask"), ("coats", "planes")):
        with runtime.open(saved(kind), residency=residency) as ticket:
            held = sum(weight.bytes for weight in ticket.weights.values())
        runtime.open(saved(kind), residency=residency, most_bytes=2 * held).close()
        with pytest.raises(runtime.TicketError, match="that most_bytes allows"):
            runtime.open(saved(kind), residency=residency, most_bytes=held // 2)
    with pytest.raises(ValueError, match="most_bytes is -1"):
        runtime.open(saved("sign"), most_bytes=-1)


def test_names_that_c_cannot_ask_for_are_refused(good):
    with pytest.raises(runtime.TicketError, match=r"a\\x00b.*zero byte"):
        runtime.open_bytes(with_tensor(good["drawn"], "a\0b", "U8", [0], b""))
    metadata, entries, body = parts(good["drawn"])
    records = json.loads(metadata["frozen_kernels.tensors"])
    records[0]["name"] += "\0"
    changed = {**metadata, "frozen_kernels.tensors": json.dumps(records)}
    with pytest.raises(runtime.TicketError, match="zero byte"):
        runtime.open_bytes(joined(changed, entries, body))


def test_null_pointers(saved):
    """What ctypes would let pass: every pointer of every function as NULL, one at a time."""
    lib, handle = bindings.library(), ctypes.c_void_p()
    path, name, floats = str(saved("sign")).encode(), b"linear", (ctypes.c_float * 70)()
    sizes, tensor = (ctypes.c_int64 * 4)(1, 24, 9, 9), bindings.Tensor()
    conv = bindings.Conv(2, 1, *((ctypes.c_int64 * 3)(1, 1, 1) for _ in range(3)))
    assert lib.frozen_open(path, 0, 0, ctypes.byref(handle)) == 0
    calls = [
        (lib.frozen_open, [path, 0, 0, ctypes.byref(ctypes.c_void_p())], (0, 3)),
        (lib.frozen_open_memory, [b"abc", 3, 0, 0, ctypes.byref(ctypes.c_void_p())], (0, 4)),
        (lib.frozen_get, [handle, 0, ctypes.byref(tensor)], (0, 2)),
        (lib.frozen_linear, [handle, name, floats, 1, 70, floats, 33, None, 1], (0, 1, 2, 5)),
        (lib.frozen_conv_shape, [handle, b"conv2d", ctypes.byref(conv), sizes, sizes], (0, 1, 2, 3, 4)),
        (lib.frozen_convolve, [handle, b"conv2d", ctypes.byref(conv), floats, sizes, floats, 7 * 9 * 7 * 32, None, 1],
         (0, 1, 2, 3, 4, 5)),
        (lib.frozen_embedding, [handle, b"embedding", sizes, 1, -1, floats, 37, 1], (0, 1, 2, 5)),
    ]  # fmt: skip
    for function, arguments, pointers in calls:
        for at in pointers:
            given = [None if i == at else value for i, value in enumerate(arguments)]
            assert function(*given) in (1, 5), (function.__name__, at)
            assert lib.frozen_last_error(), (function.__name__, at)
    for residency in (-1, 5):
        assert lib.frozen_open(path, residency, 0, ctypes.byref(ctypes.c_void_p())) == 1
    for index in (-1, 1 << 40):
        assert lib.frozen_get(handle, index, ctypes.byref(tensor)) == 1
    for batch, inputs, outputs, threads in (
        (-1, 70, 33, 1),
        (1, 70, 33, 0),
        (1, 69, 33, 1),
        (1, 70, 32, 1),
        (1 << 62, 70, 33, 1),
    ):
        assert lib.frozen_linear(handle, name, floats, batch, inputs, floats, outputs, None, threads) == 1
    y = (ctypes.c_float * 33)()
    for wrong in ({"bias_count": 33}, {"gain_count": 1}):
        epilogue = ctypes.byref(bindings.Epilogue(**wrong))
        assert lib.frozen_linear(handle, name, floats, 1, 70, y, 33, epilogue, 1) == 1
        assert next(iter(wrong)).encode() in lib.frozen_last_error()
    assert lib.frozen_linear(handle, name, floats, 1, 70, ctypes.byref(floats, 4 * 60), 33, None, 1) == 1
    assert b"share memory" in lib.frozen_last_error()
    assert lib.frozen_linear(handle, name, floats, 1, 70, y, 33, None, 1) == 0
    assert lib.frozen_count(None) == 0
    lib.frozen_close(None)
    lib.frozen_close(handle)


def compiled(source: Path, program: Path) -> None:
    options = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", f"-I{ROOT / 'csrc/lib'}"]
    link = [f"-L{LIBRARY.parent}", "-lfrozen", "-lm", f"-Wl,-rpath,{LIBRARY.parent}"]
    subprocess.run(["cc", *options, str(source), *link, "-o", str(program)], check=True)


def test_the_c_example(tmp_path, monkeypatch):
    """The digits network, untrained, from C: PyTorch's outputs bit for bit."""
    monkeypatch.syspath_prepend(str(ROOT / "examples/c"))
    import expected

    model = digits_net()
    fk.freeze_(model, fk.FreezeConfig(seed=0, code="sign", sparsity=0.5, freeze_ratio=0.7))
    fk.finalize_(model)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(40, 1, 8, 8))
    fk.save_ticket(model, tmp_path / "ticket")
    images = torch.randn(60, 1, 8, 8)
    outputs, unfolded = expected.outputs_of(tmp_path / "ticket", images)
    expected.write(tmp_path, images, outputs)
    torch.testing.assert_close(outputs, unfolded)
    compiled(ROOT / "examples/c/digits.c", tmp_path / "digits")
    command = [tmp_path / "digits", tmp_path / "ticket", tmp_path / "images.f32", tmp_path / "outputs.f32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [int(digit) for digit in lines[0].split()] == outputs.argmax(1).tolist()
    assert "bit for bit" in lines[1]
    wrong = outputs.clone()
    wrong[3, 4] += 1
    expected.write(tmp_path, images, wrong)
    assert subprocess.run(command, capture_output=True).returncode == 1


NO_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
import frozen_kernels as fk
from frozen_kernels import runtime
ticket = runtime.open(sys.argv[1])
y = ticket.linear("linear", np.load(sys.argv[2]))
assert y.tobytes() == np.load(sys.argv[3]).tobytes()
try:
    fk.freeze_
except ImportError as why:
    assert "frozen_kernels.freeze_ needs torch" in str(why)
else:
    raise SystemExit("no ImportError")
try:
    from frozen_kernels import load_ticket
except ImportError as why:
    assert "needs torch" in str(why)
else:
    raise SystemExit("no ImportError")
assert not hasattr(fk, "nothing")
everything = {}
exec("from frozen_kernels import *", everything)
assert set(everything) == {"__builtins__", "runtime"}
from frozen_kernels.__main__ import main
assert main(["info"]) == 2
assert not any(name.startswith("torch.") for name in sys.modules)
"""


def test_without_torch(saved, tmp_path):
    x = inputs_of("linear")[1]
    with torch.no_grad():
        y = loaded("sign", saved("sign"), "planes")["linear"](x)
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    command = [sys.executable, "-c", NO_TORCH, saved("sign"), tmp_path / "x.npy", tmp_path / "y.npy"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["error: the command line needs torch, which is not installed"]


def glibc_of(path: Path) -> tuple[int, ...]:
    said = subprocess.run(["readelf", "-V", path], capture_output=True, text=True, check=True).stdout
    return max(tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", said))


def test_the_library_is_small_and_shows_its_own_names_alone():
    listed = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].partition("@")[0] for line in listed.splitlines()}
    if "__asan_init" in listed or "__ubsan" in listed or LIBRARY.stat().st_size > 20_000_000:
        pytest.skip("built for sanitizers")
    assert names == set(bindings._FUNCTIONS) | {"frozen_find"}
    assert LIBRARY.stat().st_size < 2_000_000
    needed = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" not in needed
    # no later glibc than the extension's: a wheel has the tag of its most demanding file
    assert glibc_of(LIBRARY) <= glibc_of(Path(_C.__file__))
