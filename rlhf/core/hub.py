"""Whether a model or data set can be had at all, found out in seconds: a folder with a typo must not cost a minute of retries."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.core.places import is_explicit, missing_local

Kind = Literal["model", "dataset"]
TIMEOUT = 10
"""Seconds for the Hub's answer."""
A_FILE: Mapping[Kind, str] = {"model": "config.json", "dataset": "README.md"}


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a name stands for nothing that can be loaded, and what to do."""

    found: str
    fix: str


@functools.cache
def find_missing(name: str, kind: Kind, revision: str | None = None) -> Missing | None:
    """Why neither a local path nor the Hub has `name`; None where it exists, or where the Hub's answer is not conclusive.

    At most one request without retries is made: of a name that is neither here nor in the cache.
    """
    if Path(name).exists():
        return None
    near = missing_local(name)
    if is_explicit(name):
        return Missing(f"{near}", "correct the path")
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if _is_cached(name, kind, revision):
        return None
    here = f" No folder here has this name either: {near}" if near else ""
    download = f"hf download {name}{' --repo-type dataset' if kind == 'dataset' else ''} --local-dir FOLDER"
    elsewhere = f"correct the path; or, where the Hub can be reached, `{download}`, and use FOLDER"
    if HF_HUB_OFFLINE and kind == "dataset":
        return None  # a data set may be prepared elsewhere; without the Hub, loading fails at once
    if HF_HUB_OFFLINE:
        return Missing(f"HF_HUB_OFFLINE is set, and the cache does not hold {name!r}.{here}", elsewhere)
    answer = _ask(name, kind, revision)
    if answer == "unreachable":
        return Missing(f"the Hub cannot be reached, and the cache does not hold {name!r}.{here}", elsewhere)
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


def _is_cached(name: str, kind: Kind, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, A_FILE[kind], revision=revision, repo_type=kind), str):
        return True
    if kind == "model":
        return False
    import datasets  # prepared data sets are kept apart from their files

    return (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).exists()


def _ask(name: str, kind: Kind, revision: str | None) -> str:
    """The Hub's answer in one request, in one word."""
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
        return "busy"  # too many requests, or an error of the server: loading retries
    except (httpx.TransportError, OSError):
        return "unreachable"
    return "there"
