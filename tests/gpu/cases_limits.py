"""Products at the limits of a launch: offsets past 2^31, grids of many groups, and what is refused for its size."""

from __future__ import annotations

import pytest
import torch
from common import DEVICE, dense, header, pack_of, small_integers
from torch import Tensor
from torch.nn import functional as F

from frozen_kernels.backends import Unsupported, triton
from frozen_kernels.backends.geometry import POINT, Side, geometry, side
from frozen_kernels.backends.triton import product, tuning
from frozen_kernels.backends.triton.kernels import finish
from frozen_kernels.backends.triton.kernels import product as product_kernels
from frozen_kernels.backends.triton.kernels import transpose as transpose_kernels
from frozen_kernels.backends.triton.launch import decode_args
from frozen_kernels.format import Pack

FAR = 1 << 30  # twice this is past int32


@pytest.fixture(scope="module")
def storage() -> Tensor:
    """Nothing writes to most of it, so that a host lends few pages."""
    return torch.empty(2 * FAR + 4096, dtype=torch.bfloat16, device=DEVICE)


# strides of [batch, channel, depth, height, width]: what lies far apart inside an image
LAYOUTS = {
    "channel": (0, FAR, 64, 8, 1),
    "depth": (0, 1, FAR, 64, 8),
    "width": (0, 1, 64, 8, FAR),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "taps"), [(3, 1), (3, 3), (3, 33), (1, 3)])
def test_offsets_past_int32(storage, monkeypatch, channels, taps, layout):
    if taps == 33:
        monkeypatch.setattr(tuning, "MIN_STEPS", 1)  # sums in parts
    names = ("depth", "height", "width")
    size = [1, 3, *(3 if name == layout else 1 for name in names)]
    shape = (3, channels, *(taps if name == layout else 1 for name in names))
    stride = LAYOUTS[layout]
    # results are as large as inputs and lie beside them
    spatial = (1, 1, 1), [k // 2 for k in shape[2:]], (1, 1, 1), 3 // shape[1]
    pack = pack_of(header(scale=1.0), "planes", "sign", shape)
    args, g, weight = decode_args(Pack(*pack)), geometry(shape, *spatial), dense(pack).double()
    x = storage.as_strided(size, stride).copy_(small_integers(*size))
    y = storage.as_strided(size, stride, 2048)
    product.fill(y, side(y), x, side(x), args, g, False)
    assert torch.equal(y.double(), F.conv3d(x.double(), weight, None, *spatial))
    product.fill(y, side(y), x, side(x), args, g, True)
    assert torch.equal(y.double(), F.conv_transpose3d(x.double(), weight, None, *spatial[:2], 0, spatial[3]))


def test_parts_past_int32(storage, monkeypatch):
    """The three tensors whose sum is a float32 input, as far apart as those of a large one."""
    made = product._parts

    def far(x: Tensor, at: Side) -> tuple[Tensor, Side, int]:
        parts, own, _ = made(x, at)
        return storage.as_strided(parts.shape, (FAR, *parts.stride()[1:])).copy_(parts), own, FAR

    monkeypatch.setattr(product, "_parts", far)
    pack = pack_of(header(scale=1.0), "planes", "sign", (5, 33))
    x = small_integers(2, 33) / 3
    got = triton.linear(x, None, None, *pack)
    torch.testing.assert_close(got.double(), x.double() @ dense(pack).double().T, rtol=1e-6, atol=1e-6)


def test_inputs_split_past_int32(storage):
    x = torch.tensor([[1 / 3, -1 / 7]], device=DEVICE)
    one, stride = (1, 2, 1, 1, 1), (2, 1, 1, 1, 1)
    finish.split_kernel[(1,)](storage, x, 2, FAR, one, stride, stride, COUNT=16)
    parts = storage.as_strided((3, 2), (FAR, 1))
    assert torch.equal(parts.double().sum(0), x[0].double())


class Recorder:
    """Takes the grids of a kernel's launches and runs none."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        self.grids.append(grid)
        return lambda *args, **kwargs: None


def test_thousands_of_groups_fit_a_grid(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(product_kernels, "product_kernel", recorder)
    monkeypatch.setattr(transpose_kernels, "transpose_kernel", recorder)
    groups = 70_000
    keep = torch.zeros(groups, 1, dtype=torch.int32, device=DEVICE)
    pack = (header().to(DEVICE), None, None, keep, keep, None, None, None, "sign", (groups, 2, 3))
    x = torch.zeros(1, 2 * groups, 4, dtype=torch.bfloat16, device=DEVICE)
    spatial = (2,), (1,), (1,), groups
    y = triton.conv1d(x, None, None, *pack, *spatial)
    triton.conv1d_grad_input(y, x.shape, *pack, *spatial)
    assert len(recorder.grids) == 4
    # only the first of a CUDA grid's sizes goes past 65535
    assert all(max(grid[1:], default=1) <= 65535 for grid in recorder.grids), recorder.grids


def test_more_pixels_than_int32_counts_are_refused():
    args = decode_args(Pack(*pack_of(header(), "mask", "sign", (2, 2))))
    x = torch.zeros(1, 2, device=DEVICE).expand(1 << 31, 2)
    with pytest.raises(Unsupported, match=r"2147483648 pixels are more than 2147482624"):
        product.fill(x, side(x), x, side(x), args, POINT, False)
