"""The samples of a run as data for the page's sample browser (`samples.js`)."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf.report.files import json_lines
from rlhf.report.numbers import finite
from rlhf.report.policy import turns

LIMIT = 10_000
"""Number of samples on the page, the latest of the run."""
CHARACTERS = 2_000
"""Maximum length of a text on the page."""
FIGURES = ("reward", "gold", "kl", "length")
TOKENS = {"kl": "token_kl", "reward": "token_reward", "value": "token_value"}
"""Figures of each token, by their name in samples.jsonl."""


def sample_data(path: Path, notes: list[str]) -> Markup | None:
    """The latest samples as JSON for a script element; None if there are none.

    Each is [step, prompt turns, answer, reward, gold, KL, length, finished]; a few answers also have the text
    of each token, and the figures of `TOKENS` by name.
    """
    total = 0
    latest: deque[list[Any]] = deque(maxlen=LIMIT)
    for row in json_lines(path, notes):
        total += 1
        latest.append(_sample(row))
    if not total:
        return None
    if total > LIMIT:
        notes.append(
            f"The sample browser holds the latest {LIMIT:,} of {total:,} samples; all are in {path.name}."
        )
    text = json.dumps(list(latest), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704


def _sample(row: Mapping[str, Any]) -> list[Any]:
    prompt = [[role, _cut(content)] for role, content in turns(row.get("prompt"))]
    figures = [None if (value := finite(row.get(name))) is None else round(value, 4) for name in FIGURES]
    sample = [row["step"], prompt, _cut(str(row.get("answer", ""))), *figures, row.get("finished")]
    return [*sample, *_tokens(row)]


def _tokens(row: Mapping[str, Any]) -> list[Any]:
    """Texts and figures of an answer's first tokens, up to `CHARACTERS`; empty if there are none."""
    texts = row.get("tokens")
    if not isinstance(texts, list):
        return []
    columns = dict[str, list[Any]]()
    for name, key in TOKENS.items():
        if isinstance(column := row.get(key), list) and len(column) == len(texts):
            columns[name] = column
    if "kl" not in columns:
        return []
    ends = itertools.accumulate(len(str(text)) for text in texts)
    count = sum(end <= CHARACTERS for end in ends)
    figures = {name: [finite(value) for value in column[:count]] for name, column in columns.items()}
    return [[str(text) for text in texts[:count]], figures]


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} […]"
