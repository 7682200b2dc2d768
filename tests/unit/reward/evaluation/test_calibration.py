"""Calibration of margins against values derived by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.evaluation.benchmarks.calibration import calibration
from rlhf.core.statistics import wilson_interval

THREE_TO_ONE = math.log(3)  # sigmoid = 3/4


def test_a_calibrated_model_by_hand() -> None:
    # Sure to 3/4, and right in three of four: no error. Brier: (3 (1/4)^2 + (3/4)^2) / 4.
    result = calibration([THREE_TO_ONE] * 3 + [-THREE_TO_ONE])
    assert result["ece"] == pytest.approx(0, abs=1e-12)
    assert result["brier"] == pytest.approx(3 / 16)
    assert result["log_loss"] == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4)
    (first,) = [row for row in result["bins"] if row["count"]]
    assert (first["count"], first["accuracy"]) == (4, 0.75)
    assert first["confidence"] == pytest.approx(0.75)


def test_the_error_is_the_gap_weighted_by_the_bins_counts() -> None:
    # Three pairs sure to 3/4 and all right: gap 1/4; one sure to 9/10 and wrong: gap 9/10.
    result = calibration([THREE_TO_ONE] * 3 + [-math.log(9)])
    assert result["ece"] == pytest.approx((3 * 0.25 + 0.9) / 4)


def test_the_interval_of_a_bin_counts_a_prompt_once_where_its_pairs_agree() -> None:
    margins = [THREE_TO_ONE] * 20 + [-THREE_TO_ONE] * 20
    (alone,) = [row for row in calibration(margins)["bins"] if row["count"]]
    assert alone["ci95"] == wilson_interval(0.5, 40)
    # Four prompts of ten pairs, of which two have all right and two all wrong. Design effect: the sums of the
    # clusters are +-5, so 4 x 25 / (40 / 4) = 10, times 4 / 3, over 40 / 39.
    (clustered,) = [row for row in calibration(margins, [i // 10 for i in range(40)])["bins"] if row["count"]]
    assert clustered["ci95"] == pytest.approx(wilson_interval(0.5, 40 / (10 * 4 / 3 * 39 / 40)))
    assert (clustered["count"], clustered["accuracy"]) == (40, 0.5)


def test_the_sign_decides_who_is_right() -> None:
    right, wrong = calibration([2.0]), calibration([-2.0])
    assert right["brier"] < 0.25 < wrong["brier"]
    assert right["ece"] < 0.5 < wrong["ece"]


def test_a_coin() -> None:
    result = calibration([0.0, 0.0])
    assert (result["ece"], result["brier"]) == (0, 0.25)
    assert result["log_loss"] == pytest.approx(math.log(2))


def test_huge_margins_do_not_overflow() -> None:
    assert calibration([1000.0]) | {"bins": []} == {"ece": 0, "brier": 0, "log_loss": 0, "bins": []}
    wrong = calibration([-1000.0])
    assert (wrong["ece"], wrong["brier"], wrong["log_loss"]) == (1, 1, 1000)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.integers(1, 20))
def test_every_pair_is_in_the_bin_of_its_confidence(margins: list[float], bins: int) -> None:
    result = calibration(margins, bins=bins)
    assert sum(row["count"] for row in result["bins"]) == len(margins)
    assert result["bins"][0]["low"] == 0.5 and result["bins"][-1]["high"] == 1
    for row in result["bins"]:
        if row["count"]:
            assert row["low"] - 1e-12 <= row["confidence"] <= row["high"] + 1e-12
        else:
            assert row["confidence"] is None and row["accuracy"] is None
    # With one bin, the error is that of the means.
    sure = sum(1 / (1 + math.exp(-abs(margin))) for margin in margins) / len(margins)
    right = sum(0.5 if margin == 0 else margin > 0 for margin in margins) / len(margins)
    assert calibration(margins, bins=1)["ece"] == pytest.approx(abs(right - sure))
