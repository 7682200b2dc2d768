"""Why a base cannot be loaded: the exceptions of transformers as errors with a fix for each cause."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the exception of torch.load for a file with code
from typing import Any

import torch
import transformers
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

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
    if "Unrecognized configuration class" in text:
        return ModelError(
            f"{base!r}: transformers {transformers.__version__} has no {_kind(first)} model for this task.",
            allowed=IN_DOCS,
            fix="another base, of a language model",
        )
    if "backend tokenizer" in text:
        return ModelError(
            f"{base!r} has no tokenizer.json, and no file from which transformers can make one.",
            fix="copy tokenizer.json into the folder, or tokenizer.model (which needs `pip install "
            "sentencepiece`), or vocab.json and merges.txt",
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
    if folder.is_dir() and not (folder / "config.json").exists():
        is_run = (folder / "final").is_dir()
        return ModelError(
            f"{base} is not a model: it has no config.json.",
            allowed=whole,
            fix=f"name the base model; {folder / 'final'} is a model of this project, for `start` or `reward`"
            if is_run
            else "name the folder that holds config.json and the weights",
        )
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


def _kind(message: str) -> str:
    """The name of the config's class in transformers' message about an unrecognized one."""
    return message.partition("'>")[0].rpartition(".")[2].removesuffix("Config") or "such"


def no_sdpa(base: str, kind: str, reason: str) -> ModelError:
    """The error for an architecture without SDPA, which packed rows need."""
    return ModelError(
        f"{base!r} ({kind}) cannot use torch's scaled_dot_product_attention, which packed rows need: "
        f"{reason}.",
        allowed=f"architectures that support it, such as Llama, Qwen, Mistral, Gemma or Phi-3; {IN_DOCS}",
        fix=f"another base in place of {base}: `model.base` of a config, or the name on the command line",
    )


def require_text_only(config: Any, base: str, *, classifier: bool) -> None:
    """Refuse a model of text and images: its adapter would be on its image layers, too.

    Args:
        classifier: it is to be a sequence classifier, not a language model.

    Raises:
        ModelError: it is one, with the command that writes its text model, if transformers has a class for
            that.
    """
    if not any(getattr(config, part, None) for part in ("vision_config", "audio_config")):
        return
    text = config.get_text_config()
    mapping: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING if classifier else MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = mapping.get(type(config), None)
    if model_class is not None and model_class.config_class is type(text):
        return  # transformers loads its text model
    command = (
        'python -c "import transformers as t; '
        f"whole = t.AutoModelForImageTextToText.from_pretrained({base!r}); "
        "text = t.AutoModelForCausalLM.from_config(whole.config.get_text_config(), dtype=whole.dtype); "
        "text.model.load_state_dict(whole.model.language_model.state_dict()); "
        "text.lm_head.load_state_dict(whole.lm_head.state_dict()); "
        "text.generation_config = whole.generation_config; text.save_pretrained('TEXT'); "
        f"t.AutoTokenizer.from_pretrained({base!r}).save_pretrained('TEXT')\""
    )
    known = text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    raise ModelError(
        f"{base!r} is a {config.model_type} model, which also reads images or audio.",
        allowed=f"a language model; {IN_DOCS}",
        fix=f"write its text model, then use TEXT: {command}" if known else "another model, of text alone",
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
