"""Settings of a run: YAML to frozen dataclasses, every unknown key, wrong type and bad value refused by name."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import frozen_kernels as fk

from .models import MODELS

KINDS = ("digits", "cifar10", "cifar100", "imagenet", "ogbn_arxiv")
IMAGE_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32, "imagenet": 224}
# the others: 32
MODEL_SIZES = {"digits": 8, "digits_half": 8, "resnet50": 224, "resnet50_affine": 224, "wide_resnet50_2": 224}
# may differ between a run and its continuation: they change neither the weights nor their course
FREE_TO_CHANGE = ("out", "device", "parallel", "checkpoint_every", "data.path", "data.workers", "jackpot.weights")


class SettingsError(ValueError):
    """A setting that is unknown, of a wrong type or out of range; the message names it and the file."""


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name}: one of {', '.join(map(str, choices))}, got {value!r}")


def _at_least(name: str, value: float | None, least: float, *, open_end: bool = False) -> None:
    if value is not None and not (math.isfinite(value) and (value > least if open_end else value >= least)):
        raise SettingsError(f"{name}: {'more than' if open_end else 'at least'} {least}, got {value}")


@dataclass(frozen=True)
class Model:
    """`name`: gin, or one of `models.MODELS`; `features`: of a node, for gin only."""

    name: str
    classes: int
    features: int | None = None

    def __post_init__(self) -> None:
        _choice("name", self.name, (*MODELS, "gin"))
        _at_least("classes", self.classes, 2)
        _at_least("features", self.features, 1)
        if (self.name == "gin") != (self.features is not None):
            raise SettingsError(f"features: model gin needs it and no other takes it, got {self.features}")


@dataclass(frozen=True)
class DataSource:
    """`batch`: images per step, over all processes; `validation`: share of the training part that is held out."""

    kind: str
    path: str | None = None
    batch: int | None = None
    validation: float = 0.0
    workers: int = 0

    def __post_init__(self) -> None:
        _choice("kind", self.kind, KINDS)
        graph = self.kind == "ogbn_arxiv"
        if (self.batch is None) != graph:
            raise SettingsError(f"batch: images need one and a graph is its own, got {self.batch} for {self.kind}")
        if self.kind == "digits" and self.path is not None:
            raise SettingsError(f"path: digits come with scikit-learn and have none, got {self.path!r}")
        _at_least("batch", self.batch, 2)
        _at_least("workers", self.workers, 0)
        if not 0 <= self.validation < 1:
            raise SettingsError(f"validation: a share in [0, 1), got {self.validation}")
        if graph and self.validation:
            raise SettingsError(f"validation: {self.kind} comes with a validation part, got {self.validation}")


@dataclass(frozen=True)
class Optimizer:
    """`momentum` is for sgd only."""

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _choice("name", self.name, ("sgd", "adamw"))
        _at_least("lr", self.lr, 0, open_end=True)
        _at_least("weight_decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1 or (self.name == "adamw" and self.momentum):
            raise SettingsError(f"momentum: a number in [0, 1), and of sgd only; got {self.momentum} for {self.name}")


@dataclass(frozen=True)
class Jackpot:
    """How the mask of pre-trained weights is searched, beside `freeze`, which says how many are kept.

    Args:
        weights: file of the weights (see `load_weights_`).
        restriction: short, or None for none.
        tune_epochs: epochs after the search, in which the kept values are trained without weight decay.
        tune_lr: their learning rate at first; it falls as half a cosine too.
        values: of the ticket: float32, float16, bfloat16 or int8.
    """

    weights: str
    restriction: str | None = "short"
    tune_epochs: int = 0
    tune_lr: float = 0.01
    values: str = "float32"

    def __post_init__(self) -> None:
        _choice("restriction", self.restriction, ("short", None))
        _at_least("tune_epochs", self.tune_epochs, 0)
        _at_least("tune_lr", self.tune_lr, 0, open_end=True)
        _choice("values", self.values, ("float32", "float16", "bfloat16", "int8"))


@dataclass(frozen=True)
class Settings:
    """A run.

    Args:
        freeze: how the network is frozen; None trains the weights themselves, the dense baseline.
        jackpot: of code "stored", and of no other: where the weights are, and how their mask is searched.
        epochs: passes over the data, over which the learning rate falls as half a cosine.
        seed: of weights, order, augmentation and the validation part.
        amp: bfloat16 for autocast, or None.
        clip: largest norm of the gradient, or None.
        accumulate: forward and backward passes per step, each over its part of the batch.
        refresh_every: steps between new masks.
        parallel: none, or ddp or fsdp under torchrun.
        device: cpu, cuda, cuda:1 ...
        out: folder of the log, the checkpoint and the ticket.
        checkpoint_every: steps between checkpoints within an epoch; None: one at the end of each epoch.
    """

    model: Model
    data: DataSource
    optimizer: Optimizer
    epochs: int
    out: str
    freeze: fk.FreezeConfig | None = None
    jackpot: Jackpot | None = None
    seed: int = 0
    amp: str | None = None
    clip: float | None = None
    accumulate: int = 1
    refresh_every: int = 1
    parallel: str = "none"
    device: str = "cpu"
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        _choice("amp", self.amp, (None, "bfloat16"))
        _choice("parallel", self.parallel, ("none", "ddp", "fsdp"))
        _at_least("clip", self.clip, 0, open_end=True)
        for name in ("epochs", "accumulate", "refresh_every", "checkpoint_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        self._check_fit()

    def _check_fit(self) -> None:
        graph = self.data.kind == "ogbn_arxiv"
        size = IMAGE_SIZES.get(self.data.kind)
        takes = None if self.model.name == "gin" else MODEL_SIZES.get(self.model.name, 32)
        if size != takes:
            needs = "a graph" if takes is None else f"images of {takes}x{takes}"
            raise SettingsError(f"model.name: {self.model.name} takes {needs}, data.kind is {self.data.kind}")
        if self.data.kind != "digits" and self.data.path is None:
            raise SettingsError(f"data.path: where {self.data.kind} lies; give it here or by --set data.path=FOLDER")
        if graph and (self.parallel != "none" or self.accumulate > 1):
            found = f"parallel {self.parallel}, accumulate {self.accumulate}"
            raise SettingsError(f"data.kind: ogbn_arxiv is one batch that cannot be cut, got {found}")
        if self.freeze is None and self.refresh_every > 1:
            raise SettingsError(f"refresh_every: {self.refresh_every}, but freeze is null: there are no masks")
        self._check_jackpot()

    def _check_jackpot(self) -> None:
        code = None if self.freeze is None else self.freeze.code
        if (code == "stored") != (self.jackpot is not None):
            given = "null" if self.jackpot is None else "a section"
            raise SettingsError(
                f"jackpot: a section where freeze.code is stored and nowhere else, got {given} for {code}"
            )
        if self.jackpot is None:
            return
        if self.refresh_every > 1:
            raise SettingsError(f"refresh_every: a jackpot has new masks at every step, 1, got {self.refresh_every}")
        if self.parallel == "fsdp" and (self.jackpot.tune_epochs or self.jackpot.values != "float32"):
            found = f"jackpot.tune_epochs {self.jackpot.tune_epochs}, jackpot.values {self.jackpot.values}"
            raise SettingsError(f"parallel: fsdp holds the scores and only searches, 0 and float32, got {found}")


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads 1e-4 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _text(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", type(None): "null"}
    options = typing.get_args(kind) or (kind,)
    return " or ".join(names.get(option, "a section") for option in options)


def _value(kind: Any, value: Any, name: str) -> Any:
    """A value of a YAML file as the type that a field has."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type) and isinstance(value, dict):
            return _section(option, value, name + ".")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if option is float and number:
            return float(value)
        if option in (int, str) and type(value) is option:
            return value
    raise SettingsError(f"{name}: {_text(kind)}, got {value!r}")


def _section(kind: type, given: dict, prefix: str) -> Any:
    """A dataclass from a section; SettingsError with the dotted name of what is wrong."""
    kinds = typing.get_type_hints(kind)
    for key in given:
        if key not in kinds:
            raise SettingsError(f"{prefix}{key}: unknown, known here are {', '.join(kinds)}")
    for field in dataclasses.fields(kind):
        if field.name not in given and field.default is dataclasses.MISSING:
            raise SettingsError(f"{prefix}{field.name}: missing")
    values = {}
    for key, value in given.items():
        name = prefix + key
        if kinds[key] == fk.FreezeConfig | None:
            values[key] = value if value is None else _freeze(value, name)
        else:
            values[key] = _value(kinds[key], value, name)
    try:
        return kind(**values)
    except SettingsError as error:
        raise SettingsError(f"{prefix}{error}") from None


def _freeze(given: Any, name: str) -> fk.FreezeConfig:
    """A FreezeConfig from `preset` and fields."""
    if not isinstance(given, dict):
        raise SettingsError(f"{name}: null or a section with a preset or fields of FreezeConfig, got {given!r}")
    fields = [field.name for field in dataclasses.fields(fk.FreezeConfig)]
    for key in given:
        if key not in fields and key != "preset":
            raise SettingsError(f"{name}.{key}: unknown, known here are preset, {', '.join(fields)}")
    settings = dict(given)
    preset = settings.pop("preset", None)
    if not isinstance(preset, str | None):
        raise SettingsError(f"{name}.preset: text or null, got {preset!r}")
    try:
        return fk.FreezeConfig(**settings) if preset is None else fk.FreezeConfig.preset(preset, **settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise SettingsError(f"{name}.{error}") from None


def _override(tree: dict, text: str) -> None:
    """`key.key=value` set in a tree of sections, the value as YAML."""
    key, equals, value = text.partition("=")
    names = key.split(".")
    if not equals or not all(names):
        raise SettingsError(f"--set: key=value with dots between sections, got {text!r}")
    for name in names[:-1]:
        section = tree.get(name)
        tree[name] = section = {} if section is None else section
        if not isinstance(section, dict):
            raise SettingsError(f"--set {text}: {name!r} is no section")
        tree = section
    try:
        tree[names[-1]] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {text}: {error}") from None


def load(path: Path, overrides: list[str] | None = None) -> Settings:
    """Settings of a YAML file, with `key=value` set after it.

    Raises:
        FileNotFoundError: no such file.
        SettingsError: an unknown key, a wrong type or a bad value; named with its dotted name and the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    try:
        if not isinstance(tree, dict):
            raise SettingsError(f"sections and keys, got {tree!r}")
        for text in overrides or []:
            _override(tree, text)
        freeze = tree.get("freeze")
        if isinstance(freeze, dict):
            freeze.setdefault("seed", tree.get("seed", 0))  # one seed makes the run, unless two are given
        return _section(Settings, tree, "")
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def flat(settings: Settings) -> dict[str, Any]:
    """Every setting by its dotted name, as plain values."""
    found: dict[str, Any] = {}

    def walk(tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                found[prefix + key] = "a section"
                walk(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value

    walk(dataclasses.asdict(settings), "")
    return found
