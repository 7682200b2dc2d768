"""NVIDIA's HelpSteer3 (arXiv 2505.11475, 2503.04378, 2509.21319): preferences, feedback in words, principles.

Every row has `domain` (general, stem, code, multilingual) and `language`, which of code is the programming
language; they are kept as groups, by which tables are broken down.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rlhf.core.records import Justification, Preference, Principle, Prompt, Rating
from rlhf.data import rules
from rlhf.data.annotations import aggregate, aggregate_ratings
from rlhf.data.readers.messages import read_prompt
from rlhf.data.sources.rows import Row, is_number
from rlhf.data.verdicts import statement_of

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

STRONGEST = 3
OVERALL, INDIVIDUAL = "overall_preference", "individual_preference"
WORDS = ("not", "slightly", "partially", "mostly", "perfectly")
"""The words of feedback, as helpfulness 0 to 4."""
FEEDBACK = re.compile(rf"\s*The response is ({'|'.join(WORDS)}) helpful\b", re.IGNORECASE)
UNREADABLE_FEEDBACK = "fewer than three texts of feedback begin with `The response is ... helpful`"
GROUPS = ("domain", "language")


def groups_of(row: Row) -> dict[str, str]:
    """Domain and language, where the row has them."""
    return {name: row.text(name) for name in GROUPS if row.find(name) is not None}


def prompt(row: Row, source: DataSource) -> Prompt:
    """The context of a row of any configuration."""
    messages = read_prompt(row, "context")
    rules.require_prompt(messages)
    return Prompt(messages, source=source.path, columns=groups_of(row))


def preference(row: Row, source: DataSource, *, max_spread: int) -> Preference:
    """A row of `preference`; positive prefers the second response, as in HelpSteer2-Preference.

    `annotations: published` takes `overall_preference`, whose null is a pair without a preference;
    `annotations: raw` aggregates `individual_preference` by the rules of `rlhf.data.annotations`.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages = read_prompt(row, "context")
    first, second = row.text("response1"), row.text("response2")
    if source.annotations == "raw":
        result = aggregate(individual_strengths(row), max_spread)
        if result.strength is None:
            raise rules.UnusableRowError(result.reason)
        strength = result.strength
    elif row.find(OVERALL) is None and OVERALL in row.values:
        raise rules.UnusableRowError(rules.NO_PREFERENCE)
    else:
        strength = row.integer(OVERALL, -STRONGEST, STRONGEST)
    rules.require_prompt(messages)
    rules.require_responses(first, second)
    rules.require_difference(first, second)
    rules.require_strength(strength)
    return Preference(messages, first, second, strength, source=source.path, groups=groups_of(row))


def justification(row: Row, source: DataSource, *, max_spread: int) -> Justification:
    """A row of `preference` with the reasoning of the first annotator who agrees with the preference in sign.

    The statement is written from that annotator's score.

    Raises:
        DataError: a column is missing, of the wrong type or out of range.
        UnusableRowError: nobody who agrees gave a reason, or another rule says why.
    """
    pair = preference(row, source, max_spread=max_spread)
    individual_strengths(row)
    for item in row.get(INDIVIDUAL):
        score, reasoning = item["score"], item.get("reasoning")
        if score and (score > 0) == (pair.strength > 0) and isinstance(reasoning, str) and reasoning.strip():
            return Justification(
                pair.prompt,
                pair.response_1,
                pair.response_2,
                reasoning,
                statement_of(int(score)),
                pair.strength,
                source=source.path,
                groups=pair.groups,
            )
    raise rules.UnusableRowError(rules.NO_JUSTIFICATION)


def individual_strengths(row: Row) -> list[int]:
    """The score of each annotator in `individual_preference`, -3..3.

    Raises:
        DataError: the row has no list of them, or one is malformed.
    """
    value = row.get(INDIVIDUAL)
    allowed = f'a list of {{"score": -{STRONGEST}..{STRONGEST}, "reasoning": TEXT}}'
    if not isinstance(value, list) or not all(map(_has_score, value)):
        raise row.wrong_item(INDIVIDUAL, allowed, _has_score)
    return [int(item["score"]) for item in value]


def _has_score(item: Any) -> bool:
    score = item.get("score") if isinstance(item, dict) else None
    return is_number(score) and score in range(-STRONGEST, STRONGEST + 1)


def feedback_ratings(row: Row, source: DataSource, *, max_spread: int) -> list[Rating]:
    """A row of `feedback`: the helpfulness of both responses, by the first words of the texts on each.

    not 0, slightly 1, partially 2, mostly 3, perfectly 4; the three most similar are averaged and rounded. A
    response without three readable texts, or whose annotators disagree, is left out with a note; without
    either the row is dropped.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: no response has a rating.
    """
    messages = read_prompt(row, "context")
    rules.require_prompt(messages)
    made, reasons = [], []
    for number in (1, 2):
        response = row.text(f"response{number}")
        words = [word for word in map(helpfulness_of, _texts(row, f"feedback{number}")) if word is not None]
        if not response.strip():
            reasons.append(rules.EMPTY_RESPONSE)
            continue
        ratings = (
            UNREADABLE_FEEDBACK if len(words) < 3 else aggregate_ratings({"helpfulness": words}, max_spread)
        )
        if isinstance(ratings, str):
            reasons.append(ratings)
        else:
            made.append(Rating(messages, response, ratings, source=source.path, groups=groups_of(row)))
    if not made:
        raise rules.UnusableRowError(reasons[0])
    row.noted.update(f"one response of the row is left out: {reason}" for reason in reasons)
    return made


def helpfulness_of(text: str) -> int | None:
    """The rating that a text of feedback begins with, 0 to 4; None where it begins otherwise."""
    match = FEEDBACK.match(text)
    return WORDS.index(match[1].lower()) if match else None


def principle(row: Row, source: DataSource) -> Principle:
    """A row of `principle`: whether a response satisfies a principle.

    Raises:
        DataError: a column is missing or of the wrong type, or the fulfilment is neither Yes nor No.
        UnusableRowError: a rule says why the row is of no use.
    """
    messages, response, text = read_prompt(row, "context"), row.text("response"), row.text("principle")
    fulfilment = row.text("fulfilment").strip().lower()
    if fulfilment not in ("yes", "no"):
        raise row.wrong("fulfilment", "Yes or No")
    rules.require_prompt(messages)
    rules.require_responses(response)
    if not text.strip():
        raise rules.UnusableRowError(rules.NO_PRINCIPLE)
    return Principle(messages, response, text, fulfilment == "yes", source=source.path, groups=groups_of(row))


def _texts(row: Row, column: str) -> list[str]:
    value: Any = row.get(column)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise row.wrong_item(column, "a list of texts", lambda text: isinstance(text, str))
    return value
