"""A scorer that splits its conversations over the processes of a run; all of them get all scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager

from reward.scorer import Score, Scorer, require_length
from rlhf.core.records import Conversation
from rlhf.distributed import processes, sharding


class ShardedScorer:
    """Scores the rank-local shard of the prompts and gathers the scores of all ranks.

    All processes must pass the same conversations.
    """

    def __init__(self, scorer: Scorer) -> None:
        sharding.shard(scorer.model)
        self.scorer = scorer

    def in_float32(self) -> AbstractContextManager[None] | None:
        """A context in which all processes score in float32; None where the memory may not allow it."""
        return self.scorer.in_float32()

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """One score per conversation, in their order.

        Neighbouring conversations with the same prompt are scored by the same process.

        Raises:
            DataError: a conversation is longer than the base's context.
            DivergenceError: a score is not a finite number.
        """
        # Every process checks all conversations, so that all raise the error or none does.
        require_length(
            [self.scorer.chat.conversation_ids(conversation) for conversation in conversations],
            self.scorer.max_length,
        )
        groups = [
            list(group)
            for _, group in itertools.groupby(conversations, lambda conversation: conversation[:-1])
        ]
        local_groups = processes.shard(groups)

        def score() -> list[list[Score]]:
            if groups and not local_groups:  # all processes take part in the passes of a sharded model
                self.scorer.score(groups[0])
            scores = iter(
                self.scorer.score([conversation for group in local_groups for conversation in group])
            )
            return [list(itertools.islice(scores, len(group))) for group in local_groups]

        gathered = processes.unshard(processes.gather_results(score))
        return [score for group in gathered for score in group]
