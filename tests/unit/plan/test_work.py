"""Items and updates of a reward run, as planned and as made of records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.reading.either import load_either
from rlhf.config.reward import RewardConfig
from rlhf.core.records import Message, Preference, Rating
from rlhf.data.load import join_ratings
from rlhf.data.pairs import pair_rated
from rlhf.plan.request import Assumptions
from rlhf.plan.work import items_of_stage, work

CONFIGS = Path(__file__).parents[3] / "configs"
HELPSTEER2 = "nvidia/HelpSteer2"
REGRESSION = {"name": "a", "regression_weight": 1, "batch_size": 8}
PAIRS = {"name": "b", "preference_weight": 1, "batch_size": 8}
HYBRID = {"name": "c", "regression_weight": 1, "preference_weight": 1, "batch_size": 8}


def config(*stages: dict[str, Any], **data: Any) -> RewardConfig:
    def source(rows: int | str, kind: str) -> dict[str, Any]:
        where: dict[str, Any] = (
            {"path": "rows.jsonl", "limit": rows} if rows != HELPSTEER2 else {"path": rows}
        )
        return {"format": kind, **where}

    ratings, preferences = data.pop("ratings", None), data.pop("preferences", None)
    sources = {
        "ratings": [source(ratings, "helpsteer2")] if ratings else [],
        "preferences": [source(preferences, "helpsteer2-preference")] if preferences else [],
    }
    return RewardConfig.model_validate({"output": "unused", "data": {**sources, **data}, "stages": stages})


def updates(planned: RewardConfig) -> int | None:
    return work(planned, Assumptions())[1]


def test_ratings_of_paired_responses_are_no_items_of_their_own() -> None:
    planned = config(HYBRID, ratings=HELPSTEER2, preferences=HELPSTEER2)
    assert items_of_stage(planned, planned.stages[0]) == 6_766 + (20_324 - 2 * 6_766)
    # 200 pairs of 400 rated responses, 5 % held out: 190 pairs in batches of 8
    assert updates(config(HYBRID, ratings=400, preferences=200)) == 190 // 8


def test_pairs_of_rated_responses_are_items_of_the_preference_stage() -> None:
    assert updates(config(REGRESSION, PAIRS, ratings=400, pair_rated=True)) == 380 // 8 + 190 // 8


@pytest.mark.parametrize("rated", [False, True])
@pytest.mark.parametrize("stage", [PAIRS, HYBRID])
def test_items_are_those_that_the_data_make(stage: dict[str, Any], rated: bool) -> None:
    """20 prompts with two rated responses each; 12 of these pairs have a preference."""
    prompts = [(Message("user", f"question {number}"),) for number in range(20)]
    ratings = [
        Rating(prompt, answer, {"helpfulness": value})
        for prompt in prompts
        for answer, value in (("yes", 4.0), ("no", 1.0))
    ]
    preferences = [Preference(prompt, "yes", "no", -2) for prompt in prompts[:12]]
    planned = config(stage, ratings=len(ratings), preferences=len(preferences), pair_rated=rated)
    if rated:
        preferences += pair_rated(ratings, "helpfulness", among=preferences)[0]
    joined, left = join_ratings(preferences, ratings)
    made = len(joined) + (len(left) if "regression_weight" in stage else 0)
    assert items_of_stage(planned, planned.stages[0]) == made


def test_updates_are_whole_batches_of_the_prompts_that_are_left() -> None:
    # 95 % of 20,324 ratings twice in batches of 128, and of 6,766 pairs once in batches of 64
    assert updates(load_either(CONFIGS / "reward" / "llama-3.1-8b.yaml")) == 301 + 100  # type: ignore[arg-type]
    assert updates(config(REGRESSION, ratings=3)) == 1
    halved = config(REGRESSION, ratings=400, test_share=0.5)
    tokens, steps = work(halved, Assumptions())
    assert steps == 190 // 8
    assert tokens["validation"] == pytest.approx(10 * 1024 / halved.validate_every)


def test_a_source_of_unknown_size_leaves_the_updates_open() -> None:
    unknown = {"ratings": [{"path": "rows.jsonl", "format": "helpsteer2"}]}
    data = {"output": "unused", "data": unknown}
    assert updates(RewardConfig.model_validate({**data, "stages": [REGRESSION]})) is None
    assert updates(RewardConfig.model_validate({**data, "stages": [{**REGRESSION, "max_steps": 5}]})) == 5
