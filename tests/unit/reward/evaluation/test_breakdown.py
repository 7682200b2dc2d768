"""Accuracy by strength and length, and the distribution of rewards, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.evaluation.benchmarks.breakdown import (
    HISTOGRAM_BINS,
    Outcome,
    by_group,
    by_length,
    by_strength,
    score_distribution,
    shares,
)
from rlhf.core.statistics import wilson_interval


def alone(correct: Sequence[bool]) -> list[Outcome]:
    """Each pair with a prompt of its own."""
    return [(right, number) for number, right in enumerate(correct)]


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    once = [True, True, False, True]
    assert shares(alone(once))["ci95"] == wilson_interval(0.75, 4)
    copies = [outcome for outcome in alone(once) for _ in range(5)]
    # Five copies of each have a design effect of 5 (4 / 3) / (20 / 19).
    worth = 20 / (5 * (4 / 3) / (20 / 19))
    assert shares(copies) == {
        "accuracy": 0.75,
        "count": 20,
        "ci95": pytest.approx(wilson_interval(0.75, worth)),
    }


def test_by_strength_leaves_out_pairs_without_a_strength() -> None:
    result = by_strength(alone([True, False, True, True]), [3, 1, None, 1])
    assert list(result) == ["1", "3"]
    assert result["1"] == {"accuracy": 0.5, "count": 2, "ci95": wilson_interval(0.5, 2)}
    assert (result["3"]["accuracy"], result["3"]["count"]) == (1.0, 1)
    assert by_strength(alone([True]), [None]) == {}


def test_by_length() -> None:
    # Better answer shorter: right, wrong; longer: right, right, right; same length: wrong.
    correct = [True, False, True, True, True, False]
    result = by_length(alone(correct), [1, 1, 9, 9, 9, 5], [2, 2, 2, 2, 2, 5])
    assert {
        name: (result[name]["accuracy"], result[name]["count"]) for name in ("shorter", "longer", "same")
    } == {
        "shorter": (0.5, 2),
        "longer": (1.0, 3),
        "same": (0.0, 1),
    }
    assert result["controlled"] == 0.75


def test_a_judge_of_length_gets_a_half() -> None:
    chosen, rejected = [9, 9, 9, 1], [1, 1, 1, 9]
    correct = [better > worse for better, worse in zip(chosen, rejected, strict=True)]
    assert by_length(alone(correct), chosen, rejected)["controlled"] == 0.5


def test_without_one_kind_there_is_no_controlled_accuracy() -> None:
    result = by_length(alone([True]), [9], [1])
    assert result["controlled"] is None
    assert result["shorter"] == {"accuracy": None, "count": 0, "ci95": None}


def test_the_distribution() -> None:
    result = score_distribution([1.0, 3.0], [0.0, 2.0])
    assert (result["chosen"]["mean"], result["chosen"]["std"], result["chosen"]["median"]) == (2.0, 1.0, 2.0)
    assert (result["rejected"]["min"], result["rejected"]["max"], result["rejected"]["p25"]) == (
        0.0,
        2.0,
        0.5,
    )


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.lists(st.floats(-100, 100), min_size=1))
def test_every_reward_is_counted_once(chosen: list[float], rejected: list[float]) -> None:
    bars = score_distribution(chosen, rejected)["histogram"]
    assert len(bars["edges"]) == HISTOGRAM_BINS + 1 and bars["edges"] == sorted(bars["edges"])
    assert (sum(bars["chosen"]), sum(bars["rejected"])) == (len(chosen), len(rejected))
    # The inner bins are numpy's, which also closes its last bin.
    inside = [reward for reward in chosen if bars["edges"][0] <= reward <= bars["edges"][-1]]
    counts, _ = np.histogram(inside, bars["edges"])
    assert bars["chosen"][1:-1] == counts[1:-1].tolist()


def test_an_outlier_sits_in_the_end_bin_and_does_not_stretch_the_others() -> None:
    bars = score_distribution([i / 1000 for i in range(1000)], [-1e6])["histogram"]
    assert bars["edges"][0] >= 0 and bars["rejected"][0] == 1


def test_groups_are_broken_down_by_the_pairs_that_have_them() -> None:
    groups = [{"domain": "code", "language": "go"}, {"domain": "code"}, {"domain": "general"}, {}]
    result = by_group(alone([True, False, True, False]), groups)
    counts = {
        name: {value: (part["accuracy"], part["count"]) for value, part in item.items()}
        for name, item in result.items()
    }
    assert counts == {"domain": {"code": (0.5, 2), "general": (1.0, 1)}, "language": {"go": (1.0, 1)}}
    assert by_group(alone([True]), [{}]) == {}
