"""The page on a search, made from its search.json alone."""

from __future__ import annotations

import base64
from pathlib import Path

from rlhf.report.html import asset, environment
from rlhf.report.numbers import duration, short
from rlhf.runs.folder import HALF_WRITTEN, atomic_write_text
from rlhf.search.picture import PICTURE, draw
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
    """Write one self-contained page on a search, to `folder/report.html` or to `output`, and its picture beside search.json.

    Raises:
        DataError: search.json is not there, or is damaged.
    """
    results = load_results(folder)
    picture = draw(results)
    if picture is not None:
        unfinished = folder / f".{PICTURE}{HALF_WRITTEN}"
        unfinished.write_bytes(picture)
        unfinished.replace(folder / PICTURE)
    target = output or folder / "report.html"
    atomic_write_text(target, render(results, "/".join(folder.resolve().parts[-2:]), picture))
    return target


def render(results: Results, name: str, picture: bytes | None) -> str:
    """The page as text; it runs no script and loads nothing."""
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
        picture=base64.b64encode(picture).decode() if picture else "",
        style=asset("page.css"),
    )
