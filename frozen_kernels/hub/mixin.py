"""`TicketHubMixin`: `save_pretrained`, `from_pretrained` and `push_to_hub` as methods of a user's model class."""

from __future__ import annotations

import inspect
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast

from torch import nn

from ..nn.models import frozen_layers, warn_of_stale_masks
from .card import TAG
from .client import client
from .config import LIBRARY, check_arguments
from .folder import Shared, prepare
from .load import from_pretrained
from .push import upload

client("TicketHubMixin")

from huggingface_hub import ModelCard, ModelHubMixin  # noqa: E402

T = TypeVar("T", bound="TicketHubMixin")
LOADING = ("residency", "revision", "token", "cache_dir", "force_download", "local_files_only")


class TicketHubMixin(ModelHubMixin, library_name=LIBRARY, tags=[TAG]):
    """A base class that gives a model class the methods of the hub, for tickets.

    `class Net(nn.Module, fk.hub.TicketHubMixin, license="mit"):`, then `fk.freeze_(net, ...)`,
    `net.save_pretrained(...)` and `Net.from_pretrained(...)`. As with every `ModelHubMixin` the arguments of `__init__`
    that JSON can hold are saved; a model made with others is not. Keywords of the class (`license`, `tags`,
    `pipeline_tag`, `language`, `coders`) go to the model card or say how other arguments are written. Folders and cards
    are those of `fk.save_pretrained`: a `model_card_template` is not used.
    """

    _unsaved: dict[str, str]

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """A model that knows which of its arguments the base class does not save, and why."""
        made = super().__new__(cls, *args, **kwargs)
        passed = {**dict(zip(list(cls._hub_mixin_init_parameters)[1:], args, strict=False)), **kwargs}
        made._unsaved = {}
        for name, value in passed.items():
            kind = type(value).__name__
            if not cls._is_jsonable(value):
                made._unsaved[name] = f"is of type {kind}, which JSON cannot hold"
            elif name == "config" and not isinstance(value, dict | NoneType) and not is_dataclass(value):
                made._unsaved[name] = f"is of type {kind}, expected a dict or a dataclass"
            elif name != "config" and is_dataclass(passed.get("config")):
                made._unsaved[name] = "is not saved beside config, which is a dataclass"
        return made

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write a folder as `fk.save_pretrained` does, with the class and the arguments of `__init__` as its build.

        Args:
            save_directory: the folder.
            config: arguments of `__init__` in place of those that this model was made with.
            repo_id: what the card tells to load, and where to push; by default the folder's name.
            push_to_hub: push afterwards, and return the address of the commit.
            model_card_kwargs: fields of the card's front matter, before those of the class; and `sample_input`.
            **push_to_hub_kwargs: other arguments of `push_to_hub`.

        Raises:
            TypeError, OSError: as in `fk.save_pretrained`.
            ValueError: too; or the model was made with an argument that is not saved, which the message names.
        """
        warn_of_stale_masks(frozen_layers(cast(nn.Module, self)))
        name = repo_id or Path(save_directory).absolute().name
        self._shared(config, model_card_kwargs).write(save_directory, name)
        if not push_to_hub:
            return None
        return self.push_to_hub(name, config=config, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls: type[T],
        pretrained_model_name_or_path: str | Path,
        **given: Any,
    ) -> T:
        """A model of this class from a folder or repository, as `fk.from_pretrained`; in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, or `owner/name`.
            **given: `residency`, `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` as in
                `fk.from_pretrained`; others are arguments of `__init__`, which come before the saved ones.

        Raises:
            TypeError: `__init__` does not take the arguments.
            ValueError, OSError, ImportError: as in `fk.from_pretrained`.
        """

        loading = {name: given.pop(name) for name in LOADING if name in given}

        def build(**saved: Any) -> nn.Module:
            return cast(nn.Module, cls.from_hub_config(**{**saved, **given}))

        return cast(T, from_pretrained(pretrained_model_name_or_path, build=build, **loading))

    @classmethod
    def from_hub_config(cls: type[T], **arguments: Any) -> T:
        """A plain model from arguments of `__init__` as a `config.json` holds them."""
        parameters = cls._hub_mixin_init_parameters
        if "config" in parameters and "config" not in arguments:  # a dict, which the base class saves with the others
            others = {name: value for name, value in arguments.items() if name in parameters}
            arguments = {**others, "config": arguments}
        empty = inspect.Parameter.empty
        kinds = {name: parameters[name].annotation for name in arguments if name in parameters}
        decoded = {
            name: value if kinds.get(name, empty) is empty else cls._decode_arg(kinds[name], value)
            for name, value in arguments.items()
        }
        return cls(**decoded)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        config: Any = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **commit: Any,
    ) -> str:
        """Upload as `fk.push_to_hub` does, and return the address of the commit.

        Args:
            repo_id: as in `fk.push_to_hub`.
            config: as in `save_pretrained`.
            model_card_kwargs: as in `save_pretrained`.
            **commit: as in `fk.push_to_hub`.

        Raises:
            TypeError, ValueError, OSError: as in `fk.push_to_hub`.
        """
        warn_of_stale_masks(frozen_layers(cast(nn.Module, self)))
        return upload(self._shared(config, model_card_kwargs), repo_id, **commit)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save_pretrained` writes, for a folder named as the class; `kwargs` as model_card_kwargs."""
        return ModelCard(self._shared(None, kwargs).card_text(type(self).__name__))

    def _shared(self, config: Any, model_card_kwargs: dict[str, Any] | None) -> Shared:
        chosen = self._hub_mixin_config if config is None else config
        if is_dataclass(chosen) and not isinstance(chosen, type):
            chosen = {"config": asdict(chosen)}
        card = dict(model_card_kwargs or {})
        sample_input = card.pop("sample_input", None)
        kind = type(self)
        called = "config" if config is not None else f"{kind.__name__}.__init__"
        chosen = check_arguments(cast(Any, chosen), called)
        if config is None:
            for name, why in self._unsaved.items():
                raise ValueError(f"{called}: {name!r} {why}; config= says what is saved, coders how a type is written")
        # no other process can import these
        nameless = kind.__module__ == "__main__" or "<locals>" in kind.__qualname__
        return prepare(
            cast(nn.Module, self),
            build=None if nameless else f"{kind.__module__}:{kind.__qualname__}.from_hub_config",
            build_kwargs=chosen,
            metadata={**self._hub_mixin_info.model_card_data.to_dict(), **card},
            sample_input=sample_input,
        )
