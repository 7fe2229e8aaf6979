"""A shared ticket as a folder: what is in it, and how it is written so that a part never passes for the whole."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..bank.mask_bank import MaskBank
from ..files import replace
from ..memory.footprint import footprint
from ..nn.models import frozen_layers, unwrapped, warn_of_stale_masks
from ..select.sharded import loaded_class
from ..tickets.model import ticket_parts, write_parts
from .card import CARD, Card, check_metadata, renewed
from .config import CONFIG, LAYOUT, Config, FolderError, check_arguments, check_path, read_config

__all__ = ["LAYOUT", "FolderError", "Shared", "prepare", "save_pretrained"]

# not model.safetensors: whoever reads that takes it for a whole state and would leave the frozen weights at random
TICKET = "ticket.safetensors"
# transformers finds it there by AutoConfig.from_pretrained(folder, subfolder="transformers")
TRANSFORMERS = "transformers"


@dataclass
class Shared:
    """Everything that a folder will hold, checked, before a file of it is written."""

    config: Config
    parts: list[bytes | memoryview]
    card: Card
    transformers: str | None  # the config.json of a model of transformers

    def write(self, folder: str | os.PathLike[str], name: str) -> None:
        """Write the folder; its card tells to load `name`.

        `config.json` goes first and comes last, so a writer killed on the way leaves a folder that none can load.
        """
        path, text = Path(folder), self.card_text(name)
        ours = _is_ours(path)
        with contextlib.suppress(FileNotFoundError):
            text = renewed((path / CARD).read_text(encoding="utf-8"), text)
        if ours:
            (path / CONFIG).unlink()
            (path / TRANSFORMERS / CONFIG).unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        write_parts(path / self.config.ticket, self.parts)
        if self.transformers is not None:
            replace(path / TRANSFORMERS / CONFIG, self.transformers)
        replace(path / CARD, text)
        replace(path / CONFIG, self.config.to_json())

    def card_text(self, name: str) -> str:
        """The whole README.md."""
        return self.card.text(name, sum(len(part) for part in self.parts))


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a shared ticket; ValueError where it belongs to somebody else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: {folder} is a file")
    try:
        read_config(folder / CONFIG)
    except FileNotFoundError:
        return False
    except FolderError as why:
        raise ValueError(f"folder: not overwritten, its config.json is of something else: {why}") from None
    return True


def prepare(
    model: nn.Module,
    *,
    build: str | None = None,
    build_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    sample_input: Any = None,
) -> Shared:
    """Everything of a folder, checked; the errors of `save_pretrained`."""
    if not isinstance(model, nn.Module):
        more = "; MaskBank.save writes a bank" if isinstance(model, MaskBank) else ""
        raise TypeError(f"model: a torch.nn.Module, got {type(model).__name__}{more}")
    config = Config(TICKET, None if build is None else check_path(build), check_arguments(build_kwargs))
    checked = check_metadata(metadata or {})
    parts = ticket_parts(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of stale masks: the caller has told of them
        report = footprint(model, sample_input)
    inside = unwrapped(model)
    kind = loaded_class("transformers", "PreTrainedModel")
    whose = None if kind is None or not isinstance(inside, kind) else inside.config.to_json_string()
    return Shared(config, parts, Card(inside, report, config, checked, whose is not None), whose)


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    build: str | None = None,
    build_kwargs: Mapping[str, Any] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    sample_input: Any = None,
) -> None:
    """Write a folder that `from_pretrained` loads: `ticket.safetensors`, a model card `README.md`, and `config.json`.

    The folder is made where it is missing. `config.json` is removed first and written last, each file whole: a folder
    whose writing was cut is refused by readers. Of a README.md that is there only the part between the two comment
    lines of an earlier card is written anew; one without them stays as it is. For a model of transformers, its own
    configuration is written to `transformers/config.json`.

    Args:
        model: a frozen model, as `save_ticket` takes it.
        folder: where; one with the config.json of another library is refused.
        build: `module:callable` that makes the plain model, for readers who trust it. It is written down, not imported.
        build_kwargs: keyword arguments of whatever builds the plain model; values as JSON has them.
        license: the licence's short name on the hub, such as `apache-2.0`.
        tags: of the model card, beside `frozen-kernels`.
        sample_input: as in `footprint`: the card then tells the measured peak of a forward.

    Raises:
        TypeError: `model` is no module.
        ValueError: as `save_ticket`; `fully_shard` holds parameters; a bad `build`, `build_kwargs`, `license` or
            `tags`; or a folder of something else. Nothing is written.
        OSError: a file cannot be written.
    """
    if isinstance(model, nn.Module):
        warn_of_stale_masks(frozen_layers(model))
    metadata = {"license": license, "tags": tags}
    shared = prepare(model, build=build, build_kwargs=build_kwargs, metadata=metadata, sample_input=sample_input)
    shared.write(folder, Path(folder).absolute().name)
