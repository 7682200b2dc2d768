"""The comparison of runs at equal KL as tables, Markdown, a figure and a page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.core.markdown import table
from rlhf.report.comparisons.comparison import write_comparison
from rlhf.report.comparisons.frontier import limits_of
from rlhf.report.drawing.plots import INK, SOFT, style_axes
from rlhf.report.numbers import DASH, decimals_for, fixed, signed
from rlhf.runs.files import atomic_write_text

TITLES = {"reward": "Reward", "held_out": "Held-out reward model", "gold": "Gold score"}
COLORS = ("#0068a8", "#c24f00", "#00795c", "#a8417f", "#6b6252", "#c49a00", "#4b5a72", "#8a2020")
PICTURE = "frontier.svg"
AT_THE_END = "At the end, on held-out prompts"

Summary = Mapping[str, Any]
Table = list[list[str]]


def tables(summary: Summary) -> dict[str, Table]:
    """Rows of cells by the table's title; the first row is the header."""
    tables_by_title: dict[str, Table] = {}
    for name, groups in summary["at_equal_kl"].items():
        head = [f"{TITLES[name].lower()} where the KL first was", *(f"{kl:g}" for kl in summary["levels"])]
        decimals = _decimals(groups)
        rows = [[group, *(_level(level, decimals) for level in levels)] for group, levels in groups.items()]
        tables_by_title[f"{TITLES[name]} at equal KL"] = [head, *rows]
    if summary["ends"]:
        tables_by_title[AT_THE_END] = _ends(summary["ends"])
    tables_by_title["Runs"] = [
        ["run", "group", "seed", "updates", "KL at the end"],
        *(
            [run["run"], run["group"], run["seed"], f"{run['updates']:,}", _last(run)]
            for run in summary["runs"]
        ),
    ]
    return tables_by_title


def lead(summary: Summary) -> list[str]:
    """Number of runs, and the groups' rewards at the largest KL that all runs reach."""
    groups = summary["at_equal_kl"]["reward"]
    runs = list(dict.fromkeys(run["group"] for run in summary["runs"]))
    lines = [f"Runs: {len(summary['runs'])}, of {len(runs)} config{'' if len(runs) == 1 else 's'}."]
    shared = [
        place
        for place in range(len(summary["levels"]))
        if all(len(groups[name][place]["values"]) == groups[name][place]["of"] for name in runs)
    ]
    if not shared:
        return [*lines, "There is no KL that all runs reach: nothing can be compared."]
    at = shared[-1]
    ordered = sorted(runs, key=lambda name: -groups[name][at]["mean"])
    rewards = "; ".join(f"{name}: {_level(groups[name][at], _decimals(groups))}" for name in ordered)
    return [*lines, f"Reward at a KL of {summary['levels'][at]:g} nats, from the highest: {rewards}."]


def notes(summary: Summary) -> list[str]:
    """How the figures are computed, and their limits."""
    lines = [
        "A path is the running mean of a run's reward over that of its KL (k1, summed over an answer), on "
        "training prompts; a figure at a KL is taken where the path first reaches it. A diamond is a run's "
        "end on held-out prompts, with 95 % intervals. Intervals in the tables are 95 %, by Student's t "
        "over seeds: with two or three seeds they are wide."
    ]
    if summary["best_of"]:
        lines.append(
            "Best of n is drawn at log n \N{MINUS SIGN} (n \N{MINUS SIGN} 1) / n, an upper bound of "
            "its KL, and was measured on other prompts: compare it with the ends only where the prompts "
            "are the same. The limit is the highest mean reward of any policy at a KL, if the rewards of a "
            "prompt's answers are normally distributed."
        )
    return [*lines, *summary["notes"]]


def markdown(summary: Summary) -> str:
    """The tables as Markdown, with the notes on how they are computed."""
    texts = ["\n\n".join([*lead(summary), *notes(summary)])]
    for heading, (head, *rows) in tables(summary).items():
        texts.append(f"## {heading}\n\n{table(head, rows)}")
    return "\n\n".join(texts) + "\n"


def write(folder: Path, summary: Summary, *, root: bool) -> Path:
    """Write frontier.json, .md, .svg, .png and report.html into a folder; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "frontier.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    atomic_write_text(folder / "frontier.md", markdown(summary))
    for kind in ("svg", "png"):
        (folder / PICTURE).with_suffix(f".{kind}").write_bytes(draw(summary, kind, root=root))
    return write_comparison(
        folder,
        title="Reward against KL",
        lead=lead(summary),
        pictures=[folder / PICTURE],
        tables=tables(summary),
        notes=notes(summary),
    )


def draw(summary: Summary, kind: str, *, root: bool) -> bytes:
    """Draw one panel per quantity: paths of the runs, their ends with intervals, and the best of n.

    Args:
        summary: the result of `rlhf.report.comparisons.frontier.summarise`.
        kind: `svg` or `png`.
        root: the axis is the square root of the KL, as in the literature on over-optimisation.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "rlhf"}):
        from matplotlib.figure import Figure

        names = list(summary["at_equal_kl"])
        figure = Figure(figsize=(max(6.4, 4.1 * len(names)), 4.3), layout="constrained", facecolor="white")
        grid = figure.subplots(1, len(names), squeeze=False)[0]
        groups = list(dict.fromkeys(run["group"] for run in summary["runs"]))
        colors = {group: COLORS[number % len(COLORS)] for number, group in enumerate(groups)}
        for axes, name in zip(grid, names, strict=True):
            _panel(axes, summary, name, colors, root=root)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=len(names),
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
        )
        out = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def _panel(axes: Any, summary: Summary, name: str, colors: Mapping[str, str], *, root: bool) -> None:
    drawn: set[str] = set()
    for run in summary["runs"]:
        color = colors[run["group"]]
        path = run["paths"].get(name, [])
        if path:
            kl, value = np.array(path).T
            label = "_nolegend_" if run["group"] in drawn else run["group"]
            drawn.add(run["group"])
            axes.plot(np.maximum(kl, 0.0), value, color=color, linewidth=1.3, alpha=0.75, label=label)
        _end(axes, run["end"], name, color)
    if any(name in run["end"] for run in summary["runs"]):
        axes.plot([], [], "D", color=SOFT, markersize=5, label="end of a run, on held-out prompts")
    curve = [point for point in summary["best_of"] if name in point]
    if curve:
        places, means = [point["kl_bound"] for point in curve], [point[name]["mean"] for point in curve]
        axes.plot(
            places,
            means,
            "o--",
            color=SOFT,
            linewidth=1.2,
            markersize=3.5,
            label="best of n, at its largest KL",
        )
        if name == "reward" and limits_of(curve):
            roots, limits = np.array(limits_of(curve)).T
            fine = np.linspace(roots[0], roots[-1], 50)
            label = "the highest reward of any policy, if rewards are normal"
            axes.plot(fine**2, np.interp(fine, roots, limits), ":", color=SOFT, linewidth=1.2, label=label)
        for point in curve:
            axes.annotate(
                f"{point['n']}",
                (point["kl_bound"], point[name]["mean"]),
                xytext=(2, 5),
                textcoords="offset points",
                fontsize=8,
                color=SOFT,
            )
    if root:
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set_xlim(left=0)
    axes.set_title(TITLES[name], fontsize=10.5, color=INK, loc="left")
    axes.set_xlabel(
        "KL to the reference, nats an answer" + (" (square-root axis)" if root else ""),
        fontsize=9,
        color=SOFT,
    )
    style_axes(axes)


def _end(axes: Any, end: Mapping[str, Any], name: str, color: str) -> None:
    """Draw a diamond at a run's held-out KL and gain, with their intervals."""
    if name not in end:
        return
    kl, value = end["kl"], end[name]
    errors = []
    for estimate in (kl, value):
        # The interval is the paired difference's; before, the KL is zero and the value is what it is.
        low, high = estimate["ci95"] or (estimate["after"] - estimate["before"],) * 2
        errors.append(
            [
                [max(0.0, estimate["after"] - estimate["before"] - low)],
                [max(0.0, high - estimate["after"] + estimate["before"])],
            ]
        )
    axes.errorbar(
        [kl["after"]], [value["after"]], xerr=errors[0], yerr=errors[1], fmt="D", color=color, markersize=5,
        elinewidth=1, markeredgecolor="white",
    )  # fmt: skip


def _ends(groups: Mapping[str, Any]) -> Table:
    known = [
        name
        for name in ("reward", "held_out", "gold")
        if all(name in group_end for group_end in groups.values())
    ]
    head = [
        "",
        "runs",
        "KL",
        *(word for name in known for word in (TITLES[name].lower(), "gain")),
        "length",
        "best of n there",
        "limit there",
    ]
    rows = [head]
    for group, group_end in groups.items():
        cells = [group, str(group_end["runs"]), _mean(group_end["kl"])]
        for name in known:
            cells += [_mean(group_end[name]), _mean(group_end[f"{name}_gain"], sign=True)]
        cells.append(_mean(group_end["length"]) if "length" in group_end else DASH)
        cells += [
            DASH if group_end[name] is None else fixed(group_end[name], 2) for name in ("best_of_n", "limit")
        ]
        rows.append(cells)
    return rows


def _mean(estimate: Mapping[str, Any], *, sign: bool = False) -> str:
    ends = estimate["ci95"]
    decimals = decimals_for(max(abs(estimate["mean"]) / 10, (ends[1] - ends[0]) / 2 if ends else 0.0))
    write = signed if sign else fixed
    interval = f" ({fixed(ends[0], decimals)} to {fixed(ends[1], decimals)})" if ends else ""
    return f"{write(estimate['mean'], decimals)}{interval}"


def _level(level: Mapping[str, Any], decimals: int) -> str:
    if level["mean"] is None:
        return DASH
    ends = level["ci95"]
    interval = f" ({fixed(ends[0], decimals)} to {fixed(ends[1], decimals)})" if ends else ""
    reached = "" if len(level["values"]) == level["of"] else f", {len(level['values'])} of {level['of']} runs"
    return f"{fixed(level['mean'], decimals)}{interval}{reached}"


def _decimals(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """Number of decimals that distinguishes the means of a table."""
    means = [level["mean"] for row in groups.values() for level in row if level["mean"] is not None]
    return min(4, decimals_for((max(means) - min(means)) / 5)) if means else 2


def _last(run: Mapping[str, Any]) -> str:
    end = run["end"]
    return fixed(end["kl"]["after"], 2) if end else DASH


def printed(summary: Summary) -> Sequence[Table]:
    """The tables for the terminal: all except the list of runs; the ends with a row a figure, to be
    narrow."""
    titled = tables(summary)
    del titled["Runs"]
    if AT_THE_END in titled:
        titled[AT_THE_END] = [list(cells) for cells in zip(*titled[AT_THE_END], strict=True)]
    return list(titled.values())
