"""A scorer whose work is dealt out to the processes of a run; all of them get all scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from reward.scorer import Score, Scorer, require_length
from rlhf.core.records import Conversation
from rlhf.distributed import processes, sharding


class ShardedScorer:
    """Scores the prompts that fall to this process, and takes the scores of the others from them.

    All processes must ask for the same conversations.
    """

    def __init__(self, scorer: Scorer) -> None:
        sharding.shard(scorer.model)
        self.scorer = scorer

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        """One score for each conversation, in their order; of conversations with one prompt, next to each other, one process has all.

        Raises:
            DataError: a conversation is longer than the base's context.
            DivergenceError: a score is not a finite number.
        """
        # Asked of all, so that no process is refused what the others wait for.
        require_length(
            [self.scorer.chat.conversation_ids(one) for one in conversations], self.scorer.max_length
        )
        groups = [list(group) for _, group in itertools.groupby(conversations, lambda one: one[:-1])]
        mine = processes.shard(groups)
        if groups and not mine:  # a sharded model must be asked by all
            self.scorer.score(groups[0])
        scores = iter(self.scorer.score([one for group in mine for one in group]))
        own = [list(itertools.islice(scores, len(group))) for group in mine]
        dealt_back = processes.unshard(processes.all_gather(own))
        return [score for group in dealt_back for score in group]
