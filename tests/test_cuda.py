"""The backend of CUDA C++ kernels without a GPU: what it says when it is not live, and its results on the emulator."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import sys

import pytest
import torch
from cuda_helpers import fake_driver
from test_triton import run

import frozen_kernels as fk
from frozen_kernels.backends import Unsupported, cuda
from frozen_kernels.backends.cuda import extension, product

HERE = pathlib.Path(__file__).parent
STATUS = "import frozen_kernels as fk; print(fk.backends.report()['cuda'])"
needs_extension = pytest.mark.skipif(
    importlib.util.find_spec("frozen_kernels._cuda") is None, reason="the CUDA extension is not built: there is no nvcc"
)


class Fake:
    """An extension that launches nothing: its status, the calls it was given, and the reason it refuses them for."""

    def __init__(self, status=(13000, 13000, 1, None), reason=None):
        self.calls, self.reason, self.status = [], reason, lambda: status

    def product(self, *args):
        self.calls.append(args)
        if self.reason is not None:
            raise self.reason if isinstance(self.reason, Exception) else AssertionError
        return None


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ((13000, 0, 0, "CUDA driver version is insufficient"), "there is no NVIDIA driver"),
        ((13000, 12040, 0, "CUDA driver version is insufficient"), "driver serves CUDA 12.4, the kernels need 13.0"),
        ((13000, 13000, 0, "no CUDA-capable device is detected"), "no GPU can be used: no CUDA-capable device"),
    ],
)
def test_what_is_missing_is_said(monkeypatch, status, said):
    monkeypatch.setattr(extension, "load", lambda: Fake(status))
    assert said in fk.backends.report()["cuda"]
    with pytest.raises(RuntimeError, match=said), fk.backends.use("cuda"):
        pass


def test_the_extension_is_not_loaded_unasked():
    code = "import sys, torch, frozen_kernels as fk; fk.nn.FrozenLinear(8, 8)(torch.ones(1, 8));"
    run("-c", f"{code} assert not [m for m in sys.modules if m.endswith('._cuda')]")


@needs_extension
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_machine_without_a_driver():
    assert run("-c", STATUS).strip() == "there is no NVIDIA driver"


@needs_extension
@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize(
    ("version", "said"),
    [
        (11040, "the NVIDIA driver serves CUDA 11.4, the kernels need"),
        (99990, "no GPU can be used: no CUDA-capable device is detected"),
    ],
)
def test_drivers_that_do_not_do(version, said, tmp_path):
    assert run("-c", STATUS, **fake_driver(tmp_path, version)).startswith(said)


def test_gpus_that_are_too_old_are_left_to_the_next_backend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    extension.check_gpu.cache_clear()
    with pytest.raises(Unsupported, match="cuda:0 is an sm_75, CUDA C\\+\\+ kernels need sm_80"):
        extension.check_gpu(torch.device("cuda", 0))
    extension.check_gpu.cache_clear()


def test_errors_of_cuda_carry_its_words(monkeypatch):
    fake = Fake(reason=RuntimeError("CUDA: an illegal memory access was encountered"))
    monkeypatch.setattr(product, "load", lambda: fake)
    pack = fk.FrozenTensor.create((16, 64), seed=1, residency="planes").pack()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cuda.linear(torch.ones(1, 64), None, None, *pack)
    assert len(fake.calls) == 1


@pytest.mark.long
def test_on_the_emulator():
    """The binding, the launchers and every kernel, on small layers."""
    sys.path.insert(0, str(HERE))
    import cuda_emulated

    if why := cuda_emulated.lacking():
        pytest.skip(why)
    cuda_emulated.build()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", "gpu/cases_cuda.py"]
    assert " passed" in run("-m", "pytest", *options, TRITON_INTERPRET="1")
