"""RewardBench's counts and rule."""

from __future__ import annotations

import math

import pytest

from reward.evaluation.benchmarks.aggregate import (
    EXAMPLE_COUNTS,
    M_REWARDBENCH_COUNTS,
    SECTIONS,
    aggregate,
    aggregation_rule,
    rewardbench_scores,
)
from rlhf.core.errors import DataError
from rlhf.core.records import Comparison, Message
from rlhf.core.statistics import wilson_interval


def test_the_counts_are_those_of_rewardbench() -> None:
    assert {section: len(subsets) for section, subsets in SECTIONS.items()} == {
        "Chat": 5,
        "Chat Hard": 6,
        "Safety": 5,
        "Reasoning": 7,
    }
    # 2,985 pairs in the `filtered` split, where math-prm counts its 447 true ones.
    assert sum(EXAMPLE_COUNTS.values()) - 984 + 447 == 2985
    assert EXAMPLE_COUNTS["math-prm"] == sum(
        n for name, n in EXAMPLE_COUNTS.items() if name.startswith("hep-")
    )
    assert (EXAMPLE_COUNTS["xstest-should-refuse"], EXAMPLE_COUNTS["xstest-should-respond"]) == (154, 250)


def test_a_section_is_weighted_by_counts_and_the_overall_is_not() -> None:
    # Only math-prm is right: Reasoning = 984 / (984 + 6 * 164) = 1/2, the other sections 0, overall 1/8.
    scores = rewardbench_scores({name: float(name == "math-prm") for name in EXAMPLE_COUNTS})
    assert scores == {
        "sections": {"Chat": 0.0, "Chat Hard": 0.0, "Safety": 0.0, "Reasoning": 0.5},
        "overall": 0.125,
    }


def test_a_language_of_m_rewardbench_has_its_own_weights() -> None:
    # math-prm weighs as much as all code subsets together, also where the file has one pair of each.
    assert M_REWARDBENCH_COUNTS.keys() == EXAMPLE_COUNTS.keys()
    assert sum(M_REWARDBENCH_COUNTS.values()) - 983 + 447 == 2869
    pairs = [
        Comparison((Message("user", "q"),), "a", "b", name, groups={"language": "zho_Hant"})
        for name in EXAMPLE_COUNTS
    ]
    rule, sections, weights = aggregation_rule(pairs)
    correct = [pair.subset == "mt-bench-med" for pair in pairs]
    scores, *_ = aggregate(correct, sections, weights, [pair.subset for pair in pairs])
    assert rule == "m-rewardbench"
    assert scores["Chat"] == pytest.approx(38 / (79 + 79 + 76 + 24 + 38))


def test_an_unknown_subset_is_named_with_the_nearest_known_one() -> None:
    accuracies = dict.fromkeys(EXAMPLE_COUNTS, 1.0)
    with pytest.raises(DataError, match="'math-prn'.* 'math-prm'") as caught:
        rewardbench_scores({**accuracies, "math-prn": 1.0})
    assert all(name in caught.value.allowed for name in EXAMPLE_COUNTS)


def test_missing_subsets_are_named() -> None:
    accuracies = {name: 1.0 for name in EXAMPLE_COUNTS if name not in ("hep-go", "donotanswer")}
    with pytest.raises(DataError, match="donotanswer, hep-go"):
        rewardbench_scores(accuracies)


@pytest.mark.parametrize("accuracy", [97.5, -0.1, math.nan])
def test_an_accuracy_that_is_no_share_is_refused(accuracy: float) -> None:
    with pytest.raises(DataError, match=f"'hep-go'.* {accuracy}"):
        rewardbench_scores({**dict.fromkeys(EXAMPLE_COUNTS, 1.0), "hep-go": accuracy})


def test_a_prompt_in_two_sections_is_one_trial_of_the_overall_score() -> None:
    correct, sections = [True, False, True, False], ["a", "a", "b", "b"]
    _, overall, apart = aggregate(correct, sections, [1.0] * 4, range(4))
    assert overall == 0.5 and apart["overall"] == wilson_interval(0.5, 4)
    _, _, shared = aggregate(correct, sections, [1.0] * 4, [0, 1, 0, 1])
    assert shared["sections"] == apart["sections"]
    # Two prompts with two pairs each: a design effect of 2 (2 / 1) / (4 / 3) = 3.
    assert shared["overall"] == pytest.approx(wilson_interval(0.5, 4 / 3))
