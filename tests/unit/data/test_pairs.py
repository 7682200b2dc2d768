"""Preferences from ratings of the same prompt: strength, ties, repeated ratings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf.config.schema import DataSource
from rlhf.core.records import Message, Preference, Rating
from rlhf.data.load import join_ratings, load_ratings
from rlhf.data.pairs import pair_rated, strength_of

PROMPT = (Message("user", "q"),)
OTHER = (Message("user", "another"),)


def rated(response: str, helpfulness: float, prompt: tuple[Message, ...] = PROMPT) -> Rating:
    return Rating(prompt, response, {"helpfulness": helpfulness, "verbosity": 4 - helpfulness}, source="f")


@pytest.mark.parametrize(
    ("difference", "strength"),
    [(4, 3), (3, 3), (2.5, 3), (2.4, 2), (1.5, 2), (1.4, 1), (0.5, 1), (0.01, 1), (-0.2, -1), (-2.5, -3)],
)
def test_the_strength_is_the_rounded_difference_from_1_to_3(difference: float, strength: int) -> None:
    assert strength_of(difference) == strength


def test_the_higher_rated_response_is_preferred_and_ties_are_counted() -> None:
    ratings = [rated("a", 4), rated("b", 2), rated("x", 1, OTHER), rated("c", 2), rated("y", 4, OTHER)]
    ratings = [replace(rating, place=f"f:{line}") for line, rating in enumerate(ratings, 1)]
    pairs, report = pair_rated(ratings, "helpfulness")
    assert [(p.prompt, p.chosen, p.rejected, p.strength) for p in pairs] == [
        (PROMPT, "a", "b", -2),
        (PROMPT, "a", "c", -2),
        (OTHER, "y", "x", 3),
    ]
    assert [pair.place for pair in pairs] == ["f:1 and f:2", "f:1 and f:4", "f:3 and f:5"]
    assert all(pair.source == "f: rated pairs" for pair in pairs)
    assert (report.read, report.kept, report.reasons) == (4, 3, {"tie (strength 0)": 1})
    assert report.examples == {"tie (strength 0)": ["f:2 and f:4"]}
    assert {name: part.kept for name, part in report.sources.items()} == {"rated pairs": 3}


def test_the_attribute_is_configurable() -> None:
    (pair,), _ = pair_rated([rated("a", 4), rated("b", 2)], "verbosity")
    assert (pair.chosen, pair.strength) == ("b", 2)
    assert pair_rated([rated("a", 4), rated("b", 2)], "wit")[0] == []


def test_a_response_rated_twice_counts_with_its_mean() -> None:
    pairs, report = pair_rated([rated("a", 4), rated("b", 2), rated("a", 1)], "helpfulness")
    assert [(pair.chosen, pair.strength) for pair in pairs] == [("a", -1)]  # 2.5 against 2
    assert report.read == 1


def test_a_pair_that_has_a_preference_already_is_counted_and_skipped() -> None:
    people = Preference(PROMPT, "b", "a", -1)  # people chose the lower rated one
    pairs, report = pair_rated([rated("a", 4), rated("b", 2), rated("c", 0)], "helpfulness", among=[people])
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "c"), ("b", "c")]
    assert report.reasons == {"rated pair that has a preference already": 1}


def test_each_rating_is_joined_once_however_many_pairs_share_its_response() -> None:
    ratings = [rated("a", 4), rated("b", 2), rated("c", 0), rated("d", 3, OTHER)]
    pairs, _ = pair_rated(ratings, "helpfulness")
    joined, single = join_ratings(pairs, ratings)
    attached = [side["helpfulness"] for p in joined for side in (p.ratings_1, p.ratings_2) if side]
    assert sorted(attached) == [0, 2, 4]
    assert single == [ratings[3]]


def test_responses_that_differ_in_white_space_alone_make_no_pair() -> None:
    pairs, report = pair_rated([rated("a", 4), rated("a\n", 2)], "helpfulness")
    assert (pairs, report.reasons) == ([], {"identical responses": 1})


def test_the_demos_pairs_follow_its_ratings() -> None:
    ratings, _ = load_ratings([DataSource(path="demo", format="helpsteer2")], seed=0)
    pairs, report = pair_rated(ratings, "helpfulness")
    assert report.read == 720  # two responses a prompt
    value = {(rating.prompt, rating.response): rating.ratings["helpfulness"] for rating in ratings}
    assert all(value[p.prompt, p.chosen] > value[p.prompt, p.rejected] for p in pairs)
    assert report.reasons["tie (strength 0)"] == 720 - len(pairs)


def test_pairs_of_a_file_in_any_columns(write_rows: Callable[..., str]) -> None:
    rows = [{"q": "hi", "a": text, "stars": stars} for text, stars in (("hello", 5), ("go away", 1))]
    columns = {"prompt": "q", "response": "a", "helpfulness": "stars"}
    source = DataSource(path=write_rows("rows.jsonl", rows), columns=columns, scale=(1, 5))
    ratings, _ = load_ratings([source], seed=0)
    (pair,), _ = pair_rated(ratings, "helpfulness")
    assert (pair.chosen, pair.rejected, pair.strength) == ("hello", "go away", -3)
