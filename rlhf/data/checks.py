"""The gold score: how well an answer follows its request, computed by code, dense in [0, 1].

    gold = sqrt(constraint * relevance) * form

`constraint` belongs to the family; each factor in it falls gradually:

    words      at most `limit` words
    shorten    the same, about the previous answer
    sentence   one sentence, of at most `limit` words
    opening    the same, beginning with the words of `start`
    include    the same, with the words `wanted` in it
    list       `count` lines, each with a number or a bullet and of at most `limit` words

`relevance` is 0.4 for the name of the topic and 0.3 each for up to two words that belong to it. `form` takes
from answers that win without saying anything: a word or two, one word over and over, topic words and nothing
else, the request repeated, and (except in a list) an answer without an end. The root keeps half-good answers
apart from bad ones. What no factor sees: whether a statement is true, and whether words stand in an order
that makes sense.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rlhf.core.errors import DataError

Check = Mapping[str, Any]
Fields = Mapping[str, Callable[[Any], bool]]

SLACK = 2.0  # credit for brevity is gone at (1 + SLACK) times the allowed words
UNMET = 0.2  # what is left where a required beginning, word or bullet is missing
FEWEST_WORDS = 4
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+")
_END = r"[.!?][\"'”’)*]*"
_ENDED = re.compile(_END + r"\s*$")
_SENTENCE_BREAK = re.compile(_END + r"\s+|\n+")


def gold_score(check: Check, answer: str) -> float:
    """How well `answer` does what `check` asks, in [0, 1].

    Raises:
        DataError: the check names a family that does not exist.
    """
    constraint = CONSTRAINTS.get(check.get("family", ""))
    if constraint is None:
        raise DataError(f"a check of the family {check.get('family')!r}", allowed=", ".join(CONSTRAINTS))
    return math.sqrt(constraint(check, answer) * relevance(check, answer)) * _form(check, answer)


def check_fault(check: Check) -> str | None:
    """The first field for which the gold score cannot be computed, or None."""
    family = check.get("family")
    if not isinstance(family, str) or family not in CONSTRAINTS:
        return "family"
    for name, fits in {**_COMMON, **_OF_FAMILY.get(family, {})}.items():
        if not fits(check.get(name)):
            return name
    return None


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; numbers count, punctuation does not."""
    return _WORD.findall(text.lower())


def mentions(word: str, words: Collection[str]) -> bool:
    """Whether `words` has `word` or a regular inflection of it."""
    stem = word.removesuffix("e")
    regular = (word, word + "s", word + "es", stem + "ed", stem + "ing", word.removesuffix("y") + "ies")
    return any(form in words for form in regular)


def relevance(check: Check, answer: str) -> float:
    """0.4 for the name of the topic, 0.3 each for up to two distinct words that belong to it."""
    words = set(words_of(answer))
    related = sum(mentions(word, words) for word in check["related"])
    return 0.4 * mentions(check["key"], words) + 0.3 * min(related, 2)


def _form(check: Check, answer: str) -> float:
    words = words_of(answer)
    if not words:
        return 0.0
    enough = min(1.0, len(words) / FEWEST_WORDS)
    varied = min(1.0, len(set(words)) / len(words) / 0.6)
    topical = sum(
        any(mentions(word, {answer_word}) for word in (check["key"], *check["related"]))
        for answer_word in words
    )
    joined = min(1.0, 0.2 + 4 * (1 - topical / len(words)))
    request_triples = _triples(words_of(check["request"]))
    new = [triple not in request_triples for triple in _triples(words)]
    original = min(1.0, 2 * sum(new) / len(new)) if new else 1.0
    ended = 1.0 if check["family"] == "list" or _ENDED.search(answer) else 0.5
    return enough * varied * joined * original * ended


def _triples(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(words, words[1:], words[2:], strict=False))


def _brevity(limit: int, count: int) -> float:
    return min(1.0, max(0.0, 1.0 - (count - limit) / (SLACK * limit)))


def _words(check: Check, answer: str) -> float:
    return _brevity(check["limit"], len(words_of(answer)))


def _sentence(check: Check, answer: str) -> float:
    sentences = [part for part in _SENTENCE_BREAK.split(answer) if words_of(part)]
    return _words(check, answer) / max(1, len(sentences))


def _opening(check: Check, answer: str) -> float:
    start, words = words_of(check["start"]), words_of(answer)
    kept = 0
    while kept < min(len(start), len(words)) and start[kept] == words[kept]:
        kept += 1
    return _partial_credit(kept / len(start)) * _sentence(check, answer)


def _include(check: Check, answer: str) -> float:
    words = words_of(answer)
    included = sum(word in words for word in check["wanted"])
    return _partial_credit(included / len(check["wanted"])) * _sentence(check, answer)


def _list(check: Check, answer: str) -> float:
    lines = [line for line in answer.splitlines() if words_of(_BULLET.sub("", line))]
    count: int = check["count"]
    right_count = max(0.0, 1.0 - abs(len(lines) - count) / count)
    kept = [
        _partial_credit(bool(_BULLET.match(line)))
        * _brevity(check["limit"], len(words_of(_BULLET.sub("", line))))
        for line in lines
    ]
    return right_count * sum(kept) / max(1, len(kept))


def _partial_credit(share: float) -> float:
    return UNMET + (1 - UNMET) * share


CONSTRAINTS: Mapping[str, Callable[[Check, str], float]] = {
    "words": _words,
    "shorten": _words,
    "sentence": _sentence,
    "opening": _opening,
    "include": _include,
    "list": _list,
}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


_COMMON: Fields = {"key": _is_text, "related": _are_texts, "request": _is_text, "limit": _is_count}
_OF_FAMILY: Mapping[str, Fields] = {
    "opening": {"start": lambda value: _is_text(value) and bool(words_of(value))},
    "include": {"wanted": lambda value: _are_texts(value) and bool(value)},
    "list": {"count": _is_count},
}
