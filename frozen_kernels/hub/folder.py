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
from ..tickets.file import TicketError, read_ticket
from ..tickets.model import ticket_parts
from .card import CARD, Card, check_metadata, renewed
from .config import CONFIG, LARGEST, LAYOUT, Config, FolderError, check_arguments, check_path, read_config

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
        path, card = Path(folder), self.card_text(name).encode()
        old = _ours(path)
        theirs = path / TRANSFORMERS / CONFIG
        self._check_in_place(path, old)
        with contextlib.suppress(FileNotFoundError):
            was = (path / CARD).read_bytes()
            card = renewed(was, card)
            unsaid = ", ".join(self.card.not_in(card))
            if unsaid:
                said = f"{unsaid}: not written, the front matter of {path / CARD} is kept as it is; edit it there"
                warnings.warn(said, stacklevel=3)
        if old is not None:
            (path / CONFIG).unlink()
            if old.transformers:
                theirs.unlink(missing_ok=True)
        path.mkdir(parents=True, exist_ok=True)
        # a link is replaced: the files behind those of a snapshot belong to the cache of the hub
        replace(path / self.config.ticket, lambda file: file.writelines(self.parts), follow=False)
        if self.transformers is not None:
            replace(theirs, self.transformers, follow=False)
        replace(path / CARD, card, follow=False)
        replace(path / CONFIG, self.config.to_json(), follow=False)

    def _check_in_place(self, path: Path, old: Config | None) -> None:
        """ValueError where a file would be overwritten that no earlier save wrote, or cannot be replaced."""
        ticket, theirs = path / self.config.ticket, path / TRANSFORMERS / CONFIG
        for file in (ticket, path / CARD, theirs):
            if file.exists() and not file.is_file():
                raise ValueError(f"folder: {file} is no regular file")
        ours = old is not None and old.transformers
        if self.transformers is not None or ours:
            if theirs.parent.is_symlink() or (theirs.parent.exists() and not theirs.parent.is_dir()):
                raise ValueError(f"folder: {theirs.parent} is a link or a file, expected a folder")
            # of a save that was cut it is the same
            if not ours and theirs.exists() and theirs.read_bytes() != (self.transformers or "").encode():
                raise ValueError(f"folder: not overwritten, no earlier save_pretrained wrote {theirs}")
        if ticket.exists() and (old is None or old.ticket != ticket.name):
            try:
                read_ticket(ticket)
            except TicketError as why:
                raise ValueError(f"folder: not overwritten, {ticket} is of something else: {why}") from None
            warnings.warn(f"folder: {ticket} was there without a {CONFIG} that names it; it is replaced", stacklevel=4)

    def card_text(self, name: str) -> str:
        """The whole README.md."""
        return self.card.text(name, sum(len(part) for part in self.parts))


def _ours(folder: Path) -> Config | None:
    """What is said in a folder that holds a shared ticket; ValueError where it belongs to somebody else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: {folder} is a file")
    try:
        return read_config(folder / CONFIG)
    except FileNotFoundError:
        return None
    except FolderError as why:
        raise ValueError(f"folder: not overwritten, its config.json is of something else: {why}") from None


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
    path, arguments = None if build is None else check_path(build), check_arguments(build_kwargs)
    checked = check_metadata(metadata or {})
    parts = ticket_parts(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of stale masks: the caller has told of them
        report = footprint(model, sample_input)
    inside = unwrapped(model)
    kind = loaded_class("transformers", "PreTrainedModel")
    whose = None if kind is None or not isinstance(inside, kind) else inside.config.to_json_string()
    config = Config(TICKET, path, arguments, whose is not None)
    size = len(config.to_json().encode())
    if size > LARGEST:
        raise ValueError(f"build_kwargs: {CONFIG} of at most {LARGEST} bytes is read, with these it has {size}")
    return Shared(config, parts, Card(inside, report, config, checked), whose)


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
    configuration is written to `transformers/config.json`. A link in the folder is replaced, never followed.

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
            `tags`; or a folder with a config.json, ticket.safetensors or transformers/config.json of something else.
            Nothing is written.
        OSError: a file cannot be written.

    Warns:
        UserWarning: scores moved since the masks were made; `license` or `tags` are not in the front matter of a
            README.md that is kept; or a ticket of this library was there that no config.json named.
    """
    if isinstance(model, nn.Module):
        warn_of_stale_masks(frozen_layers(model))
    metadata = {"license": license, "tags": tags}
    shared = prepare(model, build=build, build_kwargs=build_kwargs, metadata=metadata, sample_input=sample_input)
    shared.write(folder, Path(folder).absolute().name)
