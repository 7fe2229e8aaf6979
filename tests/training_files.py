"""Small data sets in the formats that CIFAR, ImageNet and OGBN-Arxiv are published in."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np


class Python2Pickler(pickle._Pickler):
    """Writes bytes and text as the `str` of Python 2, which CIFAR's files were made with."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, obj):
        raw = obj if isinstance(obj, bytes) else obj.encode("ascii")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_string


def write_pickle(path: Path, content: dict) -> None:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    # numpy 2 has moved it; text up to the end of a line, so that its length is free
    path.write_bytes(file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def cifar_images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 [N, 3072]: noise around a brightness that tells the label."""
    noise = rng.integers(0, 60, (len(labels), 3072))
    return (noise + 19 * (labels[:, None] % 10)).astype(np.uint8)


def make_cifar10(root: Path, per_batch: int = 8) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        labels = rng.integers(0, 10, per_batch)
        names = [b"some_s_%06d.png" % i for i in range(per_batch)]
        content = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": cifar_images(labels, rng)}
        write_pickle(folder / name, content | {b"filenames": names})
    meta = {b"num_cases_per_batch": per_batch, b"label_names": [b"class %d" % i for i in range(10)], b"num_vis": 3072}
    write_pickle(folder / "batches.meta", meta)
    return folder


def make_cifar100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, count in (("train", 20), ("test", 10)):
        fine = rng.integers(0, 100, count)
        content = {b"fine_labels": fine.tolist(), b"coarse_labels": (fine // 5).tolist()}
        write_pickle(folder / name, content | {b"data": cifar_images(fine, rng), b"batch_label": name.encode()})
    fine_names, coarse_names = ([b"%d" % i for i in range(count)] for count in (100, 20))
    write_pickle(folder / "meta", {b"fine_label_names": fine_names, b"coarse_label_names": coarse_names})
    return folder


def make_imagenet(root: Path, per_class: int = 2, classes: tuple[str, ...] = ("n01440764", "n01443537")) -> Path:
    from PIL import Image

    rng = np.random.default_rng(2)
    for part in ("train", "val"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (40, 48 + 8 * i, 3), dtype=np.uint8)
                image = Image.fromarray(pixels if i else pixels[:, :, 0])  # some of ImageNet's are grey
                image.save(root / part / name / f"{name}_{i}.JPEG", quality=90)
    return root


def write_csv(path: Path, rows: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(",".join(map(str, row)) + "\n" for row in np.atleast_2d(rows.T).T.tolist())
    path.write_bytes(gzip.compress(text.encode()))


def make_arxiv(root: Path, nodes: int = 30, features: int = 5, classes: int = 3) -> Path:
    folder = root / "ogbn_arxiv"
    rng = np.random.default_rng(3)
    edges = rng.integers(0, nodes - 1, (4 * nodes, 2))  # the last node stays alone
    labels = rng.integers(0, classes, nodes)
    table = {
        "edge": edges,
        "node-feat": rng.normal(size=(nodes, features)).round(6) + labels[:, None],
        "node-label": labels,
        "num-node-list": np.array([nodes]),
        "num-edge-list": np.array([len(edges)]),
    }
    for name, rows in table.items():
        write_csv(folder / "raw" / f"{name}.csv.gz", rows)
    cuts = {"train": (0, 18), "valid": (18, 24), "test": (24, nodes)}
    for name, (first, last) in cuts.items():
        write_csv(folder / "split" / "time" / f"{name}.csv.gz", np.arange(first, last))
    return folder
