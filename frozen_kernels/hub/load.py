"""From a shared folder, or a repository of the hub, to a model."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn

from ..tensor import ALL_RESIDENCIES, Residency
from ..text import listed
from ..tickets.container import short
from ..tickets.model import load_ticket
from .client import client
from .config import CONFIG, Config, FolderError, read_config

Build = Callable[..., nn.Module]

_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_POINTER = b"version https://git-lfs"


def from_pretrained(
    path_or_repo: str | os.PathLike[str],
    *,
    build: Build | None = None,
    trust: bool = False,
    residency: Residency | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> nn.Module:
    """Load a shared ticket: a folder of `save_pretrained`, or a repository of the hub; returned in eval mode.

    No code that a folder names is imported or called unless you say so: pass `build`, or `trust=True`. A folder of
    this machine needs no huggingface_hub. A repository that was downloaded before also loads without a network.

    Args:
        path_or_repo: a folder, or `owner/name`. A folder of that name comes first.
        build: makes the plain model; called with the keyword arguments in `config.json`.
        trust: import and call what `config.json` names as `build`. It may name any function that Python finds on this
            machine: read the file first.
        residency: how the frozen layers hold their weights, as in `load_ticket`.
        revision: a branch, tag or commit of the repository; the main branch by default.
        token: of the hub; by default the one that is logged in.
        cache_dir: where downloads lie; by default huggingface_hub's cache.
        force_download: download again what is in the cache.
        local_files_only: take what is in the cache, and never ask the network.

    Raises:
        FolderError: the folder or repository is of another library, a newer layout, or not whole; or neither `build`
            nor `trust` is given; or `config.json` names no `build`, or one that cannot be imported.
        TicketError: the ticket is not whole, or of another model than the one built.
        ValueError: `build` with `trust`, `revision` with a folder, or another residency.
        TypeError: `build` is no function, does not take the arguments, or returns no module.
        FileNotFoundError: there is no such folder.
        ImportError: a repository, without huggingface_hub; `pip install 'frozen-kernels[hub]'`.
        OSError: huggingface_hub found no such repository, or no way to it.
    """
    if not isinstance(trust, bool):
        raise TypeError(f"trust: True or False, got {short(trust)}")
    if build is not None and trust:
        raise ValueError("trust: True together with build; one of them says how the model is built")
    if build is not None and (isinstance(build, nn.Module) or not callable(build)):
        raise TypeError(f"build: a function or class that returns the plain model, got {type(build).__name__}")
    if residency is not None and residency not in ALL_RESIDENCIES:
        raise ValueError(f"residency: one of {', '.join(ALL_RESIDENCIES)}, got {residency!r}")
    download = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
    folder, config = find(path_or_repo, revision=revision, local_files_only=local_files_only, **download)
    make = _imported(folder, config) if trust else build
    if make is None:
        given, more = config.arguments(), ""
        if config.build:
            said = f"names {short(config.build)[1:-1]}({given}), which is not run unasked"
            more = ", or trust=True to import what it names"
        else:
            said = "names no build" + (f", only its arguments {given}" if given else "")
        raise FolderError(f"{folder / CONFIG}: {said}; pass build=, a function that returns the plain model{more}")
    model = _made(make, config, folder)
    return load_ticket(model, folder / config.ticket, residency=residency).eval()


def find(path_or_repo: str | os.PathLike[str], *, revision: str | None, **download: Any) -> tuple[Path, Config]:
    """The folder of this machine that holds the config and the ticket, both there; downloaded where need be."""
    name = os.fsdecode(path_or_repo)
    if os.path.isdir(name):
        if revision is not None:
            raise ValueError(f"revision: of a repository; {name} is a folder of this machine, got {revision!r}")
        return _in_folder(Path(name))
    if os.path.exists(name):
        raise FolderError(f"{name}: a file, expected a folder or a repository; load_ticket loads a ticket's file")
    if isinstance(path_or_repo, os.PathLike) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such folder, and not the name of a repository (owner/name)")
    return _in_repository(name, revision, **download)


def _in_folder(folder: Path) -> tuple[Path, Config]:
    try:
        config = read_config(folder / CONFIG)
    except FileNotFoundError:
        found = listed(sorted(os.listdir(folder))) or "nothing"
        raise FolderError(
            f"{folder}: expected {CONFIG} and a ticket, as save_pretrained writes; found {found}"
        ) from None
    _check_ticket(folder / config.ticket)
    return folder, config


def _check_ticket(path: Path) -> None:
    """FolderError where the ticket is missing, or where git has left a pointer in its place."""
    if not path.is_file():
        raise FolderError(f"{path}: missing; {CONFIG} beside it names this ticket")
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise FolderError(f"{path}: expected a ticket, got a pointer of git-lfs; `git lfs pull` fetches the file")


def _in_repository(repo: str, revision: str | None, **download: Any) -> tuple[Path, Config]:
    hub = client(f"{repo}: no such folder here; loading it from the hub")

    def fetched(name: str, revision: str | None) -> Path:
        try:
            return Path(hub.hf_hub_download(repo, name, revision=revision, **download))
        except hub.errors.LocalEntryNotFoundError as why:  # the network, not the repository, lacks it
            raise hub.errors.LocalEntryNotFoundError(
                f"{repo}: no such folder here, and no such repository in the cache; the hub was not asked or could not "
                f"be reached for {name}: {why}"
            ) from why
        except hub.errors.RepositoryNotFoundError as why:
            why.append_to_message(f"\n{repo}: no such folder here, either.")
            raise
        except hub.errors.EntryNotFoundError as why:
            raise FolderError(f"{repo}: expected {name}, as push_to_hub writes; the repository has none") from why

    config = fetched(CONFIG, revision)
    found = read_config(config)
    # the branch may move on between two downloads: the ticket comes from the commit of the config
    ticket = fetched(found.ticket, config.parent.name)
    _check_ticket(ticket)
    return ticket.parent, found


def _imported(folder: Path, config: Config) -> Build:
    """What `config.json` names."""
    if config.build is None:
        raise FolderError(
            f"{folder / CONFIG}: trust: it names no build; pass build=, a function that returns the model"
        )
    module, _, name = config.build.partition(":")
    try:
        found = reduce(getattr, name.split("."), importlib.import_module(module))
    except (Exception, SystemExit) as why:  # a module may raise anything
        kind = type(why).__name__
        raise FolderError(f"{folder / CONFIG}: build: {short(config.build)} cannot be imported: {kind}: {why}") from why
    if not callable(found):
        raise FolderError(
            f"{folder / CONFIG}: build: {short(config.build)} is a {type(found).__name__}, expected a function"
        )
    return found


def _made(build: Build, config: Config, folder: Path) -> nn.Module:
    """The plain model; TypeError where `build` does not take the arguments, or returns something else."""
    try:
        inspect.signature(build).bind(**config.build_kwargs)
    except TypeError as why:
        raise TypeError(
            f"build: does not take the arguments in {folder / CONFIG}, {config.arguments()}: {why}"
        ) from None
    except ValueError:
        pass  # a function of C, which tells no signature
    model = build(**config.build_kwargs)
    if not isinstance(model, nn.Module):
        raise TypeError(f"build: expected a torch.nn.Module, it returned {short(model)}")
    return model
