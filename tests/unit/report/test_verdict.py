"""The first sentence of the page must be right."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.report.verdict import change, policy_verdict

S = "\N{NO-BREAK SPACE}"


def evaluation(**actual: tuple[float, float, float, float] | None) -> dict[str, Any]:
    """name -> (before, after, low, high), or None for a quantity that was not measured."""
    result: dict[str, Any] = {"before": {}, "after": {}, "difference": {}}
    for name, values in actual.items():
        before, after, low, high = values or (None, None, None, None)
        result["before"][name], result["after"][name] = before, after
        result["difference"][name] = values and {"mean": values[1] - values[0], "ci95": [low, high]}
    return result


KL, LENGTH = (0.0, 1.64, 1.2, 2.0), (40, 40, -1, 1)


def test_gold_rose() -> None:
    verdict = policy_verdict(
        evaluation(reward=(-1, 1, 1.5, 2.5), gold=(0.31, 0.52, 0.16, 0.26), kl=KL, length=LENGTH)
    )
    assert verdict.tone == "good"
    assert verdict.sentence == (
        f"Gold score rose from 0.31 to 0.52 (+0.21, 95{S}% interval 0.16 to 0.26) "
        "at a KL of 0.041 per token (1.6 per answer)."
    )
    assert verdict.more == [
        f"The reward rose from \N{MINUS SIGN}1.0 to 1.0 (+2.0, 95{S}% interval 1.5 to 2.5)."
    ]


def test_an_interval_that_includes_zero_is_no_change() -> None:
    verdict = policy_verdict(evaluation(reward=(0, 0.1, -0.1, 0.3), gold=(0.31, 0.33, -0.02, 0.06), kl=KL))
    assert verdict.tone == "flat"
    assert "did not change measurably" in verdict.sentence
    assert not any("exploit" in line for line in verdict.more)


def test_reward_alone_rising_is_pointed_out() -> None:
    verdict = policy_verdict(evaluation(reward=(0, 1, 0.5, 1.5), gold=(0.31, 0.33, -0.02, 0.06)))
    assert verdict.tone == "flat"
    assert "the checks did not" in verdict.more[-1]


def test_gold_down_and_reward_up_is_reward_hacking() -> None:
    verdict = policy_verdict(evaluation(reward=(0, 1, 0.5, 1.5), gold=(0.5, 0.3, -0.3, -0.1), kl=KL))
    assert (verdict.tone, verdict.label) == ("bad", "Warning: reward hacking")
    assert "Gold score fell from 0.50 to 0.30" in verdict.sentence
    assert "while the reward rose from 0.0 to 1.0" in verdict.sentence


def test_gold_down_without_a_rising_reward_is_just_worse() -> None:
    verdict = policy_verdict(evaluation(reward=(0, -1, -1.5, -0.5), gold=(0.5, 0.3, -0.3, -0.1)))
    assert (verdict.tone, verdict.label) == ("bad", "It got worse")


@pytest.mark.parametrize(
    ("reward", "tone"),
    [((0, 1, 0.5, 1.5), "open"), ((0, -1, -1.5, -0.5), "bad"), ((0, 0.1, -0.2, 0.4), "flat")],
)
def test_without_gold_it_speaks_of_the_reward_alone(
    reward: tuple[float, float, float, float], tone: str
) -> None:
    verdict = policy_verdict(evaluation(reward=reward, gold=None, kl=KL))
    assert verdict.tone == tone
    assert verdict.sentence.startswith("Reward ")
    assert verdict.sentence.endswith(" at a KL of 1.6 per answer."), "no length, so none per token"
    assert "no gold score" in verdict.more[0]


def test_answers_that_grow_by_half_call_for_caution() -> None:
    result = evaluation(gold=(0.3, 0.5, 0.1, 0.3), length=(80, 160, 60, 100))
    assert f"Answers became 100{S}% longer (80 to 160 tokens)" in policy_verdict(result).more[-1]
    result = evaluation(gold=(0.3, 0.5, 0.1, 0.3), length=(80, 90, 5, 15))
    assert policy_verdict(result).more == []


def test_no_interval_no_claim() -> None:
    result: dict[str, Any] = {"before": {"gold": 0.3}, "after": {"gold": 0.6}}
    verdict = policy_verdict(result)
    assert (verdict.tone, verdict.label) == ("open", "No verdict")
    assert "no interval was computed" in verdict.sentence


@pytest.mark.parametrize(
    "result", [{}, {"before": {"gold": 0.3, "reward": 1.0}}, {"before": None, "after": {}}]
)
def test_nothing_to_judge_yet(result: dict[str, Any]) -> None:
    assert policy_verdict(result).label == "No verdict yet"


def test_an_interval_that_touches_zero_includes_it() -> None:
    result = change(evaluation(gold=(0.3, 0.4, 0.0, 0.2)), "gold")
    assert result is not None
    assert not result.rose
    assert not result.fell


def remarks(**row: float) -> str:
    same = evaluation(reward=(1, 1, -0.1, 0.1), kl=KL, length=LENGTH)
    return " ".join(policy_verdict(same, [row, row]).more)


def test_updates_in_which_the_reward_gave_no_gradient_are_named() -> None:
    assert "No group had a spread" in remarks(**{"reward/groups_with_spread": 0.0})
    assert "No group had a spread" not in remarks(**{"reward/groups_with_spread": 0.5})
    # A critic's advantages need no spread.
    assert "No group had a spread" not in remarks(**{"reward/groups_with_spread": 0.0, "loss/value": 0.1})


def test_answers_that_take_no_part_are_named() -> None:
    few = remarks(**{"reward/counted_share": 0.2, "length/finished_share": 0.2})
    assert f"80{S}% of the sampled answers take no part" in few and f"20{S}% end before" in few
    # Cut-off answers that are kept take part.
    assert "take no part" not in remarks(**{"reward/counted_share": 1.0, "length/finished_share": 0.2})
