"""Write the page of a comparison: a summary, figures and tables."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.report.html import asset, environment
from rlhf.runs.files import atomic_write_text


def write_comparison(
    folder: Path,
    *,
    title: str,
    lead: Sequence[str],
    pictures: Sequence[Path],
    tables: Mapping[str, Sequence[Sequence[str]]],
    notes: Sequence[str] = (),
    output: Path | None = None,
) -> Path:
    """Write `folder/report.html`, or `output`, self-contained and without scripts; returns its path.

    Args:
        title: the heading of the page.
        lead: the result in sentences, the shortest first.
        pictures: SVG files.
        tables: rows of cells by the table's title; the first row is the header.
        notes: how the figures are computed, in sentences below the pictures.
    """
    page = (
        environment()
        .get_template("comparison.html")
        .render(
            title=title,
            name="/".join(folder.resolve().parts[-2:]),
            lead=lead,
            pictures=[base64.b64encode(picture.read_bytes()).decode() for picture in pictures],
            notes=notes,
            tables=[(heading, head, rows) for heading, (head, *rows) in tables.items()],
            style=asset("page.css"),
        )
    )
    target = output or folder / "report.html"
    atomic_write_text(target, page)
    return target
