"""Images: CIFAR-10 and CIFAR-100 as python batches, ImageNet as folders, scikit-learn's digits."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .draws import AUGMENT, draws, split, uniforms
from .parts import Data, Part, Subset

CIFAR10_MEAN, CIFAR10_STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CIFAR100_MEAN, CIFAR100_STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PADDING = 4
IMAGE, RESIZED = 224, 256
TRIES = 10  # of a random crop, as torchvision's
SUFFIXES = (".jpeg", ".jpg", ".png")


class _ArraysOnly(pickle.Unpickler):
    """Dicts, lists, bytes, numbers and numpy arrays: nothing of a file is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.empty(0))[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images holds")


def unpickle(path: Path, download: str) -> dict[bytes, Any]:
    """A batch file of CIFAR. FileNotFoundError or ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; unpack {download} from {CIFAR_PAGE}")
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"{path}: truncated or not a batch of CIFAR ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a dict, got {type(found).__name__}")
    return found


@dataclass(frozen=True)
class SmallImages:
    """Images in memory, cropped from a padded image and mirrored at random where an epoch is given.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        mean, std: per channel, of values in [0, 1].
        seed: of the augmentation.
    """

    images: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    labels_each = 1

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        chosen = self.images[indices]
        if epoch is not None:
            chosen = crop_and_flip(chosen, draws(AUGMENT, self.seed, epoch, indices, 3))
        x = torch.from_numpy(np.ascontiguousarray(chosen)).float().div_(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return x.sub_(mean).div_(std), torch.from_numpy(self.labels[indices])


def crop_and_flip(images: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Crops of the images' own size out of them padded by 4 with zeros, mirrored half the time.

    Args:
        images: [B, C, H, W].
        words: uint64 [B, 3]: row, column and mirroring of each.
    """
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    top, left = ((words[:, i] % np.uint64(2 * PADDING + 1)).astype(np.int64) for i in (0, 1))
    rows = top[:, None] + np.arange(height)
    across = np.arange(width)
    columns = left[:, None] + np.where((words[:, 2] >> np.uint64(63)).astype(bool)[:, None], across[::-1], across)
    image, channel = np.arange(len(images))[:, None, None, None], np.arange(images.shape[1])[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _folder(path: Path, name: str, download: str) -> Path:
    """`path` itself where it is the folder of that name, else the folder in it."""
    if not path.is_dir():
        raise FileNotFoundError(f"data.path: {path} is no folder; unpack {download} from {CIFAR_PAGE} there")
    return path if path.name == name or not (path / name).is_dir() else path / name


def _cifar_batch(path: Path, download: str, labels: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 3, 32, 32] and int64 [N] of one file; ValueError that names it and both values."""
    found = unpickle(path, download)
    for key in (b"data", labels):
        if key not in found:
            raise ValueError(f"{path}: {key.decode()!r} is missing")
    data, targets = found[b"data"], np.array(found[labels], dtype=object)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        kind = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: data must be uint8 [N, 3072], got {kind}")
    if targets.ndim != 1 or not all(isinstance(label, int) for label in targets.tolist()):
        raise ValueError(f"{path}: {labels.decode()!r} must be a list of integers")
    targets = targets.astype(np.int64)
    if len(data) != len(targets) or not len(data):
        raise ValueError(f"{path}: truncated, {len(data)} images and {len(targets)} labels")
    if not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(f"{path}: labels from 0 to {classes - 1}, got {targets.min()} to {targets.max()}")
    return data.reshape(-1, 3, 32, 32), targets


def _class_count(meta: dict, key: bytes) -> int:
    names = meta.get(key)
    return len(names) if isinstance(names, list) else 0


def _check_classes(classes: int, found: int, where: Path) -> None:
    if classes != found:
        raise ValueError(f"model.classes: {classes}, but {where} has {found} classes")


def cifar10(path: Path, classes: int, seed: int) -> tuple[SmallImages, SmallImages]:
    """Training and test part of CIFAR-10 (`cifar-10-batches-py`, or the folder that holds it)."""
    download = "cifar-10-python.tar.gz"
    folder = _folder(path, "cifar-10-batches-py", download)
    meta = unpickle(folder / "batches.meta", download)
    _check_classes(classes, _class_count(meta, b"label_names"), folder / "batches.meta")
    parts = []
    for names in ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]):
        batches = [_cifar_batch(folder / name, download, b"labels", classes) for name in names]
        for name, batch in zip(names, batches, strict=True):
            expected = meta.get(b"num_cases_per_batch", len(batch[1]))
            if len(batch[1]) != expected:
                raise ValueError(f"{folder / name}: truncated, {len(batch[1])} of {expected} images")
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        parts.append(SmallImages(images, labels, CIFAR10_MEAN, CIFAR10_STD, seed))
    return parts[0], parts[1]


def cifar100(path: Path, classes: int, seed: int) -> tuple[SmallImages, SmallImages]:
    """Training and test part of CIFAR-100, fine labels (`cifar-100-python`, or the folder that holds it)."""
    download = "cifar-100-python.tar.gz"
    folder = _folder(path, "cifar-100-python", download)
    meta = unpickle(folder / "meta", download)
    _check_classes(classes, _class_count(meta, b"fine_label_names"), folder / "meta")
    parts = [_cifar_batch(folder / name, download, b"fine_labels", classes) for name in ("train", "test")]
    train, test = (SmallImages(*part, CIFAR100_MEAN, CIFAR100_STD, seed) for part in parts)
    return train, test


@dataclass(frozen=True)
class Arrays:
    """Float images [N, C, H, W] and labels [N] in memory, as they are in every epoch."""

    images: Tensor
    labels: Tensor
    labels_each = 1

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return self.images[chosen], self.labels[chosen]


def digits() -> tuple[Arrays, Arrays]:
    """1437 digits to train on and 360 held out, one fixed stratified split, normalised by the training part."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    parts = train_test_split(data.images, data.target, test_size=360, random_state=0, stratify=data.target)
    train_x, test_x = (torch.tensor(p, dtype=torch.float32)[:, None] for p in parts[:2])
    train_y, test_y = (torch.tensor(p) for p in parts[2:])
    mean, std = train_x.mean(), train_x.std()
    return Arrays((train_x - mean) / std, train_y), Arrays((test_x - mean) / std, test_y)


@dataclass(frozen=True)
class ImageFiles:
    """Files decoded when asked for: a random resized crop and a flip where an epoch is given, else the centre.

    Args:
        files: one path per image.
        labels: int64 [N].
        seed: of the augmentation.
    """

    files: list[Path]
    labels: np.ndarray
    seed: int
    labels_each = 1

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        x = np.stack([self._decode(int(i), epoch) for i in indices])
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float().div_(255)
        return pixels.sub_(mean).div_(std).contiguous(), torch.from_numpy(self.labels[indices])

    def _decode(self, index: int, epoch: int | None) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(self.files[index]) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise ValueError(f"{self.files[index]}: not a readable image ({error})") from error
        if epoch is None:
            width, height = (RESIZED * side // min(image.size) for side in image.size)
            left, top = round((width - IMAGE) / 2), round((height - IMAGE) / 2)
            whole = image.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(whole.crop((left, top, left + IMAGE, top + IMAGE)))
        numbers = uniforms(AUGMENT, self.seed, epoch, np.array([index]), 4 * TRIES + 1)[0]
        box = random_box(image.size, numbers[1:].reshape(TRIES, 4))
        crop = image.crop(box).resize((IMAGE, IMAGE), Image.Resampling.BILINEAR)
        return np.asarray(crop)[:, ::-1] if numbers[0] < 0.5 else np.asarray(crop)


def random_box(size: tuple[int, int], numbers: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop of 8 to 100 % of the area and a ratio of 3/4 to 4/3 (Szegedy et al. 2015).

    Args:
        size: width and height of the image.
        numbers: float64 [tries, 4] in [0, 1): area, ratio, left and top of each try; the first that fits is taken,
            and where none does the largest crop in the middle whose ratio is allowed.
    """
    width, height = size
    for area, ratio, x, y in numbers:
        target = width * height * (0.08 + 0.92 * area)
        aspect = float(np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * ratio))
        w, h = round(float(np.sqrt(target * aspect))), round(float(np.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; ImageNet's images, from image-net.org, belong in {folder}/<wnid>/*.JPEG"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{folder}: empty, no class folders")
    return names


def imagenet(path: Path, classes: int, seed: int) -> tuple[ImageFiles, ImageFiles]:
    """Training and test part of ImageNet: `train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG`; classes in the order of names."""
    names = {part: _class_folders(path / part) for part in ("train", "val")}
    if names["train"] != names["val"]:
        only = sorted(set(names["train"]) ^ set(names["val"]))
        raise ValueError(f"{path}: class folders of train and val differ: {', '.join(only[:5])} in one of them only")
    _check_classes(classes, len(names["train"]), path)
    parts = []
    for part, folders in names.items():
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(folders):
            found = sorted(p for p in (path / part / name).iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{path / part / name}: empty, no {', '.join(SUFFIXES)} files")
            files += found
            labels += [label] * len(found)
        parts.append(ImageFiles(files, np.array(labels, np.int64), seed))
    return parts[0], parts[1]


def with_validation(train: Part, test: Part, share: float, seed: int) -> Data:
    """The paper's split: a share of the training part, drawn by the seed, is held out as validation."""
    if not share:
        return Data(train, {"test": test})
    kept, held = split(len(train), share, seed)
    if not len(kept) or not len(held):
        raise ValueError(f"data.validation: {share} of {len(train)} items leaves {len(kept)} to train on")
    return Data(Subset(train, kept), {"validation": Subset(train, held), "test": test})
