"""Check a base by its files and by its modules on the meta device, before its weights are loaded.

The training commands, their `--dry-run` and the doctor call `examine`; the loader calls the same checks on
the loaded model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf.config.schema import AdapterConfig, ModelConfig, ReasoningRule
from rlhf.core.errors import ConfigError, ModelError
from rlhf.core.hub import ADAPTER_CONFIG
from rlhf.distributed import sharding
from rlhf.models.chat.chat import Chat
from rlhf.models.dropout import require_switchable
from rlhf.models.embedded import resolve_base
from rlhf.models.folders import adapter_as_model
from rlhf.models.loading_errors import (
    IN_DOCS,
    LOADING_ERRORS,
    cannot_load,
    no_output_embedding,
    no_sdpa,
    require_text_only,
)
from rlhf.models.names import HEAD
from rlhf.models.stored import file_of, stored_head, stored_rows
from rlhf.models.targets import ALL_LINEAR, adapter_targets
from rlhf.models.weight_files import FILES_OR_INDICES, weight_files

CLASSIFIER = "ForSequenceClassification"
LOGIT_SETTINGS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def read_config(base: str, revision: str | None) -> Any:
    """The transformers config of a base.

    Raises:
        ModelError: it is an adapter, or has no config that transformers supports.
    """
    refuse_adapter(base, revision)
    try:
        return AutoConfig.from_pretrained(
            resolve_base(base, revision), revision=revision, trust_remote_code=False
        )
    except LOADING_ERRORS as error:
        raise cannot_load(base, error) from error


def refuse_adapter(base: str, revision: str | None) -> None:
    """Refuse a LoRA adapter as a base: transformers would load the adapter's base instead.

    Raises:
        ModelError: it is an adapter.
    """
    file = file_of(base, revision, ADAPTER_CONFIG)
    if file is not None:
        raise adapter_as_model(base, Path(file).parent)


def check(
    model: ModelConfig, adapter: AdapterConfig | None, *, attributes: Sequence[str] | None = None
) -> list[str]:
    """`examine` for the base and the adapter of a run's config.

    Raises:
        ModelError: the run cannot use the base.
    """
    return examine(
        read_config(model.base, model.revision),
        model.base,
        revision=model.revision,
        quantization=model.quantization,
        adapter=None if adapter is None else adapter.model_dump(),
        attributes=attributes,
    )


def examine(
    config: Any,
    base: str,
    *,
    revision: str | None,
    quantization: str,
    adapter: Mapping[str, Any] | None,
    attributes: Sequence[str] | None,
) -> list[str]:
    """Check that a run can use a base; return notes for the user.

    Args:
        config: the base's transformers config.
        adapter: the adapter's settings; None for full fine-tuning.
        attributes: of a reward model; None for a policy.

    Raises:
        ModelError: it cannot.
    """
    require_quantization(config, base, quantization)
    model = skeleton(config, base, classifier=attributes is not None)
    require_weights(config, base)
    # A check downloads the weights of a classifier, which decide the notes, but not of a language model.
    fetch = any(name.endswith(CLASSIFIER) for name in config.architectures or ())
    head = stored_head(config, base, revision, fetch=fetch)
    if sharding.fsdp_is_requested():
        sharding.require_layers(model)
    notes = []
    if attributes is None:
        require_plain_logits(model)
        if head and not tied(config) and stored_rows(base, revision, "lm_head.weight", fetch=fetch) is None:
            raise no_output_embedding(base)
    elif head:
        notes.append(head.note(attributes))
    if adapter is not None:
        names = adapter_targets(model, adapter["targets"])
        if adapter["targets"] == ALL_LINEAR and names != ALL_LINEAR:
            notes.append(
                f"The base is a mixture of experts: the adapter targets {', '.join(names)}, not the experts "
                "and the router, whose adapters cannot be exported."
            )
    return notes


def skeleton(config: Any, base: str, *, classifier: bool) -> PreTrainedModel:
    """The modules of a base on torch's meta device, without weights.

    Raises:
        ModelError: transformers has no such model, or its attention does not support packed rows.
    """
    kind = getattr(config, "model_type", "?")
    auto_class: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"{base!r} is a {kind} model, an encoder: its tokens attend to later ones.",
            allowed=f"decoders, such as Llama, Qwen or Mistral; {IN_DOCS}",
            fix="model.base=another model; an encoder that scores can be the policy's reward: "
            "{classifier: FOLDER}",
        )
    require_text_only(config, base, classifier=classifier)
    if getattr(config, "alibi", False):
        raise no_sdpa(base, kind, "its positions are ALiBi biases")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(copy.deepcopy(config), attn_implementation="sdpa")
    except LOADING_ERRORS as error:
        if "Unrecognized configuration class" in str(error):
            task = (
                "sequence classification, which a reward model is" if classifier else "causal language models"
            )
            raise ModelError(
                f"{base!r}: transformers {transformers.__version__} has no {kind} model for {task}.",
                allowed=IN_DOCS,
                fix="model.base=another model",
            ) from error
        raise cannot_load(base, error) from error
    require_switchable(model)
    if model.base_model is model:
        raise ModelError(
            f"{base!r}: transformers {transformers.__version__} gives no access to the hidden states of a "
            f"{type(model).__name__}.",
            allowed=IN_DOCS,
            fix="model.base=another model",
        )
    if classifier and not isinstance(getattr(model, HEAD, None), torch.nn.Linear):
        raise ModelError(
            f"{base!r} is a {kind} model, whose classifier has no linear head named `{HEAD}`.",
            allowed=f"decoders, such as Llama, Qwen or Mistral; {IN_DOCS}",
            fix="model.base=another model",
        )
    return model


def require_quantization(config: Any, base: str, quantization: str) -> None:
    """Require weights stored as `model.quantization` says, or unquantized.

    Raises:
        ModelError: they are stored with another quantization.
    """
    stored = stored_quantization(config)
    if stored is None or stored == quantization:
        return
    if stored == "nf4":
        raise ModelError(
            f"{base!r} is stored in 4 bits (nf4), and model.quantization is {quantization}.",
            allowed="model.quantization=nf4 for weights stored in nf4",
            fix="model.quantization=nf4",
        )
    raise ModelError(
        f"{base!r} is stored quantized by {stored}, on which adapters cannot be trained here.",
        allowed="weights in 16 or 32 bits, or in nf4 by bitsandbytes",
        fix="model.base=the model without quantization, and model.quantization=nf4 if memory is short",
    )


def stored_quantization(config: Any) -> str | None:
    """The quantization of a base's stored weights: `nf4`, another method's name, or None."""
    quantization = getattr(config, "quantization_config", None)
    if not quantization:
        return None
    settings: Mapping[str, Any] = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = str(
        getattr(settings.get("quant_method"), "value", settings.get("quant_method", "an unnamed method"))
    )
    if method.startswith("bitsandbytes"):
        if settings.get("load_in_4bit"):
            return str(settings.get("bnb_4bit_quant_type", "fp4"))
        return "bitsandbytes in 8 bits"
    return method


def require_weights(config: Any, base: str) -> None:
    """Require the files of weights in a folder.

    Raises:
        ModelError: there are none, or some of those that the index names are missing.
    """
    folder = Path(base)
    named = getattr(config, "transformers_weights", None)  # a file of another name
    if folder.is_dir() and named is None and not any((folder / name).exists() for name in FILES_OR_INDICES):
        raise ModelError(
            f"The folder {base} has no weights: none of {', '.join(FILES_OR_INDICES)}.",
            allowed="a folder with config.json and weights",
            fix="copy or download the model again",
        )
    shards = sorted(weight_files(folder))
    if missing := [shard for shard in shards if not (folder / shard).exists()]:
        raise ModelError(
            f"The folder {base} lacks {len(missing)} of its {len(shards)} files of weights; the first is "
            f"{missing[0]}.",
            fix="copy or download the model again",
        )


def require_plain_logits(model: PreTrainedModel) -> None:
    """Require a causal model whose logits are the product of hidden states and head.

    Raises:
        ModelError: the model changes its logits further (soft-capping, scaling, a bias).
    """
    config = model.config.get_text_config()
    extras = [name for name in LOGIT_SETTINGS if getattr(config, name, None) not in (None, 0, 1.0)]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        extras.append("a bias")
    if extras:
        raise ModelError(
            f"{config.model_type} changes its logits after the head ({', '.join(extras)}).",
            allowed="models whose logits are the product of hidden states and head, such as Llama, Qwen or "
            "Mistral",
            fix=f"model.base=another model; {IN_DOCS}",
        )


def tied(config: Any) -> bool:
    """Whether the input and output embeddings are tied."""
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def load_chat(model: ModelConfig, *, reasoning: ReasoningRule = "keep") -> Chat:
    """The tokenizer and chat template of a base that is trained with rows of `model.max_length` tokens.

    Raises:
        UserError: there is no such base, or model.max_length exceeds its context.
    """
    require_context(model.base, model.revision, model.max_length)
    return Chat.of(model, reasoning=reasoning)


def require_context(base: str, revision: str | None, max_length: int) -> None:
    """Require `model.max_length` within the context of the base, if it has a limit.

    Raises:
        ConfigError: it exceeds the context.
        ModelError: the base is an adapter, or has no config that transformers can read.
    """
    config = read_config(base, revision)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        raise ConfigError(
            f"model.max_length is {max_length}.",
            allowed=f"at most {context}, the context of {base!r}",
            fix=f"model.max_length={context}",
        )
