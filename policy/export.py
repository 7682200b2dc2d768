"""Exports a policy as plain weights: a transformers causal model with tokenizer and generation config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from policy.card import generate_code
from rlhf.adapters.merging import (
    TOLERANCES,
    Verification,
    load_as_trained,
    merge,
    require_format,
    trained_on,
    usable,
    verify,
)
from rlhf.adapters.storage import read_policy
from rlhf.core.records import Conversation
from rlhf.models.card import CARD, license_line, render_card
from rlhf.models.chat import Chat
from rlhf.models.dropout import config_with_own_noise
from rlhf.models.embedded import resolve_base
from rlhf.models.loading import PeftModel, load_causal
from rlhf.models.names import POLICY
from rlhf.runs.files import atomic_folder

SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Keys of a generation config that have no effect without sampling."""
BEAM_KEYS = (
    "length_penalty",
    "early_stopping",
    "num_beam_groups",
    "diversity_penalty",
    "constraints",
    "force_words_ids",
)
"""Keys that have no effect without beam search."""


def export_policy(
    policy: Path,
    output: Path,
    conversations: Sequence[Conversation],
    *,
    dtype: str | None = None,
    tolerance: float | None = None,
) -> Verification:
    """Write a policy as plain weights, under its name only when it gives every token the probability it had
    before.

    Args:
        policy: the `final/` folder of an `align-policy` run.
        output: the folder to write.
        conversations: texts whose tokens' log-probabilities are compared before and after.
        dtype: number format of the weights; None: the one the model was trained in.
        tolerance: how far the log-probabilities of a conversation may move, in the mean of absolute
            differences over its tokens, in nats; by default what rounding explains.

    Raises:
        ModelError: no policy there, or it cannot be written in this format.
        DivergenceError: the log-probabilities differ; nothing is left behind.
    """
    adapter = read_policy(policy)
    card = adapter.card
    dtype = dtype or str(card["dtype"])
    require_format(dtype)
    chat = Chat.beside(policy, card)
    adapter.check_template(chat)
    adapted = adapter.attach(load_as_trained(card, writes=True), POLICY).eval()
    context = getattr(adapted.config.get_text_config(), "max_position_embeddings", None)
    texts = [chat.conversation_ids(conversation) for conversation in usable(conversations, chat, context)]
    before = [text_logprobs(adapted, ids) for ids in texts]
    plain = merge(adapted.unload(), adapter, dtype)
    plain.config = config_with_own_noise(plain)
    plain.config.pad_token_id = chat.pad_id
    plain.generation_config = generation_config_of(card["base"], card["revision"], chat)
    with atomic_folder(output) as folder:
        plain.save_pretrained(folder)
        chat.save_tokenizer(folder)
        del adapted, plain  # only one model in memory at a time
        merged = load_causal(str(folder), revision=None, dtype="float32", quantization="none").eval()
        differences = [
            float((text_logprobs(merged, ids) - old).abs().mean())
            for ids, old in zip(texts, before, strict=True)
        ]
        verification = verify(
            "log-probabilities", differences, TOLERANCES[dtype] if tolerance is None else tolerance
        )
        (folder / CARD).write_text(_card_text(card, dtype, output, verification), encoding="utf-8")
    return verification


@torch.inference_mode()
def text_logprobs(model: PreTrainedModel | PeftModel, ids: Sequence[int]) -> Tensor:
    """logps_T: log-probability of each token but the first, given the tokens before it."""
    ids_1T = torch.tensor([list(ids)])
    logits_TV = model(input_ids=ids_1T).logits[0, :-1]
    logps_T: Tensor = logits_TV.float().log_softmax(dim=1).gather(1, ids_1T[0, 1:, None]).squeeze(1)
    return logps_T


def generation_config_of(base: str, revision: str | None, chat: Chat) -> GenerationConfig:
    """The base's own way of sampling answers, with every id that ends one; settings that cannot be saved are
    left out.

    transformers loads a config with settings that contradict each other (a length penalty without beams), and
    refuses to save it.
    """
    try:
        config = GenerationConfig.from_pretrained(resolve_base(base), revision=revision)
    except (OSError, ValueError, TypeError):  # the model has none, or an unreadable one
        config = GenerationConfig()
    named = config.eos_token_id
    ends = [] if named is None else [named] if isinstance(named, int) else list(named)
    config.eos_token_id = list(dict.fromkeys([*ends, *chat.stop_ids]))
    config.pad_token_id = chat.pad_id
    if not config.do_sample:  # transformers ignores them, and refuses to save them
        for name in SAMPLING_KEYS:
            setattr(config, name, None)
    if config.num_beams in (None, 1):
        for name in BEAM_KEYS:
            setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError:  # other contradictions: keep the end tokens and use defaults for the rest
        config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        )
    return config


def _card_text(card: Mapping[str, Any], dtype: str, output: Path, verification: Verification) -> str:
    return render_card(
        base=card["base"],
        task="text-generation",
        library="transformers",
        title="Aligned policy, merged",
        summary=f"Base and adapter as plain {dtype} weights, without an adapter.",
        code=generate_code(output),
        sections={
            "Merge": f"{trained_on(card)}Before and after the merge, in float32, the log-probabilities of a "
            f"conversation's tokens differ in the mean by at most {verification}, in nats.",
            "License": license_line(card["base"]),
        },
    )
