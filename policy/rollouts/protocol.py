"""What the loop asks of an engine that samples answers."""

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
    """How answers are drawn: from the whole distribution, at a temperature, up to a stop id or a length."""

    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]


class RolloutEngine(Protocol):
    """Samples answers with the policy as it was at the last sync."""

    def sync(self, model: PeftModel | PreTrainedModel) -> None:
        """Take over the policy's adapter as it is now or, of one that is trained without, its weights."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, samples: int, seed: int) -> list[list[Rollout]]:
        """`samples` answers to each prompt; the same seed and weights give the same answers.

        Raises:
            EngineError: a prompt came back without its answers.
        """
        ...

    def figures(self) -> dict[str, float]:
        """What the engine counted since it was last asked, named as in metrics.jsonl."""
        ...


def seed_of(*parts: int) -> int:
    """A seed of 31 bits for one draw among many, from the run's seed and the draw's coordinates."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def as_rollout(
    prompt: Sequence[int],
    completion: Sequence[int],
    logprobs: Sequence[float],
    stop_ids: tuple[int, ...],
    chat: Chat,
) -> Rollout:
    """An engine's tokens as a record; finished means that the last token is a stop id."""
    return Rollout(
        prompt_ids=tuple(prompt),
        completion_ids=tuple(completion),
        logprobs=tuple(logprobs),
        finished=bool(completion) and completion[-1] in stop_ids,
        text=chat.decode(completion),
    )
