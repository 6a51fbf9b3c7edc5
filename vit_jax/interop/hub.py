"""Pushes a directory to a new repository of the Hugging Face hub, in one commit.

Nothing is ever overwritten: a repository with files is refused, and so is a push if
there was another commit in the meantime. If a push fails, the new repository stays empty and can be
pushed to again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vit_jax import __version__
from vit_jax.errors import UserError, need

#: The hub creates this file.
EMPTY = {".gitattributes"}


class Place(NamedTuple):
    """An empty repository. head: its commit; None if there is no repository yet."""

    name: str
    private: bool
    head: str | None


def is_hub(target: str | Path) -> bool:
    """Whether a target of a conversion is on the hub."""
    return str(target).startswith("hf:")


def find_place(target: str, private: bool) -> Place:
    """Checks with the hub that `hf:ORG/NAME` can be pushed to; writes nothing.

    Raises:
      UserError: an invalid name, huggingface_hub or a token is missing, the hub cannot be reached,
        or the repository exists and has files.
    """
    name = target.removeprefix("hf:")
    if not re.fullmatch(r"[^/@\s]+/[^/@\s]+", name):
        raise UserError(f"{target} cannot be pushed to: it must be hf:ORG/NAME.")
    need("hf:", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(name)
    except errors.HFValidationError as error:
        raise UserError(f"{target} is not a valid name on the hub: {_line(error)}") from error
    if not huggingface_hub.get_token():
        raise UserError(
            f"{target} requires a login: run `hf auth login` with a write token, or set "
            "HF_TOKEN; create tokens at https://huggingface.co/settings/tokens."
        )
    try:
        info = huggingface_hub.HfApi().model_info(name)
    except errors.GatedRepoError as error:
        raise UserError(_holds(target, "files")) from error
    except errors.RepositoryNotFoundError:
        return Place(name, private, None)
    except Exception as error:
        raise UserError(f"{target} refused: {explain(error, name)}") from error
    held = sorted({file.rfilename for file in info.siblings or ()} - EMPTY)
    if held:
        raise UserError(_holds(target, ", ".join(held[:3])))
    if private and not info.private:
        raise UserError(
            f"{target} exists and is public; --private is for a new repository. Make it private in "
            "its settings, or choose another name."
        )
    return Place(name, private, info.sha)


def push(directory: Path, place: Place, message: str) -> str:
    """Pushes the files of a directory in one commit; returns the commit's URL.

    Raises:
      UserError: no permission, no network, or the repository is no longer empty.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="vit_jax", library_version=__version__)
    head, left = place.head, "Nothing was pushed."
    try:
        if head is None:
            api.create_repo(place.name, private=place.private or None)
            left += " The new repository is empty; run the same command again."
            head = api.model_info(place.name).sha
        commit = api.create_commit(
            place.name,
            [CommitOperationAdd(file.name, str(file)) for file in sorted(directory.iterdir())],
            commit_message=message,
            parent_commit=head,  # refused after another commit
        )
    except Exception as error:
        raise UserError(f"hf:{place.name} refused: {explain(error, place.name)} {left}") from error
    return commit.commit_url


def explain(error: BaseException, name: str) -> str:
    """The reason why a request to the hub failed, as a sentence."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    codes = [getattr(getattr(each, "response", None), "status_code", None) for each in causes]
    code = next((code for code in codes if code is not None), None)
    if code == 401:
        return "the hub does not accept the token; run `hf auth login` again."
    if code == 403:
        return f"the token cannot write to {name.partition('/')[0]}; use another token."
    if code in (409, 412):
        return "there was another commit in the meantime, and nothing is overwritten."
    if code is not None:
        return f"the hub returns {code} ({_line(error)})."
    if isinstance(error, OSError) or any("onnect" in type(each).__name__ for each in causes):
        return f"the hub cannot be reached ({_line(causes[-1])})."
    return f"{_line(error)}."


def _holds(target: str, what: str) -> str:
    return f"{target} exists and has {what}; nothing is overwritten, choose another name."


def _line(error: BaseException) -> str:
    """The text of an error on one line, without the full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
