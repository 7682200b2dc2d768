"""The samples of a run as data for the page's browser: searched, filtered and drawn by `samples.js`, a few at
a time.
"""

from __future__ import annotations

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
"""The latest samples of a run; older ones stay in samples.jsonl."""
CHARACTERS = 2_000
"""A longer text is cut on the page."""
FIGURES = ("reward", "gold", "kl", "length")


def sample_data(path: Path, notes: list[str]) -> Markup | None:
    """The latest samples as JSON for a script element; None where there are none.

    Each is [step, prompt turns, answer, reward, gold, KL, length, finished].
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
    return [row["step"], prompt, _cut(str(row.get("answer", ""))), *figures, row.get("finished")]


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} […]"
