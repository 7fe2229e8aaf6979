"""From a model to a repository of the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..nn.models import frozen_layers, warn_of_stale_masks
from .client import client
from .folder import Shared, prepare


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    build: str | None = None,
    build_kwargs: Mapping[str, Any] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    sample_input: Any = None,
    **commit: Any,
) -> str:
    """Upload what `save_pretrained` writes, in one commit, to a repository that is made where it is missing.

    A card that was edited on the hub is replaced; `ignore_patterns="README.md"` leaves it.

    Args:
        model: as in `save_pretrained`.
        repo_id: `owner/name`, or a name under the account of the token.
        build: as in `save_pretrained`.
        build_kwargs: as in `save_pretrained`.
        license: as in `save_pretrained`.
        tags: as in `save_pretrained`.
        sample_input: as in `save_pretrained`.
        **commit: `private`, whether a new repository is private, by default as the account says; `token` of the hub, by
            default the one that is logged in; `commit_message`; `branch` to commit to, the main one by default;
            `create_pr`, open a pull request in place of a commit; `allow_patterns`, of files that are uploaded, and
            `ignore_patterns`, of files that are not; `delete_patterns`, of files that the same commit deletes there.

    Returns:
        The address of the commit.

    Raises:
        TypeError, ValueError: as `save_pretrained`, or another keyword; before anything is made on the hub.
        ImportError: huggingface_hub is missing; `pip install 'frozen-kernels[hub]'`.
        OSError: the hub cannot be reached, or refuses.
    """
    client("push_to_hub")
    if isinstance(model, nn.Module):
        warn_of_stale_masks(frozen_layers(model))
    metadata = {"license": license, "tags": tags}
    shared = prepare(model, build=build, build_kwargs=build_kwargs, metadata=metadata, sample_input=sample_input)
    return upload(shared, repo_id, **commit)


def upload(
    shared: Shared,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    commit_message: str = "Push a ticket of frozen_kernels",
    create_pr: bool | None = None,
    allow_patterns: Sequence[str] | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    delete_patterns: Sequence[str] | str | None = None,
) -> str:
    """Make the repository where it is missing and commit the files; the keywords of `push_to_hub`."""
    api = client("push_to_hub").HfApi(token=token)
    # it may add the account's name, which the card tells
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        shared.write(folder, repo)
        return api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=branch,
            commit_message=commit_message,
            create_pr=create_pr,
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
            delete_patterns=delete_patterns,
        )
