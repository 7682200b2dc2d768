"""The config of a model without weights or network: its config.json, or one of those packaged here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.core.errors import ModelError, did_you_mean

SHALLOW = 4
"""Number of layers that are built to check their kinds."""
_LLAMA_3_1 = {"vocab_size": 128_256, "max_position_embeddings": 131_072, "num_key_value_heads": 8}
_LLAMA_70B = {
    **_LLAMA_3_1,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}

PACKAGED: dict[str, dict[str, Any]] = {
    "embedded": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        **_LLAMA_3_1,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_70B,
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B,
}
"""Values of the public config.json of SmolLM2-135M-Instruct, Llama-3.1 and Llama-3.3, by name."""


def reason_by_shape(shape: Any) -> str | None:
    """Why a run will not pack several sequences of this base into a row; None if its config shows no reason.

    See `rlhf.kernels.packing_check`, which also measures a base when a run starts.
    """
    from rlhf.kernels.packing_check import reason_by_layers

    shallow = copy.deepcopy(shape)
    kinds = getattr(shallow, "layer_types", None)
    if kinds and len(kinds) > SHALLOW:  # the first layer of each kind
        shallow.layer_types = [*dict.fromkeys(kinds)]
        shallow.num_hidden_layers = len(shallow.layer_types)
    elif not kinds:
        shallow.num_hidden_layers = min(SHALLOW, shallow.num_hidden_layers)
    with torch.device("meta"):
        return reason_by_layers(AutoModelForCausalLM.from_config(shallow))


def shape_of(config: RewardConfig | PolicyConfig) -> Any:
    """The transformers config of a run's base, see `load_shape`.

    Raises:
        ModelError: see `load_shape`, or a run would refuse this base.
    """
    from rlhf.models import bases

    base, revision = config.model.base, config.model.revision
    if Path(base).is_dir():
        bases.refuse_adapter(base, revision)
    classifier = isinstance(config, RewardConfig)
    shape = load_shape(base, revision, classifier=classifier)
    bases.require_quantization(shape, base, config.model.quantization)
    model = bases.skeleton(shape, base, classifier=classifier)
    if isinstance(config, PolicyConfig):
        bases.require_plain_logits(model)
    return shape


def load_shape(base: str, revision: str | None = None, *, classifier: bool = False) -> Any:
    """The transformers config of `model.base`: a folder, a name in the Hub's cache, or a packaged name.

    Args:
        classifier: it is to be a sequence classifier, not a language model.

    Raises:
        ModelError: it has no config.json on this machine, transformers does not support its model type, or it
            is no language model.
    """
    from rlhf.models.loading_errors import cannot_load, require_text_only

    file = Path(base) / "config.json"
    if base in PACKAGED and not file.exists():
        return LlamaConfig(**PACKAGED[base], pad_token_id=0)
    try:
        config = AutoConfig.from_pretrained(
            base, revision=revision, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        if file.exists():
            raise cannot_load(base, error) from error
        if file.parent.is_dir():
            raise ModelError(
                f"The folder {base} has no config.json.",
                allowed="a folder with config.json and weights",
                fix="model.base=the folder of a model; or copy or download the model again",
            ) from error
        raise ModelError(
            f"The shape of {base!r} is not known on this machine: there is no such folder, and the Hub's "
            f"cache has no config.json of it.{did_you_mean(base, PACKAGED)}",
            allowed="a folder with a config.json, a model in the Hub's cache, or " + ", ".join(PACKAGED),
            fix=f"hf download {base} config.json   (a kilobyte), or model.base=FOLDER",
        ) from error
    require_text_only(config, base, classifier=classifier)
    return config.get_text_config()
