"""Frozen layers where torch's stood: names, attributes, tracing, casts, and what used to go wrong without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import frozen_kernels as fk

PLAIN = {
    "linear": (lambda: nn.Linear(6, 4), torch.randn(2, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, "valid", groups=2, bias=False), torch.randn(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 1), padding=(2, 0), padding_mode="reflect"), torch.randn(1, 3, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2), torch.randn(1, 2, 5, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, output_padding=1), torch.randn(1, 4, 4, 3)),
    "embedding": (lambda: nn.Embedding(9, 4, padding_idx=-1), torch.tensor([[1, 8], [0, 3]])),
}


def twin(name: str) -> tuple[nn.Module, fk.nn.FrozenLayer, torch.Tensor]:
    make, x = PLAIN[name]
    model = nn.Sequential(make())
    fk.freeze_(model, filter_fn=lambda module, name: True)
    return make(), model[0], x


@pytest.mark.parametrize("name", PLAIN)
def test_attributes_and_keywords_are_torchs(name):
    plain, layer, x = twin(name)
    assert torch.equal(layer(input=x), layer(x))
    ours = {"training", "bias", "weight"}
    for attribute, value in vars(plain).items():
        if (not attribute.startswith(("_", "T_")) and attribute not in ours) or "_reversed" in attribute:
            assert getattr(layer, attribute) == value, attribute
    assert hasattr(layer, "weight") and layer.weight.shape == plain.weight.shape


@pytest.mark.parametrize("name", PLAIN)
def test_the_weight_is_a_value(name):
    layer = twin(name)[1]
    before = layer.weight.detach().clone()
    writes = {
        "assigned": lambda: setattr(layer, "weight", nn.Parameter(before)),
        "assigned as a tensor": lambda: setattr(layer, "weight", before),
        "registered": lambda: layer.register_parameter("weight", nn.Parameter(before)),
        "initialised": lambda: nn.init.kaiming_normal_(layer.weight),
        "drawn": lambda: nn.init.trunc_normal_(layer.weight, std=0.02),
        "data": lambda: layer.weight.data.normal_(),
        "an entry": lambda: layer.weight.__setitem__(0, 1.0),
        "copied": lambda: layer.weight.copy_(before),
    }
    for how, write in writes.items():
        with torch.no_grad(), pytest.raises((AttributeError, RuntimeError), match=r"set_keep_mask .*to_dense"):
            write()
            pytest.fail(how)
    assert torch.equal(layer.weight, before)
    # what is computed from it is a plain tensor
    assert all(type(t) is torch.Tensor for t in (layer.weight + 1, layer.weight.detach(), layer.weight.clone()))
    layer.weight.sum().backward()
    assert layer.scores.grad.abs().sum() > 0


def test_fusing_names_the_way_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    fk.freeze_(model)
    with pytest.raises(AttributeError, match="fold_batch_norm_"):
        nn.utils.fuse_conv_bn_eval(*model)


def test_a_symbolic_trace_has_the_layers_as_leaves():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.conv, self.out = nn.Embedding(9, 4), nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5, 2)
            self.up = nn.ConvTranspose1d(5, 5, 2, 2)

        def forward(self, x):
            x = self.conv(self.embed(x).transpose(1, 2)).relu()
            return self.out(self.up(x, output_size=[12]).mean(-1))

    model, x = Net(), torch.randint(9, (2, 6))
    fk.freeze_(model, filter_fn=lambda module, name: True)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["embed", "conv", "up", "out"] and torch.equal(traced(x), model(x))


def test_sizes_may_be_numpys():
    layer = fk.nn.FrozenLinear(np.int64(6), np.int32(4), seed=np.int64(3))
    assert layer(torch.randn(2, 6)).shape == (2, 4) and layer.seed == 3
    conv = fk.nn.FrozenConv2d(np.int64(3), np.int64(4), np.int64(3), stride=np.int64(2), padding=np.int64(1))
    assert conv(torch.randn(1, 3, 6, 6)).shape == (1, 4, 3, 3)
    assert fk.nn.FrozenEmbedding(np.int64(9), np.int64(4))(torch.tensor([2])).shape == (1, 4)


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_casts_of_every_kind_leave_the_bits(residency):
    _, layer, x = twin("linear")
    layer.finalize()
    layer.set_residency(residency)
    right = layer.weight.detach().to(torch.bfloat16)
    layer.type(torch.bfloat16)
    assert layer.dtype == torch.bfloat16 and torch.equal(layer.weight, right)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    bare = fk.nn.FrozenLinear(6, 4, bias=False)
    bare.finalize()
    before = bare.weight.detach()
    with pytest.raises(TypeError, match=r"float64, got torch\.int32"):
        bare.type(torch.int32)
    assert torch.equal(bare.weight, before) and bare.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.complex64])
def test_dtypes_that_no_kernel_has_are_refused(dtype):
    with pytest.raises(TypeError, match=rf"dtype: float32, bfloat16, float16 or float64, got {dtype}"):
        fk.nn.FrozenLinear(4, 3, dtype=dtype)


@pytest.mark.parametrize("fill", [-1, 0, 7])
def test_a_layer_given_memory_but_never_filled_says_so(fill):
    for layer in (fk.nn.FrozenLinear(16, 8, device="meta"), fk.nn.FrozenLinear(16, 8)):
        layer.to_empty(device="cpu").header.fill_(fill)
        with pytest.raises(ValueError, match="to_empty left it unfilled; load a state or a ticket"):
            layer(torch.randn(2, 16))
        layer.reset_parameters()
        assert torch.equal(layer.weight, fk.nn.FrozenLinear(16, 8).weight)


def test_what_is_done_in_inference_mode_trains_later():
    x = torch.randn(4, 16)
    for residency in ("seed", "mask", "planes", "dense"):
        model = nn.Sequential(nn.Linear(16, 8))
        fk.freeze_(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.inference_mode():
            fk.set_residency(model, residency)
            model.load_state_dict(state)
            fk.EdgePopup(model).step()
            model[0].set_keep_mask(model[0].keep_mask())
            model[0].set_scores_as_weight(torch.randn(8, 16))
            model(x)
        assert not any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
        model(x).sum().backward()
        with torch.inference_mode():
            model[0].reset_parameters()
            fresh = nn.Sequential(nn.Linear(16, 8))
            fk.freeze_(fresh)
        model(x).sum().backward()


def test_named_buffers_are_buffers():
    for residency in ("seed", "mask"):
        layer = fk.nn.FrozenLinear(16, 8)
        layer.set_residency(residency)
        names = {name for name, _ in layer.named_buffers(recurse=False)}
        assert names == {name for name, value in layer._buffers.items() if value is not None}


def test_an_average_of_a_state_is_an_error_and_of_scores_is_not():
    model, x = nn.Sequential(nn.Linear(16, 8)), torch.randn(2, 16)
    fk.freeze_(model, fk.FreezeConfig(seed=123456789))
    whole = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    scores = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(3):
        scores.update_parameters(model)
    assert scores(x).shape == (2, 8)
    with torch.no_grad():
        for buffer in whole.module.buffers():
            buffer.copy_((0.9 * buffer.double() + 0.1 * buffer.double()).to(buffer.dtype) - 1)
    for refused in (lambda: whole.module(x), lambda: fk.EdgePopup(whole.module)):
        with pytest.raises(ValueError, match="header: "):
            refused()
