"""The one door to transformers' model classes, peft and bitsandbytes: bases, adapters, heads, and the roles on one base.

A *role* is what the base does with one adapter: `policy` samples, `reward` scores, `critic` foresees the reward; the *reference*
is the base with no adapter or, where the policy started from another, a frozen copy of that one. Adapters and heads are kept in float32 whatever the base's format: an update of 1e-6 would vanish in
bfloat16. A reward model on disk is a PEFT adapter for `AutoModelForSequenceClassification`, its head among the adapter's
weights; here its adapter is hung on a causal model and the head kept beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig as LoraConfig  # the others' door to both classes
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
from rlhf.distributed.processes import broadcast_from_main
from rlhf.distributed.sharding import compute_device, full_tensor, reshard, set_parameters
from rlhf.kernels import adapter_layers, layers
from rlhf.models import four_bits, placement
from rlhf.models.bases import HEAD as HEAD
from rlhf.models.bases import (
    read_config,
    stored_head,
    stored_quantization,
)
from rlhf.models.dropout import switch_off as switch_off_noise
from rlhf.models.embedded import resolve_base
from rlhf.models.loading_errors import LOADING_ERRORS, cannot_load, no_output_embedding
from rlhf.models.targets import adapter_targets

POLICY = "default"  # the name TRL's trainers give the adapter they train
REWARD = "reward"
CRITIC = "critic"
REFERENCE = "reference"
TRAINED_WHOLE = "rlhf_policy"  # the key in config.json of a model all weights of which were trained: its card
VALUE_HEAD = "value_head"  # the critic's, trained and saved with the base that wears it


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
        kept_in_float32: weights are, and are computed in `dtype` by autocast: for a base that is trained itself, and for one that must
            give the same numbers as it.
        on_host: a 4-bit base lies in the machine's memory, not on the GPU.
        fast_layers: compute by the kernels of `rlhf.kernels.layers`; otherwise by transformers and PEFT alone.
        writes: its output embedding is used; False for the base of a reward model, which may have none.

    Raises:
        ModelError: nothing that transformers can load is there, or weights are missing.
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
        raise _missing_weights(base, missing)
    if output and writes:
        raise no_output_embedding(base)
    if kept_in_float32:
        setattr(model, COMPUTE_DTYPE, getattr(torch, announce_dtype(dtype)))
    # How answers are drawn is for the config to say: a model's own top_p or repetition penalty would bend the
    # distribution that log-probabilities are taken of.
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
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
    """The base as transformers' sequence classifier, with one output an attribute.

    The head is the base's own where that fits (`bases.StoredHead.fits`). Else it starts at zero: every response scores the
    same until something is learnt, so that the first loss of a Bradley-Terry term is log 2 on any base.

    Raises:
        ModelError: nothing that transformers can load is there, or weights are missing.
    """
    config = read_config(base, revision)
    head = stored_head(config, base, revision)
    config.id2label = dict(enumerate(attributes))
    config.label2id = {name: place for place, name in config.id2label.items()}
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
        raise _missing_weights(base, missing)
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
    """A frozen model, and the names of the weights that its files lack."""
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
                ignore_mismatched_sizes=True,  # of a classifier's head; others are refused below
                output_loading_info=True,
                trust_remote_code=False,
                **where,
                **extra,
            )
    except LOADING_ERRORS as error:
        raise cannot_load(base, error) from error
    others = sorted(str(name) for name, *_ in loaded["mismatched_keys"] if not name.startswith(f"{HEAD}."))
    if others:
        raise ModelError(
            f"{len(others)} weights of {base!r} have another shape than its config.json says, the first is {others[0]}.",
            fix="copy or download the model again",
        )
    switch_off_noise(model)
    if fast_layers:
        layers.enable(model)
    model.requires_grad_(False)
    four_bits.prepare(model, getattr(torch, dtype))
    return model, set(loaded["missing_keys"]) - set(model.all_tied_weights_keys)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bar and its table of missing weights, which become errors of ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _missing_weights(base: str, missing: set[str]) -> ModelError:
    return ModelError(
        f"{base!r} lacks {len(missing)} weights of its model, the first is {min(missing)}: they would be random.",
        allowed="a model with all its weights",
        fix="copy or download the model again",
    )


def fingerprint(model: PreTrainedModel) -> str:
    """Sixteen hex digits that tell one base from another: its shape, and a sample of its embedding in bfloat16.

    Training all weights may leave that sample as it was: what was trained so is also told by a hash in its config. Quantization leaves
    the embedding as it is, so a base has one fingerprint in every format. All processes must ask.
    """
    config = model.config.get_text_config()
    shape = [config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size]
    if trained := getattr(model.config, TRAINED_WHOLE, None):
        shape.append(trained["weights"])
    sample = full_tensor(model.get_input_embeddings().weight).detach()[
        :: max(1, config.vocab_size // 64), :64
    ]
    values = sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes()
    # With `fsdp_cpu_ram_efficient_loading` the main process alone has weights before they are dealt out.
    return broadcast_from_main(hashlib.sha256(json.dumps(shape).encode() + values).hexdigest()[:16])


def lora_config(
    *, rank: int, alpha: float, dropout: float, targets: str | list[str], head: bool = False
) -> LoraConfig:
    """PEFT's description of an adapter; with `head`, of a sequence classifier whose head is trained and saved too."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if targets == "all-linear" or isinstance(targets, list) else [targets],
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[HEAD] if head else None,
    )


def fit_targets(model: PreTrainedModel, config: LoraConfig) -> LoraConfig:
    """Make an adapter's description name the layers of this model; see `rlhf.models.targets`.

    Raises:
        ModelError: the model lacks a layer that the adapter is for, or it cannot have an adapter.
    """
    config.target_modules = adapter_targets(model, config.target_modules)
    return config


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with a fresh trainable adapter, in float32.

    Raises:
        ModelError: the model lacks a layer that the adapter is for.
    """
    wrapped = get_peft_model(model, fit_targets(model, config))
    upcast_trainable(wrapped)
    adapter_layers.enable(wrapped)
    return wrapped


def upcast_trainable(model: nn.Module) -> None:
    """Put the trained parameters in float32; TRL's trainers make them bfloat16 on a 4-bit base."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def reward_head(model: PeftModel) -> nn.Linear:
    """The trained head of a classifier that wears an adapter: PEFT keeps the original beside it."""
    head = getattr(model.get_base_model(), HEAD)
    return head.modules_to_save[model.active_adapter]  # type: ignore[no-any-return]


def set_head(model: PeftModel, weight_AD: Tensor) -> None:
    """Give the trained head of a classifier another weight."""
    weight = reward_head(model).weight
    set_parameters(
        model, {name: weight_AD for name, parameter in model.named_parameters() if parameter is weight}
    )


def autocast(model: PreTrainedModel) -> contextlib.AbstractContextManager[Any]:
    """The context a forward pass runs in: what is kept in float32 to be trained computes in the base's format."""
    return torch.autocast(
        compute_device(model).type, torch.bfloat16, enabled=compute_dtype(model) == torch.bfloat16
    )


@contextlib.contextmanager
def role(model: PeftModel | PreTrainedModel, adapter: str | None) -> Iterator[None]:
    """Within the block the base wears `adapter`, or none; afterwards the one it wore before. What is trained stays trainable."""
    if not isinstance(model, PeftModel):  # nothing hangs on it
        assert adapter is None
        yield
        return
    if adapter is None:
        with keep_trainable(model), model.disable_adapter():
            yield
        return
    before = model.active_adapter
    with keep_trainable(model):
        model.set_adapter(adapter)
    try:
        yield
    finally:
        with keep_trainable(model):
            model.set_adapter(before)


def reference_role(model: PeftModel | PreTrainedModel) -> str | None:
    """The role whose log-probabilities the policy is held to: the adapter it started from, or None, the base alone."""
    return REFERENCE if isinstance(model, PeftModel) and REFERENCE in model.peft_config else None


def base_of(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    """A model without what hangs on it: below its adapters, or itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextlib.contextmanager
def keep_trainable(model: PeftModel) -> Iterator[None]:
    """Whatever PEFT does to `requires_grad` when adapters are added or switched is undone afterwards."""
    reshard(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        reshard(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
