"""Updates of a run, and the tokens of a mean update in each of its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlhf.config.policy import PolicyConfig
from rlhf.config.reward import RewardConfig, StageConfig
from rlhf.config.schema import DataSource
from rlhf.plan.request import Assumptions
from rlhf.training.schedule import steps_of

KNOWN_ROWS = {
    ("nvidia/HelpSteer2", "helpsteer2"): 20_324,
    ("nvidia/HelpSteer2", "helpsteer2-preference"): 6_766,
}
"""(Data set, format): items of the training split, as the recipes use it (NeMo-Aligner's documentation)."""


def work(config: RewardConfig | PolicyConfig, assumed: Assumptions) -> tuple[Mapping[str, float], int | None]:
    """Tokens of an update by phase, in the order of the phases, and the run's updates.

    Phases without tokens are left out. Updates are None where they depend on data sets of unknown size.
    """
    tokens, updates = (
        _reward_work(config, assumed) if isinstance(config, RewardConfig) else _policy_work(config, assumed)
    )
    return {name: count for name, count in tokens.items() if count}, updates


def joins(config: RewardConfig | PolicyConfig) -> bool:
    """Whether the number of items depends on how ratings and pairs share their responses."""
    return isinstance(config, RewardConfig) and (
        config.data.pair_rated
        or any(stage.regression_weight and stage.preference_weight for stage in config.stages)
    )


def items_of_stage(config: RewardConfig, stage: StageConfig) -> int | None:
    """Items of a stage, held-out prompts included; None where the size of a data set is not known.

    Ratings and preferences are taken to be of the same responses, two to a prompt, as in HelpSteer2:

        pairs = preferences, with `pair_rated` at least ratings / 2
        items = ratings; or pairs; or with both losses pairs + max(0, ratings - 2 pairs)

    See `rlhf.data.load.join_ratings` and `reward.training.data.items_of`.
    """
    ratings, pairs = _rows(config.data.ratings), _rows(config.data.preferences)
    if config.data.pair_rated:
        pairs = None if ratings is None or pairs is None else max(pairs, ratings // 2)
    if not stage.preference_weight:
        return ratings
    if not stage.regression_weight:
        return pairs
    return None if ratings is None or pairs is None else pairs + max(0, ratings - 2 * pairs)


def _rows(sources: Sequence[DataSource]) -> int | None:
    """Rows of all sources; None where the size of one of them is not known."""
    total = 0
    for source in sources:
        known = KNOWN_ROWS.get((source.path, source.format))
        rows = source.limit if known is None else min(known, source.limit or known)
        if rows is None:
            return None
        total += rows
    return total


def _reward_work(config: RewardConfig, assumed: Assumptions) -> tuple[dict[str, float], int | None]:
    """Means over the updates of all stages; where their numbers are not known, over the stages.

    Validations are spread over the updates; data sets of unknown size count 0.
    """
    held_out = (1 - config.data.test_share) * config.data.validation_share
    training = (1 - config.data.test_share) * (1 - config.data.validation_share)
    items = [items_of_stage(config, stage) for stage in config.stages]
    steps = [
        stage.max_steps if count is None else steps_of(stage, round(count * training))
        for stage, count in zip(config.stages, items, strict=True)
    ]
    known = [count for count in steps if count is not None]
    updates = sum(known) if len(known) == len(steps) else None
    weights = known if updates else [1] * len(steps)

    def mean(values: Sequence[float]) -> float:
        return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)

    batch, validated = mean([stage.batch_size for stage in config.stages]), mean([n or 0 for n in items])
    tokens = assumed.item(config)
    return {
        "update": batch * tokens,
        "validation": validated * held_out * tokens / config.validate_every,
    }, updates


def _policy_work(config: PolicyConfig, assumed: Assumptions) -> tuple[dict[str, float], int]:
    """Each prompt counts once, and its answers; without packing the prompt counts with each answer."""
    prompt, answer = assumed.lengths(config)
    rollouts = config.rollouts
    prompts = 1 if config.model.packing else rollouts.samples_per_prompt
    tokens = rollouts.prompts_per_step * (prompts * prompt + rollouts.samples_per_prompt * answer)
    trained = tokens * config.algorithm.epochs
    return {
        "rollouts": rollouts.answers * answer,
        "scoring": tokens * len(config.reward_folders),
        "log-probabilities": tokens,
        "update": trained,
        "critic": trained if config.algorithm.critic else 0,
    }, config.steps
