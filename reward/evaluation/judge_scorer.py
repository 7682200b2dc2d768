"""A judge as a scorer of groups of answers, with its position bias and cost over a benchmark.

Two answers, both orders shown, are decided as JudgeBench does (arXiv 2410.12784):

    d = mean over the orders of +1 (the first answer is preferred), -1 (the second) or 0;   scores d and -d

so that an answer wins where the orders agree, or one of them prefers none. A judge that does not look at the
content has this right less often than half: the share of single votes for the better answer, `one_order`, is
1/2 for it, whatever its bias towards a position. In larger groups, and where each
answer is judged alone, the scores are the judge's own, see `reward.judge.groups`. A group is left out where a
request on it gave no verdict and an answer is without a score, or a pair without the verdict of an order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reward.evaluation.judging import Group
from reward.judge.groups import Verdicts, decision, position_bias, votes
from reward.judge.judge import SUMMED, UNREAD, Judged, Responses
from rlhf.core.statistics import bootstrap_weights

SUMS = tuple(name.removeprefix("judge/") for name in SUMMED)


class GroupJudge(Protocol):
    """What compares or rates the responses of groups: see `reward.judge.judge.Judge`."""

    def judge(self, groups: Sequence[Responses]) -> Judged:
        """Scores of all responses, with the verdicts they come from."""


class JudgeScorer:
    """Scores groups by a judge, and keeps count of its texts."""

    def __init__(self, judge: GroupJudge) -> None:
        self.judge = judge
        self.start()

    def start(self) -> None:
        """Begin to count anew."""
        self._sums: Counter[str] = Counter()
        self._seconds = 0.0
        self._verdicts: list[Verdicts] = []
        self._votes: list[tuple[list[int], Hashable]] = []  # those that were read on each pair; its prompt

    def score_groups(self, groups: Sequence[Group]) -> list[tuple[float, ...] | str]:
        """The scores of each group's answers, or why it has none.

        Raises:
            RewardError: the server fails.
            ConfigError: the server refuses the token or the model.
        """
        judged = self.judge.judge([Responses(group.prompt, group.answers) for group in groups])
        figures = {name.removeprefix("judge/"): value for name, value in judged.figures.items()}
        self._sums.update({name: figures.get(name, 0.0) for name in SUMS})
        self._seconds += figures.get("seconds", 0.0) * (
            figures.get("requests", 0.0) - figures.get("cached", 0.0)
        )
        self._verdicts += judged.verdicts
        scores: list[tuple[float, ...] | str] = []
        for place, values in enumerate(judged.scores):
            failed = next((failure for failure in judged.failures[place] if failure), None)
            reason = failed.reason if failed else UNREAD
            if len(values) == 2 and judged.verdicts:
                decided = decision(judged.verdicts[place])
                read = [vote for vote in votes(judged.verdicts[place]) if vote is not None]
                self._votes.append((read, groups[place].prompt))
                scores.append(reason if decided is None else (decided, 0.0 - decided))
            else:
                known = tuple(value for value in values if value is not None)
                scores.append(known if len(known) == len(values) else reason)
        return scores

    def figures(self) -> Mapping[str, Any]:
        """Counts and cost since `start`; of a pairwise judge also what the orders of two answers show.

        `position_bias` and `order_agreement`, see `reward.judge.groups`. Where the first answer of each pair
        is the better one, as in benchmarks of pairs:

            one_order          `{"accuracy", "ci95"}`: the mean over pairs of (1 + vote) / 2; chance is 1/2.
                               The bootstrap draws prompts
            unread_as_no_vote  the share of all pairs with votes above 0 in sum, an unread text being no vote,
                               as JudgeBench's own code counts it
        """
        sent = self._sums["requests"] - self._sums["cached"]
        bias, agreement = position_bias(self._verdicts)
        return {
            **{name: self._sums[name] for name in SUMS},
            "seconds": self._seconds / sent if sent else 0.0,
            "position_bias": None if math.isnan(bias) else bias,
            "order_agreement": None if math.isnan(agreement) else agreement,
            "one_order": _one_order([(read, prompt) for read, prompt in self._votes if read]),
            "unread_as_no_vote": sum(sum(read) > 0 for read, _ in self._votes) / len(self._votes)
            if self._votes
            else None,
        }


def _one_order(votes_of_pairs: Sequence[tuple[Sequence[int], Hashable]]) -> dict[str, Any] | None:
    if not votes_of_pairs:
        return None
    share_P = np.array([sum(1 + vote for vote in read) / (2 * len(read)) for read, _ in votes_of_pairs])
    numbers: dict[Hashable, int] = {}
    cluster_P = np.array([numbers.setdefault(prompt, len(numbers)) for _, prompt in votes_of_pairs])

    def accuracy(drawn_C: npt.NDArray[np.float64]) -> float:
        return float(np.average(share_P, weights=drawn_C[cluster_P]))

    interval = bootstrap_weights(accuracy, len(numbers)) if len(numbers) > 1 else None
    return {"accuracy": float(share_P.mean()), "ci95": interval}
