from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from reward.evaluation.systems import AnsweredPrompt, compare_systems
from rlhf.core.errors import DataError
from rlhf.core.records import Conversation, Message, Prompt
from rlhf.data.checks import gold_score
from rlhf.data.drops import DropReport


@dataclass(frozen=True)
class Worth:
    reward: float
    attributes: dict[str, float] = field(default_factory=dict)


class Counting:
    """Rewards the number of one letter; refuses what is longer than it can take."""

    def __init__(self, letter: str, longest: int = 1000) -> None:
        self.letter, self.longest = letter, longest

    def score(self, conversations: Sequence[Conversation]) -> list[Worth]:
        texts = [conversation[-1].content for conversation in conversations]
        if any(len(text) > self.longest for text in texts):
            raise DataError("too long", allowed=f"{self.longest} characters")
        return [Worth(float(text.count(self.letter))) for text in texts]


def pair(
    question: str, a: tuple[str, ...], b: tuple[str, ...], check: dict[str, object] | None = None
) -> AnsweredPrompt:
    return AnsweredPrompt(Prompt((Message("user", question),), check=check), a, b)


PAIRS = [pair("one", ("++",), ("+", "---")), pair("two", ("",), ("+", "++"))]


def test_judges_see_both_sides_and_rows_hold_every_score() -> None:
    heard: list[int] = []
    judges = {"reward": Counting("+"), "held_out": Counting("-")}
    result, rows = compare_systems(PAIRS, judges, sizes=[1, 2], drops=DropReport(), on_progress=heard.append)
    assert result["prompts"] == 2
    assert result["judges"]["reward"]["win_rate"]["mean"] == (1.0 + 0.0) / 2
    # By the other letter: 0 against 0 and 3 is (1/2 + 0) / 2; 0 against 0 and 0 is 1/2.
    assert result["judges"]["held_out"]["win_rate"]["mean"] == pytest.approx((0.25 + 0.5) / 2)
    assert "gold" not in result["judges"]
    first, two = result["best_of"]
    assert first["reward"]["mean"] == (0.5 + 1.5) / 2 and two["reward"]["mean"] == (1.0 + 2.0) / 2
    assert two["held_out"]["mean"] == 0.0  # the answer with three - is not the one with the highest reward
    assert rows[0]["a"] == [{"answer": "++", "reward": 2.0, "held_out": 0.0}]
    assert rows[0]["b"][1] == {"answer": "---", "reward": 0.0, "held_out": 3.0}
    assert heard[-1] == 4


def test_a_prompt_that_one_judge_refuses_is_left_out_for_all() -> None:
    drops = DropReport()
    long = pair("three", ("+" * 30,), ("+",))
    judges = {"reward": Counting("+"), "held_out": Counting("+", longest=20)}
    result, rows = compare_systems([*PAIRS, long], judges, sizes=[], drops=drops)
    assert (result["prompts"], len(rows), "best_of" in result) == (2, 2, False)
    assert result["judges"]["reward"]["a"]["mean"] == 1.0
    (places,) = drops.examples.values()
    assert places == ["prompt 3 (judge held_out)"]


def test_nothing_left_is_an_error() -> None:
    drops = DropReport()
    with pytest.raises(DataError) as caught:
        compare_systems(PAIRS, {"reward": Counting("+", longest=0)}, sizes=[], drops=drops)
    assert caught.value.fix and drops.reasons.total() == 2


def test_prompts_that_can_be_checked_have_a_gold_score() -> None:
    question = "Tell me about tea in at most seven words."
    check = {"family": "words", "limit": 7, "key": "tea", "related": ["leaves", "water"], "request": question}
    good, bad = "Tea is made of leaves and water.", "No idea at all, sorry."
    checked = pair(question, (good,), (bad,), check)
    result, rows = compare_systems(
        [checked, PAIRS[0]], {"reward": Counting("+")}, sizes=[1], drops=DropReport()
    )
    view = result["judges"]["gold"]
    assert view["prompts"] == 1
    assert view["a"]["mean"] == gold_score(check, good) > view["b"]["mean"] == gold_score(check, bad)
    assert "gold" in rows[0]["a"][0] and "gold" not in rows[1]["a"][0]
    assert "gold" not in result["best_of"][0]  # not known for every prompt


def test_equal_answers_tie_however_a_judge_rounds() -> None:
    """A judge whose rewards drift with every answer it sees."""

    class Drifting(Counting):
        seen = 0

        def score(self, conversations: Sequence[Conversation]) -> list[Worth]:
            result = []
            for item in super().score(conversations):
                self.seen += 1
                result.append(Worth(item.reward + 1e-6 * self.seen))
            return result

    pairs = [pair(f"question {number}", ("+", "++"), ("++", "+")) for number in range(6)]
    result, rows = compare_systems(pairs, {"reward": Drifting("+")}, sizes=[], drops=DropReport())
    assert result["judges"]["reward"]["win_rate"] == {"mean": 0.5, "ci95": [0.5, 0.5]}
    assert rows[0]["a"][0]["reward"] == rows[0]["b"][1]["reward"]
