from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.config.schema import DataSource
from rlhf.core.errors import DataError
from rlhf.data.agreement import (
    Annotated,
    agreement,
    annotated_pairs,
    annotated_ratings,
    rating_agreement,
    weighted_kappa,
)

SCALE = (-3, -2, -1, 1, 2, 3)
tasks_of = st.lists(st.lists(st.sampled_from(SCALE), min_size=2, max_size=5), min_size=1, max_size=8)


@pytest.mark.parametrize("weights", ["linear", "quadratic"])
def test_kappa_of_two_values_by_hand(weights: str) -> None:
    # Ordered pairs: (1, 1) twice, (1, 2), (2, 1): observed 2/4. Values: 1 three times, 2 once: expected 2 *
    # 3/16.
    assert weighted_kappa([(1, 1), (1, 2)], weights) == pytest.approx(1 - (1 / 2) / (3 / 8))


def test_kappa_of_three_annotators_by_hand() -> None:
    # 12 ordered pairs: 4 of (-1, 1), 4 of (2, 3), 4 equal. Values -1: 2, 1: 4, 2: 2, 3: 4.
    tasks = [(-1, 1, 1), (3, 3, 2)]
    # linear: observed (4*2 + 4*1)/12 = 1; expected 2 * (8*2 + 4*3 + 8*4 + 8*1 + 16*2 + 8*1)/144 = 3/2
    assert weighted_kappa(tasks, "linear") == pytest.approx(1 / 3)
    # quadratic: observed (4*4 + 4*1)/12 = 5/3; expected twice the variance, 2 * (50/12 - (18/12)^2) = 23/6
    assert weighted_kappa(tasks, "quadratic") == pytest.approx(13 / 23)


def test_kappa_at_its_ends() -> None:
    assert weighted_kappa([(1, 1), (3, 3, 3)], "linear") == 1
    assert weighted_kappa([(-3, 3), (3, -3)], "quadratic") == -1
    assert weighted_kappa([(2, 2), (2, 2)], "linear") is None  # nothing that chance could get wrong
    assert weighted_kappa([(2,), ()], "linear") is None


def cohen(tasks: Sequence[Sequence[int]], power: int) -> float:
    """Cohen's weighted kappa by its usual matrices, of a symmetric table: 1 - sum(w o) / sum(w e)."""
    pairs = np.array([pair for values in tasks for pair in itertools.permutations(values, 2)])
    observed = np.zeros((7, 7))
    np.add.at(observed, (pairs[:, 0] + 3, pairs[:, 1] + 3), 1)
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    steps = np.arange(7)
    weight = np.abs(steps[:, None] - steps[None, :]) ** power
    return float(1 - (weight * observed).sum() / (weight * expected).sum())


@given(tasks_of)
def test_kappa_is_cohens_on_the_symmetric_table(tasks: list[list[int]]) -> None:
    for power, weights in enumerate(("linear", "quadratic"), start=1):
        result = weighted_kappa(tasks, weights)
        if len({value for values in tasks for value in values}) == 1:
            assert result is None
        else:
            assert result == pytest.approx(cohen(tasks, power), abs=1e-9)


@given(tasks_of)
def test_kappa_knows_neither_the_order_of_people_nor_which_response_came_first(
    tasks: list[list[int]],
) -> None:
    mirrored = [[-value for value in reversed(values)] for values in tasks]
    for weights in ("linear", "quadratic"):
        there, back = weighted_kappa(tasks, weights), weighted_kappa(mirrored, weights)
        assert (there is None and back is None) or there == pytest.approx(back)


PAIRS = [
    Annotated("f:1", (2, 2, 3, -100), published=2, published_three=(3, 2, 2)),
    Annotated("f:2", (-3, 3, -1, 1), published=0, published_three=(3, -1, 1)),  # ours: -3, -1, 1, spread 4
    Annotated("f:3", (-1, 1, 1), published=0),
    Annotated("f:4", (-3, -3, -2), published=-2),
    Annotated("f:5", (1, 1), published=1, published_three=(1, 1, 1)),
    Annotated("f:6", (1, 2, 1), published=None),
]


def test_the_report_by_hand() -> None:
    report = agreement(PAIRS, max_spread=2)
    assert report is not None
    assert (report.pairs, report.annotations, report.invalid, report.kept) == (6, 18, 1, 3)
    assert report.dropped == {
        "annotators disagree (spread > 2)": 1,
        "tie (strength 0)": 1,
        "fewer than three valid annotations": 1,
    }
    assert report.strengths == {-3: 1, 1: 1, 2: 1}  # -8/3, 4/3, 7/3
    assert report.second_preferred == pytest.approx(2 / 3)
    assert (report.compared, report.equal) == (5, 2)  # f:1 and the tie f:3
    assert report.confusion == {
        "-2": {"-3": 1},
        "0": {"annotators disagree (spread > 2)": 1, "0": 1},
        "+1": {"fewer than three valid annotations": 1},
        "+2": {"+2": 1},
    }
    assert [(row["place"], row["published"], row["ours"]) for row in report.differing] == [
        ("f:2", "0", "annotators disagree (spread > 2)"),
        ("f:4", "-2", "-3"),
        ("f:5", "+1", "fewer than three valid annotations"),
    ]
    assert (report.compared_three, report.equal_three) == (2, 1)


def test_kappa_before_is_over_all_valid_and_after_over_the_three_of_kept_pairs() -> None:
    report = agreement(PAIRS, max_spread=2)
    assert report is not None
    before = [(2, 2, 3), (-3, 3, -1, 1), (-1, 1, 1), (-3, -3, -2), (1, 1), (1, 2, 1)]
    after = [(2, 2, 3), (-3, -3, -2), (1, 2, 1)]
    for weights in ("linear", "quadratic"):
        assert report.kappa_before[weights] == weighted_kappa(before, weights)
        assert report.kappa_after[weights] == weighted_kappa(after, weights)


def test_without_pairs_there_is_nothing_to_say() -> None:
    assert agreement([], max_spread=2) is None


def test_a_source_gives_its_annotated_rows_alone(write_rows: Callable[..., str]) -> None:
    raw = [{"strength": strength, "justification": "so"} for strength in (2, -100, 1)]
    three = [{"strength": strength, "statement": "", "elaboration": ""} for strength in (2, 2, 1)]
    base = {"split": "train", "prompt": "q", "response_1": "a", "response_2": "b"}
    rows: list[dict[str, Any]] = [
        {**base, "preference_strength": 2, "all_preferences_unprocessed": raw},
        {**base, "preference_strength": 1},
        {**base, "all_preferences_unprocessed": raw, "three_most_similar_preferences": three},
    ]
    path = write_rows("rows.jsonl", rows)
    source = DataSource(path=path, format="helpsteer2-preference")
    assert list(annotated_pairs(source, seed=0)) == [
        Annotated(f"{path}:1", (2, -100, 1), 2),
        Annotated(f"{path}:3", (2, -100, 1), None, (2, 2, 1)),
    ]
    rows[1]["all_preferences_unprocessed"] = [{"strength": 4}]
    source = DataSource(path=write_rows("rows.jsonl", rows), format="helpsteer2-preference")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*'all_preferences_unprocessed'"):
        list(annotated_pairs(source, seed=0))


def test_helpsteer3_has_the_same_report(write_rows: Callable[..., str]) -> None:
    def row(overall: int | None, *scores: int) -> dict[str, Any]:
        individual = [{"score": score, "reasoning": "so"} for score in scores]
        context = [{"role": "user", "content": "q"}]
        pair = {"context": context, "response1": "a", "response2": "b", "overall_preference": overall}
        return {**pair, "individual_preference": individual}

    rows = [row(2, 2, 2, 3), row(None, -3, -3, -2), row(1, 3, -3, 0), {**row(1), "individual_preference": []}]
    source = DataSource(path=write_rows("rows.jsonl", rows), format="helpsteer3")
    report = agreement(annotated_pairs(source, seed=0), max_spread=2)
    assert report is not None
    # The fourth row has no annotations, the third spreads over 6; 7/3 and -8/3 are rounded.
    assert (report.pairs, report.annotations, report.kept) == (3, 9, 2)
    assert report.strengths == {-3: 1, 2: 1}
    assert (report.compared, report.equal) == (2, 1)
    people = [(2, 2, 3), (-3, -3, -2), (3, -3, 0)]
    assert report.kappa_before["linear"] == weighted_kappa(people, "linear")
    assert report.kappa_after["quadratic"] == weighted_kappa(people[:2], "quadratic")


def test_the_demo_is_published_as_it_is_aggregated_but_for_disagreement() -> None:
    source = DataSource(path="demo", format="helpsteer2-preference")
    report = agreement(annotated_pairs(source, seed=0), max_spread=6)
    assert report is not None
    assert report.equal == report.compared == report.pairs == 720
    assert report.equal_three == report.compared_three == 720
    strict = agreement(annotated_pairs(source, seed=0), max_spread=2)
    assert strict is not None
    assert strict.compared - strict.equal == strict.dropped["annotators disagree (spread > 2)"] > 0
    after, before = strict.kappa_after["quadratic"], strict.kappa_before["quadratic"]
    assert after is not None and before is not None and after > before


def test_agreement_on_ratings_by_attribute(write_rows: Callable[..., str]) -> None:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    base = {"prompt": "q", "response": "a", **{key: [1, 1, 1, 2] for key in names}}
    rows = [
        {**base, "helpfulness": [4, 0, 4, 4], "verbosity": [0, 4, 0, 1]},
        {**base, "helpfulness": [0, 4, 1, 4]},  # 1, 4 and 4 differ by 3: dropped
        {**base, **dict.fromkeys(names, 3)},
    ]
    source = DataSource(path=write_rows("rows.jsonl", rows), format="helpsteer2")
    result = rating_agreement(annotated_ratings(source, seed=0), max_spread=2)
    assert list(result) == list(names)
    people = [(4, 0, 4, 4), (0, 4, 1, 4)]
    assert result["helpfulness"]["before"]["linear"] == weighted_kappa(people, "linear")
    assert result["helpfulness"]["after"]["linear"] is None  # 4, 4, 4
    # The first, third and fourth, who agree on helpfulness.
    assert result["verbosity"]["after"]["quadratic"] == weighted_kappa([(0, 0, 1)], "quadratic")
