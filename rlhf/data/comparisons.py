"""Load benchmarks of pairs: in RewardBench's columns, or in a public layout of preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from rlhf.config.schema import DataSource
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import Comparison, Preference
from rlhf.data import rules
from rlhf.data.annotations import PAPER_SPREAD
from rlhf.data.drops import DropReport
from rlhf.data.load import preference_readers, read_records, require_some
from rlhf.data.readers import columns, layouts
from rlhf.data.readers.messages import read_answers
from rlhf.data.readers.survey import survey
from rlhf.data.readers.unpaired import paired_or_plain_rows
from rlhf.data.sources.rows import DEMO, Row, read_rows, synthetic_rows

REWARDBENCH = DataSource(path="allenai/reward-bench", split="filtered")
ALL = "all"
"""The subset of benchmark rows that name none."""
Reader = Callable[[Row], Comparison | list[Comparison]]


def load_comparisons(path: str) -> tuple[list[Comparison], DropReport]:
    """A benchmark of pairs: `rewardbench`, `demo`, a file, or a local copy of RewardBench's folder.

    Repeated items are kept, as benchmarks count them.

    Raises:
        DataError: a malformed row, or nothing left.
    """
    report = DropReport()
    rows: Iterable[Row]
    read: Reader = comparison
    if path == DEMO:
        rows = (Row(place, values) for place, values in synthetic_rows("benchmark", "validation"))
    else:
        source = REWARDBENCH if path == "rewardbench" else REWARDBENCH.model_copy(update={"path": path})
        rows, read = pair_reader(source, report, comparison)
    items = list(read_records(rows, read, report, key=None, seen=set()))
    require_some(items, "comparisons", [path], report)
    return items, report


def pair_reader(source: DataSource, report: DropReport, read: Reader) -> tuple[Iterable[Row], Reader]:
    """The rows of a benchmark of pairs, and their reader.

    Args:
        report: takes a note about a layout that is recognised, and rows that are in no pair.
        read: the reader of rows in RewardBench's columns, which the first row has or has not.

    Raises:
        DataError: the columns are those of no layout or of two, or a column of strengths holds an index.
    """
    first = next(read_rows(source, seed=0), None)
    if first is None:
        return [], read
    try:
        recognised = layouts.recognise(first, source, "preferences")
    except ConfigError as error:  # a benchmark has no config in which to choose
        raise DataError(
            error.found,
            allowed="the columns of one layout of docs/data.md",
            fix="write a file without the columns of the other",
        ) from None
    if _is_ours(first, recognised and recognised[0]):
        survey(read_rows(source, seed=0), source, "preferences")
        return read_rows(source, seed=0), read
    if recognised is None:
        raise DataError(
            f"{first.place}: the columns are those of no benchmark and of no layout of preferences: "
            f"{', '.join(first.values)}",
            allowed="prompt, chosen, rejected and, if there are several, subset; or a layout of docs/data.md",
            fix="rename the columns in the file",
        )
    layout, note = recognised
    report.notes[note.partition("; to pin it")[0]] += 1
    facts = survey(paired_or_plain_rows(layout, seed=0, report=DropReport()), layout, "preferences")
    readers: Mapping[str, Callable[[Row, DataSource], Preference | list[Preference]]] = {
        **preference_readers(PAPER_SPREAD),
        "columns": partial(columns.preference, first_index=facts.first_index or 0),
    }

    def compared(row: Row) -> list[Comparison]:
        made = readers[layout.format](row, layout)
        subset = ALL if row.find("subset") is None else row.text("subset")
        return [as_comparison(item, subset) for item in (made if isinstance(made, list) else [made])]

    return paired_or_plain_rows(layout, seed=0, report=report), compared


def _is_ours(first: Row, layout: DataSource | None) -> bool:
    """Whether rows are in RewardBench's columns: under our own names, and not encoded."""
    if layout is None:
        return {"chosen", "rejected"} <= first.values.keys() or "preference_strength" in first.values
    return (
        layout.format == "columns"
        and layout.encoding == "text"
        and layout.columns.keys() != {"prompt", "response_1", "response_2", "winner"}
        and all(name == column for name, column in layout.columns.items())
    )


def as_comparison(item: Preference, subset: str) -> Comparison:
    """A preference as a benchmark pair."""
    chosen, rejected = item.chosen_message, item.rejected_message
    return Comparison(
        item.prompt,
        chosen.content,
        rejected.content,
        subset=subset,
        strength=abs(item.strength),
        groups=item.groups,
        chosen_fields=chosen.fields,
        rejected_fields=rejected.fields,
    )


def comparison(row: Row) -> Comparison:
    """A benchmark item in RewardBench's columns; an empty answer is a fair one to compare.

    It may have a `strength` of 0 to 3, or a signed `preference_strength`, which with `response_1` and
    `response_2` also says which is better. Without a column `subset` the subset is `all`.

    Raises:
        DataError: a column is missing or of the wrong type.
        UnusableRowError: a rule says why the row is of no use.
    """
    signed = row.find("chosen") is None and row.find("response_1") is not None
    responses = ("response_1", "response_2") if signed else ("chosen", "rejected")
    messages, (chosen, rejected) = read_answers(row, "prompt", *responses)
    subset = ALL if row.find("subset") is None else row.text("subset")
    section = "" if row.find("section") is None else row.text("section")
    strength = _strength(row)
    if signed and strength is None:
        row.get("preference_strength")
    rules.require_prompt(messages)
    rules.require_difference(chosen, rejected)
    if strength is not None:
        rules.require_strength(strength)
    if signed and strength is not None and strength > 0:
        chosen, rejected = rejected, chosen
    size = None if strength is None else abs(strength)
    return Comparison(
        messages,
        chosen.content,
        rejected.content,
        subset=subset,
        section=section,
        strength=size,
        chosen_fields=chosen.fields,
        rejected_fields=rejected.fields,
    )


def _strength(row: Row) -> int | None:
    if row.find("strength") is not None:
        return columns.margin_of(row, "strength")
    if row.find("preference_strength") is not None:
        return row.integer("preference_strength", -columns.STRONGEST, columns.STRONGEST)
    return None
