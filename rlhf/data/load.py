"""Load records and a drop report from configured sources."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar, cast

from rlhf.config.schema import DataSource
from rlhf.core.errors import ConfigError, DataError
from rlhf.core.records import (
    Conversation,
    Justification,
    Message,
    Preference,
    Principle,
    Prompt,
    Rating,
)
from rlhf.data import rules
from rlhf.data.annotations import PAPER_SPREAD
from rlhf.data.digests import digest_of
from rlhf.data.drops import DropReport
from rlhf.data.readers import columns, helpsteer, helpsteer3, layouts, lmsys, nectar, ultrafeedback
from rlhf.data.readers.survey import survey
from rlhf.data.readers.unpaired import paired_or_plain_rows
from rlhf.data.sources.rows import DEMO, Row, read_rows

Record = TypeVar("Record")
TrainingRecord = TypeVar("TrainingRecord", bound=Rating | Preference | Principle | Justification | Prompt)
Readers = Mapping[str, Callable[[Row, DataSource], Record | list[Record]]]
RecordKind = Literal["ratings", "preferences", "prompts", "principles", "justifications"]
CONTRADICTORY = "pairs of which the opposite is in the data, too (A over B and B over A)"
PROMPT_SEED = 0
"""Draws the rows of a source of prompts with a `limit`, whatever the run's seed: runs of several seeds hold
out, or exclude, the same prompts."""


def load_ratings(
    sources: Sequence[DataSource], *, seed: int, max_spread: int = PAPER_SPREAD
) -> tuple[list[Rating], DropReport]:
    """Rated responses; one read before with the same ratings is a duplicate.

    Args:
        max_spread: of raw ratings, see `rlhf.data.annotations.aggregate_ratings`.

    Raises:
        ConfigError: a source whose format or column map holds no ratings.
        DataError: a malformed row, or nothing left.
    """
    readers: Readers[Rating] = {
        "helpsteer2": partial(helpsteer.rating, max_spread=max_spread),
        "helpsteer3-feedback": partial(helpsteer3.feedback_ratings, max_spread=max_spread),
        "ultrafeedback": ultrafeedback.ratings,
        "columns": columns.rating,
    }
    return _load("ratings", sources, seed, readers, _rating_key)


def load_preferences(
    sources: Sequence[DataSource], *, seed: int, max_spread: int
) -> tuple[list[Preference], DropReport]:
    """Preferences; one with the chosen and rejected response of an earlier one is a duplicate.

    Args:
        max_spread: of raw annotations, see `rlhf.data.annotations.aggregate`.

    Raises:
        ConfigError: a source whose format or column map holds no preferences.
        DataError: a malformed row, or nothing left.
    """
    loaded, report = _load("preferences", sources, seed, preference_readers(max_spread), _pair_key)
    if contradictory := count_contradictory(loaded):
        report.notes[CONTRADICTORY] += contradictory
    return loaded, report


def preference_readers(max_spread: int) -> Readers[Preference]:
    """The reader of each format that holds preferences."""
    return {
        "helpsteer2-preference": partial(helpsteer.preference, max_spread=max_spread),
        "helpsteer3": partial(helpsteer3.preference, max_spread=max_spread),
        "nectar": nectar.preferences,
        "ultrafeedback": ultrafeedback.preference,
        "lmsys-55k": lmsys.preference,
        "columns": columns.preference,
    }


def count_contradictory(preferences: Sequence[Preference]) -> int:
    """Preferences of which the opposite is there, too: A over B and B over A, for one prompt."""
    keys = {_pair_key(item) for item in preferences}
    return sum((item.prompt, item.rejected_message, item.chosen_message) in keys for item in preferences)


def load_principles(sources: Sequence[DataSource], *, seed: int) -> tuple[list[Principle], DropReport]:
    """Responses with a principle and whether it is fulfilled, each once.

    Raises:
        ConfigError: a source of another format.
        DataError: a malformed row, or nothing left.
    """
    readers: Readers[Principle] = {"helpsteer3-principle": helpsteer3.principle}
    return _load(
        "principles", sources, seed, readers, lambda item: (item.prompt, item.response, item.principle)
    )


def load_justifications(
    sources: Sequence[DataSource], *, seed: int, max_spread: int
) -> tuple[list[Justification], DropReport]:
    """Pairs with a written justification and its verdict, each once.

    Raises:
        ConfigError: a source of another format.
        DataError: a malformed row, or nothing left.
    """
    readers: Readers[Justification] = {
        "helpsteer2-preference": partial(helpsteer.justification, max_spread=max_spread),
        "helpsteer3": partial(helpsteer3.justification, max_spread=max_spread),
    }
    return _load(
        "justifications",
        sources,
        seed,
        readers,
        lambda item: (item.prompt, item.response_1, item.response_2),
    )


def load_prompts(sources: Sequence[DataSource]) -> tuple[list[Prompt], DropReport]:
    """Prompts, each once; every format has some.

    Raises:
        ConfigError: a column map with names that prompts do not have.
        DataError: a malformed row, or nothing left.
    """
    readers: Readers[Prompt] = {
        "helpsteer2": helpsteer.prompt,
        "helpsteer2-preference": helpsteer.prompt,
        "helpsteer3": helpsteer3.prompt,
        "helpsteer3-feedback": helpsteer3.prompt,
        "helpsteer3-principle": helpsteer3.prompt,
        "nectar": columns.prompt,
        "ultrafeedback": ultrafeedback.prompt,
        "lmsys-55k": lmsys.prompt,
        "columns": columns.prompt,
    }
    return _load("prompts", sources, PROMPT_SEED, readers, lambda item: item.messages)


def join_ratings(
    preferences: Sequence[Preference], ratings: Sequence[Rating]
) -> tuple[list[Preference], list[Rating]]:
    """Attach ratings to the preferences whose prompt and response they rate; left-over ones come back too.

    A rated response is attached once, to the first preference it is a side of, so that no rating counts twice
    in a loss. Several ratings of one response are attached as the mean of each attribute.
    """
    waiting: dict[tuple[Conversation, Message], list[Rating]] = {}
    for rating in ratings:
        waiting.setdefault((rating.prompt, rating.message), []).append(rating)
    joined = []
    for item in preferences:
        first, second = (
            _mean_ratings(waiting.pop((item.prompt, response), [])) for response in item.messages
        )
        if first or second:
            item = replace(
                item, ratings_1={**item.ratings_1, **first}, ratings_2={**item.ratings_2, **second}
            )
        joined.append(item)
    return joined, [rating for group in waiting.values() for rating in group]


def _mean_ratings(group: Sequence[Rating]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for rating in group:
        for attribute, value in rating.ratings.items():
            values.setdefault(attribute, []).append(value)
    return {attribute: sum(items) / len(items) for attribute, items in values.items()}


def _pair_key(item: Preference) -> Hashable:
    return item.prompt, item.chosen_message, item.rejected_message


def _rating_key(rating: Rating) -> Hashable:
    return rating.prompt, rating.message, tuple(sorted(rating.ratings.items()))


def _load(
    kind: RecordKind,
    sources: Sequence[DataSource],
    seed: int,
    readers: Readers[TrainingRecord],
    key: Callable[[TrainingRecord], Hashable],
) -> tuple[list[TrainingRecord], DropReport]:
    for source in sources:
        _check_source(source, kind, readers)
    report, loaded, seen = DropReport(), list[TrainingRecord](), set[Hashable]()
    for place, source in enumerate(sources):
        source_report = DropReport()
        label = _label(source, kind)
        if (
            source.format == "columns"
            and source.path != DEMO
            and kind != "principles"
            and kind != "justifications"
        ):
            source, note = _recognised(source, kind, seed)
            source_report.notes.update([note] if note else [])
        read = _bind(readers[source.format], source)
        if (
            source.format == "columns"
            and source.path != DEMO
            and kind != "principles"
            and kind != "justifications"
        ):
            facts = survey(paired_or_plain_rows(source, seed=seed, report=DropReport()), source, kind)
            source_report.notes.update(facts.notes)
            if facts.first_index is not None:
                indexed = partial(columns.preference, first_index=facts.first_index)
                read = _bind(cast(Callable[[Row, DataSource], TrainingRecord], indexed), source)
        rows = paired_or_plain_rows(source, seed=seed, report=source_report)
        records = list(read_records(rows, read, source_report, key=key, seen=seen))
        if kind == "ratings" and (records or source_report.reasons[rules.NO_RATING]):
            _require_named_attributes(source, [record for record in records if isinstance(record, Rating)])
        loaded.extend(records)
        report.digests[f"data.{kind}.{place}.path"] = digest_of(records)
        report.merge(DropReport(sources={label: source_report}).merge(source_report))
    if sources:
        require_some(loaded, kind, [source.path for source in sources], report)
    return loaded, report


def _recognised(source: DataSource, kind: layouts.MappedKind, seed: int) -> tuple[DataSource, str]:
    """The source with the column map of a public layout, where it has no map, and a note that says so."""
    if source.columns:
        return source, ""
    first = next(read_rows(source.model_copy(update={"limit": None}), seed=seed), None)
    if first is None:
        return source, ""
    if (recognised := layouts.recognise(first, source, kind)) is None:
        layouts.require_our_columns(first, source, kind)
        return source, ""
    return recognised


def _label(source: DataSource, kind: RecordKind) -> str:
    """The name of a source in a report: path, split and `where`."""
    split = "" if source.format == "columns" else f" ({source.split})"
    where = "; ".join(f"{column}: {', '.join(map(str, values))}" for column, values in source.where.items())
    return f"{kind} of {source.path}{split}" + (f" where {where}" if where else "")


def _bind(
    reader: Callable[[Row, DataSource], TrainingRecord | list[TrainingRecord]], source: DataSource
) -> Callable[[Row], list[TrainingRecord]]:
    """The reader of one source, which notes in each record the row that it is read from."""

    def read(row: Row) -> list[TrainingRecord]:
        made = reader(row, source)
        return [replace(item, place=row.place) for item in (made if isinstance(made, list) else [made])]

    return read


def read_records(
    rows: Iterable[Row],
    read: Callable[[Row], Record | list[Record]],
    report: DropReport,
    *,
    key: Callable[[Record], Hashable] | None,
    seen: set[Hashable],
) -> Iterator[Record]:
    """The records of the rows; `key` identifies duplicates, and `report` counts dropped rows.

    A row that holds several records counts once for each.
    """
    for row in rows:
        report.read += 1
        if row.repeats_a_key:
            report.drop(rules.REPEATED_KEY, row.place)
            continue
        try:
            made = read(row)
        except rules.UnusableRowError as unusable:
            report.drop(str(unusable), row.place)
            continue
        report.notes.update(row.noted)
        records = made if isinstance(made, list) else [made]
        report.read += len(records) - 1
        for record in records:
            if key is not None:
                identity = key(record)
                if identity in seen:
                    report.drop(rules.DUPLICATE, row.place)
                    continue
                seen.add(identity)
            yield record


def _check_source(source: DataSource, kind: RecordKind, formats: Iterable[str]) -> None:
    known = sorted(formats)
    if source.format not in known:
        raise ConfigError(
            f"{source.path}: format {source.format!r} holds no {kind}", allowed=" or ".join(known)
        )
    if source.path == DEMO and source.format == "columns" and kind != "prompts":
        raise ConfigError(
            f"{DEMO} with `format: columns` holds prompts, no {kind}",
            fix=f"set `format: {next(name for name in known if name != 'columns')}`",
        )
    if source.format == "columns":
        columns.check_columns(source, cast(layouts.MappedKind, kind))
    elif source.columns:
        raise ConfigError(
            f"{source.path}: `columns` is given, but `format: {source.format}` fixes the columns",
            fix="remove `columns`, or set `format: columns`",
        )


def _require_named_attributes(source: DataSource, ratings: Sequence[Rating]) -> None:
    """A column map that names a column no row has would otherwise leave an attribute unrated in silence."""
    rated = {attribute for rating in ratings for attribute in rating.ratings}
    for attribute, column in columns.attributes(source).items():
        if attribute not in rated:
            raise DataError(
                f"columns.{attribute}: no row of {source.path} has a number in {column!r}",
                allowed="the name of a column, or `COLUMN.KEY` for a key of a dictionary column",
            )


def require_some(records: Sequence[object], kind: str, paths: Sequence[str], report: DropReport) -> None:
    """Refuse a source of which nothing is left, with its drop report."""
    if not records:
        raise DataError(
            "\n".join([f"no usable {kind} in {', '.join(paths)}:", *report.lines()]),
            fix="look at the rows named above; `where`, `limit` and `split` decide which rows are read",
        )
