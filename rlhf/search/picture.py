"""A search as a picture: the values in order of trials, and against each searched key."""

from __future__ import annotations

import io
from itertools import accumulate
from typing import Any

from rlhf.report.numbers import percent
from rlhf.search.results import Results, short_names, write_parameter

PICTURE = "search.png"
COLUMNS, WIDTH, HEIGHT, DPI = 2, 4.8, 3.0, 180
PAPER = "#fdfcfa"
INK, SOFT, FAINT, DOT, BEST = "#1f2328", "#636a72", "#e4e1db", "#0068a8", "#c24f00"
MOST_KEYS, MOST_LETTERS = 8, 18


def draw(results: Results) -> bytes | None:
    """The picture as a PNG; None where no trial is complete."""
    from matplotlib.figure import Figure  # half a second to import

    if results["best"] is None:
        return None
    names = list(results["importance"] or results["parameters"])[:MOST_KEYS]
    rows = -(-(1 + len(names)) // COLUMNS)
    columns = min(COLUMNS, 1 + len(names))
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    _history(grid[0], results)
    for axes, name in zip(grid[1:], names, strict=False):
        _slice(axes, results, name)
    for axes in grid[1 + len(names) :]:
        axes.set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _history(axes: Any, results: Results) -> None:
    """Each completed trial's value, the best so far, and where trials were stopped or failed."""
    complete = [trial for trial in results["trials"] if trial["state"] == "complete"]
    numbers, values = [trial["number"] for trial in complete], [trial["value"] for trial in complete]
    better = max if results["objective"]["direction"] == "maximize" else min
    axes.step(numbers, list(accumulate(values, better)), where="post", color=BEST, label="best so far")
    _dots(axes, results, numbers, complete)
    for state, mark in (("pruned", "x"), ("failed", "v")):
        others = [trial["number"] for trial in results["trials"] if trial["state"] == state]
        if others:
            low = [0.02] * len(others)
            axes.plot(
                others, low, mark, color=SOFT, markersize=4, transform=axes.get_xaxis_transform(), label=state
            )
    axes.legend(frameon=False, fontsize=8, labelcolor=SOFT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _style(axes, "in order of trials", results["objective"]["metric"])


def _slice(axes: Any, results: Results, name: str) -> None:
    """The completed trials' values against one key."""
    told = results["parameters"][name]
    complete = [trial for trial in results["trials"] if trial["state"] == "complete"]
    if "choices" in told:
        known = [write_parameter(choice) for choice in told["choices"]]
        places: list[Any] = [known.index(write_parameter(trial["parameters"][name])) for trial in complete]
        axes.set_xticks(range(len(known)), [one[:MOST_LETTERS] for one in known], parse_math=False)
        axes.set_xlim(-0.5, len(known) - 0.5)
    else:
        places = [trial["parameters"][name] for trial in complete]
        if told.get("log"):
            axes.set_xscale("log")
    _dots(axes, results, places, complete)
    share = results["importance"].get(name)
    title = short_names(results["parameters"])[name]
    _style(axes, title if share is None else f"{title} ({percent(share, 0)})", "")


def _dots(axes: Any, results: Results, places: list[Any], complete: list[Results]) -> None:
    for place, trial in zip(places, complete, strict=True):
        color = BEST if trial["number"] == results["best"] else DOT
        axes.plot([place], [trial["value"]], "o", color=color, markersize=5, alpha=0.85, zorder=3)


def _style(axes: Any, title: str, label: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", parse_math=False)
    axes.set_ylabel(label, fontsize=9, color=SOFT, parse_math=False)
    axes.tick_params(labelsize=8.5, colors=SOFT, length=0)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
