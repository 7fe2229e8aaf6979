"""What an installed package must do, beside whatever torch is there: run by check_wheel.sh in a fresh environment.

`python check_installed.py cpu | cpu,cuda | reference`: the backends that the file must hold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

import frozen_kernels as fk
from frozen_kernels import runtime

FUSED = ("seed", "mask", "planes")


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip


def check_place() -> None:
    """The package is the installed one, with its data, of the version that it says."""
    package = Path(fk.__file__).parent
    assert package.is_relative_to(sysconfig.get_path("platlib")), package
    found = metadata.version("frozen-kernels")
    assert found.split("+")[0] == fk.__version__, (found, fk.__version__)
    assert (package / "py.typed").exists()
    print(f"{found} in {package}, beside torch {torch.__version__}, Python {sys.version.split()[0]}")


def check_backends(built: set[str]) -> None:
    """The backends that were built are there; no driver is needed to hold CUDA kernels, but one to run them."""
    report = fk.backends.report()
    print(report)
    assert report["reference"] == "live"
    assert (report["cpu"] == "live") == ("cpu" in built), report["cpu"]
    assert ("not built" not in report["cuda"]) == ("cuda" in built), report["cuda"]


@torch.no_grad()
def check_layers() -> None:
    """Without a dense weight, a layer gives the same bits from each residency, and nearly those of its own weight."""
    for make, size in ((lambda: nn.Linear(200, 96), (5, 200)), (lambda: nn.Conv2d(16, 24, 3, 2, 1), (2, 16, 15, 15))):
        for code in ("sign", "uniform", "normal"):
            model, x = nn.Sequential(make()), torch.randn(*size)
            fk.freeze_(model, fk.FreezeConfig(seed=7, code=code))
            fk.finalize_(model)
            outputs = []
            for residency in FUSED:
                fk.set_residency(model, residency)
                outputs.append(model(x))
            assert all(torch.equal(outputs[0], y) for y in outputs[1:]), (make(), code)
            torch.testing.assert_close(fk.to_dense(model)(x), outputs[0], rtol=1e-4, atol=1e-4)


def search(x: Tensor, y: Tensor) -> nn.Module:
    """A model whose supermask was searched for a few steps; the loss must fall."""
    model = build()
    fk.freeze_(model, fk.FreezeConfig(seed=3, sparsity=0.5, freeze_ratio=0.7))
    found = fk.EdgePopup(model)
    optimizer = torch.optim.SGD([*found.parameters(), *model[1].parameters()], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    fk.finalize_(model)
    return model.eval()


def check_ticket(folder: Path) -> None:
    """A ticket gives the same bits in a new process; the command line reads it."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 12, 12)
    model = search(x, torch.arange(16) % 10)
    ticket, outputs = folder / "net.safetensors", folder / "outputs.pt"
    fk.save_ticket(model, ticket)
    with torch.no_grad():
        torch.save((x, model(x)), outputs)
    run(sys.executable, __file__, "--load", ticket, outputs)
    script = shutil.which("frozen-kernels", path=sysconfig.get_path("scripts"))
    assert script, "no frozen-kernels in the environment's scripts"
    for command in ("inspect", "verify", "footprint"):
        run(sys.executable, "-m", "frozen_kernels", command, ticket)
        run(script, command, ticket)
    print(run(sys.executable, "-m", "frozen_kernels", "info"))


def load(ticket: Path, outputs: Path) -> None:
    """The other process."""
    x, expected = torch.load(outputs)
    for residency in (*FUSED, "auto"):
        model = fk.load_ticket(build(), ticket).eval()
        fk.set_residency(model, residency)
        with torch.no_grad():
            found = model(x)
        if residency == "auto":
            torch.testing.assert_close(found, expected)
        else:
            assert torch.equal(found, expected), residency


def check_runtime(folder: Path) -> None:
    """libfrozen came along: a ticket's layer in numpy gives torch's bits."""
    model, x = nn.Sequential(nn.Linear(70, 33)), torch.randn(5, 70)
    fk.freeze_(model, fk.FreezeConfig(seed=5))
    fk.finalize_(model)
    fk.save_ticket(model, folder / "linear.safetensors")
    with torch.no_grad(), runtime.open(folder / "linear.safetensors", threads=torch.get_num_threads()) as ticket:
        assert ticket.linear("0", x.numpy()).tobytes() == model(x).numpy().tobytes()
    print(f"frozen_kernels.runtime: live, {runtime.isa()}")


def run(*command: str | os.PathLike[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("built", nargs="?", type=lambda names: set(names.split(",")), help="cpu | cpu,cuda | reference")
    parser.add_argument("--load", nargs=2, type=Path, metavar=("TICKET", "OUTPUTS"), help="the second process")
    options = parser.parse_args()
    if options.load:
        load(*options.load)
        return
    check_place()
    check_backends(options.built)
    check_layers()
    with tempfile.TemporaryDirectory() as folder:
        check_ticket(Path(folder))
        if "cpu" in options.built and sys.platform != "win32":  # libfrozen is not built on Windows
            check_runtime(Path(folder))
    print("installed and works")


if __name__ == "__main__":
    main()
