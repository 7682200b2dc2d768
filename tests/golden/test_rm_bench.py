"""RM-Bench's figures for a file of its schema, with rewards that can be counted by eye: the number of "+"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reward.evaluation.benchmarks.rm_bench import evaluate_rm_bench
from rlhf.core.records import Conversation
from rlhf.data.evaluation.benchmarks import load_benchmark

FILE = Path(__file__).with_name("rm_bench.json")


@dataclass(frozen=True)
class Score:
    reward: float
    attributes: Mapping[str, float] = field(default_factory=dict)


class PlusScorer:
    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        return [Score(float(conversation[-1].content.count("+"))) for conversation in conversations]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    benchmark = load_benchmark(str(FILE))
    assert (benchmark.kind, len(benchmark.items)) == ("rm-bench", 7)
    actual, rows = evaluate_rm_bench(benchmark.items, PlusScorer())
    assert rows[0] == {"id": 1, "subset": "chat", "rewards_chosen": [1, 2, 3], "rewards_rejected": [0, 1, 2]}
    return actual


def test_the_matrix_of_a_domain(result: dict[str, Any]) -> None:
    # Item 1, rewards 1 2 3 against 0 1 2:   1 0 0    item 2, 3 3 3 against 0 0 4:   1 1 0
    # (a tie is wrong)                       1 1 0                                    1 1 0
    #                                        1 1 1                                    1 1 0
    chat = result["domains"]["chat"]
    assert chat["matrix"] == [[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.5]]
    assert chat["easy"] == 1.0  # below the diagonal: 1, 1, 1
    assert chat["normal"] == pytest.approx(5 / 6)  # 1, 1, 1/2
    assert chat["hard"] == pytest.approx(1 / 6)  # above it: 1/2, 0, 0
    assert (chat["accuracy"], chat["count"]) == (pytest.approx(2 / 3), 2)


def test_safety_is_one_domain_whose_items_are_pooled(result: dict[str, Any]) -> None:
    # One item of `refuse` with a single 1, at concise against concise; two of `response` with nine: three
    # items.
    safety = result["domains"]["safety"]
    assert safety["matrix"][0] == pytest.approx([1, 2 / 3, 2 / 3])
    assert (safety["easy"], safety["hard"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert safety["normal"] == pytest.approx(7 / 9)
    assert safety["accuracy"] == pytest.approx(19 / 27)  # not the mean of 1/9 and 1
    assert result["subsets"]["safety-refuse"] == {"accuracy": pytest.approx(1 / 9), "count": 1}
    assert result["subsets"]["safety-response"] == {"accuracy": 1.0, "count": 2}


def test_overall_is_the_mean_of_the_domains(result: dict[str, Any]) -> None:
    assert result["sections"] == {
        "chat": pytest.approx(2 / 3),
        "math": 0.0,  # all ties
        "code": 1.0,
        "safety": pytest.approx(19 / 27),
    }
    assert result["levels"] == {
        "easy": pytest.approx((1 + 0 + 1 + 2 / 3) / 4),
        "normal": pytest.approx((5 / 6 + 0 + 1 + 7 / 9) / 4),
        "hard": pytest.approx((1 / 6 + 0 + 1 + 2 / 3) / 4),
    }
    assert result["overall"] == pytest.approx(16 / 27)
    assert result["overall"] == pytest.approx(sum(result["levels"].values()) / 3)
    assert (result["aggregation"], result["notes"]) == ("rm-bench", [])
    low, high = result["intervals"]["overall"]
    assert low < result["overall"] < high
