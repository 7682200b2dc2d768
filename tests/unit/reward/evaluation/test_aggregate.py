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
)
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
    pairs = [Comparison((Message("user", "q"),), "a", "b", name) for name in EXAMPLE_COUNTS]
    rule, sections, weights = aggregation_rule(pairs)
    correct = [pair.subset == "math-prm" for pair in pairs]
    scores, overall, _ = aggregate(correct, sections, weights, range(len(pairs)))
    assert rule == "rewardbench"
    assert scores == {"Chat": 0.0, "Chat Hard": 0.0, "Safety": 0.0, "Reasoning": 0.5}
    assert overall == 0.125


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


def test_a_prompt_in_two_sections_is_one_trial_of_the_overall_score() -> None:
    correct, sections = [True, False, True, False], ["a", "a", "b", "b"]
    _, overall, apart = aggregate(correct, sections, [1.0] * 4, range(4))
    assert overall == 0.5 and apart["overall"] == wilson_interval(0.5, 4)
    _, _, shared = aggregate(correct, sections, [1.0] * 4, [0, 1, 0, 1])
    assert shared["sections"] == apart["sections"]
    # The second section repeats the first: it adds nothing.
    assert shared["overall"] == pytest.approx(shared["sections"]["a"])


def test_a_small_section_that_is_uncertain_makes_the_overall_score_so() -> None:
    """4 sections: 10 of 20 right, and 294 of 300 in each of three."""
    correct, sections = [True] * 10 + [False] * 10, ["small"] * 20
    for name in "abc":
        correct += [True] * 294 + [False] * 6
        sections += [name] * 300
    _, overall, intervals = aggregate(correct, sections, [1.0] * 920, range(920))
    assert overall == pytest.approx((0.5 + 3 * 0.98) / 4)
    low, high = intervals["overall"]
    # The standard error of the small section's score, over 4, is nearly all of the whole.
    assert (high - low) / 2 == pytest.approx(
        1.96 * math.sqrt(0.25 / 20 + 3 * 0.98 * 0.02 / 300) / 4, rel=0.06
    )


def test_subsets_of_unequal_weight_are_strata_of_their_section() -> None:
    """The pairs of b, half of the section, are all right: only a's variance counts."""
    correct, weights = [True, False] * 50 + [True] * 900, [9.0] * 100 + [1.0] * 900
    scores, _, intervals = aggregate(correct, ["s"] * 1000, weights, range(1000))
    assert scores == {"s": 0.75}
    low, high = intervals["sections"]["s"]
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.25 / 100) / 2, rel=0.03)
