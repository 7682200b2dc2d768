"""A reward model of ours as plain weights, in the two forms that others read.

`classifier`: an AutoModelForSequenceClassification, one output an attribute or the reward alone. Its
config.json says `"problem_type": "regression"`, by which vLLM's pooling runner returns the output as it is,
without a sigmoid. `nemotron`: NVIDIA's `…-Reward-HF`: a causal model with an output embedding of its own, in
whose row 0 the head lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, GenerationConfig, PreTrainedModel

from reward.card import PURPOSE
from reward.evaluation.self_check import ScoreLike
from reward.load_scorer import REWARD_ID, load_scorer
from reward.scorer import Scorer
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
from rlhf.adapters.storage import RewardAdapter
from rlhf.core.errors import ModelError, did_you_mean
from rlhf.core.records import Conversation
from rlhf.models.bases import require_plain_logits
from rlhf.models.card import CARD, license_line, render_card
from rlhf.models.chat import Chat
from rlhf.models.dropout import config_with_own_noise
from rlhf.models.names import HEAD
from rlhf.runs.files import atomic_folder

EXPORT_FORMS = ("classifier", "nemotron")


def export_reward(
    model: Path,
    output: Path,
    conversations: Sequence[Conversation],
    *,
    form: str = "classifier",
    dtype: str | None = None,
    reward_only: bool = False,
    tolerance: float | None = None,
) -> Verification:
    """Write a reward model as plain weights, under its name only when it scores as before.

    Args:
        model: the `final/` folder of a `train-reward` run.
        output: the folder to write.
        conversations: what is scored before and after.
        form: `classifier` or `nemotron`.
        dtype: number format of the weights; None: the one the model was trained in.
        reward_only: leave out the attributes behind the first, which is the reward.
        tolerance: how far a score may move, as a share of max(1, largest score); by default what rounding
            explains.

    Raises:
        ModelError: no reward model there, or it cannot be written in this form or format.
        DivergenceError: the scores differ; nothing is left behind.
    """
    if form not in EXPORT_FORMS:
        known = ", ".join(EXPORT_FORMS)
        raise ModelError(f"--form {form} is not known.{did_you_mean(form, EXPORT_FORMS)}", allowed=known)
    adapter = RewardAdapter.read(model)
    dtype = dtype or str(adapter.card["dtype"])
    require_format(dtype)
    chat = Chat.beside(model, adapter.card)
    scorer = Scorer.share(model, load_as_trained(adapter.card, writes=False), chat)
    conversations = usable(conversations, chat, scorer.max_length)
    before = scorer.score(conversations)
    outputs = list(scorer.attributes[: 1 if reward_only or form == "nemotron" else None])
    merged = merge(scorer.model.unload(), adapter.lora, dtype)
    head_AD = adapter.trained_head_AD[: len(outputs)].to(merged.dtype)
    plain = (
        nemotron(merged, head_AD, chat) if form == "nemotron" else classifier(merged, head_AD, outputs, chat)
    )
    with atomic_folder(output) as folder:
        plain.save_pretrained(folder)
        chat.save_tokenizer(folder, pad=form == "classifier")
        del scorer, merged, plain  # not two models at a time
        label = outputs[0] if form == "classifier" and len(outputs) > 1 else None
        after = load_scorer(folder, form=form, dtype="float32", label=label).score(conversations)
        differences = score_differences(before, after, outputs)
        verification = verify("scores", differences, TOLERANCES[dtype] if tolerance is None else tolerance)
        (folder / CARD).write_text(
            _card_text(adapter.card, form, dtype, outputs, output, verification), encoding="utf-8"
        )
    return verification


def score_differences(
    before: Sequence[ScoreLike], after: Sequence[ScoreLike], names: Sequence[str]
) -> list[float]:
    """|after - before| / max(1, largest |before|) per conversation: the maximum over reward and `names`.

    An output that `after` does not name is left to its reward.
    """

    def values(score: ScoreLike) -> Mapping[str, float]:
        return {**score.attributes, " reward": score.reward}

    compared = [" reward", *(name for name in names if name in after[0].attributes)]
    scale = {name: max(1.0, *(abs(values(score)[name]) for score in before)) for name in compared}
    return [
        max(abs(values(new)[name] - values(old)[name]) / scale[name] for name in compared)
        for old, new in zip(before, after, strict=True)
    ]


def classifier(
    model: PreTrainedModel, head_AD: Tensor, outputs: Sequence[str], chat: Chat
) -> PreTrainedModel:
    """The body of a causal model under a head with these outputs."""
    config = config_with_own_noise(model)
    config.id2label = dict(enumerate(outputs))
    config.label2id = {name: place for place, name in config.id2label.items()}
    config.problem_type = "regression"
    config.get_text_config().pad_token_id = config.pad_token_id = chat.scoring_pad_id
    with torch.device("meta"):
        made = AutoModelForSequenceClassification.from_config(config)
    setattr(made, made.base_model_prefix, model.base_model)
    setattr(made, HEAD, _linear(head_AD))
    return made


def nemotron(model: PreTrainedModel, head_AD: Tensor, chat: Chat) -> PreTrainedModel:
    """The model, changed in place: its output embedding is untied, and row 0 is the reward head.

    Raises:
        ModelError: the model does more to its logits than multiply.
    """
    require_plain_logits(model)
    rows_VD = model.get_output_embeddings().weight.detach().clone()
    rows_VD[REWARD_ID] = head_AD[0]
    model.config = config_with_own_noise(model)
    model.config.tie_word_embeddings = False
    model.config.pad_token_id = chat.pad_id
    model.set_output_embeddings(_linear(rows_VD))
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(chat.stop_ids), pad_token_id=chat.pad_id
    )
    return model


def _linear(weight_OD: Tensor) -> nn.Linear:
    layer = nn.Linear(weight_OD.shape[1], weight_OD.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight_OD, requires_grad=False)
    return layer


_READING = {
    "classifier": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
messages = [{{"role": "user", "content": "What is 1+1?"}}, {{"role": "assistant", "content": "1+1=2"}}]
ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
reward = model(**ids).logits[0, 0].item()""",
    "nemotron": """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{{"role": "user", "content": "What is 1+1?"}}, {{"role": "assistant", "content": "1+1=2"}}]
ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
out = model.generate(**ids, max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
reward = out["scores"][0][0][0].item()""",
}
_WORDS = {
    "classifier": 'In vLLM: `vllm.LLM(folder, runner="pooling").classify(...)`; config.json keeps it from '
    "adding a sigmoid.",
    "nemotron": "The head lies in row 0 of the output embedding, as in NVIDIA's `…-Reward-HF`. Text "
    "generated with this model means nothing: one of its words is a reward.",
}


def _card_text(
    card: Mapping[str, Any],
    form: str,
    dtype: str,
    outputs: Sequence[str],
    output: Path,
    verification: Verification,
) -> str:
    return render_card(
        base=card["base"],
        task="text-classification",
        library="transformers",
        title="Reward model, merged",
        summary=f"Base and adapter of a reward model as plain {dtype} weights, without an adapter. Outputs: "
        f"{', '.join(outputs)}; the first is the reward, read at the last token of the conversation. "
        f"{PURPOSE}\n\n{_WORDS[form]}",
        code=_READING[form].format(folder=str(output)),
        sections={
            "Merge": f"{trained_on(card)}Before and after the merge, computed in float32, scores differ by "
            f"at most {verification}, as a share of max(1, largest score).",
            "License": license_line(card["base"]),
        },
    )
