"""One right answer among many, rated answers, and half of RM-Bench, by a scorer that counts "+"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from reward.evaluation.benchmarks.choices import evaluate_best_of_n, evaluate_choices
from reward.evaluation.benchmarks.rm_bench import evaluate_rm_bench
from reward.evaluation.benchmarks.suite import headline
from rlhf.core.errors import DataError, DivergenceError
from rlhf.core.records import Candidates, Choice, Conversation, Message
from rlhf.data.drops import DropReport

PROMPT = (Message("user", "Which one?"),)


@dataclass(frozen=True)
class Score:
    reward: float
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Scorer:
    reward: Callable[[str], float] = lambda text: float(text.count("+"))
    longest: int = 100

    def score(self, conversations: Sequence[Conversation]) -> list[Score]:
        texts = [conversation[-1].content for conversation in conversations]
        if any(len(text) > self.longest for text in texts):
            raise DataError("too long", allowed=f"at most {self.longest}")
        return [Score(self.reward(text)) for text in texts]


def choice(chosen: Sequence[str], rejected: Sequence[str], subset: str = "one") -> Choice:
    return Choice(PROMPT, tuple(chosen), tuple(rejected), subset)


def test_the_best_right_answer_must_beat_every_wrong_one() -> None:
    items = [
        choice(["++"], ["+", ".", "+..."], "a"),  # right; the longest is a wrong one
        choice(["++"], ["++", ".", "+"], "a"),  # a tie: wrong; of the longest answers none is alone
        choice(["+", "+++"], ["++", "."], "b"),  # right by its second answer, which is also the longest
        choice([".", "+"], ["++", "."], "b"),  # wrong
        choice(["+"], ["."], "b"),  # right; equally long
    ]
    result, rows = evaluate_choices(items, Scorer())
    assert [row["correct"] for row in rows] == [True, False, True, False, True]
    a, b = result["subsets"]["a"], result["subsets"]["b"]
    assert (a["accuracy"], a["count"], a["ties"], a["length_baseline"], a["chance"]) == (0.5, 2, 1, 0.0, 0.25)
    assert (b["accuracy"], b["count"], b["ties"]) == (pytest.approx(2 / 3), 3, 0)
    assert b["chance"] == 0.5  # 2 of 4, 2 of 4, 1 of 2
    # Overall: the mean of the subsets, not of the five rows.
    assert result["overall"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert result["sections"] == {} and result["aggregation"] == "subsets"
    assert rows[2] == {
        "id": 3,
        "subset": "b",
        "rewards_chosen": [1.0, 3.0],
        "rewards_rejected": [2.0, 0.0],
        "correct": True,
    }


def test_the_curve_counts_right_answers() -> None:
    # Right, and a tie of the best that the pick splits: over all four answers 1 and 1/2.
    result, _ = evaluate_choices(
        [choice(["++"], ["+", ".", "+"]), choice(["++"], ["++", ".", "+"])], Scorer()
    )
    last = result["best_of_n"][-1]
    assert (last["n"], last["score"], last["random"], last["oracle"]) == (4, 0.75, 0.25, 1.0)


def test_a_flipped_sign_is_wrong_everywhere() -> None:
    items = [choice(["++"], ["+", "."]), choice(["+"], ["."])]
    assert evaluate_choices(items, Scorer())[0]["overall"] == 1
    assert evaluate_choices(items, Scorer(lambda text: -text.count("+")))[0]["overall"] == 0


def test_a_note_names_what_the_overall_score_is_not() -> None:
    result, _ = evaluate_choices([choice(["+"], ["."], "Ties")], Scorer())
    assert "subset Ties by a rule of its own" in result["notes"][0]
    result, _ = evaluate_choices([choice(["+"] * 3, ["."] * 3)], Scorer())
    assert "name their `domain`" in result["notes"][0]


def test_picks_by_hand() -> None:
    items = [
        Candidates(PROMPT, ("+", "++", "+++"), (5.0, 1.0, 3.0), "a"),
        Candidates(PROMPT, ("+", "++"), (0.0, 4.0), "b"),
    ]
    result, rows = evaluate_best_of_n(items, Scorer())
    assert [row["pick"] for row in rows] == [2, 1]
    assert [row["n"] for row in result["best_of_n"]] == [1, 2, 3]
    assert result["best_of_n"][1]["score"] == pytest.approx((7 / 3 + 4) / 2)
    assert result["subsets"]["b"]["best_of_n"][-1]["score"] == 4
    assert result["pair_accuracy"]["accuracy"] == pytest.approx((1 / 3 + 1) / 2)
    assert "overall" not in result
    # The picks among all answers have the scores 3 and 4; always the longest is the same pick here.
    figures = headline("best-of-n", result)
    assert (figures.score, figures.longest, figures.shortest) == (3.5, 3.5, 2.5)


def test_a_row_too_long_is_left_out_with_all_its_answers() -> None:
    items = [
        Candidates(PROMPT, ("+", "+" * 9), (0.0, 1.0), "a"),
        Candidates(PROMPT, ("+", "++"), (0.0, 1.0), "a"),
    ]
    drops = DropReport(read=2)
    result, rows = evaluate_best_of_n(items, Scorer(longest=5), drops=drops)
    assert [row["id"] for row in rows] == [2] and result["count"] == 1
    assert drops.examples == {"refused by the reward model; allowed: at most 5": ["row 1 (subset 'a')"]}
    with pytest.raises(DataError, match="(?s)2 rows .*at most 0"):
        evaluate_best_of_n(items, Scorer(longest=0), drops=DropReport(read=2))


@pytest.mark.parametrize(
    ("judge", "items", "message"),
    [
        (
            evaluate_choices,
            [choice(["+"], [".", "bad"])],
            r"row 1 \(subset 'one'\): the 2. rejected answer's",
        ),
        (
            evaluate_best_of_n,
            [Candidates(PROMPT, ("+", "bad"), (0.0, 1.0), "a")],
            r"row 1 \(subset 'a'\): the 2. answer's",
        ),
        (
            evaluate_rm_bench,
            [choice(["+", "+", "+"], [".", "bad", "."], "chat")],
            r"item 1 \(domain 'chat'\): the rejected, detailed answer's",
        ),
    ],
)
def test_a_reward_that_is_no_number_is_an_error(
    judge: Callable[..., object], items: list[object], message: str
) -> None:
    with pytest.raises(DivergenceError, match=f"{message} .*nan"):
        judge(items, Scorer(lambda text: math.nan if text == "bad" else 0.0))


def test_half_of_rm_bench_is_called_so() -> None:
    items = [choice(["+"] * 3, ["."] * 3, "chat"), choice(["+"] * 3, ["+"] * 3, "safety-refuse")]
    result, _ = evaluate_rm_bench(items, Scorer())
    assert (result["overall"], result["aggregation"]) == (0.5, "domains")
    assert result["notes"] == ["No item of math, code: this is no RM-Bench score."]
    assert result["intervals"]["overall"] is None  # one item a domain: nothing to draw from
    with pytest.raises(DataError, match="2 items"):
        evaluate_rm_bench(items, Scorer(longest=0), drops=DropReport(read=2))
