"""Pair unpaired feedback, as KTO takes it: a prompt, a response, and a label that says whether it is good."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rlhf.core.records import TOOLS
from rlhf.data import rules
from rlhf.data.drops import DropReport
from rlhf.data.readers.messages import SYSTEM_COLUMNS
from rlhf.data.sources.rows import Row, as_number, read_rows
from rlhf.data.sources.select import drawn

if TYPE_CHECKING:
    from rlhf.config.schema import DataSource

LABEL = "label"
ALLOWED = "true for a good response and false for a bad one, or 1 and 0"
NO_COUNTERPART = "no response with the other label to this prompt"


def paired_or_plain_rows(source: DataSource, *, seed: int, report: DropReport) -> Iterator[Row]:
    """The rows of a source; those of a source with labels are paired, see `paired_rows`.

    `limit` then draws among the pairs.
    """
    if LABEL not in source.columns:
        return read_rows(source, seed=seed)
    rows = paired_rows(read_rows(source.model_copy(update={"limit": None}), seed=seed), source, report)
    return rows if source.limit is None else drawn(rows, source.limit, seed)


def paired_rows(rows: Iterable[Row], source: DataSource, report: DropReport) -> Iterator[Row]:
    """A row with `chosen` and `rejected` for every good and every bad response to one prompt.

    Args:
        report: takes the rows that are in no pair.

    Raises:
        DataError: a label that is neither true nor false, or a column that is missing.
    """
    response, label = source.columns.get("response", "response"), source.columns[LABEL]
    groups: dict[str, tuple[list[Row], list[Row]]] = {}
    for row in rows:
        if row.repeats_a_key:
            report.read += 1
            report.drop(rules.REPEATED_KEY, row.place)
            continue
        good = is_good(row, label)
        groups.setdefault(_prompt_key(row, source), ([], []))[0 if good else 1].append(row)
    for chosen, rejected in groups.values():
        if not chosen or not rejected:
            for row in (*chosen, *rejected):
                report.read += 1
                report.drop(NO_COUNTERPART, row.place)
        for better, worse in itertools.product(chosen, rejected):
            values = {name: value for name, value in better.values.items() if name not in (response, label)}
            values |= {"chosen": better.get(response), "rejected": worse.get(response)}
            yield Row(f"{better.place} and {worse.place}", values)


def is_good(row: Row, column: str) -> bool:
    """The label of a row.

    Raises:
        DataError: it is neither true nor false.
    """
    value = as_label(row.get(column))
    if value is None:
        raise row.wrong(column, ALLOWED)
    return value


def as_label(value: Any) -> bool | None:
    """A truth value, also as 0 and 1 or as the text of a CSV file; None for anything else."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    number = as_number(value)
    return bool(number) if number in (0, 1) else None


def _prompt_key(row: Row, source: DataSource) -> str:
    """A text that is equal for rows with the same prompt, system message and tools."""
    names = [
        source.columns.get("prompt", "prompt"),
        *(source.columns.get(n, n) for n in (*SYSTEM_COLUMNS, TOOLS)),
    ]
    return json.dumps([row.find(name) for name in names], sort_keys=True, default=str)
