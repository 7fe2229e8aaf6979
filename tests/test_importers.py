"""Published files: the imported model gives what the published forward gives, and what cannot be told is asked for."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from importer_cases import (
    LAYERS,
    RATES,
    HiddenNetworks,
    Net,
    Slt,
    jackpot_2021,
    masked_net,
    pruned_net,
    written,
)
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import frozen_kernels as fk
from frozen_kernels.importers.hidden_networks import dropped

CASES = ("hidden", "fixed", "jackpot-2021", "jackpot-2023", "pruned", "slt-none", "slt-static", "slt-dynamic")
X = torch.arange(4.0 * 3 * 8 * 8).reshape(4, 3, 8, 8).sin()


def snapshot(model):
    """Everything that a load could change: modules by identity, and copies of tensors."""
    return [id(m) for m in model.modules()], {
        k: (id(t), t.clone()) for k, t in model.state_dict(keep_vars=True).items()
    }


def assert_unchanged(model, before):
    modules, tensors = snapshot(model)
    assert modules == before[0] and tensors.keys() == before[1].keys()
    for name, (identity, value) in tensors.items():
        assert identity == before[1][name][0] and torch.equal(value, before[1][name][1]), name


def refuse(given, match, model=None, **settings):
    """The load is a ValueError that says `match`, and the model is what it was."""
    model = Net() if model is None else model
    before = snapshot(model)
    with pytest.raises(ValueError, match=match) as error:
        fk.importers.load_(model, given, **settings)
    assert_unchanged(model, before)
    return str(error.value)


def effective(layer):
    return layer.effective() if hasattr(layer, "effective") else layer.weight


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_published_forward(name, tmp_path):
    layout, net, saved, settings = written()[name]
    torch.save(saved, tmp_path / "best.pth")
    model = Net().eval()
    report = fk.importers.load_(model, tmp_path / "best.pth", **settings)
    assert report.layout == layout and report.source == str(tmp_path / "best.pth") and report.stale == []
    masked = [layer.name for layer in report.layers]
    assert masked == (["conv1", "conv2"] if name == "pruned" else list(LAYERS))
    with torch.no_grad():
        torch.testing.assert_close(model(X), net(X))
        for layer in LAYERS:
            assert torch.equal(getattr(model, layer).weight, effective(getattr(net, layer))), layer
    for layer in report.layers:
        frozen = model.get_submodule(layer.name)
        assert (frozen.code, frozen.residency, frozen.scores) == ("stored", "packed", None)
        assert frozen.counts["kept"] == layer.kept == int((effective(net.get_submodule(layer.name)) != 0).sum())
        assert frozen.values.shape == (layer.kept,) and layer.values == "float32"
    assert torch.equal(model.bn1.running_var, net.bn1.running_var) and torch.equal(model.bn1.weight, net.bn1.weight)
    assert not model.conv1.training


@pytest.mark.parametrize("name", CASES)
def test_a_layout_can_be_named(name):
    layout, _, saved, settings = written()[name]
    assert fk.importers.load_(Net(), saved, layout, **settings).layout == layout
    other = "jackpots-2023" if layout != "jackpots-2023" else "slt"
    refuse(saved, f"^state: layout: '{other}' asked for", layout=other)


def test_the_model_owns_what_it_holds():
    net = masked_net(HiddenNetworks)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    model = Net().eval()
    fk.importers.load_(model, state, sparsity=0.0)
    before = model(X)
    for value in state.values():
        value.fill_(3)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("nest", [("state_dict",), ("model",), ("model", "state_dict"), ()])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_nesting_and_prefixes(nest, prefix):
    net, saved = jackpot_2021()
    found = {prefix + name: value for name, value in saved["state_dict"].items()}
    for name in nest:
        found = {name: found, "cfg": RATES}
    settings = {} if nest else {"sparsity": dict(zip(LAYERS, RATES, strict=True))}
    model = Net().eval()
    fk.importers.load_(model, found, **settings)
    torch.testing.assert_close(model(X), net(X))


def test_a_prefix_of_the_models_own_stays():
    net, saved = jackpot_2021()
    outer = nn.ModuleDict({"module": Net()})
    state = {f"module.{name}": value for name, value in saved["state_dict"].items()}
    fk.importers.load_(outer, {"model": state, "cfg": RATES})
    assert torch.equal(outer["module"].fc.weight, effective(net.fc))


def test_wrappers_leave_no_trace_in_names():
    net, saved = jackpot_2021()
    model = nn.DataParallel(Net()).eval()
    fk.importers.load_(model, saved)
    torch.testing.assert_close(model(X), net(X))


def test_safetensors(tmp_path):
    net = masked_net(Slt, scaling="dynamic")
    save_file(net.state_dict(), tmp_path / "net.bin")
    model = Net().eval()
    report = fk.importers.load_(model, str(tmp_path / "net.bin"))
    assert report.layout == "slt"
    torch.testing.assert_close(model(X), net(X))


def test_a_classifier_of_1x1_convolutions_fits_a_linear_layer():
    net, saved = jackpot_2021()
    for name in ("fc.weight", "fc.mask"):
        saved["state_dict"][name] = saved["state_dict"][name][..., None, None]
    model = Net().eval()
    fk.importers.load_(model, saved)
    torch.testing.assert_close(model(X), net(X))
    saved["state_dict"]["fc.weight"] = torch.zeros(5, 108, 1, 2)
    saved["state_dict"]["fc.mask"] = torch.zeros(5, 108, 1, 2)
    refuse(saved, r"'fc.weight': \[5, 108, 1, 2\] in the file, \[5, 108\] in the model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_keep_the_dtype_of_the_file(dtype):
    net = masked_net(HiddenNetworks)
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in net.state_dict().items()}
    model = Net().eval()
    report = fk.importers.load_(model, state, sparsity=0.7)
    assert {layer.values for layer in report.layers} == {str(dtype).split(".")[1]}
    assert model.fc.values.dtype == dtype and model.fc.weight.dtype == torch.float32
    kept = model.fc.keep_mask()
    assert torch.equal(model.fc.weight[kept], state["fc.weight"][kept].float())


# sparsities and rates


def test_a_sparsity_means_one_minus_the_decimal_that_their_prune_rate_is():
    for thousandth in range(1001):
        kept = thousandth / 1000
        for sparsity in (1 - kept, (1000 - thousandth) / 1000):
            for count in (100, 150, 250, 864, 1728, 36864, 1_000_000):
                assert dropped(sparsity, count) == int((1 - kept) * count), (sparsity, count)


def test_a_sparsity_by_layer():
    net = masked_net(HiddenNetworks)
    model = Net().eval()
    fk.importers.load_(model, net.state_dict(), sparsity={"conv1": 0.9, "conv2": 0.0, "fc": 1.0})
    kept = {name: getattr(model, name).counts["kept"] for name in LAYERS}
    assert kept == {"conv1": 216 - 194, "conv2": 12 * 4 * 9, "fc": 0}
    assert not model.fc.weight.any() and torch.equal(model(X), net.fc.bias.expand(4, 5))
    match = "sparsity: one for each layer that the file masks; missing: conv2, fc; no such layer: 'conv3'"
    refuse(net.state_dict(), match, sparsity={"conv1": 0.5, "conv3": 0.5})


def test_what_a_file_does_not_say_is_asked_for():
    hidden, (_, old) = masked_net(HiddenNetworks).state_dict(), jackpot_2021()
    refuse(hidden, "^state: sparsity: .*give sparsity=.*1 - prune_rate")
    refuse(old["state_dict"], "^state: sparsity: .*'cfg'.*give sparsity=")
    refuse(old | {"cfg": RATES[:2]}, "'cfg': a list of 3 rates, one for each layer with a mask, got 2 entries")
    refuse(old | {"cfg": [0.1, 1.5, 0]}, "'cfg', rate of 'conv2': a number in .0, 1., got 1.5")
    for wrong in (1.5, -0.1, True, "0.5", float("nan")):
        refuse(hidden, "sparsity: a number in", sparsity=wrong)


def test_settings_that_a_layout_does_not_take_are_refused():
    pruned, slt = pruned_net().state_dict(), masked_net(Slt).state_dict()
    refuse(pruned, "sparsity: 0.5 given, but a file of layout torch-prune takes nothing", sparsity=0.5)
    refuse(slt, "fixed: True given, but a file of layout slt takes scaling", fixed=True)
    for name, value in {"layout": "slt2", "scaling": "dynamical", "fixed": 1}.items():
        with pytest.raises(ValueError, match=f"{name}: .*{value!r}"):
            fk.importers.load_(Net(), slt, **{name: value})


def test_a_sparsity_replaces_cfg():
    _, saved = jackpot_2021()
    model = Net()
    report = fk.importers.load_(model, saved, sparsity=0.5)
    assert {layer.kept * 2 for layer in report.layers} == {layer.count for layer in report.layers}
    assert "by |mask| and sparsity 0.5" in str(report)


def test_a_product_that_rounds_down_keeps_one_weight_more_as_published():
    rate = 29 / 100
    assert int(rate * 100) == 28
    net = nn.Sequential(nn.Linear(10, 10, bias=False))
    saved = {"0.weight": net[0].weight, "0.mask": torch.randn(10, 10)}
    fk.importers.load_(net, {"state_dict": saved, "cfg": [rate]})
    assert net[0].counts["kept"] == 72


def test_equal_scores_fall_in_flattened_order_and_the_report_says_so():
    _, saved = jackpot_2021()
    saved["state_dict"]["conv1.mask"] = torch.ones(8, 3, 3, 3)
    model = Net()
    report = fk.importers.load_(model, saved)
    keep = model.conv1.keep_mask().flatten()
    assert not keep[: int(0.29 * 216)].any() and keep[int(0.29 * 216) :].all()
    assert [line.split(":")[0] for line in report.recomputed if "equal at the border" in line] == ["conv1"]


def test_fixed_masks():
    _, net, saved, _ = written()["fixed"]
    zeros = int((net.conv1.scores == 0).sum())
    refuse(saved, f"sparsity: 0.9, but the fixed mask of 'conv1' has .*: {zeros} zeros of 216", sparsity=0.9)
    share = {n: float((getattr(net, n).scores == 0).float().mean()) for n in LAYERS}
    assert fk.importers.load_(Net(), saved, sparsity=share, fixed=True).recomputed == []
    report = fk.importers.load_(Net(), saved, sparsity=0.5, fixed=False)
    assert len(report.recomputed) == 3 and report.kept * 2 == report.weights
    searched = masked_net(HiddenNetworks).state_dict()
    refuse(searched, "'conv1.scores': 216 of 216 values are neither 0 nor 1", fixed=True)


# slt: what a forward left


def test_a_stale_mask_and_its_scale_are_made_anew_and_reported():
    net = masked_net(Slt, scaling="dynamic")
    with torch.no_grad():
        net.conv1.score.mul_(3)  # a step after the last forward
    state = {name: value.clone() for name, value in net.state_dict().items()}
    old, scale = state["conv1.mask"], float(state["conv1.scale"])
    model = Net().eval()
    report = fk.importers.load_(model, state)
    torch.testing.assert_close(model(X), net(X))
    assert torch.equal(model.conv1.weight, effective(net.conv1))
    moved = int((old != net.conv1.mask).sum())
    assert moved and report.stale == [
        f"conv1.mask: {moved} of 216 values are not what the scores give",
        f"conv1.scale: {scale:g} in the file, {float(net.conv1.scale):g} now",
    ]
    assert "outdated in the file and not used:" in str(report)


def test_a_score_at_the_threshold_is_dropped():
    net = masked_net(Slt)
    net.conv1.ternary_frozen_mask.zero_()
    with torch.no_grad():
        net.conv1.score.copy_(torch.arange(216.0).view(8, 3, 3, 3) - 100)
    net.conv1.kthvalue.fill_(50)
    model = Net()
    fk.importers.load_(model, net.state_dict())
    assert model.conv1.counts["kept"] == 50 + 65 and not model.conv1.keep_mask().flatten()[[50, 150]].any()


def test_no_scaling_is_asked_for_where_the_scales_tell():
    for scaling in ("none", "static", "dynamic"):
        state = masked_net(Slt, scaling=scaling).state_dict()
        report = fk.importers.load_(Net(), state)
        assert all(f"by scaling '{scaling}'" in line for line in report.recomputed), scaling
        other = fk.importers.load_(Net(), state, scaling="static" if scaling != "static" else "none")
        assert len(other.stale) == 3 and all(".scale" in line for line in other.stale)


@pytest.mark.parametrize("scaling", ["static", "dynamic"])
def test_the_shape_of_a_scale_tells_where_each_layer_has_the_sparsity_of_all(scaling):
    net = masked_net(Slt, scaling=scaling, sparsity=0.5)
    with torch.no_grad():
        for name in LAYERS:
            layer = getattr(net, name)
            layer.ternary_frozen_mask.zero_()
            layer.score.copy_(torch.arange(layer.score.numel()).view_as(layer.score) % 2)
        net(X)
        net.fc.score[:2] = 1.0
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert all(float(state[f"{name}.scale"]) == float(1 / torch.tensor(0.5).sqrt()) for name in LAYERS)
    model = Net().eval()
    report = fk.importers.load_(model, state)
    torch.testing.assert_close(model(X), net(X))
    assert [line.split(":")[0] for line in report.stale] == ["fc.mask", "fc.scale"][: 1 + (scaling == "dynamic")]


def test_scales_that_no_forward_wrote_are_asked_for():
    net = masked_net(Slt, scaling="static")
    for name in LAYERS:
        getattr(net, name).scale = torch.tensor([1.0])
        getattr(net, name).local_sparsity = torch.tensor([0.6])
    state = {name: value.clone() for name, value in net.state_dict().items()}
    refuse(state, "^state: scaling: .*give scaling=, one of none, static, dynamic")
    model = Net().eval()
    fk.importers.load_(model, state, scaling="static")
    torch.testing.assert_close(model(X), net(X))


def test_a_layer_that_keeps_nothing_is_zero_under_dynamic_scaling():
    net = masked_net(Slt, scaling="dynamic")
    net.conv2.ternary_frozen_mask.fill_(-1)
    net(X)
    state = net.state_dict()
    assert state["conv2.scale"].isinf()
    model = Net().eval()
    report = fk.importers.load_(model, state)
    assert model.conv2.counts["kept"] == 0 and not model.conv2.weight.any() and model(X).isfinite().all()
    assert report.stale == ["conv2.scale: inf in the file, 1 now"]


# what does not fit


def edited(name, change):
    """The file of a case with its state changed."""
    _, _, saved, settings = written()[name]
    state = dict(saved.get("state_dict", saved))
    change(state)
    return ({**saved, "state_dict": state} if "state_dict" in saved else state), settings


def put(key, value):
    return lambda state: state.__setitem__(key, value(state[key]) if callable(value) else value)


def nan_at(*where):
    def change(value):
        value = value.clone()
        value[where] = torch.nan
        return value

    return change


WRONG = [
    ("hidden", lambda s: s.pop("fc.bias"), "missing in the file: fc.bias; not in the model: nothing"),
    ("hidden", lambda s: s.pop("conv1.weight"), "missing in the file: conv1.weight; not in the model: conv1.scores"),
    ("hidden", put("extra.weight", torch.ones(2)), "missing in the file: nothing; not in the model: extra.weight"),
    ("hidden", put("conv1.scores", torch.ones(8, 3)), r"conv1.scores': \[8, 3\], but 'conv1.weight' .* \[8, 3, 3, 3\]"),
    ("hidden", put("conv1.scores", nan_at(0, 1, 2, 2)), "'conv1.scores': NaN at 1 of 216 scores, expected none"),
    ("hidden", put("conv1.scores", lambda v: v.to(torch.int32)), "'conv1.scores': floating scores, got torch.int32"),
    ("hidden", put("conv1.weight", nan_at(0, 0)), "'conv1.weight': 9 of 216 weights are not finite"),
    ("hidden", put("fc.weight", lambda v: v.double()), "'fc.weight': torch.float64; stored values are float32"),
    ("hidden", put("fc.bias", torch.ones(4)), r"'fc.bias': \[4\] in the file, \[5\] in the model"),
    ("hidden", put("fc.bias", torch.ones(5).long()), "'fc.bias': torch.int64 in the file, torch.float32 in the model"),
    ("hidden", put("bn1.num_batches_tracked", torch.tensor(1.0)), "float32 in the file, torch.int64 in the model"),
    ("hidden", put("fc.bias", torch.ones(5).to_sparse()), "'fc.bias': a strided tensor with memory, got .*sparse"),
    ("hidden", put("fc.bias", lambda v: v.to("meta")), "fc.bias.: a strided tensor with memory, got .*meta"),
    ("hidden", put("fc.bias", [0.0] * 5), "'fc.bias': a tensor under a name, got list"),
    ("jackpot-2021", put("conv1.mask", nan_at(0, 0, 0)), "'conv1.mask': NaN at 3 of 216"),
    ("jackpot-2023", put("fc.b_mask", lambda v: v * 0.5), "'fc.b_mask': .* of 540 values are neither 0 nor 1"),
    ("jackpot-2023", lambda s: s.pop("fc.mask"), "'fc.mask': missing beside 'fc.b_mask'"),
    ("pruned", put("conv1.weight_mask", nan_at(0, 0, 0)), "'conv1.weight_mask': 3 of 216 values are neither 0 nor 1"),
    ("pruned", put("conv2.bias_mask", torch.ones(3)), r"'conv2.bias_mask': \[3\], but what it masks is \[12\]"),
    ("slt-none", lambda s: s.pop("fc.kthvalue"), r"missing: \['fc.kthvalue'\]"),
    ("slt-none", put("fc.kthvalue", torch.tensor([torch.nan])), "'fc.kthvalue': one number, got .*nan"),
    ("slt-none", put("fc.ternary_frozen_mask", lambda v: v * 2), "'fc.ternary_frozen_mask': .* none of -1, 0 and 1"),
    ("slt-none", put("fc.score", nan_at(1)), "'fc.score': NaN at 108 of 540"),
    ("slt-none", put("fc.mask", torch.ones(5)), r"'fc.mask': \[5\], but 'fc.weight' in the same file is \[5, 108\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "match"), WRONG)
def test_what_does_not_fit_changes_nothing(name, change, match):
    saved, settings = edited(name, change)
    refuse(saved, match, **settings)


def test_a_layout_that_names_do_not_tell_is_asked_for():
    plain = Net().state_dict()
    refuse(plain, "layout: the names in the file are those of no layout; give layout=, one of hidden-networks, slt")
    refuse({}, "^state: no tensors$")
    both = {"a.weight": torch.ones(3, 4), "a.mask": torch.ones(3, 4)}
    both |= {"b.weight_orig": torch.ones(2, 2), "b.weight_mask": torch.ones(2, 2)}
    refuse(both, "those of jackpots-2021 and torch-prune; give layout=")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Linear(4, 3), "model: a bare Linear has no name in a file"),
        (fk.nn.FrozenLinear(4, 3), "model: a bare FrozenLinear has no name in a file"),
        (nn.Sequential(fk.nn.FrozenLinear(4, 3)), "model: 0 frozen already; load into a plain torch model"),
        (nn.Sequential(nn.LazyLinear(3)), "model: '0.weight' is lazy"),
    ],
)
def test_models_that_are_not_plain(model, match):
    with pytest.raises(ValueError, match=match):
        fk.importers.load_(model, jackpot_2021()[1])


def test_a_model_without_memory():
    with pytest.raises(ValueError, match=r"model: 'conv1\.weight' is on the meta device; give it memory"):
        fk.importers.load_(Net().to("meta"), jackpot_2021()[1])


# files


class Hostile:
    """A pickle that would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("archive", [True, False])
def test_no_code_of_a_file_runs(tmp_path, archive, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    _, saved = jackpot_2021()
    saved["optimizer"] = Hostile(str(tmp_path / "made"))
    path = tmp_path / "hostile.pt"
    if archive:
        torch.save(saved, path)
    else:
        path.write_bytes(pickle.dumps(saved, protocol=2))
    said = refuse(path, "hostile.pt: not read: neither safetensors nor")
    assert said.startswith(str(path)) and os.listdir(tmp_path) == ["hostile.pt"]


def test_files_that_are_none(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(FileNotFoundError, match=r"file\.pt"):
        fk.importers.load_(Net(), path)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        fk.importers.load_(Net(), tmp_path)
    for content in (b"", b"PK\3\4", b"\x80\x02", bytes(100), b"\x00" * 8 + b"{"):
        path.write_bytes(content)
        refuse(path, r"file\.pt: n")
    torch.save(torch.ones(3), path)
    refuse(path, "a mapping of names to tensors, got Tensor")
    torch.save({"state_dict": {"a.weight": 3}}, path)
    refuse(path, "'a.weight': a tensor under a name, got int")
    with pytest.raises(TypeError, match="path_or_state: a path or a mapping, got int"):
        fk.importers.load_(Net(), 3)


# layers that are shared, or that no frozen layer stands for


class Shared(nn.Module):
    """One module under two names, and two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again, self.b.weight = self.a, self.a.weight

    def forward(self, x):
        return self.b(self.a(x)) + self.again(x)


def test_layers_under_several_names():
    net = Shared()
    state = {}
    for name in ("a", "again", "b"):
        state |= {f"{name}.weight": net.a.weight, f"{name}.mask": torch.arange(36.0).view(6, 6).cos()}
        state |= {f"{name}.bias": getattr(net, name).bias}
    model = Shared()
    report = fk.importers.load_(model, state, sparsity=0.5)
    assert model.again is model.a and [layer.name for layer in report.layers] == ["a", "b"]
    assert torch.equal(model.a.weight, model.b.weight) and int((model.a.weight != 0).sum()) == 18
    unequal = state | {"again.mask": torch.arange(36.0).view(6, 6)}
    refuse(unequal, "'a' and 'again': one weight in the model, but not the same in the file", Shared(), sparsity=0.5)
    dense = {name: value for name, value in state.items() if name != "b.mask"}
    refuse(
        dense, "'b.weight' and 'a.weight': one tensor in the model, but not the same in the file", Shared(),
        sparsity=0.5,
    )  # fmt: skip


class Attending(nn.Module):
    """A weight that is read and not called, one in three, and embeddings."""

    def __init__(self):
        super().__init__()
        self.table, self.padded = nn.Embedding(7, 8), nn.Embedding(7, 8, padding_idx=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 4, 3)

    def forward(self, tokens):
        x = self.table(tokens) + self.padded(tokens)
        return self.up(self.attention(x, x, x)[0].transpose(1, 2))


def test_masked_weights_that_no_frozen_layer_holds_are_loaded_with_zeros():
    net = Attending().eval()
    with torch.no_grad():
        net.padded.weight[2] = 1.0
    for module, name in (
        (net.table, "weight"), (net.padded, "weight"), (net.attention, "in_proj_weight"),
        (net.attention.out_proj, "weight"), (net.up, "weight"),
    ):  # fmt: skip
        prune.random_unstructured(module, name, 0.5)
    model = Attending().eval()
    report = fk.importers.load_(model, net.state_dict())
    assert [layer.name for layer in report.layers] == ["table", "attention.out_proj", "up"]
    assert {name: why.split(" ")[0] for name, why in report.dense} == {"padded": "row"}
    assert isinstance(model.attention, fk.nn.FrozenMultiheadAttention)  # it calls the one, and has the other
    assert isinstance(model.attention._parameters["in_proj_weight"], nn.Parameter)
    assert "loaded as dense tensors with zeros:\n  padded: row 2 of padding" in str(report)
    tokens = torch.tensor([[0, 2, 5, 6], [1, 2, 3, 4]])
    torch.testing.assert_close(model(tokens), net(tokens))
    assert torch.equal(model.padded.weight, net.padded.weight)


def test_hooks_and_modes_stay():
    model, calls = Net(), []
    model.conv1.register_forward_hook(lambda *call: calls.append(call[0]))
    model.bn1.eval()
    fk.importers.load_(model, jackpot_2021()[1])
    model(X)
    assert calls == [model.conv1] and isinstance(model.conv1, fk.nn.FrozenConv2d)
    assert model.training and model.conv1.training and not model.bn1.training


def test_the_report_names_what_was_loaded():
    text = str(fk.importers.load_(Net(), {"state_dict": pruned_net().state_dict()}))
    assert text.startswith("state: layout torch-prune; 388 of 648 weights kept, layers frozen: 2\n")
    assert "  conv1: FrozenConv2d[8, 3, 3, 3], 39.8% kept, values in float32\n" in text
    assert "masked in the file, loaded as dense tensors with zeros:\n  bn1: BatchNorm2d has no frozen twin" in text
