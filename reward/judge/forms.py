"""Requests to a judge and the parsing of its text. An unreadable text gives None, never a score.

A judge of one response writes a score s in 1..5, or Yes/No for each criterion. A judge of two responses
writes both scores s_1, s_2 in 1..5 and a ranking r in 1..6, from 1 (response 1 is much better) to 6 (response
2 is much better), as NVIDIA's generative reward models do (HelpSteer3, arXiv 2505.11475).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlhf.core.records import Conversation
from rlhf.data.verdicts import read_verdict

LOWEST, HIGHEST = 1, 5
RANKINGS = 6
MIDDLE = (LOWEST + HIGHEST) / 2
JUSTIFIER = "justifier"
"""The form of a model trained by `rlhf train-justifier`."""


class JudgeVerdict(NamedTuple):
    """A comparison as the judge wrote it: both scores in 1..5, and the ranking in 1..6."""

    first: float
    second: float
    ranking: int


_SCORE = f"a whole number from {LOWEST} (worst) to {HIGHEST} (best)"
_RANKING = (
    f"a whole number from 1 (response 1 is much better) to {RANKINGS} (response 2 is much better); "
    "3 and 4 mean slightly better"
)
_SINGLE_ENDINGS = {
    "boxed": f"Reason briefly. Then end with one line: Score: \\boxed{{s}}, where s is {_SCORE}.",
    "json": f'Reason briefly. Then end with one JSON object: {{"score": s}}, where s is {_SCORE}.',
    "yes-no": "Does the response satisfy the criterion? Reason briefly. Then end with one line: Yes or No.",
    "rubric": 'Reason briefly. Then end with one JSON object: {"satisfied": [...]}, with true or false for '
    "each criterion, in their order.",
}
_PAIR_ENDINGS = {
    "boxed": "Reason briefly. Then end with two lines: Scores: \\boxed{s1, s2} and Ranking: \\boxed{r}, "
    f"where s1 and s2 are the scores of response 1 and 2, each {_SCORE}, and r is {_RANKING}.",
    "json": 'Reason briefly. Then end with one JSON object: {"scores": [s1, s2], "ranking": r}, where s1 '
    f"and s2 are the scores of response 1 and 2, each {_SCORE}, and r is {_RANKING}.",
}


def single_request(form: str, prompt: Conversation, response: str, criteria: Sequence[str]) -> str:
    """The judge's user turn for one response."""
    parts = [
        _conversation(prompt),
        _section("Response", response),
        *_criteria(criteria),
        _SINGLE_ENDINGS[form],
    ]
    return "\n\n".join(["You judge a response to the last message of a conversation.", *parts])


def pair_request(form: str, prompt: Conversation, first: str, second: str, criteria: Sequence[str]) -> str:
    """The judge's user turn for two responses."""
    if form == JUSTIFIER:
        return justifier_request(prompt, first, second)
    responses = [_section("Response 1", first), _section("Response 2", second)]
    parts = [_conversation(prompt), *responses, *_criteria(criteria), _PAIR_ENDINGS[form]]
    return "\n\n".join(["You compare two responses to the last message of a conversation.", *parts])


def justifier_request(prompt: Conversation, first: str, second: str) -> str:
    """The input of a Pairwise Justifier (arXiv 2410.01257); of a prompt of several turns with the roles."""
    alone = len(prompt) == 1
    turns = prompt[0].content if alone else "\n\n".join(f"{m.role}: {m.content}" for m in prompt)
    return (
        f"{turns} @Response 1:\n{first}\n@Response 2:\n{second}\n"
        "Between @Response 1 and @Response 2, which is better?"
    )


def _justified(text: str) -> JudgeVerdict | None:
    """The strength -3..3 of the last statement as a ranking 1..6, between equal scores."""
    strength = read_verdict(text)
    if strength is None:
        return None
    return JudgeVerdict(MIDDLE, MIDDLE, strength + RANKINGS // 2 + (strength < 0))


def read_single(form: str, text: str, criteria: int) -> float | None:
    """The score in a judge's text on one response, or None where the text holds none.

    Args:
        criteria: how many the judge was asked about; `rubric` gives the share of them that is satisfied.
    """
    answer = _answer(text)
    return _rubric(answer, criteria) if form == "rubric" else _SINGLE_READERS[form](answer)


def read_pair(form: str, text: str) -> JudgeVerdict | None:
    """The verdict in a judge's text on two responses, or None where the text holds none."""
    return _PAIR_READERS[form](_answer(text))


def _answer(text: str) -> str:
    """The text after the judge's reasoning block, if it wrote one; an unfinished block leaves nothing."""
    if "<think>" in text and "</think>" not in text:
        return ""
    return text.rpartition("</think>")[2].strip()


def _section(title: str, text: str) -> str:
    return f"[{title}]\n{text}\n[End of {title}]"


def _conversation(prompt: Conversation) -> str:
    return _section("Conversation", "\n\n".join(f"{message.role}: {message.content}" for message in prompt))


def _criteria(criteria: Sequence[str]) -> list[str]:
    if not criteria:
        return []
    numbered = "\n".join(f"{number}. {criterion}" for number, criterion in enumerate(criteria, 1))
    return [_section("Criteria" if len(criteria) > 1 else "Criterion", numbered)]


def _boxed(text: str) -> list[str]:
    return re.findall(r"\\boxed\{([^{}]*)\}", text)


def _integers(text: str, lowest: int, highest: int) -> list[int] | None:
    """Whole numbers of a comma-separated list, or None where one of them is none or lies outside."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,9}", part) for part in parts):  # int() refuses thousands of digits
        return None
    numbers = [int(part) for part in parts]
    return numbers if all(lowest <= number <= highest for number in numbers) else None


def _is_integer(value: Any, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _last_object(text: str) -> Mapping[str, Any]:
    """The last JSON object of a text that lies in no other one; empty where there is none."""
    decoder, position = json.JSONDecoder(), 0
    last: Mapping[str, Any] = {}
    while (start := text.find("{", position)) >= 0:
        try:
            last, position = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            position = start + 1
    return last


def _single_boxed(text: str) -> float | None:
    boxes = _boxed(text)
    numbers = _integers(boxes[-1], LOWEST, HIGHEST) if boxes else None
    return float(numbers[0]) if numbers and len(numbers) == 1 else None


def _single_json(text: str) -> float | None:
    score: Any = _last_object(text).get("score")
    return float(score) if _is_integer(score, LOWEST, HIGHEST) else None


def _yes_no(text: str) -> float | None:
    lines = text.splitlines()
    words = re.findall(r"\b(yes|no)\b", lines[-1].lower()) if lines else []
    return float(words[0] == "yes") if len(words) == 1 else None


def _rubric(text: str, criteria: int) -> float | None:
    satisfied = _last_object(text).get("satisfied")
    if not isinstance(satisfied, list) or len(satisfied) != criteria:
        return None
    return sum(satisfied) / criteria if all(isinstance(value, bool) for value in satisfied) else None


def _pair_boxed(text: str) -> JudgeVerdict | None:
    boxes = _boxed(text)
    if len(boxes) < 2:
        return None
    scores, ranking = _integers(boxes[-2], LOWEST, HIGHEST), _integers(boxes[-1], 1, RANKINGS)
    if scores is None or ranking is None or len(scores) != 2 or len(ranking) != 1:
        return None
    return JudgeVerdict(float(scores[0]), float(scores[1]), ranking[0])


def _pair_json(text: str) -> JudgeVerdict | None:
    value = _last_object(text)
    scores, ranking = value.get("scores"), value.get("ranking")
    if not isinstance(scores, list) or len(scores) != 2 or not _is_integer(ranking, 1, RANKINGS):
        return None
    if not all(_is_integer(score, LOWEST, HIGHEST) for score in scores):
        return None
    return JudgeVerdict(float(scores[0]), float(scores[1]), int(value["ranking"]))


_SINGLE_READERS: Mapping[str, Callable[[str], float | None]] = {
    "boxed": _single_boxed,
    "json": _single_json,
    "yes-no": _yes_no,
}
_PAIR_READERS: Mapping[str, Callable[[str], JudgeVerdict | None]] = {
    "boxed": _pair_boxed,
    "json": _pair_json,
    JUSTIFIER: _justified,
}
