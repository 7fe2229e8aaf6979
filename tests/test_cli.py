"""The command line: what it prints, its exit status, and that a bad file is one line and no traceback."""

import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels import cli, files
from frozen_kernels.tensor import resident_bytes


@pytest.fixture
def ticket(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    fk.freeze_(model, fk.FreezeConfig(seed=12345678901234567890))
    path = tmp_path / "net.safetensors"
    fk.save_ticket(model, path)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_info(capsys):
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert f"torch {torch.__version__.split('+')[0]}" in out and "backend reference: live" in out
    assert sum(line.startswith("extension: ") for line in out.splitlines()) == 1
    assert f"threads: {torch.get_num_threads()}" in out


def test_info_says_in_one_line_that_the_extension_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "frozen_kernels._C", None)
    monkeypatch.delattr(fk, "_C", raising=False)
    status, out, _ = run(capsys, "info")
    lines = [line for line in out.splitlines() if line.startswith("extension: ")]
    assert status == 0 and len(lines) == 1 and "missing" in lines[0] and "reference" in lines[0]


def test_inspect_lists_every_tensor(capsys, ticket):
    status, out, _ = run(capsys, "inspect", ticket)
    assert status == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("'")}
    assert set(rows) == {f"'{n}'" for n in (
        "0", "3", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "3.bias"
    )}  # fmt: skip
    assert rows["'0'"][1:5] == ["8x3x3x3", "sign", "12345678901234567890", "0"]
    assert rows["'1.num_batches_tracked'"][1:] == ["scalar", "int64", "8"]


def test_verify(capsys, ticket):
    status, out, err = run(capsys, "verify", ticket)
    assert (status, err) == (0, "") and "2 keep planes regenerate" in out
    data = bytearray(ticket.read_bytes())
    data[-1] ^= 1
    ticket.write_bytes(data)
    status, out, err = run(capsys, "verify", ticket)
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith(f"error: {ticket}: digest: ")


def test_footprint(capsys, ticket):
    status, out, _ = run(capsys, "footprint", ticket)
    assert status == 0
    rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in out.splitlines() if line}
    size = ticket.stat().st_size
    assert rows["file"] == [f"{size:,}", f"{8 * size / 344:.3f}"]
    parts = [int(rows[n][0].replace(",", "")) for n in ("supermasks", "ordinary tensors", "metadata")]
    assert sum(parts) == size
    loaded = fk.load_ticket(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4)), ticket
    )
    for residency in ("seed", "mask", "planes", "dense"):
        fk.set_residency(loaded, residency)
        held = sum(b.nbytes for layer in (loaded[0], loaded[3]) for b in layer.buffers())
        assert int(rows[residency][0].replace(",", "")) == held


def test_a_ticket_of_stored_weights(capsys, tmp_path):
    path, build = tmp_path / "stored", lambda: nn.Sequential(nn.Linear(70, 9), nn.Linear(9, 4))
    model = build()
    fk.freeze_(model, fk.FreezeConfig(code="stored", sparsity=0.8), lambda module, name: name == "0")
    fk.finalize_(model, "int8")
    for drawn in (False, True):
        if drawn:
            fk.freeze_(model, fk.FreezeConfig(), lambda module, name: name == "1")
            fk.finalize_(model)
        fk.save_ticket(model, path)
        status, out, _ = run(capsys, "inspect", path)
        assert status == 0 and "9x70  stored int8" in out and "126" in out
        status, out, _ = run(capsys, "footprint", path)
        rows = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2] for line in out.splitlines() if line}
        assert status == 0 and rows["stored values"] == str(126 + 4 * 9)
        loaded = fk.load_ticket(build(), path)
        for residency in ("mask", "dense") if drawn else ("packed", "dense"):
            fk.set_residency(loaded, residency)
            frozen = [m for m in loaded if isinstance(m, fk.nn.FrozenLayer)]
            name = f"{residency}, packed" if drawn and residency == "mask" else residency
            assert int(rows[name].replace(",", "")) == sum(b.nbytes for m in frozen for b in m.buffers())


def test_bench(capsys, monkeypatch):
    layers = (
        ("linear", lambda: nn.Linear(40, 8), (40,)),
        ("conv2d", lambda: nn.Conv2d(3, 4, 3), (3, 6, 6)),
    )
    monkeypatch.setattr(cli.bench_layers, "BENCH_LAYERS", layers)
    status, out, _ = run(capsys, "bench", "--rounds", 2, "--batch", 3, "--code", "uniform")
    lines = [line.split() for line in out.splitlines() if line.startswith(("linear", "conv2d"))]
    assert status == 0
    assert [line[:2] for line in lines] == [
        [layer, name] for layer in ("linear", "conv2d") for name in ("torch", "seed", "mask", "planes", "dense")
    ]


def test_bench_refuses_numbers_for_wrong_outputs(capsys, monkeypatch):
    monkeypatch.setattr(cli.bench_layers, "BENCH_LAYERS", (("linear", lambda: nn.Linear(40, 8), (40,)),))
    monkeypatch.setattr(cli.bench_layers.frozen_nn.FrozenLinear, "forward", lambda self, x: x.new_zeros(1, 8))
    status, out, err = run(capsys, "bench", "--rounds", 2)
    assert status == 1 and "relative error" in err and "quartiles" not in out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [([], 2), (["verify"], 2), (["nothing"], 2), (["bench", "--code", "stored"], 2)],
)
def test_wrong_usage(arguments, status, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == status
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("bench --rounds 0", "--rounds: an integer of 1 or more, got 0"),
        ("bench --rounds x", "--rounds: an integer of 1 or more, got 'x'"),
        ("bench --threads 100000000000", "--threads: an integer from 1 to 1024, got 100000000000"),
        ("footprint m:f --seed -1", "--seed: an integer from 0 to 18446744073709551615, got -1"),
        ("footprint m:f --seed 18446744073709551616", "--seed: an integer from 0 to 18446744073709551615, got 18446"),
        ("bench --device cpu", "--device: goes with --tune"),
        ("bench --out x", "--out: goes with --tune"),
        ("bench --freeze-ratio 2", "freeze_ratio: a number in [0, 1], got 2.0"),
        ("bench --channels-last", "--channels-last: goes with MODULE:CALLABLE"),
    ],
)
def test_options_out_of_range_are_one_line(arguments, words, capsys):
    status, out, err = run(capsys, *arguments.split())
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_a_closed_stdout(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["info"]) == 1 and capsys.readouterr().err == "error: standard output is closed\n"


@pytest.mark.parametrize("command", ["inspect", "verify", "footprint"])
def test_missing_and_foreign_files(tmp_path, capsys, command):
    (tmp_path / "empty").touch()
    for name in ("none", "empty", "."):
        status, out, err = run(capsys, command, tmp_path / name)
        assert (status, out) == (1, "") and err.startswith("error: ") and err.count("\n") == 1


def test_as_a_program(ticket, tmp_path):
    ticket.write_bytes(b"no ticket")
    command = [sys.executable, "-m", "frozen_kernels", "verify", str(ticket)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


@pytest.mark.parametrize("code", ["sign", "uniform", "constant"])
@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_resident_bytes(code, residency):
    layer = fk.nn.FrozenConv2d(40, 5, 3, code=code)
    layer.finalize()
    layer.set_residency(residency)
    held = sum(b.nbytes for b in layer.buffers())
    assert held == resident_bytes(layer.shape, code, layer.counts["free"], residency)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
@pytest.mark.parametrize("name", ["文件.safetensors", os.fsdecode(b"\xff.safetensors")], ids=ascii)
def test_any_path_in_any_console(ticket, monkeypatch, name, encoding):
    path = ticket.rename(ticket.parent / name)  # neither name is text in every console
    for command in ("verify", "inspect", "footprint"):
        console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", console)
        assert cli.main([command, str(path)]) == 0
        assert b".safetensors: " in console.buffer.getvalue()


def test_tuning_without_a_home_folder_says_so_before_it_measures(capsys, monkeypatch):
    monkeypatch.setattr(cli.tune.crossover, "user_path", lambda: files.NOWHERE / "table.json")
    monkeypatch.setattr(cli.tune.crossover, "active_level", lambda: "portable")
    monkeypatch.setattr(cli.tune, "measure_table", None)
    status, _, err = run(capsys, "bench", "--tune", "--device", "cpu")
    assert status == 1 and "no home folder" in err and cli.tune.crossover.VARIABLE in err
