"""How far two rewards agree on the order of answers, in the log and in the report."""

from __future__ import annotations

import math

import pytest

from policy.update.gathering import merge_figures
from policy.update.statistics import order_agreement
from rlhf.report.verdict import judge_remarks

NAN = math.nan


@pytest.mark.parametrize(
    ("rewards", "others", "expected"),
    [
        # Pairs (0,1), (0,2), (1,2) of the first group: alike, alike, not; the second group: not.
        ([1.0, 2.0, 3.0, 5.0, 4.0, 4.0], [0.0, 9.0, 8.0, 1.0, 2.0, 2.0], 2 / 5),
        ([1.0, 2.0, NAN], [1.0, 3.0, 2.0], 1.0),
        ([1.0, 2.0, 3.0], [NAN, 3.0, 2.0], 0.0),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], None),
        ([NAN] * 3, [NAN] * 3, None),
        ([math.inf, 1.0, 2.0], [0.0, 1.0, 2.0], 1.0),
    ],
)
def test_pairs_within_a_group(rewards: list[float], others: list[float], expected: float | None) -> None:
    assert order_agreement(rewards, others, 3) == expected


def test_groups_are_not_mixed() -> None:
    assert order_agreement([1.0, 2.0, 0.0, 0.5], [1.0, 2.0, 9.0, 9.5], 2) == 1.0


def test_figures_of_processes() -> None:
    """A process whose judge wrote nothing readable has no position bias."""
    every = [
        {"time/score": 1.0, "judge/requests": 2.0},
        {"time/score": 3.0, "judge/requests": 4.0, "judge/position_bias": 0.5},
        {"time/score": 2.0, "judge/requests": 4.0, "judge/position_bias": 1.5},
    ]
    assert merge_figures(every) == {"time/score": 3.0, "judge/requests": 10.0, "judge/position_bias": 1.0}


def test_the_report_shows_means_over_the_updates() -> None:
    metrics = [
        {"reward/held_out_agreement": 0.5, "judge/position_bias": 1.0, "judge/order_agreement": 0.25},
        {"reward/held_out_agreement": 1.0, "judge/position_bias": 0.0, "judge/order_agreement": 0.75},
        {"reward/mean": 1.0},
    ]
    agreement, bias = judge_remarks(metrics)
    assert agreement.replace("\N{NO-BREAK SPACE}", " ").startswith("Reward and held-out reward order 75 %")
    assert "+0.50 points" in bias and "50" in bias
    assert judge_remarks([{"reward/mean": 1.0}]) == []


@pytest.mark.parametrize(
    ("spreads", "warned"),
    [
        ([1.0, 1.0, 3.0, 0.2, 1.0, 1.0, 1.4, 1.6], True),  # quarters of two: from 1.0 to 1.5
        ([1.0, 1.0, 3.0, 0.2, 1.0, 1.0, 1.4, 1.5], False),
        ([0.0, 9.0, 9.0, 0.0], False),
        ([1.0, 2.0, 3.0], False),  # too few updates
    ],
)
def test_an_ensemble_that_comes_to_disagree_is_a_warning(spreads: list[float], warned: bool) -> None:
    remarks = judge_remarks([{"reward/spread": value} for value in spreads])
    assert len(remarks) == warned
    assert not warned or "from 1.0 to 1.5 points" in remarks[0]
