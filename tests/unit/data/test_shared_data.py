"""The real data beside the repository loads, and its known faults are counted."""

from __future__ import annotations

from pathlib import Path

from rlhf.config.schema import DataSource
from rlhf.data.comparisons import load_comparisons
from rlhf.data.load import load_preferences, load_prompts, load_ratings


def test_preferences(shared: Path) -> None:
    preferences, report = load_preferences(
        [DataSource(path=str(shared / "preferences.jsonl.gz"))], seed=0, max_spread=2
    )
    assert report.read == 24_786
    assert report.reasons["tie (strength 0)"] == 713
    assert len(preferences) == report.kept > 23_000
    assert {item.strength for item in preferences} == {-3, -2, -1, 1, 2, 3}


def test_preferences_of_some_sources(shared: Path) -> None:
    source = DataSource(
        path=str(shared / "preferences.jsonl.gz"), where={"source": ["webgpt-test", "oasst-en100"]}, limit=200
    )
    preferences, report = load_preferences([source], seed=0, max_spread=2)
    assert report.read == 200
    assert {item.source for item in preferences} == {"webgpt-test", "oasst-en100"}


def test_ratings_on_each_rows_scale(shared: Path) -> None:
    ratings, report = load_ratings([DataSource(path=str(shared / "ratings.jsonl.gz"), scale="row")], seed=0)
    assert report.read == 5_189
    assert (
        report.reasons["scale unknown"] == 360
    )  # topical-chat-usr: another scale for each attribute, in words
    assert all(0 <= value <= 4 for rating in ratings for value in rating.ratings.values())


def test_renamed_attributes(shared: Path) -> None:
    source = DataSource(
        path=str(shared / "ratings.jsonl.gz"),
        where={"source": ["just-eval"]},
        columns={"helpfulness": "ratings.helpfulness", "correctness": "ratings.factuality"},
        scale=(1, 5),
    )
    ratings, report = load_ratings([source], seed=0)
    assert report.read == 761
    assert all(set(rating.ratings) == {"helpfulness", "correctness"} for rating in ratings)


def test_prompts(shared: Path) -> None:
    prompts, report = load_prompts([DataSource(path=str(shared / "prompts.jsonl.gz"))])
    assert (report.read, len(prompts)) == (7_810, 7_810)


def test_comparisons(shared: Path) -> None:
    items, report = load_comparisons(str(shared / "benchmark_dev.jsonl.gz"))
    assert (report.read, len(items)) == (710, 709)
    assert report.reasons == {"identical responses": 1}
    assert all(item.subset and item.section for item in items)
