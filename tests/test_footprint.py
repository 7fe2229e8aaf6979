"""`fk.footprint`: every figure against the file, the storages or the kernel that it speaks of."""

import json

import pytest
import torch
from torch import nn

import frozen_kernels as fk
from frozen_kernels.memory import footprint as module
from frozen_kernels.memory.footprint import Peak, storage_bytes


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32 * 16, 64), nn.Dropout()
    )


def frozen_net(**config) -> nn.Sequential:
    model = net()
    fk.freeze_(model, fk.FreezeConfig(**config))
    return model


def test_disk_is_the_size_of_the_ticket(tmp_path):
    model = frozen_net()
    found = fk.footprint(model).totals()["disk"]
    fk.save_ticket(model, tmp_path / "t.safetensors")
    assert found["total"] == (tmp_path / "t.safetensors").stat().st_size
    assert found["frozen"] == sum(-(-m.counts["free"] // 8) for m in model if isinstance(m, fk.nn.FrozenLayer))
    assert found["ordinary"] == 4 * (4 * 32 + 64) + 8  # batch norm, bias, and the number of batches


@pytest.mark.parametrize("residency", ["seed", "mask", "planes", "dense"])
def test_resident_is_what_the_layers_hold(residency):
    model = frozen_net()
    fk.finalize_(model)
    fk.set_residency(model, residency)
    found = fk.footprint(model)
    held = storage_bytes([*model.parameters(), *model.buffers()])
    assert found.totals()["resident"]["total"] == held
    linear = found.layers[1]
    words = 64 * 16 * 4
    header = 32
    expected = {
        "seed": -(-model[3].counts["free"] // 8) + 8 * 65,
        "mask": words,
        "planes": 2 * words,
        "dense": -(-model[3].counts["free"] // 8) + 4 * 64 * 512,
    }
    assert linear.resident == header + expected[residency]
    assert linear.dense == 4 * 64 * 512 and linear.residency == residency


def test_scores_are_told_apart_and_leave_with_finalize():
    model = frozen_net()
    before = fk.footprint(model)
    assert [x.scores for x in before.layers] == [4 * x.free for x in before.layers]
    assert "finalize_ drops them" in str(before)
    fk.finalize_(model)
    assert all(x.scores == 0 for x in fk.footprint(model).layers)


def test_a_view_counts_the_storage_that_it_keeps_alive():
    whole = torch.empty(1000)
    assert storage_bytes([whole[:1], whole[5:], None, torch.empty(3)]) == 4012


def test_a_shared_weight_counts_once():
    model = nn.ModuleList([nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)])
    model[1].weight = model[0].weight
    fk.freeze_(model)
    found = fk.footprint(model)
    assert found.weights == 64 * 64 and [x.shared for x in found.layers] == [False, True]
    assert found.layers[1].disk == found.layers[1].dense == found.layers[1].scores == 0


def test_json_holds_every_figure_of_the_table():
    found = fk.footprint(frozen_net())
    values = json.loads(found.to_json(indent=1))
    assert values["resident"] == found.totals()["resident"] and len(values["layers"]) == 2
    assert values["peak"] == {"bytes": None, "method": "not measured: no sample_input"}
    for kind in ("disk", "resident", "dense"):
        assert f"{values[kind]['total']:,}" in str(found)
        assert values["bits_per_weight"][kind] == found.bits(kind)


def test_a_model_without_frozen_layers_has_no_ticket():
    found = fk.footprint(net())
    assert found.metadata is None and found.totals()["disk"]["total"] is None and found.bits("disk") is None
    assert found.totals()["resident"]["total"] == sum(t.nbytes for t in net().state_dict().values())
    assert "total" in str(found)


def test_a_model_on_meta_is_counted_but_not_measured():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 32, bias=False))
    fk.freeze_(model)
    found = fk.footprint(model, torch.empty(1, 64, device="meta"))
    assert found.metadata is None and found.peak == Peak(None, "not measured on device type 'meta'")


class Wide(nn.Module):
    """A forward that holds 64 MiB for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x) + torch.ones(1 << 24).sum()


needs_proc = pytest.mark.skipif(not module.reset_peak(), reason="/proc/self/clear_refs is refused")


@needs_proc
def test_peak_sees_a_block_that_lives_for_a_moment_and_leaves_the_model_as_it_was():
    model = Wide().train()
    before = model.norm.running_mean.clone()
    peak = fk.footprint(model, torch.randn(4, 8)).peak
    # the kernel counts pages in batches
    assert 63 << 20 <= peak.bytes < 72 << 20 and "VmHWM" in peak.method
    assert model.training and model.norm.training and torch.equal(model.norm.running_mean, before)


@needs_proc
def test_peak_takes_a_tuple_of_arguments():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    assert fk.footprint(Two(), (torch.ones(1), torch.ones(1))).peak.bytes is not None


def test_peak_without_clear_refs_is_the_lifetime_peak_or_none(monkeypatch):
    monkeypatch.setattr(module, "reset_peak", lambda: False)
    resident = module._status("VmRSS")
    if resident is None:
        pytest.skip("no /proc/self/status")
    readings = iter([resident, resident + (100 << 20)])
    monkeypatch.setattr(module, "_lifetime_peak", lambda: next(readings))
    assert fk.footprint(nn.Identity(), torch.ones(1)).peak.bytes > 90 << 20
    monkeypatch.setattr(module, "_lifetime_peak", lambda: 1 << 40)
    hidden = fk.footprint(nn.Identity(), torch.ones(1)).peak
    assert hidden.bytes is None and "earlier peak" in hidden.method


def test_a_failing_forward_leaves_train_mode():
    model = nn.Sequential(nn.Linear(4, 4)).train()
    with pytest.raises(RuntimeError):
        fk.footprint(model, torch.ones(1, 3))
    assert model.training


class Tied(nn.Module):
    """Two layers of one weight, and one of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16, dtype=dtype) for _ in range(3))
        self.b.weight = self.a.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gain_is_float32_for_each_row_once_a_weight(dtype, tmp_path):
    model = Tied(dtype)
    fk.freeze_(model, fk.FreezeConfig(gain=(1.0, 2.0)), lambda module, name: True)
    fk.finalize_(model)
    assert model.a.gain is not None and model.b.gain is not None
    with_gain = fk.footprint(model)
    fk.save_ticket(model, tmp_path / "t.safetensors")
    assert [x.disk - -(-x.free // 8) for x in with_gain.layers if not x.shared] == [4 * 16, 4 * 16]
    assert with_gain.ordinary_disk == 3 * 16 * dtype.itemsize  # biases
    assert with_gain.totals()["disk"]["total"] == (tmp_path / "t.safetensors").stat().st_size
    for layer in (model.a, model.b, model.c):
        layer.gain = None
    # the same ticket but for the name of a feature and two tensors
    assert 0 < with_gain.metadata - fk.footprint(model).metadata < 500


@pytest.mark.parametrize("code", ["sign", "signs", "stored"])
def test_a_model_moved_to_meta_counts_all_weights_that_may_be_kept(code):
    model = nn.Sequential(nn.Linear(64, 32, bias=False))
    fk.freeze_(model, fk.FreezeConfig(code=code, seed=1), lambda module, name: True)
    if code == "sign":
        model[0].adopt_counts(torch.full((model[0].free,), 2, dtype=torch.uint8), coats=3)
    elif code == "signs":
        keep = torch.ones(64 * 32, dtype=torch.bool)
        keep[:100] = False
        packed = fk.format.pack_bits(keep)
        model[0].adopt_signs(packed, torch.zeros_like(packed))
    fk.finalize_(model)
    here, kept = fk.footprint(model), model[0].counts["kept"]
    meta = fk.footprint(model.to("meta"))
    layer = model[0]
    most = 64 * 32 - layer.pruned
    beside = {"sign": 2 * -(-most // 8), "signs": -(-most // 8), "stored": 4 * kept}
    assert meta.layers[0].disk == -(-layer.free // 8) + beside[code] >= here.layers[0].disk
    assert meta.metadata is None
