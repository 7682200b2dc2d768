"""Rewards by a language model as judge, see `reward.judge`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from policy.rewards.protocol import Missing, group_sizes
from reward.judge.judge import Judge, Responses
from rlhf.config.judge import JudgeConfig
from rlhf.core.records import Prompt, Rollout


class JudgeReward:
    """The judge's score of each answer; adjacent answers to one prompt are judged as one group.

    Args:
        cache: JSON Lines file of the judge's texts, from which a resumed run gets the same rewards.
    """

    def __init__(self, config: JudgeConfig, cache: Path | None) -> None:
        self.config, self.judge = config, Judge(config, cache)
        self._figures: Mapping[str, float] = {}

    def of(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[float | Missing]:
        """The judge's scores; a text without a score makes the rewards of its answers missing.

        Raises:
            RewardError: the server fails.
            ConfigError: the server refuses the token or the model.
        """
        groups, start = list[Responses](), 0
        for size in group_sizes(prompts):
            texts = [rollout.text for rollout in rollouts[start : start + size]]
            groups.append(Responses(prompts[start].messages, texts))
            start += size
        judged = self.judge.judge(groups)
        self._figures = judged.figures
        rewards = list[float | Missing]()
        for scores, failures in zip(judged.scores, judged.failures, strict=True):
            for score, failure in zip(scores, failures, strict=True):
                if score is None:
                    assert failure is not None
                    rewards.append(Missing(failure.found, failure.fix))
                else:
                    rewards.append(score)
        return rewards

    def figures(self) -> Mapping[str, float]:
        """Cost, latency and position bias of the last call, named as in metrics.jsonl."""
        return self._figures
