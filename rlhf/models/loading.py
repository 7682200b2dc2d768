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
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from rlhf.core.errors import ModelError, did_you_mean
from rlhf.core.formats import COMPUTE_DTYPE, announce_dtype, compute_dtype
from rlhf.distributed.processes import broadcast_from_main
from rlhf.distributed.sharding import compute_device, full_tensor, reshard, set_parameters
from rlhf.kernels import layers
from rlhf.models import placement
from rlhf.models.embedded import resolve_base

POLICY = "default"  # the name TRL's trainers give the adapter they train
REWARD = "reward"
CRITIC = "critic"
REFERENCE = "reference"
HEAD = "score"  # the name transformers gives the head of a sequence classifier
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
) -> PreTrainedModel:
    """The frozen base as a causal language model.

    Args:
        kept_in_float32: weights are, and are computed in `dtype` by autocast: for a base that is trained itself, and for one that must
            give the same numbers as it.
        on_host: a 4-bit base lies in the machine's memory, not on the GPU.

    Raises:
        ModelError: nothing that transformers can load is there.
    """
    stored = "float32" if kept_in_float32 else dtype
    model = _load(
        AutoModelForCausalLM,
        base,
        revision=revision,
        dtype=stored,
        quantization=quantization,
        on_host=on_host,
    )
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
    base: str, *, attributes: list[str], revision: str | None, dtype: str, quantization: str, pad_id: int
) -> PreTrainedModel:
    """The base with a fresh head of one output an attribute, as transformers' own sequence classifier.

    The head starts at zero: every response scores the same until something is learnt, so that the first loss of a
    Bradley-Terry term is log 2 on any base.
    """
    labels = dict(enumerate(attributes))
    model = _load(
        AutoModelForSequenceClassification,
        base,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
        pad_token_id=pad_id,
    )
    nn.init.zeros_(getattr(model, HEAD).weight)
    return model


def _load(
    auto_class: Any,
    base: str,
    *,
    revision: str | None,
    dtype: str,
    quantization: str,
    on_host: bool = False,
    **extra: Any,
) -> PreTrainedModel:
    dtype = announce_dtype(dtype)
    if quantization == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_storage=getattr(torch, dtype),  # the same bits in a format that FSDP2 can deal out
            llm_int8_skip_modules=["lm_head", HEAD],
        )
    disable_progress_bar()  # a bar for what takes a second
    try:
        with placement.loading(quantization, on_host=on_host) as where:
            model: PreTrainedModel = auto_class.from_pretrained(
                resolve_base(base),
                revision=revision,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                **where,
                **extra,
            )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No model could be loaded from {base!r}: {str(error).splitlines()[0]}",
            allowed="`embedded`, a folder with config.json and safetensors weights, or a Hugging Face name",
            fix="check the spelling; for a gated model run `hf auth login` first",
        ) from error
    layers.enable(model)
    model.requires_grad_(False)
    if quantization == "nf4":
        _keep_4_bit_weights_differentiable(model)
    return model


def _keep_4_bit_weights_differentiable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking weights in place on CPUs with AVX512-BF16.

    It does so at the first forward pass out of training mode, for a kernel that has no backward pass: from then on the
    gradient would end at every layer, silently, and the logits would be others than in training.
    """
    from bitsandbytes.nn import Linear4bit  # not needed for other bases, and slow to import

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


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


def check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """Make sure that the base has every layer the adapter is for: PEFT is content with one of them.

    Raises:
        ModelError: a target is no layer of the model, or is its head.
    """
    if isinstance(config.target_modules, str):  # `all-linear`
        return
    names = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    names -= {"lm_head", HEAD}  # log-probabilities are computed from the head as it is; a reward has its own
    missing = sorted(set(config.target_modules) - names)
    if missing:
        raise ModelError(
            f"The adapter does not fit this model, which has no layer {', '.join(missing)}."
            f"{did_you_mean(missing[0], names)}",
            allowed=f"`all-linear`, or some of {', '.join(sorted(names))}",
            fix="adapter.targets=all-linear",
        )


def with_adapter(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with a fresh trainable adapter, in float32.

    Raises:
        ModelError: the model lacks a layer that the adapter is for.
    """
    check_targets(model, config)
    wrapped = get_peft_model(model, config)
    upcast_trainable(wrapped)
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
