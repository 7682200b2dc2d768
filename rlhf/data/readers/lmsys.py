"""LMSYS-55k (lmsys-arena-human-preference-55k): two models' answers and three columns of which one is 1.

`prompt`, `response_a` and `response_b` are texts, or lists with one text a turn, also as JSON: the turns of
the user, and what each model answered to them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rlhf.core.records import Conversation, Message, Preference, Prompt
from rlhf.data import rules
from rlhf.data.readers.winners import higher_sign
from rlhf.data.sources.rows import JOIN, Row

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

PROMPT, FIRST, SECOND = "prompt", "response_a", "response_b"
WINNER, TIE = "winner_model_a + winner_model_b", "winner_tie"
TURNS = "a text, or a list with one text for each turn of the user"


def preference(row: Row, source: DataSource) -> Preference:
    """A preference of strength 1 between the two last answers; the turns before them must be the same.

    Raises:
        DataError: a column is missing or of the wrong type, or the lists differ in length.
        UnusableRowError: a tie, answers to different turns, or another rule says why.
    """
    questions = _turns(row, PROMPT)
    strength = higher_sign(row, WINNER if row.find(TIE) is None else f"{WINNER}{JOIN}{TIE}")
    (messages, first), (other, second) = (_answered(row, questions, column) for column in (FIRST, SECOND))
    rules.require_same_turns(messages, other)
    rules.require_prompt(messages)
    rules.require_responses(first, second)
    rules.require_difference(first, second)
    rules.require_strength(strength)
    return Preference(messages, first, second, strength, source=source.path)


def prompt(row: Row, source: DataSource) -> Prompt:
    """The first turn of the user: later ones follow an answer, and there are two."""
    messages = (Message("user", _turns(row, PROMPT)[0]),)
    rules.require_prompt(messages)
    return Prompt(messages, source=source.path)


def _turns(row: Row, column: str, *, listed: bool = True) -> list[str]:
    """The texts of a column, one a turn; a null is an empty one."""
    value: Any = row.get(column)
    if listed and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            decoded = json.loads(value)
        except json.JSONDecodeError:
            decoded = None  # a text that begins with a bracket
        value = decoded if _are_turns(decoded) else value
    if isinstance(value, str):
        return [value]
    if not _are_turns(value):
        raise row.wrong(column, TURNS)
    return ["" if text is None else text for text in value]


def _answered(row: Row, questions: list[str], column: str) -> tuple[Conversation, str]:
    """The conversation before a model's last answer, and the answer."""
    listed = not isinstance(row.find(PROMPT), str) or questions != [row.find(PROMPT)]
    answers = _turns(row, column, listed=listed)
    if len(answers) != len(questions):
        raise row.wrong(column, f"{len(questions)} answers, one for each turn of the column {PROMPT!r}")
    turns = [Message("user", questions[0])]
    for answer, question in zip(answers[:-1], questions[1:], strict=True):
        turns += [Message("assistant", answer), Message("user", question)]
    return tuple(turns), answers[-1]


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(item is None or isinstance(item, str) for item in value)
    )
