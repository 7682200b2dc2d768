"""Score conversations with a reward model.

A reward model is an adapter and a head on a causal base. A scorer loads its own base, or attaches adapter and
head to a loaded one, so that policy, reference and reward share one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.adapters.storage import RewardAdapter
from rlhf.core.errors import DataError, DivergenceError, RlhfError
from rlhf.core.records import Conversation, Message
from rlhf.distributed.sharding import compute_device, inference_mode, is_sharded, lockstep
from rlhf.kernels.packed_batch import PackedBatch
from rlhf.kernels.packing import Tree, pack
from rlhf.kernels.packing_check import decide_packing, one_per_row
from rlhf.kernels.precision import fits_in_float32, float32_products
from rlhf.kernels.tensors import to_cpu
from rlhf.models.chat import Chat
from rlhf.models.forwards import apply_head, last_states
from rlhf.models.loading import PeftModel, autocast
from rlhf.models.names import REWARD
from rlhf.models.roles import role
from rlhf.models.trunk import load_trunk_of
from rlhf.runs.gpu_memory import phase


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one conversation: the reward, and every attribute by name."""

    reward: float
    attributes: dict[str, float]


class Scorer:
    """A reward model that is ready to score. Made by `load` (own base) or `share` (a loaded base).

    Attributes:
        attributes: names of the trained outputs; the first is the reward.
        chat: tokenizer and chat template of the training.
    """

    def __init__(
        self,
        model: PeftModel,
        head: nn.Linear,
        chat: Chat,
        adapter: RewardAdapter,
        tokens_per_batch: int | None,
        name: str = REWARD,
    ) -> None:
        self.model, self.head = model, head
        self.chat = chat.with_reasoning(adapter.card.get("reasoning", "keep"))
        self.tokens_per_batch = tokens_per_batch or default_budget()
        self.name = name
        self.base = model.get_base_model()
        decide_packing(self.base, wanted=adapter.card.get("packing", True))
        self.attributes: tuple[str, ...] = tuple(adapter.attributes)
        self.max_length: int = adapter.card["max_length"]
        self.trained_dtype: str = adapter.card["dtype"]

    @classmethod
    def load(cls, path: str | Path, *, tokens_per_batch: int | None = None) -> Scorer:
        """A reward model from its `final/` folder, on a base of its own.

        Raises:
            ModelError: no reward model there, its head is missing, or its base cannot be loaded.
        """
        folder = Path(path)
        adapter = RewardAdapter.read(folder)
        card = adapter.card
        chat = Chat.beside(folder, card)
        base = load_trunk_of(card, writes=False)
        adapter.lora.check_template(chat)
        model, head = adapter.attach(base)
        return cls(model, head, chat, adapter, tokens_per_batch)

    @classmethod
    def share(
        cls,
        path: str | Path,
        model: PreTrainedModel | PeftModel,
        chat: Chat,
        *,
        tokens_per_batch: int | None = None,
        name: str = REWARD,
    ) -> Scorer:
        """A reward model attached to a loaded base as the role `name`, in place of an earlier one.

        Raises:
            ModelError: the reward model belongs to another base, or to another chat template.
        """
        adapter = RewardAdapter.read(Path(path))
        adapter.lora.check_template(chat)  # before anything is changed
        wrapped, head = adapter.attach(model, name)
        return cls(wrapped, head, chat, adapter, tokens_per_batch, name)

    @phase("scoring")
    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """Score conversations that end with the assistant's message.

        Conversations with the same beginning that stand next to each other share its computation.

        Raises:
            DataError: a conversation does not end with the assistant, or is longer than the base's context.
            DivergenceError: a score is not a finite number.
        """
        if not conversations:
            return []
        sequences = [self.chat.conversation_ids(conversation) for conversation in conversations]
        require_length(sequences, self.max_length)
        trees = [Tree.of_sequences(group) for group in _neighbours(conversations, sequences)]
        first = [0]
        for tree in trees:
            first.append(first[-1] + len(tree.branches))
        scores_NA = torch.empty(len(sequences), len(self.attributes))
        places, parts = list[int](), list[Tensor]()
        with role(self.model, self.name), inference_mode(self.model):
            packed = pack(
                trees,
                self.tokens_per_batch,
                pad_id=self.chat.pad_id,
                one_per_row=one_per_row(self.base),
            )
            for batch, _ in lockstep(packed, self.model):
                places += [place for t in batch.trees for place in range(first[t], first[t + 1])]
                parts.append(self._forward(batch.to(compute_device(self.model))))
        scores_NA[places] = torch.cat(to_cpu(parts))  # read once: every read waits for the GPU
        return as_scores(scores_NA, self.attributes)

    def fault(self, conversation: Conversation) -> DataError | None:
        """Why a conversation cannot be scored, or None."""
        return fault_of(self.chat, conversation, self.max_length)

    def in_float32(self) -> AbstractContextManager[None] | None:
        """A context in which scores are computed in float32; None where the memory may not allow it."""
        return float32_products(self.model) if fits_in_float32(self.model) else None

    def _forward(self, batch: PackedBatch) -> Tensor:
        with autocast(self.model.get_base_model()):
            hidden_ND = last_states(self.model, batch)
        return apply_head(self.head.to(hidden_ND.device), hidden_ND)


def default_budget() -> int:
    """Default token budget of a scoring pass: a GPU needs longer rows than a CPU."""
    return 8192 if torch.cuda.is_available() else 1024


S = TypeVar("S")
FILLER = (Message("user", "a"), Message("assistant", "b"))
"""Scored, and not used, by a process without anything to score."""


def score_each(
    score: Callable[[Sequence[Conversation]], Sequence[S]], conversations: Sequence[Conversation]
) -> list[S | RlhfError]:
    """Score conversations; one that cannot be scored has its error in place of a score.

    All are scored together. Where that fails, halves are scored apart, down to the conversation at fault.
    """
    if not conversations:
        return []
    try:
        return list(score(conversations))
    except (DataError, DivergenceError) as error:
        if len(conversations) == 1:
            return [error]
    middle = len(conversations) // 2
    return [*score_each(score, conversations[:middle]), *score_each(score, conversations[middle:])]


class FaultFinder(Protocol):
    """A scorer that can tell before a pass which conversations it cannot score."""

    model: Any

    def fault(self, conversation: Conversation) -> DataError | None:
        """Why it cannot score the conversation, or None."""
        ...

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """The scores of conversations without a fault."""
        ...


def score_in_step(scorer: FaultFinder, conversations: Sequence[Conversation]) -> list[Score | RlhfError]:
    """`score_each` for processes that may share sharded weights, which must all run equally many passes.

    Where weights are sharded, conversations at fault are found before the first pass, and the others are
    scored in one call.

    Raises:
        DivergenceError: the weights are sharded, and a score is not a finite number.
    """
    if not is_sharded(scorer.model):
        return score_each(scorer.score, conversations)
    faults = [scorer.fault(conversation) for conversation in conversations]
    good = [each for each, fault in zip(conversations, faults, strict=True) if fault is None]
    scores = iter(scorer.score(good or [FILLER]))
    return [next(scores) if fault is None else fault for fault in faults]


def require_length(sequences: Sequence[Sequence[int]], longest: int) -> None:
    """Check that every conversation fits into the context.

    Raises:
        DataError: a conversation is longer.
    """
    for index, ids in enumerate(sequences):
        if len(ids) > longest:
            raise DataError(
                f"Conversation {index + 1} of {len(sequences)} has {len(ids)} tokens.",
                allowed=f"at most {longest}, the context of the reward model's base",
                fix="shorten it",
            )


def fault_of(chat: Chat, conversation: Conversation, longest: int) -> DataError | None:
    """Why a conversation cannot be encoded, or does not fit into the context; or None."""
    try:
        require_length([chat.conversation_ids(conversation)], longest)
    except DataError as error:
        return error
    return None


def as_scores(scores_NA: Tensor, attributes: Sequence[str], reward: int = 0) -> list[Score]:
    """A row of scores for each conversation, by name; output number `reward` is the reward.

    Raises:
        DivergenceError: a score is not a finite number.
    """
    for index, row in enumerate(scores_NA):
        if not torch.isfinite(row).all():
            raise DivergenceError(
                f"The score of conversation {index + 1} of {len(scores_NA)} is not a finite number.",
                fix="the reward model has diverged: train it with a lower learning rate",
            )
    return [Score(row[reward], dict(zip(attributes, row, strict=True))) for row in scores_NA.tolist()]


def _neighbours(
    conversations: Iterable[Conversation], sequences: Iterable[list[int]]
) -> list[list[list[int]]]:
    """Sequences grouped where consecutive conversations have the same prompt."""
    groups: list[list[list[int]]] = []
    before: Conversation | None = None
    for conversation, ids in zip(conversations, sequences, strict=True):
        if conversation[:-1] != before:
            groups.append([])
            before = conversation[:-1]
        groups[-1].append(ids)
    return groups
