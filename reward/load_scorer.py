"""Load reward models of every form: ours, anybody's sequence classifier, and NVIDIA's `…-Reward-HF`.

A classifier's reward is one output of its head; the form of NVIDIA's Llama-3.1-Nemotron-70B-Reward-HF is a
causal model whose reward is the logit of vocabulary id 0. Both are read at the last token of the conversation
as the model's own chat template writes it. That token is found by the mask and never by its id, so that
neither the padding token, the padding side nor the neighbours in a batch have a say. Models too large for one
GPU are spread over all (not run on GPUs by us).

Shapes: N conversations, T tokens, D hidden units, A outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from reward.form import FORMS, check_options, find_form, set_outputs
from reward.outputs import reward_output
from reward.principle.scorer import PrincipleScorer
from reward.scorer import Score, Scorer, as_scores, default_budget, fault_of, require_length
from rlhf.config.schema import ReasoningRule
from rlhf.core.errors import DataError, ModelError, did_you_mean
from rlhf.core.formats import require_bfloat16
from rlhf.core.records import Conversation
from rlhf.distributed import processes
from rlhf.kernels.precision import fits_in_float32, float32_products
from rlhf.models.bases import read_config, require_plain_logits
from rlhf.models.chat import Chat
from rlhf.models.embedded import resolve_base
from rlhf.models.forwards import apply_head
from rlhf.models.loading import quiet
from rlhf.models.loading_errors import LOADING_ERRORS, cannot_load
from rlhf.models.names import HEAD
from rlhf.models.placement import require_usable_gpus
from rlhf.models.stored import stored_head

REWARD_ID = 0
"""The vocabulary id whose logit is the reward, in NVIDIA's form."""

Reader = Callable[[Tensor, Tensor], Tensor]
"""(ids_NT, mask_NT) -> scores_NA; rows are padded on the right."""


def load_scorer(
    model: str | Path,
    *,
    form: str = "auto",
    label: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    tokens_per_batch: int | None = None,
    principles: Sequence[str] = (),
    reasoning: ReasoningRule = "keep",
) -> Scorer | PlainScorer | PrincipleScorer:
    """A reward model that is ready to score.

    Args:
        model: a folder or a Hugging Face name.
        form: `ours`, the `final/` folder of a `train-reward` run; `classifier`, any
            AutoModelForSequenceClassification; `nemotron`, NVIDIA's `…-Reward-HF`; `principle`, the `final/`
            folder of a `train-principle` run; `auto` looks for reward.json and principle.json, then at
            `architectures` in config.json.
        label: which of a classifier's outputs is the reward; else the first.
        revision: git revision of a Hugging Face name.
        dtype: number format of a model that is not ours; `auto` is its own.
        tokens_per_batch: token budget of one forward pass, padding included; None is the device's usual one.
        principles: what a principle model scores by; other forms have none.
        reasoning: the rule for reasoning of a model that is not ours; ours have their own.

    Raises:
        ModelError: no reward model of that form is there, its head is missing, or it has no chat template.
    """
    if form not in FORMS:
        raise ModelError(
            f"--form {form} is not known.{did_you_mean(form, FORMS)}",
            allowed=", ".join(FORMS),
            fix="--form auto",
        )
    if form == "auto":
        form = find_form(model, revision)
    check_options(form, model, label, principles, reasoning)
    if form == "principle":
        return PrincipleScorer.load(model, principles, tokens_per_batch=tokens_per_batch)
    if form == "ours":
        return Scorer.load(model, tokens_per_batch=tokens_per_batch)
    chat = Chat.load(model, revision=revision).with_reasoning(reasoning)
    load = {"classifier": _classifier, "nemotron": _nemotron}[form]
    return load(str(model), chat, label, revision, dtype, tokens_per_batch or default_budget())


def _architectures(model: str | Path, revision: str | None) -> list[str]:
    config = read_config(str(model), revision)
    return list(config.architectures or ())


class PlainScorer:
    """A whole model, without an adapter, that scores; made by `load_scorer`.

    Attributes:
        attributes: names of its outputs.
        chat: the door to token ids, with the model's own template.
        max_length: its context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        chat: Chat,
        read: Reader,
        attributes: Sequence[str],
        reward: int,
        tokens_per_batch: int,
    ) -> None:
        self.model, self.chat, self.tokens_per_batch = model.eval(), chat, tokens_per_batch
        self.attributes, self._reward, self._read = tuple(attributes), reward, read
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length: int = context or chat.tokenizer.model_max_length

    def fault(self, conversation: Conversation) -> DataError | None:
        """Why a conversation cannot be scored, or None."""
        return fault_of(self.chat, conversation, self.max_length)

    def in_float32(self) -> AbstractContextManager[None] | None:
        """A context in which scores are computed in float32; None where the memory may not allow it."""
        return float32_products(self.model) if fits_in_float32(self.model) else None

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """Score conversations that end with the assistant's message.

        Raises:
            DataError: a conversation does not end with the assistant, or is longer than the model's context.
            DivergenceError: a score is not a finite number.
        """
        sequences = [self.chat.conversation_ids(conversation) for conversation in conversations]
        require_length(sequences, self.max_length)
        # What stands in masked places is never looked at, but must be in the table: some tokenizers pad with
        # more.
        words = self.model.get_input_embeddings().num_embeddings
        pad_id = self.chat.pad_id if self.chat.pad_id < words else 0
        scores_NA = torch.empty(len(sequences), len(self.attributes))
        with torch.inference_mode():
            for members in by_length(sequences, self.tokens_per_batch):
                ids_NT, mask_NT = padded([sequences[place] for place in members], pad_id)
                scores_NA[members] = self._read(
                    ids_NT.to(self.model.device), mask_NT.to(self.model.device)
                ).cpu()
        return as_scores(scores_NA, self.attributes, self._reward)


def by_length(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Indices of the sequences, longest first, in batches of up to `budget` padded tokens or one sequence."""
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
    while order:
        count = max(1, budget // max(1, len(sequences[order[0]])))
        yield order[:count]
        order = order[count:]


def padded(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids_NT, mask_NT) of sequences, filled up on the right, where position ids need no correction."""
    longest = max(map(len, sequences))
    ids = [[*sequence, *[pad_id] * (longest - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
    return torch.tensor(ids), torch.tensor(mask)


def last_hidden(model: PreTrainedModel, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """hidden_ND of the last token that is not masked."""
    hidden_NTD = model.base_model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False).last_hidden_state
    last_N = mask_NT.sum(dim=1) - 1
    rows_N = torch.arange(len(last_N), device=hidden_NTD.device)
    return hidden_NTD[rows_N, last_N.to(hidden_NTD.device)]  # type: ignore[no-any-return]


def _classifier(
    path: str, chat: Chat, label: str | None, revision: str | None, dtype: str, tokens_per_batch: int
) -> PlainScorer:
    config = read_config(path, revision)
    names = set_outputs(config, stored_head(config, path, revision))
    model = _load_whole(AutoModelForSequenceClassification, path, revision, dtype, config=config)
    reward = reward_output(path, names, label, problem_type=model.config.problem_type)
    if len(names) > 1 and label is None:
        print(f"The reward is the output {names[reward]!r} of {path} ({', '.join(names)}).", file=sys.stderr)
    head = getattr(model, HEAD, None)
    if isinstance(head, nn.Module):
        head.float()

        def read(ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
            return apply_head(head, last_hidden(model, ids_NT, mask_NT))

    else:  # an encoder, whose head reads the first token

        def read(ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
            return model(input_ids=ids_NT, attention_mask=mask_NT).logits.float()  # type: ignore[no-any-return]

    return PlainScorer(model, chat, read, names, reward, tokens_per_batch)


def _nemotron(
    path: str, chat: Chat, label: str | None, revision: str | None, dtype: str, tokens_per_batch: int
) -> PlainScorer:
    if label is not None:
        raise ModelError(f"--label {label}: this form has one output, the reward.", fix="leave --label out")
    names = _architectures(path, revision)
    if any(name.endswith("ForSequenceClassification") for name in names):
        raise ModelError(f"{path} is a sequence classifier ({', '.join(names)}).", fix="--form classifier")
    model = _load_whole(AutoModelForCausalLM, path, revision, dtype, config=read_config(path, revision))
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if head is embedding:
        raise ModelError(
            f"{path} uses its input embedding as output embedding: its row {REWARD_ID} is a word, and no "
            "reward head.",
            allowed="a model with an output embedding of its own, as NVIDIA's …-Reward-HF has it",
            fix="name a reward model; `rlhf export MODEL --form nemotron` makes one of this form",
        )
    require_plain_logits(model)
    row_D = head[REWARD_ID].float()

    def read(ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
        # The one logit that is asked for, not a whole vocabulary of them.
        hidden_ND = last_hidden(model, ids_NT, mask_NT).float()  # on the GPU of the last layer
        reward_N: Tensor = hidden_ND @ row_D.to(hidden_ND.device)
        return reward_N[:, None]

    return PlainScorer(model, chat, read, ["reward"], 0, tokens_per_batch)


def _load_whole(
    auto_class: Any, path: str, revision: str | None, dtype: str, *, config: Any
) -> PreTrainedModel:
    """A model of which every weight was found.

    Raises:
        ModelError: nothing can be loaded, or a weight, such as the head, is not in the file and would be
            random.
    """
    require_usable_gpus()
    require_bfloat16(str(getattr(config, "dtype", None)).removeprefix("torch.") if dtype == "auto" else dtype)
    spread: dict[str, Any] = {}
    if torch.cuda.is_available():  # beside other processes on the GPU of this one, alone on all of them
        spread["device_map"] = {"": torch.cuda.current_device()} if processes.world_size() > 1 else "auto"
    try:
        with quiet():
            model, loading_info = auto_class.from_pretrained(
                resolve_base(path, revision),
                config=config,
                revision=revision,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                **spread,
            )
    except LOADING_ERRORS as error:
        raise cannot_load(path, error) from error
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} of the weights of a {type(model).__name__}, the first is "
            f"{missing[0]}: they would be random, and so would every score.",
            allowed="a model with a trained reward head",
            fix="name a reward model, or the --form it has: classifier, nemotron, ours",
        )
    return model
