"""The interface of rollout engines."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel

from rlhf.core.records import Rollout
from rlhf.models.chat import Chat
from rlhf.models.loading import PeftModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters: from the whole distribution at a temperature, up to a stop id or a length."""

    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]


class RolloutEngine(Protocol):
    """Samples answers with the policy of the last sync."""

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Load the policy's current adapter or, where all weights are trained, its weights."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """Sample `samples` answers to each prompt; the same seed and weights give the same answers.

        Args:
            prompts: token ids.

        Raises:
            EngineError: answers to a prompt are missing.
        """
        ...

    def figures(self) -> dict[str, float]:
        """Figures since the last call, named as in metrics.jsonl."""
        ...


def seed_of(*parts: int) -> int:
    """A 31-bit seed of one draw, hashed from the run's seed and the draw's indices."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def as_rollout(
    prompt: Sequence[int],
    completion: Sequence[int],
    logprobs: Sequence[float],
    stop_ids: tuple[int, ...],
    chat: Chat,
) -> Rollout:
    """A Rollout of an engine's tokens; it is finished if the last token is a stop id."""
    return Rollout(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(logprobs),
        finished=bool(completion) and completion[-1] in stop_ids,
        text=chat.decode(completion),
    )
