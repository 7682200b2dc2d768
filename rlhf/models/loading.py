"""Load bases, adapters and heads; `rlhf.models.roles` switches between the roles on one base.

A *role* is the base with one adapter: `policy` samples, `reward` scores, `critic` predicts the reward. The
*reference* is the base without an adapter or, if the policy started from an adapter, a frozen copy of that.
Adapters and heads are in float32: an update of 1e-6 would vanish in bfloat16. A reward model on disk is a
PEFT adapter for `AutoModelForSequenceClassification` with its head. Here the adapter is attached to a causal
model, and the head is a separate module. Other modules import transformers' model classes and peft from here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig as LoraConfig  # for other modules
from peft import PeftModel as PeftModel
from peft import get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from rlhf.core.errors import ModelError
from rlhf.core.formats import COMPUTE_DTYPE, announce_dtype, compute_dtype
from rlhf.distributed.processes import broadcast_from_main, is_main
from rlhf.distributed.sharding import compute_device, full_tensor, set_parameters
from rlhf.kernels import adapter_layers, layers
from rlhf.models import four_bits, placement
from rlhf.models.bases import read_config, stored_quantization
from rlhf.models.dropout import switch_off as switch_off_noise
from rlhf.models.embedded import resolve_base
from rlhf.models.loading_errors import (
    LOADING_ERRORS,
    cannot_load,
    missing_weights,
    no_output_embedding,
    require_text_only,
    unused_weights,
)
from rlhf.models.names import HEAD, REFERENCE, TRAINED_WHOLE
from rlhf.models.stored import stored_head
from rlhf.models.targets import adapter_targets


def load_causal(
    base: str,
    *,
    revision: str | None,
    dtype: str,
    quantization: str,
    kept_in_float32: bool = False,
    on_host: bool = False,
    fast_layers: bool = True,
    writes: bool = True,
) -> PreTrainedModel:
    """The frozen base as a causal language model.

    Args:
        kept_in_float32: keep float32 weights and compute in `dtype` by autocast: for full fine-tuning, and
            for a model that must give the same results.
        on_host: keep a 4-bit base in CPU memory, not on the GPU.
        fast_layers: use the kernels of `rlhf.kernels.layers`; otherwise transformers' and PEFT's.
        writes: the output embedding is used; False for the base of a reward model, which may lack it.

    Raises:
        ModelError: transformers cannot load the base, or weights are missing.
    """
    stored = "float32" if kept_in_float32 else dtype
    config = read_config(base, revision)
    model, missing = _load(
        AutoModelForCausalLM,
        base,
        config,
        revision=revision,
        dtype=stored,
        quantization=quantization,
        fast_layers=fast_layers,
        on_host=on_host,
    )
    output = {name for name in missing if name.startswith("lm_head.")}
    if missing - output or (output and writes and not stored_head(config, base, revision)):
        raise missing_weights(base, missing)
    if output and writes:
        raise no_output_embedding(base)
    if kept_in_float32:
        setattr(model, COMPUTE_DTYPE, getattr(torch, announce_dtype(dtype)))
    # The run's config sets the sampling. A model's top_p or repetition penalty would change the distribution
    # whose log-probabilities are computed.
    default = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=default.bos_token_id,
        eos_token_id=default.eos_token_id,
        pad_token_id=default.pad_token_id,
    )
    return model


def load_classifier(
    base: str,
    *,
    attributes: list[str],
    revision: str | None,
    dtype: str,
    quantization: str,
    pad_id: int,
    fast_layers: bool = True,
) -> PreTrainedModel:
    """The base as transformers' sequence classifier, with one output per attribute.

    The base's head is used if it fits (`stored.StoredHead.fits`). Otherwise the head starts at zero: all
    responses then have the same score, and the first Bradley-Terry loss is log 2 on any base.

    Raises:
        ModelError: transformers cannot load the base, or weights are missing.
    """
    config = read_config(base, revision)
    head = stored_head(config, base, revision)
    config.id2label = dict(enumerate(attributes))
    config.label2id = {name: index for index, name in config.id2label.items()}
    config.pad_token_id = pad_id
    model, missing = _load(
        AutoModelForSequenceClassification,
        base,
        config,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        fast_layers=fast_layers,
    )
    fresh = {name for name in missing if name.startswith(f"{HEAD}.")}
    if missing - fresh:
        raise missing_weights(base, missing)
    if fresh or head is None or not head.fits(attributes):
        nn.init.zeros_(getattr(model, HEAD).weight)
    return model


def _load(
    auto_class: Any,
    base: str,
    config: Any,
    *,
    revision: str | None,
    dtype: str,
    quantization: str,
    fast_layers: bool,
    on_host: bool = False,
) -> tuple[PreTrainedModel, set[str]]:
    """A frozen model, and the names of weights missing from its files."""
    placement.require_usable_gpus()
    require_text_only(config, base, classifier=auto_class is AutoModelForSequenceClassification)
    dtype = announce_dtype(dtype)
    stored = stored_quantization(config)
    skipped = ["lm_head", HEAD]
    extra: dict[str, Any] = {}
    if stored is not None and isinstance(config.quantization_config, dict):
        config.quantization_config["llm_int8_skip_modules"] = skipped
    elif quantization == "nf4":
        extra["quantization_config"] = four_bits.nf4_settings(getattr(torch, dtype), skipped)
    try:
        with quiet(), placement.loading(stored or quantization, on_host=on_host) as where:
            model, loaded = auto_class.from_pretrained(
                resolve_base(base),
                config=config,
                revision=revision,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # for a classifier's head; others are refused below
                output_loading_info=True,
                trust_remote_code=False,
                **where,
                **extra,
            )
    except LOADING_ERRORS as error:
        raise cannot_load(base, error) from error
    if others := sorted(name for name, *_ in loaded["mismatched_keys"] if not name.startswith(f"{HEAD}.")):
        raise ModelError(
            f"{len(others)} weights of {base!r} have other shapes than in its config.json; the first is "
            f"{others[0]}.",
            fix="copy or download the model again",
        )
    if is_main() and (unused := unused_weights(base, model, loaded["unexpected_keys"])):
        print(unused, flush=True)
    switch_off_noise(model)
    if fast_layers:
        layers.enable(model)
    model.requires_grad_(False)
    four_bits.prepare(model, getattr(torch, dtype))
    return model, set(loaded["missing_keys"]) - set(model.all_tied_weights_keys)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bar and its table of missing weights, which we report as errors."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def fingerprint(model: PreTrainedModel) -> str:
    """Sixteen hex digits that identify a base: a hash of its shape and a sample of its embedding in bfloat16.

    Full fine-tuning may leave the sample unchanged, so the hash of the trained weights, from the config, is
    included. Quantization leaves the embedding unchanged, so the fingerprint does not depend on the dtype. A
    collective call.
    """
    config = model.config.get_text_config()
    shape = [config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size]
    if trained := getattr(model.config, TRAINED_WHOLE, None):
        shape.append(trained["weights"])
    sample = full_tensor(model.get_input_embeddings().weight).detach()[
        :: max(1, config.vocab_size // 64), :64
    ]
    values = sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
    # With `fsdp_cpu_ram_efficient_loading` only the main process has weights before sharding.
    return broadcast_from_main(hashlib.sha256(json.dumps(shape).encode() + values).hexdigest()[:16])


def lora_config(
    *, rank: int, alpha: float, dropout: float, targets: str | list[str], head: bool = False
) -> LoraConfig:
    """PEFT's config of an adapter.

    With `head`, of a sequence classifier whose head is also trained and saved.
    """
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if targets == "all-linear" or isinstance(targets, list) else [targets],
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[HEAD] if head else None,
    )


def fit_targets(model: PreTrainedModel, config: LoraConfig) -> LoraConfig:
    """Resolve the target layers of an adapter's config for this model, see `rlhf.models.targets`.

    Raises:
        ModelError: a target layer does not exist, or cannot have an adapter.
    """
    config.target_modules = adapter_targets(model, config.target_modules)
    return config


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with a new trainable adapter in float32.

    Raises:
        ModelError: a target layer does not exist.
    """
    wrapped = get_peft_model(model, fit_targets(model, config))
    upcast_trainable(wrapped)
    adapter_layers.enable(wrapped)
    return wrapped


def upcast_trainable(model: nn.Module) -> None:
    """Cast trained parameters to float32; TRL's trainers cast them to bfloat16 on a 4-bit base."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def reward_head(model: PeftModel) -> nn.Linear:
    """The trained head of a classifier with an adapter; PEFT also keeps the original head."""
    head = getattr(model.get_base_model(), HEAD)
    return head.modules_to_save[model.active_adapter]  # type: ignore[no-any-return]


def set_head(model: PeftModel, weight_AD: Tensor) -> None:
    """Set the weight of a classifier's trained head."""
    weight = reward_head(model).weight
    set_parameters(
        model, {name: weight_AD for name, parameter in model.named_parameters() if parameter is weight}
    )


def autocast(model: PreTrainedModel) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a forward pass.

    Float32 weights that are trained compute in the base's dtype.
    """
    return torch.autocast(
        compute_device(model).type, torch.bfloat16, enabled=compute_dtype(model) == torch.bfloat16
    )


def reference_role(model: PeftModel | PreTrainedModel) -> str | None:
    """The reference role: the adapter the policy started from, or None for the base."""
    return REFERENCE if isinstance(model, PeftModel) and REFERENCE in model.peft_config else None


def base_of(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """The model without its adapters."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
