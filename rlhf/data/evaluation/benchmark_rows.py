"""From a row of a benchmark to its record: a function for each schema of `benchmarks`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from rlhf.core.errors import DataError, did_you_mean
from rlhf.core.records import Candidates, Choice, Comparison
from rlhf.data import rules
from rlhf.data.comparisons import comparison
from rlhf.data.readers.messages import read_prompt, read_responses
from rlhf.data.readers.winners import winner_sign
from rlhf.data.sources.rows import CORRECT_ROW, Row, is_number

TIES = "Ties"
REWARDBENCH_2_COUNTS = {
    "Factuality": 475,
    "Focus": 495,
    "Math": 183,
    "Precise IF": 160,
    "Safety": 450,
    TIES: 102,
}
"""Rows of each subset."""
REWARDBENCH_2_SUBSETS = tuple(REWARDBENCH_2_COUNTS)
TIES_ID = re.compile(r"(ref|tied):\d+")
RIGHT, WRONG = 1, 3
"""Answers in a row of RewardBench 2 outside Ties."""
JUDGEBENCH_SUBSETS = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""The beginning of JudgeBench's `source`, and what it is reported as."""
JUDGEBENCH_PAIRS = {"gpt": 350, "claude": 270}
"""Pairs of each split."""
LABELS = {"A>B": ("response_A", "response_B"), "B>A": ("response_B", "response_A")}

DOMAINS = ("chat", "math", "code", "safety-refuse", "safety-response")
"""RM-Bench's own names; the two of safety count as one domain."""
STYLES = ("concise", "detailed", "detailed in markdown")
"""The styles of RM-Bench's answers, in the order of its lists."""

FEW_RESPONSES = "fewer than two responses"


def rewardbench_2(row: Row) -> Choice:
    """A row of RewardBench 2: `id`, `prompt`, lists `chosen` and `rejected`, their counts, and `subset`.

    Raises:
        DataError: a subset or an id of Ties that the benchmark does not have, other numbers of answers than
            the row or the benchmark says, or a column that is missing or of the wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    subset, identity = row.text("subset"), str(row.get("id"))
    if subset not in REWARDBENCH_2_SUBSETS:
        raise DataError(
            f"{row.place}: RewardBench 2 has no subset "
            f"{subset!r}.{did_you_mean(subset, REWARDBENCH_2_SUBSETS)}",
            allowed=", ".join(REWARDBENCH_2_SUBSETS),
            fix="correct the row; a file of your own has no column `id`, `num_correct` or `num_incorrect`",
        )
    item = choice(row)
    if subset == TIES and not TIES_ID.fullmatch(identity):
        raise row.wrong("id", "ref:N or tied:N, N being a number, in the subset Ties")
    if subset == TIES and (len(item.chosen) > 1) != identity.startswith("tied:"):
        raise row.wrong("chosen", "one right answer in a row ref:N, two or more in a row tied:N")
    for column, answers, wanted in (
        ("num_correct", item.chosen, RIGHT),
        ("num_incorrect", item.rejected, WRONG),
    ):
        if row.find(column) is not None and row.integer(column, 0, 10**6) != len(answers):
            raise row.wrong(column, f"{len(answers)}, the number of answers in the row")
        if subset != TIES and len(answers) != wanted:
            name = "chosen" if answers is item.chosen else "rejected"
            raise DataError(
                f"{row.place}: column {name!r} has {len(answers)} answers",
                allowed=f"{RIGHT} chosen and {WRONG} rejected answers in the subset {subset}",
                fix=CORRECT_ROW,
            )
    return Choice(item.prompt, item.chosen, item.rejected, subset, identity)


def judgebench(row: Row) -> Comparison:
    """A row of JudgeBench: `question`, `response_A`, `response_B`, `label`, and `source`, the subset.

    Raises:
        DataError: a label or a source that the benchmark does not have, or a column that is missing or of the
            wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    label, source = row.text("label"), row.text("source")
    if label not in LABELS:
        raise row.wrong("label", " or ".join(LABELS))
    subset = next((name for start, name in JUDGEBENCH_SUBSETS.items() if source.startswith(start)), None)
    if subset is None:
        raise row.wrong("source", f"a source that begins with {', '.join(JUDGEBENCH_SUBSETS)}")
    prompt, (chosen, rejected) = read_responses(row, "question", *LABELS[label])
    rules.require_prompt(prompt)
    rules.require_difference(chosen, rejected)
    return Comparison(prompt, chosen, rejected, subset=subset)


def ppe(row: Row, *, first_index: int = 0) -> Comparison:
    """A row of PPE's human preferences: `prompt`, `response_1`, `response_2`, and `winner`.

    Args:
        first_index: what a numerical `winner` calls the first response, see `rlhf.data.readers.winners`.

    Raises:
        DataError: a winner that is neither, or a column that is missing or of the wrong type.
        UnusableRowError: a tie, or another rule says why the row is of no use.
    """
    prompt, (first, second) = read_responses(row, "prompt", "response_1", "response_2")
    sign = winner_sign(row, "winner", "response_1", "response_2", first_index)
    rules.require_prompt(prompt)
    rules.require_strength(sign)
    rules.require_difference(first, second)
    chosen, rejected = (first, second) if sign < 0 else (second, first)
    groups = {"language": row.text("language")} if row.find("language") is not None else {}
    return Comparison(prompt, chosen, rejected, subset="human preference", groups=groups)


def best_of_k(row: Row) -> Candidates:
    """A row of PPE's best of K: `prompt`, `response_1` to `response_K`, and `scores`, right or wrong.

    Raises:
        DataError: a response is missing, or the scores are not one truth value or number a response.
        UnusableRowError: a rule says why the row is of no use.
    """
    names = sorted(
        (name for name in row.values if re.fullmatch(r"response_\d+", name)),
        key=lambda name: int(name.removeprefix("response_")),
    )
    if names != [f"response_{number}" for number in range(1, len(names) + 1)]:
        raise DataError(
            f"{row.place}: the columns are {', '.join(names)}", allowed="response_1 to response_K"
        )
    prompt, responses = read_responses(row, "prompt", *names)
    scores = row.get("scores")
    if not isinstance(scores, list) or len(scores) != len(names) or not all(map(_is_score, scores)):
        raise row.wrong_item(
            "scores", f"true, false or a number for each of the {len(names)} responses", _is_score
        )
    rules.require_prompt(prompt)
    return Candidates(prompt, tuple(responses), tuple(map(float, scores)), _subset(row))


def m_rewardbench(row: Row) -> Comparison:
    """A row in RewardBench's columns.

    M-RewardBench has RewardBench's subset in `source`, its section in `category`; the latter and the
    `language` are groups.
    """
    item = comparison(row)
    grouped = ["domain", "language"]
    if row.find("subset") is None and isinstance(row.find("category"), str):
        subset = "source" if isinstance(row.find("source"), str) else "category"
        item = replace(item, subset=row.text(subset))
        grouped += ["category"] if subset == "source" else []
    groups = {name: row.text(name) for name in grouped if isinstance(row.find(name), str)}
    return replace(item, groups=groups) if groups else item


def choice(row: Row) -> Choice:
    """A prompt with lists of right and of wrong answers; `subset` may be absent.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    prompt = read_prompt(row, "prompt")
    rules.require_prompt(prompt)
    return Choice(prompt, _answers(row, "chosen"), _answers(row, "rejected"), _subset(row))


def styled(row: Row) -> Choice:
    """An item of RM-Bench, its domain as subset.

    Raises:
        DataError: a domain RM-Bench does not have, or an answer in each style is not there.
        UnusableRowError: a rule says why the row is of no use.
    """
    domain = row.text("domain")
    if domain not in DOMAINS:
        raise DataError(
            f"{row.place}: RM-Bench has no domain {domain!r}.{did_you_mean(domain, DOMAINS)}",
            allowed=", ".join(DOMAINS),
            fix="correct the domain; if the file is not RM-Bench, rename its column `domain` to `subset`",
        )
    item = choice(row)
    for column, answers in (("chosen", item.chosen), ("rejected", item.rejected)):
        if len(answers) != len(STYLES):
            raise DataError(
                f"{row.place}: column {column!r} has {len(answers)} answers, one a style is needed",
                allowed=f"{len(STYLES)} answers, in this order: {', '.join(STYLES)}",
                fix=CORRECT_ROW,
            )
    return Choice(item.prompt, item.chosen, item.rejected, domain)


def candidates(row: Row) -> Candidates:
    """A prompt with answers and the true quality of each, on any scale where higher is better.

    Raises:
        DataError: a column is missing or of the wrong type, or the two lists differ in length.
        UnusableRowError: a rule says why the row is of no use.
    """
    prompt = read_prompt(row, "prompt")
    responses, scores = _answers(row, "responses"), row.get("scores")
    if not isinstance(scores, list) or len(scores) != len(responses) or not all(map(is_number, scores)):
        raise row.wrong_item(
            "scores", f"a finite number for each of the {len(responses)} responses", is_number
        )
    rules.require_prompt(prompt)
    if len(responses) < 2:
        raise rules.UnusableRowError(FEW_RESPONSES)
    return Candidates(prompt, responses, tuple(map(float, scores)), _subset(row))


def _is_score(value: Any) -> bool:
    return isinstance(value, bool) or is_number(value)


def _answers(row: Row, column: str) -> tuple[str, ...]:
    value = row.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise row.wrong_item(column, "a list of strings", lambda item: isinstance(item, str))
    return tuple(value)


def _subset(row: Row) -> str:
    return "all" if row.find("subset") is None else row.text("subset")
