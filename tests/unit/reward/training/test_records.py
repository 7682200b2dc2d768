"""Records of a reward config's sources: ratings, preferences, and both on the same responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reward.training.data import load_data, load_records
from rlhf.config.reward import RewardConfig
from rlhf.models.chat import Chat
from rlhf.models.chat.same_prompts import SamePrompts

Configured = Callable[..., RewardConfig]
STARS = {"prompt": "question", "response": "answer", "helpfulness": "stars.useful", "verbosity": "stars.long"}
SIDES = {"prompt": "question", "chosen": "good", "rejected": "bad", "strength": "margin"}


@pytest.fixture
def configured(tiny_base: Path, tmp_path: Path) -> Configured:
    """A config with rated rows (question, answer, useful, long) and pairs (question, good, bad, margin)."""

    def make(
        rated: list[tuple[str, str, int, int]], preferred: list[tuple[str, str, str, int]], **data: Any
    ) -> RewardConfig:
        ratings = [{"question": q, "answer": a, "stars": {"useful": u, "long": v}} for q, a, u, v in rated]
        pairs = [{"question": q, "good": g, "bad": b, "margin": m} for q, g, b, m in preferred]
        sources: dict[str, Any] = {}
        for kind, rows, columns in (("ratings", ratings, STARS), ("preferences", pairs, SIDES)):
            path = tmp_path / f"{kind}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            scale = {"scale": [1, 5]} if kind == "ratings" else {}
            sources[kind] = [{"path": str(path), "columns": columns, **scale}] if rows else []
        terms = {"regression_weight": int(bool(rated)), "preference_weight": 1}
        return RewardConfig.model_validate(
            {
                "output": "unused",
                "model": {"base": str(tiny_base), "max_length": 200},
                "attributes": ["helpfulness", "verbosity"],
                "data": {**sources, "validation_share": 0, **data},
                "stages": [{"name": "one", **terms}],
            }
        )

    return make


def test_rated_preferred_and_both_in_one_run_of_any_columns(configured: Configured, tiny_chat: Chat) -> None:
    rated = [("q1", "a", 5, 1), ("q1", "b", 1, 3), ("q2", "alone", 3, 5)]
    config = configured(rated, [("q1", "a", "b", 3), ("q3", "c", "d", 1)])
    preferences, ratings, drops = load_records(config, SamePrompts(tiny_chat))
    assert [(p.prompt[0].content, p.chosen, p.strength, p.ratings_1, p.ratings_2) for p in preferences] == [
        ("q1", "a", -3, {"helpfulness": 4.0, "verbosity": 0.0}, {"helpfulness": 0.0, "verbosity": 2.0}),
        ("q3", "c", -1, {}, {}),
    ]
    assert [(r.response, r.ratings) for r in ratings] == [("alone", {"helpfulness": 2.0, "verbosity": 4.0})]
    assert (drops.read, drops.kept) == (5, 5)
    assert [(part.read, name.split()[0]) for name, part in drops.sources.items()] == [
        (2, "preferences"),
        (3, "ratings"),
    ]
    items = load_data(config, tiny_chat).training
    assert [(item.strength, item.ratings) for item in items] == [
        (-3, ((4.0, 0.0), (0.0, 2.0))),
        (-1, ((None, None), (None, None))),
        (0, ((2.0, 4.0),)),
    ]


def test_pairs_of_ratings_alone_count_each_rating_once(configured: Configured, tiny_chat: Chat) -> None:
    rated = [("q1", "a", 5, 1), ("q1", "b", 1, 1), ("q1", "c", 2, 1), ("q2", "d", 3, 1), ("q2", "e", 3, 2)]
    config = configured(rated, [], pair_rated=True)
    data = load_data(config, tiny_chat)
    assert sorted(item.strength for item in data.training) == [
        -3,
        -3,
        0,
        0,
        1,
    ]  # 4, 3 and 1 apart; d, e alone
    values = [row[0] for item in data.training for row in item.ratings if row[0] is not None]
    assert sorted(values) == [0.0, 1.0, 2.0, 2.0, 4.0]
    assert data.drops.reasons == {"tie (strength 0)": 1}
    assert (data.drops.sources["rated pairs"].read, data.drops.sources["rated pairs"].kept) == (4, 3)


def test_the_benchmark_is_an_input_of_the_run(
    configured: Configured, tiny_chat: Chat, tmp_path: Path
) -> None:
    """It decides which rows are left out: with another one a resumed run would have other items."""
    config = configured([], [("q1", "a", "b", 3), ("q3", "c", "d", 1)])

    def digest(prompt: str, file: str) -> str:
        row = {"prompt": prompt, "chosen": "a", "rejected": "b", "subset": "s"}
        (tmp_path / file).write_text(json.dumps(row) + "\n")
        with_benchmark = config.model_copy(update={"benchmark": str(tmp_path / file)})
        _, _, drops = load_records(with_benchmark, SamePrompts(tiny_chat))
        return drops.digests["benchmark"]

    assert digest("q1", "one.jsonl") == digest("q1", "elsewhere.jsonl") != digest("q3", "one.jsonl")


def test_a_preference_of_people_comes_before_one_made_of_ratings(
    configured: Configured, tiny_chat: Chat
) -> None:
    config = configured([("q", "a", 5, 1), ("q", "b", 1, 1)], [("q", "b", "a", 2)], pair_rated=True)
    preferences, _, drops = load_records(config, SamePrompts(tiny_chat))
    assert [(p.chosen, p.strength) for p in preferences] == [("b", -2)]
    assert drops.reasons == {"rated pair that has a preference already": 1}
    assert preferences[0].ratings_1 == {"helpfulness": 0.0, "verbosity": 0.0}


def test_without_pair_rated_ratings_make_no_pairs(configured: Configured) -> None:
    with pytest.raises(ValidationError, match=r"data\.preferences"):
        configured([("q", "a", 5, 1)], [])
    with pytest.raises(ValidationError, match=r"pair_rated .*data\.ratings"):
        configured([], [("q", "b", "a", 2)], pair_rated=True)


def test_raw_ratings_follow_max_spread(configured: Configured, tiny_chat: Chat, tmp_path: Path) -> None:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    row = {"prompt": "q", "response": "a", **{key: [0, 1, 4, 4] for key in names}}  # 1, 4 and 4 differ by 3
    (tmp_path / "disagreements").mkdir()
    (tmp_path / "disagreements" / "disagreements.jsonl").write_text(json.dumps(row) + "\n")
    config = configured([("q", "b", 1, 1)], [("q", "a", "b", 1)], max_spread=3)
    source = config.data.ratings[0].model_copy(
        update={
            "path": str(tmp_path),
            "format": "helpsteer2",
            "split": "disagreements",
            "columns": {},
            "scale": (0.0, 4.0),
        }
    )
    config = config.model_copy(update={"data": config.data.model_copy(update={"ratings": [source]})})
    preferences, _, _ = load_records(config, SamePrompts(tiny_chat))
    assert preferences[0].ratings_1["helpfulness"] == 3.0
