"""Convolutions, their transposes and the gradients of their inputs against float64, exact on small integers."""

from __future__ import annotations

import pytest
import torch
from common import RESIDENCIES, dense, header, pack_of, small_integers, stored_pack
from helpers import pairwise
from torch import Tensor
from torch.nn import functional as F

from frozen_kernels import format
from frozen_kernels.backends import triton

# input, weight, stride, padding, dilation, groups; one entry of a spatial argument for each dimension
CONVOLUTIONS = {
    "point": ((2, 33, 4, 5), (7, 33, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "wide": ((1, 64, 5, 6), (70, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "ragged": ((2, 5, 7, 9), (6, 5, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ((1, 3, 9, 11), (4, 3, 3, 2), (2, 3), (2, 1), (1, 2), 1),
    "stem": ((1, 3, 9, 8), (8, 3, 7, 7), (2, 2), (3, 3), (1, 1), 1),
    "wide-strided": ((1, 64, 6, 7), (33, 64, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    "shortcut": ((1, 64, 7, 7), (33, 64, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    "groups": ((2, 8, 5, 5), (4, 2, 3, 3), (2, 2), (1, 1), (1, 1), 4),
    "wide-groups": ((1, 128, 4, 5), (70, 64, 2, 2), (1, 1), (1, 1), (1, 1), 2),
    "depthwise": ((1, 3, 5, 4), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 3),
    "depthwise-strided": ((1, 5, 7, 6), (5, 1, 3, 2), (2, 3), (1, 1), (1, 2), 5),
    "call": ((1, 16, 3, 3), (5, 16, 2, 2), (1, 1), (0, 0), (1, 1), 1),
    "one": ((2, 6, 9), (4, 3, 2), (1,), (0,), (3,), 2),
    "gap": ((1, 3, 12), (5, 3, 2), (4,), (1,), (2,), 1),
    "factor": ((1, 3, 24), (4, 3, 9), (2,), (1,), (2,), 1),
    "three": ((1, 3, 4, 5, 6), (4, 3, 2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), 1),
    "empty": ((0, 5, 7, 9), (6, 5, 3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def output_size(x: tuple, shape: tuple, stride: tuple, padding: tuple, dilation: tuple, groups: int) -> list[int]:
    return torch.ops.aten.convolution(
        torch.empty(x, device="meta"), torch.empty(shape, device="meta"), None, stride, padding, dilation, False,
        [0] * len(stride), groups,
    ).shape  # fmt: skip


def as_layout(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


class Case:
    """A weight and integers of one geometry: a convolution's input and its result's gradient, each as [batch, ...].

    `residency` is the dtype of values of a stored weight.
    """

    def __init__(self, name: str, code: str, dtype: torch.dtype, residency: str, channels_last: bool = False) -> None:
        x_size, self.shape, *self.spatial = CONVOLUTIONS[name]
        self.dimensions = len(self.spatial[0])
        if code == format.STORED:
            self.pack, self.weight = stored_pack(self.shape, residency)
        else:
            self.pack = pack_of(header(scale=1.0), residency, code, self.shape)
            self.weight = dense(self.pack)
        self.weight = self.weight.double()
        y_size = output_size(x_size, self.shape, *self.spatial)
        self.x = as_layout(small_integers(*x_size, dtype=dtype), channels_last)
        self.grad = as_layout(small_integers(*y_size, dtype=dtype), channels_last)

    def convolve(self, bias: Tensor | None = None) -> Tensor:
        function = getattr(F, f"conv{self.dimensions}d")
        return function(self.x.double(), self.weight, None if bias is None else bias.double(), *self.spatial)

    def output_padding(self) -> list[int]:
        stride, padding, dilation, _ = self.spatial
        sizes = zip(self.x.shape[2:], self.grad.shape[2:], stride, padding, dilation, self.shape[2:], strict=True)
        return [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, s, p, d, k in sizes]

    def convolve_transposed(self, bias: Tensor | None = None) -> Tensor:
        stride, padding, dilation, groups = self.spatial
        function = getattr(F, f"conv_transpose{self.dimensions}d")
        bias = None if bias is None else bias.double()
        arguments = (stride, padding, self.output_padding(), groups, dilation)
        return function(self.grad.double(), self.weight, bias, *arguments)

    def op(self, name: str):
        return getattr(triton, name.replace("_nd", f"{self.dimensions}d"))

    def check(self) -> None:
        """Forward, and the gradient of the input."""
        bias = small_integers(self.shape[0])
        got = self.op("conv_nd")(self.x, bias, None, *self.pack, *self.spatial)
        assert torch.equal(got, self.convolve(bias).to(got.dtype)) and got.dtype == self.x.dtype
        if got.dim() == 4 and got.numel():
            assert got.is_contiguous(memory_format=format.memory_format_of(self.x))
        got = self.op("conv_nd_grad_input")(self.grad, self.x.shape, *self.pack, *self.spatial)
        assert torch.equal(got, self.convolve_transposed().to(got.dtype)) and got.dtype == self.x.dtype

    def check_transposed(self) -> None:
        """The same of the transposed convolution."""
        stride, padding, dilation, groups = self.spatial
        arguments = (stride, padding, self.output_padding(), dilation, groups)
        bias = small_integers(self.x.shape[1])
        got = self.op("conv_transpose_nd")(self.grad, bias, None, *self.pack, *arguments)
        assert torch.equal(got, self.convolve_transposed(bias).to(got.dtype))
        got = self.op("conv_transpose_nd_grad_input")(self.x, self.grad.shape, *self.pack, *arguments)
        assert torch.equal(got, self.convolve().to(got.dtype))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_geometry(name):
    Case(name, "sign", torch.bfloat16, "planes").check()


@pytest.mark.parametrize("name", ["strided", "gap", "three", "one", "depthwise", "depthwise-strided", "empty"])
def test_transposed_convolutions(name):
    Case(name, "sign", torch.float16, "planes").check_transposed()


@pytest.mark.parametrize("name", ["ragged", "wide", "wide-strided"])
def test_channels_last(name):
    Case(name, "sign", torch.bfloat16, "planes", channels_last=True).check()


# rows of a group are 16 columns wide or not: bytes of the transposed product come by the call or from a scratch
KINDS = pairwise(["groups", "call", "depthwise"], format.CODES, RESIDENCIES)


@pytest.mark.parametrize(("name", "code", "residency"), KINDS)
def test_every_code_and_residency(name, code, residency):
    Case(name, code, torch.bfloat16, residency).check()


def test_groups_must_divide_rows():
    pack = pack_of(header(), "mask", "sign", (3, 2, 1))
    for groups in (0, 2):
        x = torch.zeros(1, 2 * groups, 4, device=pack[0].device)
        with pytest.raises(ValueError, match=f"groups = {groups} does not divide rows = 3"):
            triton.conv1d(x, None, None, *pack, (1,), (0,), (1,), groups)


def test_float32_inputs_are_exact_parts():
    Case("ragged", "sign", torch.float32, "planes").check()
    Case("groups", "uniform", torch.float32, "mask").check()
    Case("depthwise", "uniform", torch.float32, "mask").check()
