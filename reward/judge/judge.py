"""Score groups of responses to one prompt by a judge, with its cost and position bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from reward.judge.client import Completion, JudgeClient
from reward.judge.forms import JudgeVerdict, pair_request, read_pair, read_single, single_request
from reward.judge.groups import IndexPair, Verdicts, comparisons, group_scores, position_bias
from rlhf.config.judge import JudgeConfig
from rlhf.core.errors import RefusalError, excerpt
from rlhf.core.records import Conversation, Message
from rlhf.models.chat.reasoning import apply_rule

UNREAD = "a text of the judge that could not be read"
TOO_LONG = "too long for the judge's server"
SUMMED = tuple(
    f"judge/{name}"
    for name in ("requests", "cached", "unparsed", "prompt_tokens", "completion_tokens", "dollars")
)
"""Figures that are summed over judges and processes; of the others the mean is taken."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Responses:
    """Responses to one prompt."""

    prompt: Conversation
    texts: Sequence[str]


class Unscored(NamedTuple):
    """Why the judge has no verdict on a response: a reason to count by, what was found, and the fix."""

    reason: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Judged:
    """Scores of groups of responses, and figures for the log.

    Attributes:
        scores: by group and response; None where no text of the judge on it could be read.
        failures: by group and response, the first request on it that gave no verdict, or None. A response
            with a failure has a score where another request on it was read.
        figures: `judge/requests`, `judge/unparsed`, `judge/seconds` (mean of a request),
            `judge/prompt_tokens`, `judge/completion_tokens`, `judge/dollars`, `judge/cached`; of a pairwise
            judge in both orders `judge/position_bias` and `judge/order_agreement`, see
            `reward.judge.groups.position_bias`.
        verdicts: of a pairwise judge, by group.
    """

    scores: list[list[float | None]]
    failures: list[list[Unscored | None]]
    figures: Mapping[str, float] = field(default_factory=dict)
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
        shown = [[self._shown(text) for text in group.texts] for group in groups]
        judge = self._judge_pairs if self.config.pairwise else self._judge_singles
        return judge(groups, shown)

    def _shown(self, text: str) -> str | Unscored:
        """What the judge sees of a response, by the rule `reasoning`."""
        try:
            (message,) = apply_rule((Message("assistant", text),), self.config.reasoning, "")
        except RefusalError as refusal:
            return Unscored(refusal.reason, refusal.reason, "judge.reasoning=strip, or keep")
        return message.content

    def _judge_singles(
        self, groups: Sequence[Responses], shown: Sequence[Sequence[str | Unscored]]
    ) -> Judged:
        config = self.config
        # `yes-no` asks about each criterion by itself, the other forms about all of them at once.
        criteria_sets = (
            [[criterion] for criterion in config.criteria] if config.form == "yes-no" else [config.criteria]
        )
        requests = [
            single_request(config.form, group.prompt, text, criteria)
            for group, texts in zip(groups, shown, strict=True)
            for text in texts
            if isinstance(text, str)
            for criteria in criteria_sets
        ]
        completions = self.client.complete(requests)
        read = [
            self._read(completion, lambda text: read_single(config.form, text, len(config.criteria)))
            for completion in completions
        ]
        scores, failures, values = list[list[float | None]](), list[list[Unscored | None]](), iter(read)
        for texts in shown:
            of_texts = [
                [text] if isinstance(text, Unscored) else list(islice(values, len(criteria_sets)))
                for text in texts
            ]
            failures.append([_first_failure(results) for results in of_texts])
            scores.append([_mean(results) for results in of_texts])
        return Judged(scores, failures, self._figures(completions, read))

    def _judge_pairs(self, groups: Sequence[Responses], shown: Sequence[Sequence[str | Unscored]]) -> Judged:
        config = self.config
        assert config.pairing != "single"
        visible = [
            {place: text for place, text in enumerate(texts) if isinstance(text, str)} for texts in shown
        ]
        pairs = [
            [
                pair
                for pair in comparisons(len(texts), config.pairing, config.orders)
                if of_group.keys() >= {*pair}
            ]
            for texts, of_group in zip(shown, visible, strict=True)
        ]
        completions = self.client.complete(
            [
                pair_request(config.form, group.prompt, texts[first], texts[second], config.criteria)
                for group, texts, group_pairs in zip(groups, visible, pairs, strict=True)
                for first, second in group_pairs
            ]
        )
        read = [self._read(entry, lambda text: read_pair(config.form, text)) for entry in completions]
        values, verdicts, failures = iter(read), list[Verdicts](), list[list[Unscored | None]]()
        for texts, group_pairs in zip(shown, pairs, strict=True):
            results = dict(zip(group_pairs, islice(values, len(group_pairs)), strict=True))
            verdicts.append({pair: None if isinstance(r, Unscored) else r for pair, r in results.items()})
            failures.append([_failure_of(place, texts, results) for place in range(len(texts))])
        scores = [group_scores(len(texts), of_group) for texts, of_group in zip(shown, verdicts, strict=True)]
        figures = self._figures(completions, read)
        if config.orders == "both":
            bias, agreement = position_bias(verdicts)
            measured = {"judge/position_bias": bias, "judge/order_agreement": agreement}
            figures |= {name: value for name, value in measured.items() if not math.isnan(value)}
        return Judged(scores, failures, figures, verdicts)

    def _read(self, completion: Completion, reader: Callable[[str], Value | None]) -> Value | Unscored:
        """The verdict of a completion, or why it has none."""
        if completion.too_long:
            return Unscored(
                TOO_LONG,
                f"the judge's server refuses the request as too long: {excerpt(completion.text)}",
                "start the server with a longer context, or lower judge.max_tokens, which it reserves",
            )
        value = reader(completion.text)
        if value is not None:
            return value
        return Unscored(
            UNREAD,  # a verdict stands at the end of a text, and the excerpt shows both ends
            f"the judge's text holds no {self.config.form} verdict: {excerpt(completion.text)}",
            f"if the text is cut off, raise judge.max_tokens above {self.config.max_tokens}; if it ends with "
            "a verdict of another form, set judge.form",
        )

    def _figures(self, completions: Sequence[Completion], read: Sequence[object]) -> dict[str, float]:
        sent = [completion for completion in completions if not completion.cached]
        prompt = sum(completion.prompt_tokens for completion in sent)
        written = sum(completion.completion_tokens for completion in sent)
        price_in, price_out = self.config.dollars_per_million
        return {
            "judge/requests": len(completions),
            "judge/cached": len(completions) - len(sent),
            "judge/unparsed": sum(isinstance(value, Unscored) for value in read),
            "judge/seconds": sum(completion.seconds for completion in sent) / max(len(sent), 1),
            "judge/prompt_tokens": prompt,
            "judge/completion_tokens": written,
            "judge/dollars": (prompt * price_in + written * price_out) / 1e6,
        }


def _failure_of(
    place: int, texts: Sequence[str | Unscored], results: Mapping[IndexPair, JudgeVerdict | Unscored]
) -> Unscored | None:
    """Why a response, a comparison with it, or every response to compare it with has no verdict."""
    if isinstance(text := texts[place], Unscored):
        return text
    return _first_failure([result for pair, result in results.items() if place in pair] or texts)


def _first_failure(results: Sequence[object]) -> Unscored | None:
    return next((result for result in results if isinstance(result, Unscored)), None)


def _mean(values: Sequence[float | Unscored]) -> float | None:
    """The mean of all values; None if one is missing."""
    known = [value for value in values if not isinstance(value, Unscored)]
    return sum(known) / len(known) if len(known) == len(values) else None
