"""Load the rows of all sources as items for training and validation, and select those of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from reward.training.batches import Item, faults, make_items, singles
from reward.training.start import trained_before
from rlhf.config.reward import RewardConfig, StageConfig
from rlhf.core.errors import DataError, did_you_mean
from rlhf.core.records import Comparison, Conversation, Preference, Rating
from rlhf.data.comparisons import as_comparison, load_comparisons
from rlhf.data.digests import digest_of
from rlhf.data.drops import DropReport, nothing_left, place_of
from rlhf.data.load import join_ratings, load_preferences, load_ratings
from rlhf.data.pairs import pair_rated
from rlhf.data.split import held_out
from rlhf.models import bases
from rlhf.models.chat import Chat
from rlhf.models.chat.control_tokens import SPELLED
from rlhf.models.chat.same_prompts import SamePrompts

IN_BENCHMARK = "prompt is in the benchmark"
Record = TypeVar("Record", Preference, Rating)


@dataclass(frozen=True)
class RewardData:
    """Items to train on and to validate on, and what was left out."""

    training: list[Item]
    validation: list[Item]
    held_out: list[Comparison]
    """The pairs of the test prompts as comparisons, by source; without test prompts those of `validation`."""
    drops: DropReport
    untrained: Sequence[str] = ()
    """Attributes that no stage, and no stage of `start`, trains."""


def load_chat(config: RewardConfig) -> Chat:
    """The tokenizer and template of the base.

    Raises:
        UserError: there is no such base, or model.max_length is beyond its context.
    """
    return bases.load_chat(config.model, reasoning=config.reasoning)


def load_data(config: RewardConfig, chat: Chat) -> RewardData:
    """Rows of all sources as items, split by a hash of the prompt.

    Raises:
        DataError: nothing is left for a stage, or nothing trains the reward.
        ModelError: `start` is not a reward model.
    """
    same = SamePrompts(chat)
    preferences, ratings, drops = load_records(config, same)
    same.add(_prompts(preferences, ratings))

    def side(name: str, report: DropReport) -> list[Item]:
        return make_items(
            [p for p in preferences if split_of(p, config, same) == name],
            [r for r in ratings if split_of(r, config, same) == name],
            chat,
            attributes=config.attributes,
            max_length=config.model.max_length,
            report=report,
        )

    judged = "test" if config.data.test_share else "validation"
    pairs = []
    held = [p for p in preferences if split_of(p, config, same) == judged]
    for p, reason in zip(held, faults(held, chat, config.model.max_length), strict=True):
        if reason is None:
            pairs.append(as_comparison(p, p.source or "held out"))
        elif judged == "test":  # the pairs of `validation` are counted where their items are made
            drops.drop(reason, place_of(p))
    note_control_tokens(preferences, ratings, chat, drops)
    _require_known_attribute(config, preferences, ratings)
    data = RewardData(side("training", drops), side("validation", drops), pairs, drops)
    for stage in config.stages:
        if not items_of(stage, data.training):
            withheld = {
                "data.test_share": len(items_of(stage, side("test", DropReport()))),
                "data.validation_share": len(items_of(stage, data.validation)),
            }
            raise nothing_left(f"Stage {stage.name!r} has nothing to learn from.", drops, "data", withheld)
    trained = {*trained_attributes(config, data.training), *trained_before(config)}
    if config.attributes[0] not in trained:
        names = [name for name in config.attributes if name in trained]
        raise DataError(
            f"No row rates {config.attributes[0]}, the first attribute, which is the reward.",
            allowed=f"an attribute that is rated, first: {', '.join(names)}",
            fix=f"attributes=[{','.join(names)}]",
        )
    return replace(data, untrained=[name for name in config.attributes if name not in trained])


def _require_known_attribute(
    config: RewardConfig, preferences: Sequence[Preference], ratings: Sequence[Rating]
) -> None:
    """Refuse to train on ratings of which the head has no attribute: a misspelt column, most likely."""
    sets = [rating.ratings for rating in ratings]
    sets += [of_one for pair in preferences for of_one in (pair.ratings_1, pair.ratings_2)]
    rated = list(dict.fromkeys(name for of_one in sets for name in of_one))
    regression = any(stage.regression_weight for stage in config.stages)
    if not regression or not rated or set(rated) & set(config.attributes):
        return
    near = "".join(did_you_mean(name, config.attributes) for name in rated[:1])
    raise DataError(
        f"The ratings are of {', '.join(rated)}; the head has no output for any of them.{near}",
        allowed=f"attributes of the config: {', '.join(config.attributes)}",
        fix=f"rename the columns of the ratings, or attributes=[{','.join(rated)}]",
    )


def trained_attributes(config: RewardConfig, items: Sequence[Item]) -> set[str]:
    """The attributes that the stages train: the rated ones, and the first by pairs."""
    trained = set[str]()
    for stage in config.stages:
        if stage.preference_weight:
            trained.add(config.attributes[0])
        if stage.regression_weight:
            rows = [row for item in items for row in item.ratings]
            trained |= {
                name
                for index, name in enumerate(config.attributes)
                if any(row[index] is not None for row in rows)
            }
    return trained


def untrained_lines(config: RewardConfig, data: RewardData) -> list[str]:
    """A note on attributes that nothing trains."""
    if not data.untrained:
        return []
    trained = ",".join(name for name in config.attributes if name not in data.untrained)
    return [
        f"Note: no row rates {', '.join(data.untrained)}: nothing trains them, and the model gives no scores "
        f"of them. For a head without them: attributes=[{trained}]"
    ]


def split_of(record: Preference | Rating, config: RewardConfig, same: SamePrompts) -> str:
    """The split of a record's prompt, by a hash: `test`, `validation` or `training`."""
    prompt = same.representative(record.prompt)
    if held_out(prompt, config.data.test_share, "test"):
        return "test"
    return "validation" if held_out(prompt, config.data.validation_share, "validation") else "training"


def load_records(
    config: RewardConfig, same: SamePrompts
) -> tuple[list[Preference], list[Rating], DropReport]:
    """Preferences with the ratings of their responses, the other ratings, and the drop report.

    Args:
        same: recognises the prompts of the benchmark.

    Raises:
        DataError: a malformed row, or a kind of source of which nothing is left.
    """
    drops = DropReport()
    preferences: list[Preference] = []
    ratings: list[Rating] = []
    spread = config.data.max_spread
    if config.data.preferences:
        preferences, report = load_preferences(config.data.preferences, seed=config.seed, max_spread=spread)
        drops = drops.merge(report)
    if config.data.ratings:
        ratings, report = load_ratings(config.data.ratings, seed=config.seed, max_spread=spread)
        drops = drops.merge(report)
    if config.benchmark:
        comparisons, _ = load_comparisons(config.benchmark)
        drops.digests["benchmark"] = digest_of(comparisons)  # a resumed run must leave out the same prompts
        benchmark = [item.prompt for item in comparisons]
        same.add([*benchmark, *_prompts(preferences, ratings)])
        benchmark_prompts = set(map(same.representative, benchmark))
        preferences = _without(benchmark_prompts, preferences, same, drops)
        ratings = _without(benchmark_prompts, ratings, same, drops)
    if config.data.pair_rated:
        rated_pairs, report = pair_rated(ratings, config.attributes[0], among=preferences)
        preferences += rated_pairs
        drops = drops.merge(report)
    return *join_ratings(preferences, ratings), drops


def note_control_tokens(
    preferences: Sequence[Preference], ratings: Sequence[Rating], chat: Chat, drops: DropReport
) -> None:
    """Count in `drops` the rows whose text spells a token that only the chat template may write."""
    rows: list[Conversation] = [(*pair.prompt, *pair.messages) for pair in preferences]
    rows += [(*rating.prompt, rating.message) for rating in ratings]
    spelled = sum(map(chat.spells_control_tokens, rows))
    if spelled:
        drops.notes[SPELLED] += spelled


def items_of(stage: StageConfig, items: Sequence[Item]) -> list[Item]:
    """The items that carry a target of one of the stage's terms; of ratings alone, single responses."""

    def counts(item: Item) -> bool:
        rated = any(value is not None for row in item.ratings for value in row)
        return (stage.regression_weight > 0 and rated) or (stage.preference_weight > 0 and item.strength != 0)

    if stage.preference_weight == 0:
        items = [single for item in items for single in singles(item)]
    return [item for item in items if counts(item)]


def _prompts(preferences: Sequence[Preference], ratings: Sequence[Rating]) -> list[Conversation]:
    return [pair.prompt for pair in preferences] + [rating.prompt for rating in ratings]


def _without(
    benchmark: set[Conversation], records: Sequence[Record], same: SamePrompts, drops: DropReport
) -> list[Record]:
    """Leave out records with a prompt of the benchmark, which must stay held out."""
    kept = []
    for record in records:
        if same.representative(record.prompt) in benchmark:
            drops.drop(IN_BENCHMARK, place_of(record))
        else:
            kept.append(record)
    return kept
