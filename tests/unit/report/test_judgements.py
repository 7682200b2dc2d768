"""Verdicts on principle models and judges: against the more frequent answer, and against a coin."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.report.judgements import title_of
from rlhf.report.reward import reward_table, reward_verdict


@pytest.mark.parametrize(
    ("interval", "label"),
    [([0.71, 0.86], "It learnt to judge"), ([0.65, 0.86], "Not better than the majority baseline")],
)
def test_a_principle_model_has_to_beat_the_more_frequent_answer(interval: list[float], label: str) -> None:
    found: dict[str, Any] = {
        "count": 102,
        "accuracy": 0.8,
        "ci95": interval,
        "majority": 0.7,
        "fulfilled": {"yes": {"count": 71, "accuracy": 0.9}, "no": {"count": 31, "accuracy": 0.6}},
        "groups": {
            "domain": {"code": {"count": 2, "accuracy": 0.5}, "stem": {"count": 100, "accuracy": 0.806}},
            "language": {"english": {"count": 102, "accuracy": 0.8}},  # the same for all: no table
        },
    }
    assert reward_verdict(found).label == label
    (_, (total,)), (_, subsets), (title, domains) = reward_table(found)
    assert (title, [row.name for row in domains]) == ("By domain", ["code", "stem"])
    assert total.interval == f"{100 * interval[0]:.1f}\N{EN DASH}{100 * interval[1]:.1f}"
    assert [(row.name, row.count) for row in subsets] == [("fulfilled", "71"), ("not fulfilled", "31")]


@pytest.mark.parametrize(
    ("interval", "label"),
    [
        ([0.55, 0.7], "It learnt to judge"),
        ([0.45, 0.7], "Not better than chance"),
        ([0.3, 0.45], "Worse than chance"),
    ],
)
def test_a_judge_has_to_beat_a_coin_in_each_order(interval: list[float], label: str) -> None:
    judge = {"requests": 40, "unparsed": 4, "order_agreement": 0.5}
    alone = {"accuracy": sum(interval) / 2, "ci95": interval}
    # Right in both orders is rarer than half even of a judge that is better than a coin.
    verdict = reward_verdict({"overall": 0.3, "judge": {**judge, "one_order": alone}})
    assert verdict.label == label
    assert len(verdict.more) == 2


def test_an_evaluation_that_is_not_there_has_no_verdict() -> None:
    assert reward_verdict({"judge": {"requests": 4, "unparsed": 4, "one_order": None}}).tone == "open"
    assert reward_verdict({"majority": None}).tone == "open"
    assert reward_table({"majority": None}) == []


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({"data": {"principles": []}}, "Principle model"),
        ({"data": {"justifications": []}}, "Pairwise Justifier"),
        ({"data": {"ratings": []}}, "Reward model"),
        ({"data": None}, "Reward model"),
    ],
)
def test_the_title(config: dict[str, Any], title: str) -> None:
    assert title_of(config) == title
