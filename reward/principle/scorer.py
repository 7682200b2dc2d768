"""Conversations and principles -> scores, by an adapter on a base of its own or on the policy's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward.principle.question import answer_head, question
from reward.scorer import Score, as_scores, default_budget, require_length
from rlhf.adapters.storage import Adapter
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Conversation
from rlhf.distributed.sharding import compute_device, inference_mode, lockstep
from rlhf.kernels.packing import Tree, pack
from rlhf.kernels.packing_check import decide_packing, one_per_row
from rlhf.kernels.precision import fits_in_float32, float32_products
from rlhf.kernels.tensors import to_cpu
from rlhf.models.chat import Chat
from rlhf.models.forwards import apply_head, last_states
from rlhf.models.loading import PeftModel, autocast, base_of
from rlhf.models.names import REWARD
from rlhf.models.roles import role
from rlhf.models.trunk import load_trunk_of
from rlhf.runs.gpu_memory import phase

CARD = "principle.json"


def read_principle_model(folder: Path) -> Adapter:
    """What `final/` of a principle run holds beside its tokenizer.

    Raises:
        ModelError: not a principle model, or a file is torn.
    """
    return Adapter.read(folder, kind="principle model", card=CARD, command="train-principle")


class PrincipleScorer:
    """A principle model that is ready to score. Made by `load` (own base) or `share` (a loaded base).

    Attributes:
        principles: what responses are scored by; `Score.attributes` has one score for each, `Score.reward` is
            their mean.
        attributes: the same.
        max_length: the base's context.
    """

    def __init__(
        self,
        model: PeftModel,
        chat: Chat,
        adapter: Adapter,
        principles: Sequence[str],
        tokens_per_batch: int | None,
        name: str,
    ) -> None:
        self.model, self.chat, self.name = model, chat, name
        self.principles = _checked(principles)
        self.attributes = self.principles
        self.tokens_per_batch = tokens_per_batch or default_budget()
        decide_packing(base_of(model), wanted=adapter.card.get("packing", True))
        self.head = answer_head(base_of(model), chat)
        self.max_length: int = adapter.card["max_length"]

    @classmethod
    def load(
        cls, path: str | Path, principles: Sequence[str], *, tokens_per_batch: int | None = None
    ) -> PrincipleScorer:
        """A principle model from its `final/` folder, on a base of its own.

        Raises:
            ModelError: no principle model there, or its base cannot be loaded.
            ConfigError: a principle is empty or repeated, or there is none.
        """
        _checked(principles)
        folder = Path(path)
        adapter = read_principle_model(folder)
        card = adapter.card
        chat = Chat.beside(folder, card)
        base = load_trunk_of(card)
        adapter.check_template(chat)
        return cls(adapter.attach(base, REWARD), chat, adapter, principles, tokens_per_batch, REWARD)

    @classmethod
    def share(
        cls,
        path: str | Path,
        model: PreTrainedModel | PeftModel,
        chat: Chat,
        principles: Sequence[str],
        *,
        tokens_per_batch: int | None = None,
        name: str = REWARD,
    ) -> PrincipleScorer:
        """A principle model on a base that is there already, as the role `name`.

        Raises:
            ModelError: it belongs to another base, or to another chat template.
            ConfigError: a principle is empty or repeated, or there is none.
        """
        adapter = read_principle_model(Path(path))
        adapter.check_template(chat)
        return cls(adapter.attach(model, name), chat, adapter, principles, tokens_per_batch, name)

    @phase("scoring")
    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """Score conversations that end with the assistant's message by every principle.

        The principles share the computation of their conversation.

        Raises:
            DataError: a conversation does not end with the assistant, or is too long with the question.
            DivergenceError: a score is not a finite number.
        """
        if not conversations:
            return []
        scores_NA = torch.tensor(
            self.score_each([(conversation, self.principles) for conversation in conversations])
        )
        means = [row.mean().item() for row in scores_NA]
        return [
            Score(mean, score.attributes)
            for mean, score in zip(means, as_scores(scores_NA, self.principles), strict=True)
        ]

    @phase("scoring")
    def score_each(self, requests: Sequence[tuple[Conversation, Sequence[str]]]) -> list[list[float]]:
        """The score of each conversation by each of its own principles, all in packed batches.

        Raises:
            DataError: a conversation does not end with the assistant, or is too long with a question.
        """
        if not requests:
            return []
        trees = [self._tree(conversation, principles) for conversation, principles in requests]
        scores: list[list[float]] = [[] for _ in requests]
        places, parts = list[int](), list[Tensor]()
        with role(self.model, self.name), inference_mode(self.model):
            packed = pack(
                trees,
                self.tokens_per_batch,
                pad_id=self.chat.pad_id,
                one_per_row=one_per_row(base_of(self.model)),
            )
            for batch, _ in lockstep(packed, self.model):
                with autocast(base_of(self.model)):
                    hidden_ND = last_states(self.model, batch.to(compute_device(self.model)))
                parts.append(apply_head(self.head.to(hidden_ND.device), hidden_ND).squeeze(1))
                places += batch.trees
        values = iter(torch.cat(to_cpu(parts)).tolist())  # read once: every read waits for the GPU
        for index in places:
            scores[index] = list(itertools.islice(values, len(trees[index].branches)))
        return scores

    def _tree(self, conversation: Conversation, principles: Sequence[str]) -> Tree:
        if not conversation or conversation[-1].role != "assistant":
            raise DataError(
                "A conversation to be scored does not end with the assistant's message.",
                allowed="messages that end with {'role': 'assistant', 'content': ...}",
            )
        sequences = [self.chat.prompt_ids(question(conversation, principle)) for principle in principles]
        require_length(sequences, self.max_length)
        return Tree.of_sequences(sequences)

    def fault(self, conversation: Conversation) -> DataError | None:
        """Why a conversation cannot be scored by the principles, or None."""
        try:
            self._tree(conversation, self.principles)
        except DataError as error:
            return error
        return None

    def in_float32(self) -> AbstractContextManager[None] | None:
        """A context in which scores are computed in float32; None where the memory may not allow it."""
        return float32_products(self.model) if fits_in_float32(self.model) else None


def _checked(principles: Sequence[str]) -> tuple[str, ...]:
    if not principles or len(set(principles)) < len(principles):
        raise ConfigError(
            "A principle model needs principles, each once.", fix='--principle "The response ..."'
        )
    for principle in principles:
        question((), principle)  # an empty one is refused
    return tuple(principles)
