"""One commit to a Hub repository. The token is huggingface_hub's own (`hf auth login`, HF_TOKEN), and is
never printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils._validators import validate_repo_id

from rlhf.core.errors import OutputError, RunError, UserError
from rlhf.publish.staging import sizes


def check_name(repo: str) -> None:
    """Make sure that a repository's name can exist.

    Raises:
        OutputError: it is not OWNER/NAME.
    """
    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise OutputError(
            f"{repo!r} is not the name of a Hub repository.",
            allowed="OWNER/NAME, of letters, digits, '-', '_' and '.'",
        )


def push(
    folder: Path, repo: str, *, private: bool, update: bool, message: str, api: HfApi | None = None
) -> str:
    """Upload all files of a folder in one commit; returns the commit's address.

    Args:
        private: of a new repository; an existing one keeps its visibility.
        update: whether an existing repository may get a commit.

    Raises:
        OutputError: the repository exists, and is not to be updated.
        UserError: the account may not write it.
        RunError: the Hub cannot be reached, or refuses the upload.
    """
    api = api or HfApi()
    try:
        exists = api.repo_exists(repo)
        if exists and not update:
            raise OutputError(
                f"The repository {repo} exists.",
                allowed="a new repository, or --update",
                fix="--update, to add a commit to it; or another name",
            )
        if not exists:
            api.create_repo(repo, private=private)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in sizes(folder)
        ]
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except LocalTokenNotFoundError:
        raise _no_account(repo) from None
    except HfHubHTTPError as error:
        raise _refused(repo, error) from None
    except OfflineModeIsEnabled:
        raise UserError(
            "HF_HUB_OFFLINE is set: nothing is uploaded.", fix="unset HF_HUB_OFFLINE, or --dry-run"
        ) from None
    except ValueError as error:  # huggingface_hub's, for metadata that the Hub refuses
        raise RunError(
            f"The Hub refuses the metadata of the model card: {' '.join(str(error).split())}",
            fix="correct the YAML header of README.md in the model's folder, then type the command again "
            f"with --update: {repo} exists now",
        ) from None
    except (httpx.TransportError, OSError) as error:
        raise RunError(
            f"The Hub at {api.endpoint} cannot be reached ({type(error).__name__}).",
            fix="check the network, then type the command again; --dry-run needs no network",
        ) from None


def _no_account(repo: str) -> UserError:
    return UserError(
        f"No Hugging Face account: {repo} cannot be written.",
        allowed="a token with write access",
        fix="hf auth login, or set HF_TOKEN",
    )


def _refused(repo: str, error: HfHubHTTPError) -> UserError | RunError:
    """The error for an answer of the Hub; its text is the server's message, which holds no token."""
    status = getattr(error.response, "status_code", None)
    reason: Any = getattr(error, "server_message", None) or f"status {status}"
    if status == 401:
        return _no_account(repo)
    if status == 403:
        return UserError(
            f"This account may not write {repo}: {reason}.",
            allowed="your own name, or an organisation you may write to",
            fix="another OWNER, or a token with write access: hf auth login",
        )
    return RunError(
        f"The Hub refused the upload to {repo}: {reason}.",
        fix="nothing was committed; fix the cause, then type the command again with --update",
    )
