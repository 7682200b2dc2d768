"""Computes the result of `rlhf inspect`: sources, agreement, targets, lengths, and one example in tokens."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig
from rlhf.config.schema import DataSource, ModelConfig
from rlhf.core.errors import RefusalError
from rlhf.core.records import Conversation, Preference, Prompt, Rating
from rlhf.data.agreement import agreement, annotated_pairs, annotated_ratings, rating_agreement
from rlhf.data.drops import DropReport, place_of
from rlhf.data.lengths import lengths_of
from rlhf.data.load import load_prompts
from rlhf.models.chat import Chat
from rlhf.models.chat.control_tokens import SPELLED
from rlhf.models.chat.same_prompts import SAME_IDS, SAME_PROMPT, SamePrompts, digest_of
from rlhf.runs.progress import Progress

Record = TypeVar("Record", Preference, Rating, Prompt)


class Size(NamedTuple):
    """Length and digest of a sequence of ids."""

    length: int
    digest: bytes


def inspect_reward(config: RewardConfig) -> dict[str, Any]:
    """The data of a reward config, without a model.

    Raises:
        DataError: a malformed row, or sources of a kind without usable rows.
    """
    from reward.training.data import load_records, note_control_tokens

    chat = Chat.of(config.model, reasoning=config.reasoning)
    preferences, ratings, drops = load_records(config, SamePrompts(chat))
    note_control_tokens(preferences, ratings, chat, drops)
    conversations = _conversations(preferences, ratings)
    sizes = iter(_lengths(chat.conversations_ids(conversations), len(conversations), "conversation"))
    pairs = _with_lengths([(pair, (next(sizes), next(sizes))) for pair in preferences], drops)
    singles = _with_lengths([(rating, (next(sizes),)) for rating in ratings], drops)
    preferences, ratings = [pair for pair, _ in pairs], [rating for rating, _ in singles]
    limit = config.model.max_length
    fitting = [pair for pair, lengths in pairs if max(lengths) <= limit]
    fitting_single = [rating for rating, lengths in singles if max(lengths) <= limit]
    counts = [*(n for _, lengths in pairs for n in lengths), *(n for _, lengths in singles for n in lengths)]
    return {
        "command": "train-reward",
        **_data_report(drops),
        "agreement": _agreement(config.data.preferences, config.seed, config.data.max_spread),
        "rating_agreement": _rating_agreement(config.data.ratings, config.seed, config.data.max_spread),
        "targets": _targets(preferences, ratings, config.attributes),
        "lengths": asdict(lengths_of(counts, limit)) if counts else None,
        "limit": "model.max_length",
        "too_long": {
            "pairs": len(preferences) - len(fitting),
            "single ratings": len(ratings) - len(fitting_single),
        },
        "tokenizer": _tokenizer(config.model, chat),
        "example": _scored_example(chat, fitting, fitting_single),
    }


def inspect_policy(config: PolicyConfig) -> dict[str, Any]:
    """The prompts of a policy config, without a model.

    Raises:
        DataError: a malformed row, or no usable prompts.
    """
    chat = Chat.of(config.model)
    prompts, drops = load_prompts(config.data.prompts)
    sizes = _lengths(chat.prompts_ids(prompt.messages for prompt in prompts), len(prompts), "prompt")
    if spelled := sum(chat.spells_control_tokens(prompt.messages) for prompt in prompts):
        drops.notes[SPELLED] += spelled
    seen: set[Size | RefusalError] = set()
    sized = []
    for prompt, size in zip(prompts, sizes, strict=True):
        if size in seen:
            drops.drop(SAME_PROMPT, place_of(prompt))
        else:
            seen.add(size)
            sized.append((prompt, (size,)))
    taken = _with_lengths(sized, drops)
    prompts, counts = [prompt for prompt, _ in taken], [length for _, (length,) in taken]
    limit = config.data.max_prompt_tokens
    fitting = [prompt for prompt, count in zip(prompts, counts, strict=True) if count <= limit]
    return {
        "command": "align-policy",
        **_data_report(drops),
        "targets": {
            "prompts": len(prompts),
            "with a check": sum(prompt.check is not None for prompt in prompts),
            "of several turns": sum(len(prompt.messages) > 2 for prompt in prompts),
        },
        "lengths": asdict(lengths_of(counts, limit)) if counts else None,
        "limit": "data.max_prompt_tokens",
        "too_long": {"prompts": len(prompts) - len(fitting)},
        "tokenizer": _tokenizer(config.model, chat),
        "example": _prompt_example(chat, fitting),
    }


def _tokenizer(model: ModelConfig, chat: Chat) -> dict[str, Any]:
    return {
        "base": model.base,
        "template_date": chat.template_date,
        "template_hash": chat.template_hash,
        "stop_ids": list(chat.stop_ids),
        "pad_id": chat.pad_id,
        "notes": chat.notes,
    }


def _data_report(drops: DropReport) -> dict[str, Any]:
    """The report of each source, and the rows that were dropped after all were joined."""
    later = drops.as_dict()["dropped"]
    for part in drops.sources.values():
        for reason, count in part.reasons.items():
            later[reason]["count"] -= count
    later = {reason: entry for reason, entry in later.items() if entry["count"]}
    of_sources = {note for part in drops.sources.values() for note in part.notes}
    return {
        "sources": {name: part.as_dict() for name, part in drops.sources.items()},
        "dropped_later": later,
        "notes": {note: count for note, count in drops.notes.items() if note not in of_sources},
    }


def _conversations(preferences: Sequence[Preference], ratings: Sequence[Rating]) -> list[Conversation]:
    """Both conversations of every pair, then that of every single rated response."""
    sides = [(*pair.prompt, response) for pair in preferences for response in pair.messages]
    return [*sides, *((*rating.prompt, rating.message) for rating in ratings)]


def _lengths(
    sequences: Iterable[list[int] | RefusalError], total: int, unit: str
) -> list[Size | RefusalError]:
    sizes = list[Size | RefusalError]()
    with Progress(total, unit) as progress:
        for ids in sequences:
            sizes.append(ids if isinstance(ids, RefusalError) else Size(len(ids), digest_of(ids)))
            progress.update(len(sizes))
    return sizes


def _with_lengths(
    measured: Sequence[tuple[Record, tuple[Size | RefusalError, ...]]], drops: DropReport
) -> list[tuple[Record, tuple[int, ...]]]:
    """Records and their lengths in tokens; refused ones, and pairs of equal ids, are counted in `drops`."""
    taken = []
    for record, sizes in measured:
        refusal = next((size for size in sizes if isinstance(size, RefusalError)), None)
        if refusal:
            drops.drop(refusal.reason, place_of(record))
        elif len(set(sizes)) < len(sizes):
            drops.drop(SAME_IDS, place_of(record))
        else:
            taken.append((record, tuple(size.length for size in sizes if isinstance(size, Size))))
    return taken


def _agreement(sources: Sequence[DataSource], seed: int, max_spread: int) -> dict[str, Any]:
    """The agreement of each source with raw annotations."""
    by_source = {}
    for source in sources:
        if source.format in ("helpsteer2-preference", "helpsteer3"):
            result = agreement(annotated_pairs(source, seed=seed), max_spread)
            if result is not None:
                by_source[f"{source.path} ({source.split})"] = {
                    **asdict(result),
                    "annotations_key": source.annotations,
                }
    return by_source


def _rating_agreement(sources: Sequence[DataSource], seed: int, max_spread: int) -> dict[str, Any]:
    by_source = {}
    for source in sources:
        if source.format == "helpsteer2":
            by_attribute = rating_agreement(annotated_ratings(source, seed=seed), max_spread)
            if by_attribute:
                by_source[f"{source.path} ({source.split})"] = by_attribute
    return by_source


def _targets(
    preferences: Sequence[Preference], ratings: Sequence[Rating], attributes: Sequence[str]
) -> dict[str, Any]:
    """Counts of the training targets: pairs and ratings, and the correlation of the two."""
    rated = Counter(bool(pair.ratings_1) + bool(pair.ratings_2) for pair in preferences)
    first = attributes[0]
    both = [
        (pair.strength, pair.ratings_2[first] - pair.ratings_1[first])
        for pair in preferences
        if first in pair.ratings_1 and first in pair.ratings_2
    ]
    single = Counter(
        name for rating in (*_joined(preferences), *(r.ratings for r in ratings)) for name in rating
    )
    return {
        "pairs": len(preferences),
        "pairs with both responses rated": rated[2],
        "pairs with one response rated": rated[1],
        "pairs without ratings": rated[0],
        "single rated responses": len(ratings),
        "ratings by attribute": {name: single[name] for name in attributes},
        "attributes in the data that are not learnt": sorted(set(single) - set(attributes)),
        "strengths": dict(sorted(Counter(pair.strength for pair in preferences).items())),
        "second response preferred": _share([pair.strength > 0 for pair in preferences]),
        "longer response preferred": _share(
            [
                len(pair.chosen) > len(pair.rejected)
                for pair in preferences
                if len(pair.chosen) != len(pair.rejected)
            ]
        ),
        f"correlation of strength and difference in {first}": _correlation(both),
    }


def _joined(preferences: Sequence[Preference]) -> Iterator[Any]:
    for pair in preferences:
        yield from (side for side in (pair.ratings_1, pair.ratings_2) if side)


def _share(truths: Sequence[bool]) -> float | None:
    return sum(truths) / len(truths) if truths else None


def _correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Pearson correlation; None if one of the two is constant."""
    columns = [*zip(*points, strict=True)]
    if len(points) < 2 or any(len(set(column)) == 1 for column in columns):
        return None
    return statistics.correlation(*columns)


def _scored_example(
    chat: Chat, preferences: Sequence[Preference], ratings: Sequence[Rating]
) -> dict[str, Any] | None:
    """The first scored conversation: the preferred response of a pair, or a rated response."""
    for pair in itertools.islice(preferences, 1):
        ratings_of = pair.ratings_2 if pair.strength > 0 else pair.ratings_1
        target = {"preferred by": abs(pair.strength), **ratings_of}
        ids = chat.conversation_ids((*pair.prompt, pair.chosen_message))
        return {**_tokens(chat, ids), "read_at": len(ids) - 1, "source": pair.source, "target": target}
    for rating in itertools.islice(ratings, 1):
        ids = chat.conversation_ids((*rating.prompt, rating.message))
        return {
            **_tokens(chat, ids),
            "read_at": len(ids) - 1,
            "source": rating.source,
            "target": dict(rating.ratings),
        }
    return None


def _prompt_example(chat: Chat, prompts: Sequence[Prompt]) -> dict[str, Any] | None:
    """The first prompt in tokens."""
    for prompt in itertools.islice(prompts, 1):
        ids = chat.prompt_ids(prompt.messages)
        return {**_tokens(chat, ids), "source": prompt.source, "check": prompt.check}
    return None


def _tokens(chat: Chat, ids: Sequence[int]) -> dict[str, Any]:
    special = chat.special_ids()
    return {
        "ids": list(ids),
        "pieces": chat.pieces(ids),
        "special": [place for place, token in enumerate(ids) if token in special],
    }
