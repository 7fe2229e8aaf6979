"""Loaders of the training examples: on small files of the published formats, and on wrong ones."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_files import make_arxiv, make_cifar10, make_cifar100, make_imagenet, write_csv, write_pickle

import frozen_kernels as fk
from examples.training import checkpoint, graphs, images, settings
from examples.training.batches import Plan
from examples.training.draws import AUGMENT, draws, order, split, uniforms
from examples.training.gin import GIN, undirected
from examples.training.models import MODELS, Padded, build
from frozen_kernels.convert.distribution import layer_ratios

CPU = torch.device("cpu")
CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))
# published: Zhou et al. 2019 (without biases); the ResNets by He et al. without affine batch norm and biases; with them
# torchvision's ResNet-50, the ResNet-32 of 1.85 M weights by Zhang et al. and the VGG-19 of 20.04 M
WEIGHTS = {
    "conv2": 4_300_992, "conv4": 2_425_024, "conv6": 2_261_184, "conv8": 5_275_840, "resnet18": 11_164_352,
    "resnet34": 21_265_088, "resnet50": 25_502_912, "wide_resnet50_2": 68_814_016, "digits": 389_600,
    "digits_half": 98_032, "vgg19": 20_035_018, "resnet32_wide": 1_849_898, "resnet50_affine": 25_557_032,
}  # fmt: skip
INPUTS = dict.fromkeys(("resnet50", "wide_resnet50_2", "resnet50_affine"), (2, 3, 224, 224))
INPUTS |= dict.fromkeys(("digits", "digits_half"), (2, 1, 8, 8))
PRE_TRAINED = ("vgg19", "resnet32_wide", "resnet50_affine")  # these have vectors too


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small CIFAR-10, CIFAR-100, ImageNet and OGBN-Arxiv in one folder; not to be written to."""
    root = tmp_path_factory.mktemp("data")
    make_cifar10(root)
    make_cifar100(root)
    make_imagenet(root / "imagenet")
    make_arxiv(root)
    return root


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_papers_weights_and_nothing_else(name):
    with torch.device("meta"):
        model = build(name, 1000 if INPUTS.get(name, ())[-1:] == (224,) else 10)
        outputs = model(torch.empty(INPUTS.get(name, (2, 3, 32, 32))))
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[name]
    assert all(p.dim() > 1 for p in model.parameters()) == (name not in PRE_TRAINED) and outputs.shape[0] == 2


def test_a_shortcut_without_weights_halves_the_image_and_pads_channels():
    x = torch.arange(2 * 2 * 4 * 4).view(2, 2, 4, 4)
    y = Padded(2, 4)(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2]) and not y[:, [0, 3]].any() and y.shape == (2, 4, 2, 2)


def test_another_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\.name: one of conv2, .* got 'vgg'"):
        build("vgg", 10)


def test_draws_are_pure_and_spread():
    indices = np.array([5, 0, 123_456])
    words = draws(AUGMENT, 1, 2, indices, 41)
    assert np.array_equal(words[1], draws(AUGMENT, 1, 2, np.array([0]), 41)[0])
    others = [draws(AUGMENT, 1, 3, indices, 41), draws(AUGMENT, 2, 2, indices, 41), draws(0, 1, 2, indices, 41)]
    assert all(not (words == other).any() for other in others)
    numbers = uniforms(AUGMENT, 0, 0, np.arange(20_000), 5)
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.01 and numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.corrcoef(numbers.T) - np.eye(5)).max() < 0.04
    assert sorted(order(0, 7, 3, 1000)) == list(range(1000))
    kept, held = split(50_000, 0.2, 0)
    assert len(kept) == 40_000 and sorted([*kept, *held]) == list(range(50_000))


def test_cifar_is_read_as_it_was_written(files):
    train, test = images.cifar10(files, 10, 0)
    again, _ = images.cifar10(files / "cifar-10-batches-py", 10, 0)
    assert np.array_equal(train.images, again.images) and (len(train), len(test)) == (40, 8)
    raw = pickle.loads((files / "cifar-10-batches-py" / "data_batch_2").read_bytes(), encoding="bytes")
    x, y = train.batch(np.arange(8, 16), None)
    assert y.tolist() == raw[b"labels"] and y.dtype == torch.int64
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.491, 0.482, 0.447], [0.247, 0.243, 0.262]))
    expected = (torch.tensor(raw[b"data"].reshape(8, 3, 32, 32)) / 255 - mean) / std
    assert torch.allclose(x, expected, atol=1e-6)
    train, test = images.cifar100(files, 100, 0)
    raw = pickle.loads((files / "cifar-100-python" / "test").read_bytes(), encoding="bytes")
    assert (len(train), len(test)) == (20, 10) and test.batch(np.arange(10), None)[1].tolist() == raw[b"fine_labels"]


def test_a_crop_is_a_window_of_the_padded_image_and_depends_on_the_item_alone(files):
    train, _ = images.cifar10(files, 10, 3)
    chosen = np.arange(40)
    x, _ = train.batch(chosen, 4)
    assert torch.equal(train.batch(chosen[[7]], 4)[0][0], x[7]) and not torch.equal(train.batch(chosen, 5)[0], x)
    words = draws(AUGMENT, 3, 4, chosen, 3)
    crops = images.crop_and_flip(train.images, words)
    mirrored = 0
    for image, (row, column, _), crop in zip(train.images, words, crops, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        window = padded[:, int(row % 9) : int(row % 9) + 32, int(column % 9) : int(column % 9) + 32]
        flipped = not np.array_equal(window, crop)
        mirrored += flipped
        assert np.array_equal(window[:, :, ::-1] if flipped else window, crop)
    assert 10 < mirrored < 30 and len({int(w % 9) for w in words[:, 0]}) > 5


def test_a_share_is_held_out_and_keeps_the_crops_of_the_whole(files):
    train, test = images.cifar10(files, 10, 0)
    data = images.with_validation(train, test, 0.2, 0)
    assert (len(data.train), len(data.held_out["validation"])) == (32, 8)
    kept, held = split(40, 0.2, 0)
    assert torch.equal(data.train.batch(np.array([3]), 1)[0], train.batch(kept[[3]], 1)[0])
    assert torch.equal(data.held_out["validation"].batch(np.arange(8), None)[1], torch.from_numpy(train.labels[held]))
    with pytest.raises(ValueError, match=r"data\.validation: 0\.99 of 40 items leaves 0"):
        images.with_validation(train, test, 0.99, 0)


def test_imagenet_is_cropped_in_training_and_centred_in_evaluation(files):
    train, test = images.imagenet(files / "imagenet", 2, 0)
    x, y = test.batch(np.arange(4), None)
    assert x.shape == (4, 3, 224, 224) and x.dtype == torch.float32 and y.tolist() == [0, 0, 1, 1]
    with Image.open(test.files[3]) as file:  # 56 x 40
        whole = torch.tensor(np.asarray(file.resize((358, 256), Image.Resampling.BILINEAR)))
    mean, std = (torch.tensor(values) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert torch.allclose(x[3].permute(1, 2, 0), (whole[16:240, 67:291] / 255 - mean) / std, atol=1e-6)
    crops, _ = train.batch(np.arange(4), 1)
    again, other = (train.batch(np.array([2]), epoch)[0][0] for epoch in (1, 2))
    assert torch.equal(again, crops[2]) and not torch.equal(other, crops[2])
    numbers = uniforms(AUGMENT, 0, 0, np.arange(2000), 40).reshape(-1, 10, 4)
    sizes = np.array([images.random_box((500, 375), n) for n in numbers])
    width, height = sizes[:, 2] - sizes[:, 0], sizes[:, 3] - sizes[:, 1]
    assert sizes.min() >= 0 and sizes[:, 2].max() == 500 and sizes[:, 3].max() == 375
    area, ratio = width * height / (500 * 375), width / height
    assert 0.079 < area.min() < 0.1 and area.max() > 0.9 and 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    # nothing fits a strip: the largest crop in its middle
    assert images.random_box((1000, 10), np.full((10, 4), 0.999)) == (493, 0, 506, 10)


def test_digits_are_split_once():
    train, test = images.digits()
    assert (len(train), len(test)) == (1437, 360) and train.batch(np.array([3, 4]), 9)[0].shape == (2, 1, 8, 8)


def test_the_graph_is_undirected_and_each_edge_stands_once(files):
    data = graphs.ogbn_arxiv(files, 3, 5, CPU)
    given = np.loadtxt(files / "ogbn_arxiv" / "raw" / "edge.csv.gz", dtype=int, delimiter=",")
    both = {(a, b) for a, b in given.tolist()} | {(b, a) for a, b in given.tolist()}
    assert list(map(tuple, data.edges.T.tolist())) == sorted(both)
    assert data.train.labels_each == 18 and data.nodes == 30
    assert {name: part.labels_each for name, part in data.held_out.items()} == {"validation": 6, "test": 6}
    x, y = data.held_out["test"].batch(np.zeros(1, np.int64), None)
    assert x.shape == (30, 5) and (y[:24] == -100).all() and (y[24:] >= 0).all()
    assert torch.equal(undirected(torch.tensor([[0, 2, 1], [1, 2, 0]]), 3), torch.tensor([[0, 1, 2], [1, 0, 2]]))


def dense_gin(model: GIN, h: torch.Tensor, edges: torch.Tensor, nodes: int) -> torch.Tensor:
    """The published definition with a dense matrix, in the dtype of h."""
    adjacency = torch.zeros(nodes, nodes, dtype=h.dtype)
    adjacency[edges[1], edges[0]] = 1
    adjacency /= adjacency.sum(1, keepdim=True).clamp(min=1)
    hidden = []
    for layer in model.layers:
        h = (h + adjacency @ h) @ layer.linear.weight.to(h.dtype).T
        h = torch.relu((h - h.mean(0)) / (h.var(0, unbiased=False) + layer.norm.eps).sqrt())
        hidden.append(h)
    return (hidden[-2] @ model.prediction.weight.to(h.dtype).T + hidden[-1]) / 2


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_gin_is_the_published_definition():
    model = GIN(5, 3, hidden=16)
    edges = torch.tensor([[0, 1, 2, 3, 3, 5], [1, 0, 1, 1, 4, 5]])  # directed; 2 and 3 hear from nobody, 5 from itself
    model.attach(edges, 7)
    x = torch.randn(7, 5, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    y, expected = model(x), dense_gin(model, exact, edges, 7)
    assert torch.allclose(y.double(), expected, atol=1e-5)
    upstream = torch.randn(7, 3)
    gradients = torch.autograd.grad(y, [x, model.layers[0].linear.weight], upstream)
    wanted = torch.autograd.grad(expected, [exact, model.layers[0].linear.weight], upstream.double())
    assert all(torch.allclose(a.double(), b.double(), atol=1e-4) for a, b in zip(gradients, wanted, strict=True))
    shapes = [tuple(p.shape) for p in GIN(128, 40).parameters()]
    assert shapes == [(386, 128), (386, 386), (386, 386), (40, 386), (40, 386)]
    assert not [name for name in model.state_dict() if "norm" not in name and "weight" not in name]
    with pytest.raises(RuntimeError, match="attach a graph"):
        GIN(5, 3)(x)
    with pytest.raises(ValueError, match="edges: nodes from 0 to 4, got 0 to 5"):
        model.attach(edges, 5)


def test_steps_do_not_depend_on_how_many_processes_share_them(files):
    train, _ = images.cifar10(files, 10, 0)
    alone = Plan(train, 12, accumulate=2)
    both = [Plan(train, 12, accumulate=2, rank=rank, world=2) for rank in (0, 1)]
    assert alone.steps == 3  # 40 = 3 * 12 + 4: a rest of less than half is left out
    steps = [list(alone.train(5, 2)), *(list(plan.train(5, 2)) for plan in both)]
    for (whole, labels), (first, _), (second, count) in zip(*steps, strict=True):
        assert labels == count == 12 and len(whole) == len(first) == 2
        for (x, y), (a, b), (c, d) in zip(whole, first, second, strict=True):
            assert torch.equal(x, torch.cat([a, c])) and torch.equal(y, torch.cat([b, d]))
    assert [labels for _, labels in Plan(train, 15).train(0, 0)] == [15, 15, 10]
    resumed = list(alone.train(5, 2, start=2))
    assert len(resumed) == 1 and torch.equal(resumed[0][0][1][0], steps[0][2][0][1][0])
    both[0].check_training()
    with pytest.raises(ValueError, match=r"data\.batch: 9 leaves a batch of 6 images, too few for 2 passes of 2 proc"):
        Plan(images.with_validation(train, train, 0.4, 0).train, 9, accumulate=2, world=2).check_training()


def test_workers_bring_the_same_batches_in_order(files):
    train, test = images.imagenet(files / "imagenet", 2, 0)
    before = torch.get_rng_state()
    here, there = list(Plan(train, 2).train(0, 1)), list(Plan(train, 2, workers=2).train(0, 1))
    for (mine, _), (other, _) in zip(here, there, strict=True):
        assert torch.equal(mine[0][0], other[0][0]) and torch.equal(mine[0][1], other[0][1])
    assert torch.equal(torch.get_rng_state(), before)
    slices = [list(Plan(test, 3, rank=rank, world=2).evaluate()) for rank in (0, 1)]
    labels = [y for part in slices for batches, _ in part for _, y in batches]
    # the last batch is one image: the second process has a stand-in without a label
    assert [y.tolist() for y in labels] == [[0, 0], [1], [1], [-100]]


def config(name: str) -> Path:
    return CONFIGS[0].with_name(f"{name}.yaml")


def change(path: Path, **fields) -> None:
    found = pickle.loads(path.read_bytes(), encoding="bytes")
    write_pickle(path, found | {name.encode(): value for name, value in fields.items()})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("never",)


BATCH, META = "cifar-10-batches-py/data_batch_3", "cifar-10-batches-py/batches.meta"
# what is done to the files, and what the error says
WRONG_CIFAR = {
    "no folder": (shutil.rmtree, r"data\.path: .* is no folder; unpack cifar-10-python\.tar\.gz from https"),
    "no file": (lambda r: (r / BATCH).unlink(), r"data_batch_3: no such file; unpack cifar-10-python"),
    "truncated": (lambda r: truncate(r / BATCH), r"data_batch_3: truncated or not a batch"),
    "code": (lambda r: (r / BATCH).write_bytes(pickle.dumps(Evil())), r"data_batch_3: .*asks for \w+\.mkdir"),
    "list": (lambda r: (r / BATCH).write_bytes(pickle.dumps([1])), r"data_batch_3: a dict, got list"),
    "short": (lambda r: change(r / BATCH, labels=[1] * 7), r"data_batch_3: truncated, 8 images and 7 labels"),
    "few": (
        lambda r: change(r / BATCH, labels=[1], data=np.zeros((1, 3072), np.uint8)),
        r"data_batch_3: truncated, 1 of 8 images",
    ),
    "width": (
        lambda r: change(r / BATCH, data=np.zeros((8, 3071), np.uint8)),
        r"data_batch_3: data must be uint8 \[N, 3072\], got uint8 \[8, 3071\]",
    ),
    "dtype": (lambda r: change(r / BATCH, data=np.zeros((8, 3072), np.int8)), r"got int8 \[8, 3072\]"),
    "text": (lambda r: change(r / BATCH, labels=[b"x"] * 8), r"data_batch_3: 'labels' must be a list of integers"),
    "nested": (lambda r: change(r / BATCH, labels=[[1]] * 8), r"data_batch_3: 'labels' must be a list of integers"),
    "names": (lambda r: change(r / META, label_names=3), r"model\.classes: 10, but .*batches\.meta has 0 classes"),
    "labels": (lambda r: change(r / BATCH, labels=[3] * 7 + [10]), r"data_batch_3: labels from 0 to 9, got 3 to 10"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CIFAR)
def test_wrong_batches_are_named(name, tmp_path, monkeypatch):
    spoil, message = WRONG_CIFAR[name]
    root = tmp_path / "root"
    make_cifar10(root)
    monkeypatch.chdir(tmp_path)
    spoil(root)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        images.cifar10(root, 10, 0)
    assert not (tmp_path / "never").exists()


def test_wrong_numbers_of_classes_are_named(files):
    with pytest.raises(ValueError, match=r"model\.classes: 100, but .*batches\.meta has 10 classes"):
        images.cifar10(files, 100, 0)
    with pytest.raises(ValueError, match=r"model\.classes: 10, but .*meta has 100 classes"):
        images.cifar100(files, 10, 0)
    with pytest.raises(ValueError, match=r"model\.classes: 1000, but .*imagenet has 2 classes"):
        images.imagenet(files / "imagenet", 1000, 0)
    for classes in (2, 4):
        with pytest.raises(
            ValueError, match=rf"model\.classes: {classes}, but .*label\.csv\.gz has labels from 0 to 2"
        ):
            graphs.ogbn_arxiv(files, classes, 5, CPU)


def test_wrong_folders_of_images_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"train: no such folder; ImageNet's images, from image-net.org, belong in .*/train/<wnid>",
    ):
        images.imagenet(tmp_path, 2, 0)
    root = make_imagenet(tmp_path / "imagenet", per_class=1)
    file = root / "train" / "n01443537" / "n01443537_0.JPEG"
    (root / "train" / ".cache").mkdir()
    assert len(images.imagenet(root, 2, 0)[0]) == 2
    truncate(file)
    with pytest.raises(ValueError, match=r"n01443537_0\.JPEG: not a readable image"):
        images.imagenet(root, 2, 0)[0].batch(np.array([1]), 0)
    file.unlink()
    with pytest.raises(ValueError, match=r"train/n01443537: empty, no \.jpeg"):
        images.imagenet(root, 2, 0)
    (root / "val" / "n01443537").rename(root / "val" / "n02")
    with pytest.raises(ValueError, match=r"train and val differ: n01443537, n02 in one of them only"):
        images.imagenet(root, 2, 0)
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    with pytest.raises(ValueError, match=r"val: empty, no class folders"):
        images.imagenet(root, 2, 0)


def csv(root: Path, name: str, rows: np.ndarray) -> None:
    write_csv(root / "ogbn_arxiv" / name, rows)


WRONG_ARXIV = {
    "no folder": (shutil.rmtree, r"data\.path: .* is no folder; unpack arxiv\.zip"),
    "no file": (lambda r: (r / "ogbn_arxiv/raw/edge.csv.gz").unlink(), r"edge\.csv\.gz: no such file; unpack"),
    "truncated": (lambda r: truncate(r / "ogbn_arxiv/raw/node-feat.csv.gz"), r"node-feat\.csv\.gz: truncated"),
    "text": (lambda r: csv(r, "raw/node-label.csv.gz", np.array(["x"] * 30)), r"not a table of int64"),
    "columns": (lambda r: csv(r, "raw/edge.csv.gz", np.zeros((9, 3), int)), r"edge\.csv\.gz: 2 columns, got 3"),
    "edges": (lambda r: csv(r, "raw/edge.csv.gz", np.zeros((9, 2), int)), r"9 rows, but num-edge-list.* says 120"),
    "ends": (lambda r: csv(r, "raw/edge.csv.gz", np.full((120, 2), 30)), r"nodes from 0 to 29, got 30 to 30"),
    "features": (lambda r: csv(r, "raw/node-feat.csv.gz", np.zeros((30, 4))), r"model\.features: 5, but .* has 4"),
    "nodes": (lambda r: csv(r, "raw/node-feat.csv.gz", np.zeros((29, 5))), r"29 rows, but num-node-list.* says 30"),
    "split": (
        lambda r: csv(r, "split/time/valid.csv.gz", np.array([31])),
        r"valid\.csv\.gz: nodes from 0 to 29, got 31",
    ),
    "empty": (
        lambda r: csv(r, "split/time/test.csv.gz", np.array([], int)),
        r"test\.csv\.gz: .*empty",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_ARXIV)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_wrong_graphs_are_named(name, tmp_path):
    spoil, message = WRONG_ARXIV[name]
    make_arxiv(tmp_path)
    spoil(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        graphs.ogbn_arxiv(tmp_path, 3, 5, CPU)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_published_settings_load_and_can_be_met(path):
    chosen = settings.load(path)
    held_out = path.stem.startswith(("cifar", "imagenet")) and not chosen.jackpot
    assert chosen.data.validation == (0.2 if held_out else 0)
    assert chosen.out == f"out/{path.stem}" and settings.load(path, ["seed=5"]).seed == 5
    if chosen.freeze is None:
        return
    dense = ["freeze=null", "jackpot=null"]
    assert settings.load(path, ["seed=5"]).freeze.seed == 5 and settings.load(path, dense).freeze is None
    with torch.device("meta"):
        name, classes, features = chosen.model.name, chosen.model.classes, chosen.model.features
        model = GIN(features, classes) if features else build(name, classes)
    shapes = [tuple(p.shape) for p in model.parameters()]
    ratios = layer_ratios(chosen.freeze.distribution, chosen.freeze.ratio_rule, shapes, *chosen.freeze.ratios)
    assert all(prune >= 0 and lock >= -1e-9 and prune + lock <= 1 + 1e-9 for prune, lock in ratios)
    if not path.stem.startswith("digits") and not chosen.jackpot:
        spread = "erk" if path.stem.startswith("cifar") else "epl"
        assert chosen.freeze.sparsity == 0.7 and chosen.freeze.distribution == spread


def test_the_papers_experiments_have_settings():
    names = {path.stem for path in CONFIGS}
    sources = ("dense", "dense_source", "sparse_source", "frozen")
    wanted = {f"cifar10-{model}-{source}" for model in ("conv6", "resnet18") for source in sources}
    wanted |= {"cifar100-resnet18", "cifar100-resnet34", "imagenet-resnet50", "imagenet-wide_resnet50_2"}
    jackpots = {f"cifar{classes}-{model}-jackpot" for classes in (10, 100) for model in ("vgg19", "resnet32_wide")}
    jackpots |= {"imagenet-resnet50-jackpot", "imagenet-resnet50-jackpot_tuned", "digits-jackpot"}
    assert names == wanted | jackpots | {"ogbn_arxiv-gin", "digits", "digits-sources"}
    sgd, adamw = (settings.load(config(name)) for name in ("imagenet-resnet50", "ogbn_arxiv-gin"))
    assert (sgd.optimizer.lr, sgd.optimizer.momentum, sgd.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert (sgd.data.batch, sgd.epochs, sgd.freeze.code, sgd.freeze.scaling) == (256, 100, "sign", "dynamic")
    assert (adamw.optimizer.name, adamw.optimizer.lr, adamw.optimizer.weight_decay) == ("adamw", 0.01, 0)
    assert (adamw.epochs, adamw.freeze.code, adamw.freeze.scaling) == (400, "uniform", "none")
    for name in jackpots - {"digits-jackpot"}:
        chosen, tuned = settings.load(config(name)), name.endswith("_tuned")
        decay, removed = (1e-4 if name.startswith("imagenet") else 5e-4), (0.8 if tuned else 0.9)
        assert chosen.optimizer == settings.Optimizer("sgd", 0.1, 0.9, decay)
        assert chosen.freeze == fk.FreezeConfig.preset("jackpot", sparsity=removed, rates="l1")
        assert (chosen.data.batch, chosen.epochs, chosen.jackpot.restriction) == (256, 30, "short")
        assert (chosen.jackpot.tune_epochs, chosen.jackpot.tune_lr) == (10 if tuned else 0, 0.01)


# what is set, and what the error says
WRONG_SETTINGS = {
    "epoch=3": "epoch: unknown, known here are model, data",
    "optimizer.nesterov=true": "optimizer.nesterov: unknown",
    "freeze.sparcity=0.5": "freeze.sparcity: unknown, known here are preset, seed",
    "epochs=ten": "epochs: a whole number, got 'ten'",
    "epochs=true": "epochs: a whole number, got True",
    "epochs=0": "epochs: at least 1, got 0",
    "data.batch=3.5": "data.batch: a whole number or null, got 3.5",
    "data.kind=mnist": "data.kind: one of digits, cifar10, cifar100, imagenet, ogbn_arxiv, got 'mnist'",
    "data.validation=1": r"data.validation: a share in \[0, 1\), got 1.0",
    "data.batch=null": "data.batch: images need one",
    "data.path=here": "data.path: digits come with scikit-learn",
    "model.name=resnet18": "model.name: resnet18 takes images of 32x32, data.kind is digits",
    "model.name=gin": "model.features: model gin needs it",
    "model=3": "model: a section, got 3",
    "optimizer.name=adamw": "optimizer.momentum: .* got 0.9 for adamw",
    "optimizer.lr=-1": "optimizer.lr: more than 0, got -1.0",
    "optimizer.lr=.inf": "optimizer.lr: more than 0, got inf",
    "freeze.preset=[1]": r"freeze.preset: text or null, got \[1\]",
    "amp=float16": "amp: one of None, bfloat16, got 'float16'",
    "parallel=mpi": "parallel: one of none, ddp, fsdp, got 'mpi'",
    "clip=0": "clip: more than 0, got 0.0",
    "freeze.preset=best": "freeze.preset: one of edge_popup",
    "freeze.lock_ratio=0.6": "freeze.sparsity: 0.5 is above 1 - lock_ratio = 0.4",
    "freeze.code=7": "freeze.code",
    "freeze=yes": "freeze: null or a section",
    "nothing": "--set: key=value with dots between sections, got 'nothing'",
    "epochs.more=3": "--set epochs.more=3: 'epochs' is no section",
}


@pytest.mark.parametrize("override", WRONG_SETTINGS)
def test_wrong_settings_are_named_with_their_file(override):
    with pytest.raises(settings.SettingsError, match=rf"digits\.yaml: ({WRONG_SETTINGS[override]})"):
        settings.load(config("digits"), [override])


def test_wrong_settings_files_are_named(tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(FileNotFoundError, match=r"a\.yaml: no such configuration file"):
        settings.load(path)
    for text, message in {
        "epochs: 3\nepochs: 4\n": "epochs is given twice", "- 1": r"sections and keys, got \[1\]", "{": "a.yaml:",
        "model: {name: conv6, classes: 10}": "data: missing",
    }.items():  # fmt: skip
        path.write_text(text)
        with pytest.raises(settings.SettingsError, match=message):
            settings.load(path)


def test_settings_are_plain_values_by_name():
    chosen = settings.load(config("digits"), ["optimizer.weight_decay=5e-4", "freeze.code=sign"])
    found = settings.flat(chosen)
    assert found["optimizer.weight_decay"] == 5e-4 and found["freeze.code"] == "sign" and found["clip"] is None
    assert chosen.freeze == fk.FreezeConfig.preset("frozen", code="sign", sparsity=0.5, freeze_ratio=0.7)
    assert set(checkpoint.FREE_TO_CHANGE) <= {*found, "jackpot.weights"}
    added = settings.load(
        config("cifar10-conv6-dense"), ["freeze.preset=dense_source", "freeze.sparsity=0.7", "seed=3"]
    )
    assert added.freeze == fk.FreezeConfig.preset("dense_source", sparsity=0.7, seed=3)
