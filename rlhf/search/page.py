"""The report page of a search, written from its search.json."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from rlhf.report.html import asset, environment
from rlhf.report.numbers import duration, short
from rlhf.runs.folder import HALF_WRITTEN, atomic_write_text
from rlhf.search.picture import draw
from rlhf.search.results import (
    Results,
    load_results,
    ranked,
    short_names,
    summary,
    values_in_words,
    write_interval,
    write_parameter,
)


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write one self-contained page on a search, to `folder/report.html` or to `output`, and its picture
    beside search.json.

    Raises:
        DataError: search.json does not exist, or is not valid.
    """
    results = load_results(folder)
    plots = draw(results)
    for name, data in plots.items():
        unfinished = folder / f".{name}{HALF_WRITTEN}"
        unfinished.write_bytes(data)
        unfinished.replace(folder / name)
    target = output or folder / "report.html"
    atomic_write_text(target, render(results, "/".join(folder.resolve().parts[-2:]), list(plots.values())))
    return target


def render(results: Results, name: str, plots: Sequence[bytes]) -> str:
    """The page as text, without scripts or external files."""
    templates = environment("rlhf.search")
    templates.filters.update(
        short=short, parameter=write_parameter, interval=write_interval, words=values_in_words
    )
    order = ranked(results)
    durations = [trial["seconds"] for trial in results["trials"] if trial["seconds"] is not None]
    return templates.get_template("search.html").render(
        title="Search",
        results=results,
        name=name,
        order=order,
        others=[trial for trial in results["trials"] if trial["state"] != "complete"],
        best=order[0] if order else None,
        summary=summary(results),
        took=duration(sum(durations)),
        names=short_names(results["parameters"]),
        plots=[base64.b64encode(data).decode() for data in plots],
        style=asset("page.css"),
    )
