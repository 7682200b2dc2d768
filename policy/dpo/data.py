"""Preferences -> pairs of answers as token ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rlhf.config.dpo import DPOConfig
from rlhf.core.errors import ConfigError, RefusalError
from rlhf.core.records import Preference, Rollout
from rlhf.data.annotations import PAPER_SPREAD
from rlhf.data.drops import DropReport, nothing_left, place_of
from rlhf.data.load import load_preferences, load_prompts
from rlhf.data.split import held_out
from rlhf.models.chat import Chat
from rlhf.models.chat.same_prompts import SAME_IDS, SamePrompts

TOO_LONG = "longer than model.max_length"
EXCLUDED = "prompt is in data.exclude"
NOT_A_PREFIX = "the template writes the prompt differently before an answer"


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """The chosen and the rejected answer to one prompt, and the preference strength in {1, 2, 3}.

    `groups` are those by which results are broken down, such as domain and language.
    """

    chosen: Rollout
    rejected: Rollout
    strength: int
    source: str
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def answers(self) -> list[Rollout]:
        """The two as a group to pack, the chosen one first."""
        return [self.chosen, self.rejected]


@dataclass(frozen=True)
class DPOData:
    """Pairs to train on and to validate on, and what was left out."""

    training: list[TokenizedPair]
    validation: list[TokenizedPair]
    drops: DropReport


def load_data(config: DPOConfig, chat: Chat) -> DPOData:
    """Pairs of all sources, split by a hash of the prompt; those of excluded prompts are dropped.

    Raises:
        DataError: nothing is left to train on.
        ConfigError: the loss needs strengths, and all pairs are equally strong.
    """
    records, drops = load_preferences(config.data.preferences, seed=config.seed, max_spread=PAPER_SPREAD)
    same = SamePrompts(chat)
    same.add([record.prompt for record in records])
    excluded = set()
    if config.data.exclude:
        prompts, report = load_prompts(config.data.exclude)
        # A resumed run must leave out the same prompts.
        drops.digests |= {
            key.replace("data.prompts", "data.exclude"): digest for key, digest in report.digests.items()
        }
        same.add([prompt.messages for prompt in prompts])
        excluded = {same.representative(prompt.messages) for prompt in prompts}
    training, validation = list[TokenizedPair](), list[TokenizedPair]()
    for record, pair in zip(records, make_pairs(records, chat, config.model.max_length), strict=True):
        prompt = same.representative(record.prompt)
        if prompt in excluded:
            drops.drop(EXCLUDED, place_of(record))
        elif isinstance(pair, str):
            drops.drop(pair, place_of(record))
        else:
            validates = held_out(prompt, config.data.validation_share, "validation")
            (validation if validates else training).append(pair)
    if not training:
        held = {"data.validation_share": len(validation)}
        raise nothing_left("There is nothing to train on.", drops, "data.preferences", held)
    require_strengths(config, training)
    return DPOData(training, validation, drops)


def make_pairs(records: Sequence[Preference], chat: Chat, max_length: int) -> Iterator[TokenizedPair | str]:
    """Each preference as a pair, or the reason why it cannot be used."""
    prompts = chat.prompts_ids([record.prompt for record in records])
    conversations = chat.conversations_ids(
        (*record.prompt, message)
        for record in records
        for message in (record.chosen_message, record.rejected_message)
    )
    for record in records:
        prompt, sides = next(prompts), list(itertools.islice(conversations, 2))
        yield _pair(record, prompt, sides, chat, max_length)


def _pair(
    record: Preference,
    prompt: list[int] | RefusalError,
    sides: Sequence[list[int] | RefusalError],
    chat: Chat,
    max_length: int,
) -> TokenizedPair | str:
    if isinstance(prompt, RefusalError):
        return prompt.reason
    answers = []
    for ids, message in zip(sides, (record.chosen_message, record.rejected_message), strict=True):
        if isinstance(ids, RefusalError):
            return ids.reason
        if len(ids) > max_length:
            return TOO_LONG
        if ids[: len(prompt)] != prompt:
            return NOT_A_PREFIX
        completion = answer_ids(ids[len(prompt) :], chat.stop_ids)
        answers.append(Rollout(tuple(prompt), completion, (), True, message.content))
    if answers[0].completion_ids == answers[1].completion_ids:
        return SAME_IDS
    return TokenizedPair(answers[0], answers[1], abs(record.strength), record.source, record.groups)


def answer_ids(ids: Sequence[int], stop_ids: Sequence[int]) -> tuple[int, ...]:
    """The ids of an answer up to its last stop id, where sampling ends.

    What a template writes after it (a newline) is no part of a sampled answer.
    """
    end = max((place + 1 for place, token in enumerate(ids) if token in stop_ids), default=len(ids))
    return tuple(ids[:end])


def require_strengths(config: DPOConfig, pairs: Sequence[TokenizedPair]) -> None:
    """Check that the strengths differ, where the loss uses them.

    Raises:
        ConfigError: all are equal, as in data without strengths.
    """
    strengths = {pair.strength for pair in pairs}
    if config.loss != "regular" and len(strengths) == 1:
        raise ConfigError(
            f"loss is {config.loss}, and all {len(pairs):,} pairs have the same preference strength, "
            f"{strengths.pop()}: the data has no strengths.",
            allowed="margin and scaled with preferences of several strengths (preference_strength, or "
            "strength beside chosen and rejected)",
            fix="loss=regular, or map the column with the strength: docs/data.md",
        )
