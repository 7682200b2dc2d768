"""Score groups of responses to one prompt by a judge, with its cost and position bias."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from reward.judge.client import Completion, JudgeClient
from reward.judge.forms import JudgeVerdict, pair_request, read_pair, read_single, single_request
from reward.judge.groups import IndexPair, Verdicts, comparisons, group_scores, position_bias
from rlhf.config.judge import JudgeConfig
from rlhf.core.records import Conversation


@dataclass(frozen=True)
class Responses:
    """Responses to one prompt."""

    prompt: Conversation
    texts: Sequence[str]


@dataclass(frozen=True)
class Judged:
    """Scores of groups of responses, and figures for the log.

    Attributes:
        scores: by group and response; None where no text of the judge on it could be read.
        figures: `judge/requests`, `judge/unparsed`, `judge/seconds` (mean of a request),
            `judge/prompt_tokens`, `judge/completion_tokens`, `judge/dollars`, `judge/cached`; of a pairwise
            judge in both orders `judge/position_bias` and `judge/order_agreement`, see
            `reward.judge.groups.position_bias`.
        unread: the first text that could not be read, or None.
        verdicts: of a pairwise judge, by group.
    """

    scores: list[list[float | None]]
    figures: Mapping[str, float] = field(default_factory=dict)
    unread: str | None = None
    verdicts: Sequence[Verdicts] = ()


class CompletionClient(Protocol):
    """Writes a text for each request, as `JudgeClient` does by a server."""

    def complete(self, requests: Sequence[str]) -> list[Completion]:
        """One completion for each request, in their order."""


class Judge:
    """Asks a judge's server about groups of responses.

    Args:
        cache: where completions are kept, see `JudgeClient`.
        client: writes the texts; without it, the server in the config does.
    """

    def __init__(
        self, config: JudgeConfig, cache: Path | None = None, client: CompletionClient | None = None
    ) -> None:
        self.config, self.client = config, client or JudgeClient(config, cache)

    def judge(self, groups: Sequence[Responses]) -> Judged:
        """Scores of all responses.

        Raises:
            RewardError: the server fails.
            ConfigError: the server refuses the token or the model.
            ValueError: a pairwise judge, and a group of fewer than two responses.
        """
        return self._judge_pairs(groups) if self.config.pairwise else self._judge_singles(groups)

    def _judge_singles(self, groups: Sequence[Responses]) -> Judged:
        config = self.config
        # `yes-no` asks about each criterion by itself, the other forms about all of them at once.
        criteria_sets = (
            [[criterion] for criterion in config.criteria] if config.form == "yes-no" else [config.criteria]
        )
        requests = [
            single_request(config.form, group.prompt, text, criteria)
            for group in groups
            for text in group.texts
            for criteria in criteria_sets
        ]
        completions = self.client.complete(requests)
        read = [read_single(config.form, completion.text, len(config.criteria)) for completion in completions]
        scores, start = list[list[float | None]](), 0
        for group in groups:
            row = list[float | None]()
            for _ in group.texts:
                values = read[start : start + len(criteria_sets)]
                known = [value for value in values if value is not None]
                row.append(sum(known) / len(known) if len(known) == len(values) else None)
                start += len(criteria_sets)
            scores.append(row)
        return Judged(scores, self._figures(completions, read), _first_unread(completions, read))

    def _judge_pairs(self, groups: Sequence[Responses]) -> Judged:
        config = self.config
        assert config.pairing != "single"
        pairs = [comparisons(len(group.texts), config.pairing, config.orders) for group in groups]
        completions = self.client.complete(
            [
                pair_request(
                    config.form, group.prompt, group.texts[first], group.texts[second], config.criteria
                )
                for group, group_pairs in zip(groups, pairs, strict=True)
                for first, second in group_pairs
            ]
        )
        read = [read_pair(config.form, completion.text) for completion in completions]
        verdicts, start = list[dict[IndexPair, JudgeVerdict | None]](), 0
        for group_pairs in pairs:
            verdicts.append(dict(zip(group_pairs, read[start : start + len(group_pairs)], strict=True)))
            start += len(group_pairs)
        scores = [
            group_scores(len(group.texts), group_pairs)
            for group, group_pairs in zip(groups, verdicts, strict=True)
        ]
        figures = self._figures(completions, read)
        if config.orders == "both":
            bias, agreement = position_bias(verdicts)
            measured = {"judge/position_bias": bias, "judge/order_agreement": agreement}
            figures |= {name: value for name, value in measured.items() if not math.isnan(value)}
        return Judged(scores, figures, _first_unread(completions, read), verdicts)

    def _figures(self, completions: Sequence[Completion], read: Sequence[object]) -> dict[str, float]:
        sent = [completion for completion in completions if not completion.cached]
        prompt = sum(completion.prompt_tokens for completion in sent)
        written = sum(completion.completion_tokens for completion in sent)
        price_in, price_out = self.config.dollars_per_million
        return {
            "judge/requests": len(completions),
            "judge/cached": len(completions) - len(sent),
            "judge/unparsed": sum(value is None for value in read),
            "judge/seconds": sum(completion.seconds for completion in sent) / max(len(sent), 1),
            "judge/prompt_tokens": prompt,
            "judge/completion_tokens": written,
            "judge/dollars": (prompt * price_in + written * price_out) / 1e6,
        }


def _first_unread(completions: Sequence[Completion], read: Sequence[object]) -> str | None:
    return next((c.text for c, value in zip(completions, read, strict=True) if value is None), None)
