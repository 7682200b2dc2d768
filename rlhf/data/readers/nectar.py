"""Nectar (berkeley-nest/Nectar): several ranked answers to one prompt."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from rlhf.core.records import Preference
from rlhf.data import rules
from rlhf.data.readers.encodings import looks_encoded
from rlhf.data.readers.messages import read_prompt
from rlhf.data.sources.rows import Row, is_number

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

ANSWERS = '[{"answer": TEXT, "rank": NUMBER from 1, the best}, ...]'


def preferences(row: Row, source: DataSource) -> list[Preference]:
    """A preference of strength 1 for every two answers of different rank; the better one is `response_1`.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: no two answers differ in text and rank.
    """
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(map(_is_ranked, answers)):
        raise row.wrong_item("answers", ANSWERS, _is_ranked)
    encoding = "transcript" if looks_encoded(row.find("prompt")) == "transcript" else "text"
    prompt = read_prompt(row, "prompt", encoding)
    rules.require_prompt(prompt)
    ranked = sorted(answers, key=lambda answer: answer["rank"])
    made = [
        Preference(prompt, better["answer"], worse["answer"], -1, source=source.path)
        for better, worse in itertools.combinations(ranked, 2)
        if better["rank"] < worse["rank"]
        and better["answer"].strip() != worse["answer"].strip()
        and better["answer"].strip()
        and worse["answer"].strip()
    ]
    if not made:
        raise rules.UnusableRowError(rules.TIE)
    return made


def _is_ranked(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("answer"), str) and is_number(item.get("rank"))
