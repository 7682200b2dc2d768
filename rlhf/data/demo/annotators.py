"""Simulated annotators: five ratings per response, and three to five strengths per pair, with noise.

They see the gold score, and beside it whether the words make sense, which the gold score does not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from rlhf.data.annotations import NEITHER_VALID, overall, three_most_similar
from rlhf.data.checks import words_of
from rlhf.data.demo.responses import Response

STEPS = 4.0  # of strength in a quality difference of 1
NOISE = 0.55  # of one reading, in steps of strength or of a rating
SECOND_SIDE = 0.05  # people lean to response 2 by this many steps
CARELESS, INVALID = 0.03, 0.01  # shares of readings that mix up the sides, or call neither response valid
UNRESOLVED = 0.3  # share of disagreements for which nobody else is asked

QUOTED = 8  # words of a response in a reason

SENSE: Mapping[str, float] = {"babble": 0.3, "mixed": 0.4, "repeat": 0.5, "partial": 0.8, "cut": 0.8}
_TRUTH: Mapping[str, int] = {
    "babble": 0,
    "mixed": 1,
    "vague": 1,
    "refusal": 1,
    "other": 1,
    "repeat": 2,
    "echo": 1,
}
_HOW = {1: "slightly better", 2: "better", 3: "much better"}
_REASONS: Mapping[str, str] = {
    "good": "keeps to what was asked and stays on the topic",
    "plain": "is true, if not quite in the form that was asked for",
    "polite": "spends words on politeness before it answers",
    "wordy": "goes on for longer than it should",
    "chatty": "adds a sentence that nobody asked for",
    "long": "is far too long",
    "cut": "runs on and breaks off without an end",
    "late": "does not begin as it should",
    "partial": "is not complete",
    "two": "says more than was asked for",
    "named": "names the topic and says hardly anything about it",
    "vague": "does not speak of the topic",
    "refusal": "does not answer",
    "fragment": "is a single word",
    "repeat": "says the same words again and again",
    "echo": "repeats the request",
    "other": "speaks of another topic",
    "mixed": "puts words in an order that makes no sense",
    "babble": "is full of words that do not exist",
}


def quality(response: Response) -> float:
    """The quality that an annotator sees, in [0, 1]: the gold score, less where the words make no sense."""
    return response.gold * SENSE.get(response.kind, 1.0)


def ratings(response: Response, rng: random.Random) -> dict[str, int]:
    """The five attributes, 0 to 4: helpfulness from the quality, the others from the text."""
    words = words_of(response.text)
    letters = sum(map(len, words)) / max(1, len(words))
    seen = {
        "helpfulness": 4 * quality(response),
        "correctness": float(_TRUTH.get(response.kind, 4)),
        "coherence": 4 * SENSE.get(response.kind, 1.0),
        "complexity": letters - 3.5 + 0.05 * len(words),
        "verbosity": math.log2(max(1, len(words)) / 3),
    }
    return {name: _clipped(value + rng.gauss(0, NOISE / 2), 0, 4) for name, value in seen.items()}


def preference(first: Response, second: Response, rng: random.Random) -> dict[str, Any]:
    """The columns of a HelpSteer2-Preference row that people fill in.

    Three people read a pair, and one more for each who calls it invalid; two more where they differ by more
    than 2, mostly. (Five strengths without 0 always hold three of one sign: only three or four can disagree
    for good.)
    """
    strengths = [_reading(first, second, rng) for _ in range(3)]
    while len(valid := [reading for reading in strengths if reading != NEITHER_VALID]) < 3:
        strengths.append(_reading(first, second, rng))
    if len(strengths) == 3 and max(valid) - min(valid) > 2 and rng.random() >= UNRESOLVED:
        strengths += [_reading(first, second, rng) for _ in range(2)]
    similar = three_most_similar(strengths)
    strength = overall(similar)
    described = strength if strength in similar else similar[0]
    return {
        "preference_strength": strength,
        "preference_statement": _statement(described),
        "preference_elaboration": _elaboration(first, second),
        "three_most_similar_preferences": [
            {
                "statement": _statement(reading),
                "elaboration": _elaboration(first, second),
                "strength": reading,
            }
            for reading in similar
        ],
        "all_preferences_unprocessed": [
            {"strength": reading, "justification": _justification(first, second, reading)}
            for reading in strengths
        ],
    }


def _reading(first: Response, second: Response, rng: random.Random) -> int:
    if rng.random() < INVALID:
        return NEITHER_VALID
    steps = STEPS * (quality(second) - quality(first)) + SECOND_SIDE + rng.gauss(0, NOISE)
    if rng.random() < CARELESS:
        steps = -steps
    size = _clipped(abs(steps), 1, 3)
    return size if steps > 0 else -size


def _clipped(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))


def _statement(strength: int) -> str:
    better, worse = (2, 1) if strength > 0 else (1, 2)
    return f"@Response {better} is {_HOW[abs(strength)]} than @Response {worse}."


def _elaboration(first: Response, second: Response) -> str:
    """A sentence about each response in their order; it quotes the response's beginning, then judges it."""
    sentences = [
        f'@Response {number} ("{_beginning(response.text)}") {_REASONS[response.kind]}.'
        for number, response in enumerate((first, second), 1)
    ]
    return " ".join(sentences)


def _beginning(text: str) -> str:
    words = text.split()
    return " ".join(words[:QUOTED]) + ("..." if len(words) > QUOTED else "")


def _justification(first: Response, second: Response, strength: int) -> str:
    if strength == NEITHER_VALID:
        return "Neither response is valid."
    return f"{_elaboration(first, second)} {_statement(strength)}"
