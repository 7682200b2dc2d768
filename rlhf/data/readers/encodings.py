"""Recognise and decode conversations that are stored as strings: JSON, and `Human:` / `Assistant:` text."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from rlhf.core.errors import DataError, shorten
from rlhf.data.sources.rows import Row

TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
"""The turns of Anthropic's hh-rlhf."""

MARKUP = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|\[INST\]|<start_of_turn>|<\|(user|assistant)\|>")
"""Markup that the chat templates of common models write before a turn."""

PYTHON = re.compile(r"\s*\[\s*\{\s*'")
"""A list of dictionaries as Python prints it; numpy's, which `Dataset.to_csv` writes, has no commas."""


def looks_encoded(value: Any) -> str | None:
    """The encoding that a string seems to have beside plain text: `json`, `transcript`, or None."""
    if not isinstance(value, str):
        return None
    start = value.lstrip()[:400]
    if re.match(r"""\[\s*\{\s*["'](role|from|content|value)["']""", start):
        return "json"
    return "transcript" if TRANSCRIPT.match(start) and start.startswith("Human:") else None


def looks_rendered(value: Any) -> bool:
    """Whether a string has the markup that a chat template writes around turns."""
    return isinstance(value, str) and MARKUP.search(value) is not None


def decoded(row: Row, column: str, encoding: str, *, plain: bool = False) -> Any:
    """The decoded value of a column; with `plain`, a string that does not look encoded is left as it is."""
    value = row.get(column)
    if not isinstance(value, str) or encoding == "text" or (plain and looks_encoded(value) != encoding):
        return value
    if encoding == "json":
        allowed = "a JSON list of messages (`encoding: json`)"
        try:
            decoded = _list_of(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{row.place}: column {column!r} is not valid JSON ({error.msg} at character {error.pos}): "
                f"{shorten(value, error.pos)}",
                allowed=allowed,
                fix="this is the repr of Python objects: write the rows as JSON Lines or Parquet, such as "
                "with `Dataset.to_json`"
                if PYTHON.match(value)
                else "correct the JSON there, or set `encoding: text` if these are plain texts",
            ) from None
        except (RecursionError, ValueError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else "a number that is too long"
            raise DataError(
                f"{row.place}: column {column!r} cannot be read: {reason}",
                allowed=allowed,
                fix="correct the JSON there, or delete the row",
            ) from None
        if not isinstance(decoded, list):
            raise row.wrong(column, allowed)
        return decoded
    names = TRANSCRIPT.split(value)
    if len(names) < 3 or names[0].strip():
        raise row.wrong(column, "turns that begin with `Human:` and `Assistant:` (`encoding: transcript`)")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": text} for name, text in zip(names[1::2], names[2::2], strict=True)
    ]


def _list_of(text: str) -> Any:
    """The value of a JSON text, or of the Python literals that pandas writes to CSV files.

    Raises:
        JSONDecodeError: neither.
        ValueError: an integer has thousands of digits.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
        raise
