"""A judge as a scorer: decisions over both orders, unreadable texts, and its bias over a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from reward.evaluation.benchmarks.benchmark import evaluate
from reward.evaluation.benchmarks.choices import evaluate_best_of_n, evaluate_choices
from reward.evaluation.judge_scorer import JudgeScorer
from reward.judge.client import Completion, JudgeClient
from reward.judge.forms import JudgeVerdict
from reward.judge.groups import decision, votes
from reward.judge.judge import UNREAD, Judge
from rlhf.config.judge import JudgeConfig
from rlhf.core.errors import DataError
from rlhf.core.records import Candidates, Choice, Comparison, Message
from rlhf.data.drops import DropReport

PROMPT = (Message("user", "Which one?"),)
Reply = Callable[[str, str], str]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., JudgeScorer]:
    """A pairwise judge whose texts are a function of the two responses shown."""

    def make(reply: Reply, **settings: Any) -> JudgeScorer:
        def complete(self: JudgeClient, requests: Sequence[str]) -> list[Completion]:
            shown = [[part.split("\n[End")[0] for part in r.split("]\n")] for r in requests]
            return [Completion(reply(parts[3], parts[5]), 10, 2, 0.5) for parts in shown]

        monkeypatch.setattr(JudgeClient, "complete", complete)
        place = {"url": "http://127.0.0.1:9", "model": "m", "pairing": "all", "dollars_per_million": (1, 10)}
        return JudgeScorer(Judge(JudgeConfig(**{**place, **settings})))

    return make


def longer_is_better(first: str, second: str) -> str:
    scores = [min(5, len(text)) for text in (first, second)]
    return f"\\boxed{{{scores[0]}, {scores[1]}}} \\boxed{{{1 if scores[0] > scores[1] else 6}}}"


def test_the_decision_is_the_sum_over_both_orders() -> None:
    first, second = JudgeVerdict(5, 1, 1), JudgeVerdict(1, 2, 6)
    assert decision({(0, 1): first, (1, 0): second}) == 1.0, "both orders prefer response 0"
    # By mean scores response 0 would win: 5 against 1, and 3 against 4. Each order prefers another one.
    assert decision({(0, 1): first, (1, 0): JudgeVerdict(4, 3, 1)}) == 0.0
    assert decision({(0, 1): first, (1, 0): None}) is None
    assert decision({(0, 1): JudgeVerdict(3, 3, 6)}) == -1.0, "between equal scores the ranking decides"
    assert votes({(0, 1): first, (1, 0): None}) == [1, None]
    assert votes({(1, 0): first}) == [-1]


def test_pairs_by_a_judge(judge: Callable[[Reply], JudgeScorer]) -> None:
    pairs = [Comparison(PROMPT, "aaaa", "b", "s"), Comparison(PROMPT, "a", "bbb", "s")]
    scorer = judge(longer_is_better)
    result, rows = evaluate(pairs, scorer)
    assert [row["correct"] for row in rows] == [True, False]
    assert (rows[0]["reward_chosen"], rows[0]["reward_rejected"]) == (1.0, -1.0)
    assert (result["self_check"], result["shortest_baseline"]) == ({}, 0.5)
    figures = scorer.figures()
    assert (figures["requests"], figures["unparsed"], figures["seconds"]) == (4, 0, 0.5)
    assert figures["dollars"] == pytest.approx(4 * (10 * 1 + 2 * 10) / 1e6)
    assert (figures["position_bias"], figures["order_agreement"]) == (0.0, 1.0)
    # One pair is right in both orders, the other wrong in both.
    assert (figures["one_order"]["accuracy"], figures["unread_as_no_vote"]) == (0.5, 0.5)


def test_a_judge_that_always_prefers_the_first_has_no_right_pair(
    judge: Callable[[Reply], JudgeScorer],
) -> None:
    scorer = judge(lambda first, second: "\\boxed{5, 1} \\boxed{1}")
    result, rows = evaluate([Comparison(PROMPT, "a", "b", "s")], scorer)
    assert (result["overall"], result["subsets"]["s"]["ties"]) == (0.0, 1)
    assert str(rows[0]["reward_rejected"]) == "0.0", "not -0.0"
    assert (scorer.figures()["position_bias"], scorer.figures()["order_agreement"]) == (4.0, 0.0)
    assert scorer.figures()["one_order"] == {"accuracy": 0.5, "ci95": None}, "a position alone is chance"


def test_the_interval_of_single_verdicts_draws_prompts(judge: Callable[[Reply], JudgeScorer]) -> None:
    """Pairs of one prompt that agree with each other count once, so that the interval is wider."""

    def width(prompts: int) -> float:
        scorer = judge(longer_is_better)
        sides = [("aaaa", "b"), ("a", "bbb")]  # right, wrong
        pairs = [
            Comparison((Message("user", str(number % prompts)),), *sides[number % 2], "s")
            for number in range(40)
        ]
        evaluate(pairs, scorer)
        low, high = scorer.figures()["one_order"]["ci95"]
        return float(high - low)

    # The standard deviation of a mean of 40 is 0.079, that of 4 prompts each all right or all wrong 0.25.
    assert width(40) == pytest.approx(2 * 1.96 * 0.079, rel=0.15)
    assert width(4) == pytest.approx(1.0, abs=0.01), "both ends: all four right, all four wrong"


def test_an_unread_text_leaves_the_pair_out(judge: Callable[[Reply], JudgeScorer]) -> None:
    pairs = [Comparison(PROMPT, "aaaa", "b", "s"), Comparison(PROMPT, "aa", "??", "s")]
    scorer = judge(lambda first, second: "hm" if first == "??" else longer_is_better(first, second))
    drops = DropReport(read=2)
    result, _ = evaluate(pairs, scorer, drops=drops)
    assert (result["count"], result["overall"], drops.reasons) == (1, 1.0, {UNREAD: 1})
    assert scorer.figures()["unparsed"] == 1
    # The order of the second pair that was read ("aa" first: scores 2 and 2, ranking 6) prefers "??".
    assert scorer.figures()["unread_as_no_vote"] == 0.5
    assert scorer.figures()["one_order"]["accuracy"] == (1.0 + 0.0) / 2
    with pytest.raises(DataError):
        evaluate(pairs, scorer)


def test_pairs_with_reasoning_are_left_out_where_the_rule_refuses_it(
    judge: Callable[..., JudgeScorer],
) -> None:
    pairs = [Comparison(PROMPT, "aaaa", "b", "s"), Comparison(PROMPT, "aa", "<think>?</think>b", "s")]
    drops = DropReport(read=2)
    scorer = judge(longer_is_better, reasoning="refuse")
    result, _ = evaluate(pairs, scorer, drops=drops)
    assert (result["count"], scorer.figures()["requests"], scorer.figures()["unparsed"]) == (1, 2, 0)
    (reason,) = drops.reasons
    assert "reasoning: refuse" in reason
    stripped, rows = evaluate(pairs, judge(longer_is_better, reasoning="strip"))
    assert (stripped["overall"], rows[1]["reward_chosen"]) == (1.0, 1.0)


def test_a_judge_whose_texts_are_all_unread_is_one_error_with_the_reason(
    judge: Callable[[Reply], JudgeScorer],
) -> None:
    drops = DropReport(read=1)
    with pytest.raises(DataError) as caught:
        evaluate([Comparison(PROMPT, "a", "b", "s")], judge(lambda *_: "hm"), drops=drops)
    assert UNREAD in caught.value.found
    assert "max_tokens" in caught.value.fix


def test_many_answers_by_a_judge(judge: Callable[[Reply], JudgeScorer]) -> None:
    scorer = judge(longer_is_better)
    result, rows = evaluate_choices([Choice(PROMPT, ("aaaa",), ("b", "cc", "ddd"), "s")], scorer)
    assert (rows[0]["rewards_chosen"], rows[0]["rewards_rejected"]) == ([4.0], [1.0, 2.0, 3.0])
    assert (result["overall"], result["length_baseline"], result["shortest_baseline"]) == (1.0, 1.0, 0.0)
    best, _ = evaluate_best_of_n([Candidates(PROMPT, ("a", "bbb", "cc"), (0.0, 1.0, 0.5), "s")], scorer)
    last = best["best_of_n"][-1]
    assert (last["score"], last["longest"], last["shortest"]) == (1.0, 1.0, 0.0)
