"""What is read from a judge's text, and what is not."""

from __future__ import annotations

import pytest

from reward.judge.forms import JudgeVerdict, pair_request, read_pair, read_single, single_request
from rlhf.core.records import Message

PROMPT = (Message("system", "Be brief."), Message("user", "What is tea?"))


@pytest.mark.parametrize(
    ("form", "text", "score"),
    [
        ("boxed", "Good. Score: \\boxed{4}", 4.0),
        ("boxed", "First \\boxed{2}, no: \\boxed{5}", 5.0),
        ("boxed", "Score: 4", None),
        ("boxed", "\\boxed{6}", None),
        ("boxed", f"\\boxed{{{'1' * 5000}}}", None),
        ("boxed", "\\boxed{4.5}", None),
        ("boxed", "\\boxed{4, 5}", None),
        ("boxed", "<think>\\boxed{1}</think> \\boxed{3}", 3.0),
        ("boxed", "<think>\\boxed{1}", None),
        ("json", 'Fine.\n{"score": 3}', 3.0),
        ("json", '{"score": 1} then {"score": 2}', 2.0),
        ("json", '{"score": true}', None),
        ("json", '{"score": "3"}', None),
        ("json", '{"score": 3', None),
        ("json", f'{{"score": {"1" * 5000}}}', None),
        ("yes-no", "It is short.\nYes", 1.0),
        ("yes-no", "Yes, at first.\nNo.", 0.0),
        ("yes-no", "Yes and no", None),
        ("yes-no", "Perhaps", None),
        ("yes-no", "", None),
        ("rubric", '{"satisfied": [true, false]}', 0.5),
        ("rubric", '{"satisfied": [true]}', None),
        ("rubric", '{"satisfied": [1, 0]}', None),
    ],
)
def test_one_response(form: str, text: str, score: float | None) -> None:
    assert read_single(form, text, criteria=2) == score


@pytest.mark.parametrize(
    ("form", "text", "verdict"),
    [
        ("boxed", "Scores: \\boxed{4, 2}\nRanking: \\boxed{1}", JudgeVerdict(4.0, 2.0, 1)),
        ("boxed", "Scores: \\boxed{4}\nRanking: \\boxed{1}", None),
        ("boxed", "Ranking: \\boxed{1}", None),
        ("boxed", "Scores: \\boxed{4, 2}\nRanking: \\boxed{7}", None),
        ("boxed", "Scores: \\boxed{0, 2}\nRanking: \\boxed{6}", None),
        ("json", 'So: {"scores": [3, 3], "ranking": 6}', JudgeVerdict(3.0, 3.0, 6)),
        ("json", '{"scores": [3, 3]}', None),
        ("json", '{"scores": [3, 9], "ranking": 6}', None),
        ("json", '{"scores": {"a": 1}, "ranking": 6}', None),
        ("json", "[3, 3, 6]", None),
    ],
)
def test_two_responses(form: str, text: str, verdict: JudgeVerdict | None) -> None:
    assert read_pair(form, text) == verdict


def test_requests_hold_what_is_judged_and_an_order() -> None:
    single = single_request("yes-no", PROMPT, "A leaf.", ["The response is short."])
    assert all(text in single for text in ("What is tea?", "A leaf.", "The response is short.", "Yes or No"))
    forward, backward = (pair_request("boxed", PROMPT, *texts, []) for texts in (("A", "B"), ("B", "A")))
    assert forward != backward
    assert forward.index("[Response 1]\nA") < forward.index("[Response 2]\nB")
