"""Recognise public layouts by their columns where a source has no column map.

A layout is a column map under a name. The columns of a source's first row decide; a layout whose columns all
belong to a larger one that fits as well gives way to it. Where two are left, the source must say which it
means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlhf.config.reading.values import as_yaml
from rlhf.core.errors import ConfigError, DataError
from rlhf.data.readers import ultrafeedback
from rlhf.data.readers.encodings import looks_encoded
from rlhf.data.readers.unpaired import as_label
from rlhf.data.sources.rows import Row

if TYPE_CHECKING:
    from rlhf.config.schema import DataFormat, DataSource

MappedKind = Literal["ratings", "preferences", "prompts"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A public layout.

    Attributes:
        kind: of the records in it.
        columns: our names -> its columns; a column `A + B` needs A alone.
        also: further columns that tell it from others.
        optional: names of `columns` that a row may lack.
        format: a reader of its own, in place of a column map.
        fits: a further condition on the first row.
    """

    name: str
    kind: MappedKind
    columns: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    format: DataFormat = "columns"
    encoding: Literal["text", "json", "transcript"] = "text"
    fits: Callable[[Row], bool] | None = None

    def needs(self) -> frozenset[str]:
        """The columns that a row must have."""
        mapped = (
            column.split(" + ")[0] for name, column in self.columns.items() if name not in self.optional
        )
        return frozenset((*mapped, *self.also))

    def matches(self, row: Row) -> bool:
        """Whether a row has its columns."""
        there = all(row.find(column) is not None for column in self.needs())
        return there and (self.fits is None or self.fits(row))

    def mapped(self, row: Row) -> dict[str, str]:
        """The column map for a source whose first row is `row`."""
        return {
            name: column
            for name, column in self.columns.items()
            if name not in self.optional or row.find(column) is not None
        }


def _transcript(row: Row) -> bool:
    return all(looks_encoded(row.find(column)) == "transcript" for column in ("chosen", "rejected"))


def _json(row: Row) -> bool:
    return all(looks_encoded(row.find(column)) == "json" for column in ("chosen", "rejected"))


def _plain(row: Row) -> bool:
    return not _transcript(row) and not _json(row)


def _no_prompt(row: Row) -> bool:
    return row.find("prompt") is None


def _labelled(row: Row) -> bool:
    return as_label(row.find("label")) is not None


def _own(*names: str) -> dict[str, str]:
    return {name: name for name in names}


ALPACA = {"prompt": "instruction + input"}
SHAREGPT_PAIR = {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"}
QUESTION_PAIR = {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}
ULTRAFEEDBACK = ("score_chosen", "score_rejected")
ARENA = {"response_1": "conversation_a", "response_2": "conversation_b", "winner": "winner"}
ANSWERS_A_B = {"prompt": "prompt", "response_1": "response_a", "response_2": "response_b", "winner": "winner"}
PKU = {
    "prompt": "prompt",
    "response_1": "response_0",
    "response_2": "response_1",
    "winner": "better_response_id",
}
SHP = {"prompt": "history", "response_1": "human_ref_A", "response_2": "human_ref_B", "winner": "labels"}
PPE = {"prompt": "prompt", "response_1": "response_1", "response_2": "response_2", "winner": "winner"}
LMSYS = ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b")
KTO = {"prompt": "prompt", "response": "completion", "label": "label"}
HELPSTEER3 = ("context", "response1", "response2", "overall_preference")
PAIRS = _own("prompt", "chosen", "rejected")
STRENGTHS = _own("prompt", "response_1", "response_2", "preference_strength")

NEEDED: Mapping[MappedKind, tuple[frozenset[str], tuple[str, ...]]] = {
    "ratings": (frozenset({"response"}), ("{prompt: COLUMN, response: COLUMN, helpfulness: COLUMN}",)),
    "preferences": (
        frozenset({"chosen", "response_1"}),
        (
            "{prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}",
            "{prompt: COLUMN, response_1: COLUMN, response_2: COLUMN, winner: COLUMN}",
            "{prompt: COLUMN, response: COLUMN, label: COLUMN}",
        ),
    ),
    "prompts": (frozenset({"prompt"}), ("{prompt: COLUMN}",)),
}
"""Of each kind, our columns of which a row without a map must have one, and maps that name them."""

LAYOUTS: tuple[Layout, ...] = (
    Layout("chosen and rejected", "preferences", PAIRS, optional=("prompt",), fits=_plain),
    Layout("two responses and a strength", "preferences", STRENGTHS, optional=("prompt",)),
    Layout("UltraFeedback-binarized", "preferences", PAIRS, also=ULTRAFEEDBACK),
    Layout("hh-rlhf", "preferences", _own("chosen", "rejected"), encoding="transcript", fits=_transcript),
    Layout(
        "chosen and rejected as JSON",
        "preferences",
        PAIRS,
        optional=("prompt",),
        encoding="json",
        fits=_json,
    ),
    Layout("SHP", "preferences", SHP),
    Layout("PKU-SafeRLHF", "preferences", PKU),
    Layout("LMArena", "preferences", ARENA),
    Layout("answers a and b with a winner", "preferences", ANSWERS_A_B),
    Layout("PPE human preference", "preferences", PPE),
    Layout("LMSYS-55k", "preferences", also=LMSYS, format="lmsys-55k"),
    Layout("KTO", "preferences", KTO, fits=_labelled),
    Layout(
        "UltraFeedback",
        "preferences",
        also=("completions",),
        format="ultrafeedback",
        fits=ultrafeedback.fits,
    ),
    Layout("Nectar", "preferences", also=("prompt", "answers"), format="nectar"),
    Layout("HelpSteer3", "preferences", also=HELPSTEER3[:3], format="helpsteer3"),
    Layout("ShareGPT pairs", "preferences", SHAREGPT_PAIR, fits=_no_prompt),
    Layout("Alpaca pairs", "preferences", {**ALPACA, **_own("chosen", "rejected")}, fits=_no_prompt),
    Layout("question and pairs", "preferences", QUESTION_PAIR, fits=_no_prompt),
    Layout(
        "HelpSteer3 feedback",
        "ratings",
        also=("context", "feedback1", "feedback2"),
        format="helpsteer3-feedback",
    ),
    Layout(
        "UltraFeedback",
        "ratings",
        also=("completions",),
        format="ultrafeedback",
        fits=ultrafeedback.has_annotations,
    ),
    Layout("prompt", "prompts", _own("prompt")),
    Layout("messages", "prompts", {"prompt": "messages"}),
    Layout("ShareGPT", "prompts", {"prompt": "conversations"}),
    Layout("Alpaca", "prompts", ALPACA),
    Layout("question", "prompts", {"prompt": "question"}),
    Layout("SHP", "prompts", {"prompt": "history"}, also=("human_ref_A",)),
    Layout("LMArena", "prompts", {"prompt": "conversation_a"}),
    Layout("LMSYS-55k", "prompts", also=LMSYS, format="lmsys-55k"),
    Layout("HelpSteer3", "prompts", also=("context", "response1"), format="helpsteer3"),
)


def recognise(row: Row, source: DataSource, kind: MappedKind) -> tuple[DataSource, str] | None:
    """The source with the column map of its layout, and a note that pins it; None if no layout fits.

    Raises:
        ConfigError: the columns are those of two layouts.
    """
    fitting = [layout for layout in LAYOUTS if layout.kind == kind and layout.matches(row)]
    best = [
        candidate
        for candidate in fitting
        if not any(candidate.needs() < other.needs() for other in fitting)
        and not (
            kind == "prompts"
            and "prompt" not in candidate.needs()
            and any(other.name == "prompt" for other in fitting)
        )
    ]
    if not best:
        return None
    if len(best) > 1:
        lines = "\n".join(f"    {pin(layout, row, source)}    # {layout.name}" for layout in best)
        raise ConfigError(
            f"{source.path}: the columns are those of {' and of '.join(layout.name for layout in best)}",
            allowed=f"one of them, in the config:\n{lines}",
            fix="write the line you mean in place of this source",
        )
    layout = best[0]
    encoding = layout.encoding if source.encoding == "text" else source.encoding
    update: dict[str, Any] = {"format": layout.format, "encoding": encoding}
    columns = layout.mapped(row)
    resolved = source.model_copy(update={**update, "columns": columns})
    if columns == {"prompt": "prompt"} and layout.format == "columns":
        return resolved, ""  # our own name: nothing was guessed
    return resolved, f"read as {layout.name}, by its columns; to pin it: {pin(layout, row, source)}"


def require_our_columns(row: Row, source: DataSource, kind: MappedKind) -> None:
    """Refuse a source without a column map whose first row has neither a layout's columns nor our own.

    Raises:
        DataError: the columns that the row has, and a line with which the config can name them.
    """
    needed, maps = NEEDED[kind]
    if needed & row.values.keys():
        return
    fix = "name the columns in the config: "
    lists = [name for name, value in row.values.items() if _holds_candidates(value)]
    if lists and kind != "prompts":
        fix = (
            f"a map cannot reach into the list in {', '.join(map(repr, lists))}: write a row of its own for "
            "each pair or rated response, then "
        ) + fix
    lines = " or ".join(f"{{path: {source.path}, columns: {columns}}}" for columns in maps)
    raise DataError(
        f"{row.place}: the columns are those of no layout that is recognised: "
        f"{', '.join(row.values) or 'there are none'}",
        allowed="a layout of docs/data.md, or a map of columns",
        fix=fix + lines,
    )


def _holds_candidates(value: Any) -> bool:
    """Whether a value is a list of several texts or objects, and not of messages."""
    items = value if isinstance(value, list) and len(value) > 1 else []
    return bool(items) and all(
        isinstance(item, str) or (isinstance(item, Mapping) and not {"role", "from"} & item.keys())
        for item in items
    )


def table() -> list[str]:
    """The layouts as a table in Markdown, for the docs."""
    lines = ["| layout | source of | columns | read as |", "| --- | --- | --- | --- |"]
    for layout in LAYOUTS:
        needs = ", ".join(f"`{column}`" for column in sorted(layout.needs()))
        parts = [] if layout.format == "columns" else [f"format: {layout.format}"]
        parts += [] if layout.encoding == "text" else [f"encoding: {layout.encoding}"]
        if layout.columns:
            mapped = ", ".join(f"{name}: {column}" for name, column in layout.columns.items())
            parts.append(f"columns: {{{mapped}}}")
        lines.append(f"| {layout.name} | {layout.kind} | {needs} | `{', '.join(parts)}` |")
    return lines


def pin(layout: Layout, row: Row, source: DataSource) -> str:
    """The line of a config that names a layout instead of leaving it to its columns, with the other keys of
    the source that differ from their defaults."""
    keys = source.model_dump(mode="json", exclude_defaults=True, exclude={"columns"})
    if layout.format != "columns":
        keys["format"] = layout.format
    if source.encoding == "text" and layout.encoding != "text":
        keys["encoding"] = layout.encoding
    if columns := layout.mapped(row):
        keys["columns"] = columns
    return f"- {as_yaml(keys)}"
