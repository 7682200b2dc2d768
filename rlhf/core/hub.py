"""Models of this project on the Hub, and checks in seconds whether a model or data set exists.

A typo must not cost a minute of the Hub's retries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.core.places import is_explicit, missing_local

RepoKind = Literal["model", "dataset"]
TIMEOUT = 10
"""Seconds for the Hub's response."""
ADAPTER_CONFIG = "adapter_config.json"
CARDS = ("reward.json", "policy.json", "principle.json", "justifier.json")
"""Cards of this project's models; each is beside an adapter."""
NEEDED = (
    *CARDS,
    ADAPTER_CONFIG,
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Files of a repository that are downloaded to use a model of this project."""
MARKER_FILES: Mapping[RepoKind, Sequence[str]] = {
    "model": ("config.json", ADAPTER_CONFIG),
    "dataset": ("README.md",),
}
"""Files of which every cached repository of a kind has one."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a model or data set cannot be loaded by its name, and the fix."""

    found: str
    fix: str


@functools.cache
def pushed_model(name: str) -> Path | None:
    """The folder in the Hub's cache of a model of this project that `rlhf push` uploaded; downloaded once.

    None for a local path, and for a repository that holds no adapter of this project.

    Args:
        name: OWNER/NAME, or OWNER/NAME@REVISION.
    """
    repository, revision = split_revision(name)
    if "/" not in repository or is_explicit(repository) or Path(name).exists():
        return None
    if find_missing(repository, "model", revision):
        return None
    import httpx
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def download(*files: str) -> Path:
        load = functools.partial(snapshot_download, repository, revision=revision, allow_patterns=list(files))
        try:
            return Path(load())
        except (httpx.TransportError, OfflineModeIsEnabled):  # of a commit, although it is in the cache
            return Path(load(local_files_only=True))

    if isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
        return None  # a complete model; without a request
    try:
        folder = download(ADAPTER_CONFIG, *CARDS)
        if not (folder / ADAPTER_CONFIG).exists() or not any((folder / card).exists() for card in CARDS):
            return None
        return download(*NEEDED)
    except (HfHubHTTPError, LocalEntryNotFoundError):  # the caller's own loading reports it
        return None


def split_revision(name: str) -> tuple[str, str | None]:
    """OWNER/NAME and REVISION of OWNER/NAME@REVISION; without `@`, the name and None."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


@functools.cache
def find_missing(name: str, kind: RepoKind, revision: str | None = None) -> Missing | None:
    """Why `name` is neither a local path nor on the Hub; None if it exists, or if the Hub's response is
    inconclusive.

    Makes at most one request, without retries, and none for a name that is a local path or in the cache.
    """
    if Path(name).exists():
        return None
    near = missing_local(name)
    if is_explicit(name):
        return Missing(f"{near}", "correct the path")
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if _is_cached(name, kind, revision):
        return None
    shown = repr(name) if revision is None else f"{name!r} at revision {revision!r}"
    here = f" No local folder has this name either: {near}" if near else ""
    download = f"hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''} --local-dir FOLDER"
    elsewhere = f"correct the path; or run `{download}` on a machine with access to the Hub, and use FOLDER"
    if HF_HUB_OFFLINE and kind == "dataset":
        return None  # a prepared data set may be in another cache; offline, loading fails at once
    if HF_HUB_OFFLINE:
        return Missing(f"HF_HUB_OFFLINE is set, and the cache does not hold {shown}.{here}", elsewhere)
    answer = _query(name, kind, revision)
    if answer == "unreachable":
        return Missing(f"the Hub cannot be reached, and the cache does not hold {shown}.{here}", elsewhere)
    if answer == "gated":
        return Missing(
            f"{name!r} is gated on the Hub, and this account may not read it.",
            f"request access at https://huggingface.co/{name}, then `hf auth login`",
        )
    if answer == "unknown":
        return Missing(
            f"the Hub has no public {kind} {name!r}.{here}",
            "correct the name; for a private one run `hf auth login` first",
        )
    if answer == "no revision":
        return Missing(
            f"{name!r} on the Hub has no revision {revision!r}.", "correct `revision`, or leave it out"
        )
    return None


def _is_cached(name: str, kind: RepoKind, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    files = (
        try_to_load_from_cache(name, file, revision=revision, repo_type=kind) for file in MARKER_FILES[kind]
    )
    if any(isinstance(file, str) for file in files):
        return True
    if kind == "model":
        return False
    import datasets  # prepared data sets have a cache of their own

    return (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).exists()


def _query(name: str, kind: RepoKind, revision: str | None) -> str:
    """The Hub's response to a single request: exists, gated, unknown, no revision, busy or unreachable."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api: Any = HfApi()
    try:
        api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
    except GatedRepoError:
        return "gated"
    except (RepositoryNotFoundError, HFValidationError):
        return "unknown"
    except RevisionNotFoundError:
        return "no revision"
    except HfHubHTTPError:
        return "busy"  # too many requests, or a server error: loading retries
    except (httpx.TransportError, OSError):
        return "unreachable"
    return "exists"
