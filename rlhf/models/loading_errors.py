"""Why a base cannot be loaded: the exceptions of transformers as errors with a fix for each cause."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the exception of torch.load for a file with code

import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError

from rlhf.core.errors import ModelError

IN_DOCS = "docs/models.md lists the architectures that were tested"


LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, UnpicklingError)
"""Exceptions of transformers for a model that cannot be loaded."""


def no_output_embedding(base: str) -> ModelError:
    """The error for a policy's base without an output embedding."""
    return ModelError(
        f"{base!r} has no weights of an output embedding (lm_head), so its answers would be random.",
        allowed="a causal language model; a sequence classifier can be the base of a reward model",
        fix="model.base=the language model that the classifier was trained from",
    )


def cannot_load(base: str, error: Exception) -> ModelError:
    """The error for a base that transformers cannot load, with a fix for its cause."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    text = str(error)
    first = (text.strip().splitlines() or [type(error).__name__])[0]
    folder = Path(base)
    whole = "`embedded`, a folder with config.json and safetensors weights, or a Hugging Face name"
    if "scaled_dot_product_attention" in text or "attention implementation" in text:
        return no_sdpa(
            base,
            first.partition(" ")[0],
            f"transformers {transformers.__version__} has no such attention for this architecture",
        )
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{base!r} needs its own Python code, which is not executed.",
            allowed="architectures that are part of transformers",
            fix=f"model.base=another model; {IN_DOCS}",
        )
    if isinstance(error, PermissionError):
        return ModelError(
            f"{base!r} cannot be loaded: {error.strerror or first}: {error.filename}.",
            allowed="readable files, and a writable cache",
            fix="chmod, or another cache: export HF_HOME=FOLDER",
        )
    if "does not recognize this architecture" in text or "should have a `model_type`" in text:
        return ModelError(
            f"{base!r}: transformers {transformers.__version__} does not know its model_type.",
            allowed=IN_DOCS,
            fix="model.base=another model, or a newer transformers",
        )
    if isinstance(error, ImportError):
        return ModelError(f"{base!r} needs a package that is not installed: {first}", allowed=whole)
    if folder.is_dir():
        return ModelError(
            f"The files of {base} cannot be loaded: {first}",
            allowed=whole,
            fix="copy or download the folder again",
        )
    if (
        isinstance(error.__cause__, GatedRepoError)
        or "gated repo" in text
        or "401" in first
        or "403" in first
    ):
        return ModelError(
            f"{base!r} is gated or private: {first}",
            allowed=whole,
            fix="request access on the model's page, then run `hf auth login`",
        )
    return ModelError(
        f"No model could be loaded from {base!r}: {first}",
        allowed=whole,
        fix="a folder, or a name that the Hub or its cache has: hf download NAME --local-dir FOLDER",
    )


def no_sdpa(base: str, kind: str, reason: str) -> ModelError:
    """The error for an architecture without SDPA, which packed rows need."""
    return ModelError(
        f"{base!r} ({kind}) cannot use torch's scaled_dot_product_attention, which packed rows need: "
        f"{reason}.",
        allowed=f"architectures that support it, such as Llama, Qwen, Mistral, Gemma or Phi-3; {IN_DOCS}",
        fix="model.base=another model",
    )


def missing_weights(base: str, missing: set[str]) -> ModelError:
    """The error for a base without some of its weights."""
    return ModelError(
        f"{base!r} lacks {len(missing)} weights, which would be random; the first is {min(missing)}.",
        allowed="a model with all its weights",
        fix="copy or download the model again",
    )


def unused_weights(base: str, model: object, names: Iterable[str]) -> str | None:
    """A line about weights of a base that a model does not use, such as a value head; None if there are none.

    Heads of classifiers and language models are reported when the base is examined.
    """
    unused = sorted(name for name in names if not name.startswith(("score.", "lm_head.")))
    if not unused:
        return None
    return (
        f"{len(unused)} weights of {base} are not used by {type(model).__name__}; the first is {unused[0]}."
    )
