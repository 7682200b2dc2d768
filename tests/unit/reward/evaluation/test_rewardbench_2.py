from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reward.evaluation.benchmarks.rewardbench_2 import TiesRow, evaluate_rewardbench_2, row_score, ties_score
from rlhf.core.errors import DataError, DivergenceError
from rlhf.core.records import Conversation
from rlhf.data.evaluation.benchmarks import load_benchmark


@pytest.mark.parametrize(
    ("right", "wrong", "score"),
    [
        ([2.0], [1.0, 0.0, -1.0], 1),
        ([2.0], [2.0, 2.0, 1.0], 1 / 3),
        ([1.0], [2.0, 0.0, 0.0], 0),
        ([0.0], [0.0] * 3, 1 / 4),
    ],
)
def test_a_row_shares_its_point_among_the_highest(
    right: list[float], wrong: list[float], score: float
) -> None:
    assert row_score(right, wrong) == score


def ref(number: int, right: float, wrong: float) -> TiesRow:
    return TiesRow("ref", number, (right,), (wrong,))


def test_the_formula_of_ties_to_the_digit() -> None:
    # N = 1: ci_ref 1, ci_tied 3 - 1 = 2, dc_tied 3.5 - 3 = 0.5: all terms hold; hard margin 1, bonus tanh(1 /
    # 0.5 - 1).
    # N = 2: ci_ref -1, ci_tied 1, dc_tied 2: ref is wrong, no margin above the spread; bonus tanh(-1 / 2 -
    # 1).
    rows = [
        ref(1, 2.0, 1.0),
        TiesRow("tied", 1, (3.0, 3.5), (1.0, 0.5)),
        ref(2, 0.0, 1.0),
        TiesRow("tied", 2, (2.0, 4.0), (1.0,)),
    ]
    result = ties_score(rows)
    bonus = (math.tanh(1.0) + math.tanh(-1.5)) / 2
    assert (result["tied"], result["ref"], result["margin"], result["hard_margin"]) == (1.0, 0.5, 0.5, 0.5)
    assert result["bonus"] == pytest.approx(bonus, rel=1e-15)
    assert result["score"] == pytest.approx(0.3 + 0.15 + 0.1 + 0.1 + 0.01 * bonus, rel=1e-15)


@pytest.mark.parametrize(("margin", "bonus"), [(0.0, 0.0), (1.0, 1.0), (-1.0, -1.0)])
def test_a_spread_of_0(margin: float, bonus: float) -> None:
    # Both margins are `margin`, the spread is 0: 0/0 counts 0, x/0 gives tanh(inf) or tanh(-inf).
    result = ties_score([ref(7, margin, 0.0), TiesRow("tied", 7, (margin, margin), (0.0,))])
    assert result["bonus"] == bonus
    assert result["score"] == pytest.approx((1.0 if margin > 0 else 0.0) + 0.01 * bonus)


def test_numbers_without_both_rows_count_in_the_accuracy_of_their_form_alone() -> None:
    # N = 1: ci_ref 1, ci_tied 0.5, dc 1: both right, no margin, bonus tanh(0.5 / 1 - 1). N = 2 has a
    # wrong ref alone, so that the mean accuracy of ref is 1/2 and all other means are those of N = 1.
    rows = [ref(1, 1.0, 0.0), TiesRow("tied", 1, (1.0, 2.0), (0.5,)), ref(2, 0.0, 9.0)]
    result = ties_score(rows)
    assert (result["count"], result["unpaired"], result["ref"], result["tied"]) == (1, [2], 0.5, 1.0)
    assert result["score"] == pytest.approx(0.3 + 0.15 + 0.01 * math.tanh(-0.5), rel=1e-15)
    assert sum(result["scores"]) / len(result["scores"]) == pytest.approx(result["score"], rel=1e-15)
    with pytest.raises(DataError) as caught:
        ties_score(rows[:1])
    assert "ref" in caught.value.allowed and "tied" in caught.value.allowed
    with pytest.raises(DataError, match="ref:1"):
        ties_score([*rows, rows[0]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_an_error(value: float) -> None:
    with pytest.raises(DivergenceError):
        row_score([value], [0.0])
    with pytest.raises(DivergenceError):
        ties_score([ref(1, value, 0.0)])


@dataclass(frozen=True)
class Score:
    reward: float
    attributes: dict[str, float] = field(default_factory=dict)


class Scorer:
    """Scores an answer by the number it is."""

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        return [Score(float(conversation[-1].content)) for conversation in conversations]


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


MATH = {
    "id": "3",
    "prompt": "q",
    "chosen": ["2"],
    "rejected": ["2", "1", "0"],
    "subset": "Math",
    "num_correct": 1,
}
REF = {"id": "ref:0", "prompt": "q", "chosen": ["2"], "rejected": ["1"], "subset": "Ties"}
TIED = {"id": "tied:0", "prompt": "q", "chosen": ["3", "4"], "rejected": ["1"], "subset": "Ties"}


def test_a_file_in_the_published_schema(tmp_path: Path) -> None:
    actual = load_benchmark(write(tmp_path / "rb2.jsonl", MATH, REF, TIED))
    assert actual.kind == "rewardbench-2"
    result, rows = evaluate_rewardbench_2(actual.items, Scorer())
    # Ties: ci_ref 1, ci_tied 2, dc 1: acc 1, 1; 2 > 1; min(1, 2) > 1 is false; tanh(1 / 1 - 1) = 0.
    assert {name: part["accuracy"] for name, part in result["subsets"].items()} == {"Math": 0.5, "Ties": 0.8}
    assert result["overall"] == pytest.approx(0.65)
    assert [row.get("score") for row in rows] == [0.5, None, None]
    missing, incomplete = result["notes"]
    assert "Factuality, Focus, Precise IF, Safety" in missing
    assert "Math 1 of 183, Ties 2 of 102" in incomplete


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": "Maths"}, "'Maths'.* 'Math'"),
        ({"subset": "Ties"}, "ref:N or tied:N"),
        ({"subset": "Ties", "id": "other:1"}, "ref:N or tied:N"),
        ({"subset": "Ties", "id": "tied:1"}, "tied:N"),
        ({"subset": "Ties", "id": "ref:1", "chosen": ["1", "2"], "num_correct": 2}, "ref:N"),
        ({"subset": "Ties", "id": None}, "'id'"),
        ({"num_correct": 2}, "num_correct"),
        ({"chosen": ["1", "2"], "num_correct": 2}, "1 chosen.* 3 rejected"),
        ({"rejected": ["1"]}, "1 chosen.* 3 rejected"),
    ],
)
def test_a_row_that_is_not_in_the_schema(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path / "rb2.jsonl", MATH, {**MATH, **change})
    with pytest.raises(DataError, match=rf"(?s)rb2\.jsonl:2: .*{message}"):
        load_benchmark(path)
    # As the first row, too: it does not turn the file into one of another kind.
    path = write(tmp_path / "first.jsonl", {**MATH, "num_incorrect": None, **change}, MATH)
    with pytest.raises(DataError, match=rf"(?s)first\.jsonl:1: .*{message}"):
        load_benchmark(path)
