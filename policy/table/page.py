"""Writes the policy table: table.json, table.md, table.svg, and a page with all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policy.table.rows import BASE, BEST_OF, ROWS
from rlhf.core.markdown import table
from rlhf.report.comparisons.comparison import write_comparison
from rlhf.runs.files import atomic_write_text

DASH = "-"
FIGURES = {
    "win": ("win rate %", 100.0, 1),
    "held_out": ("held-out reward", 1.0, 2),
    "reward": ("reward", 1.0, 2),
    "gold": ("gold score", 1.0, 3),
    "length": ("length", 1.0, 1),
}
"""Name in table.json: heading, factor and decimals."""
COLOURS = {
    "dpo-regular": "#8aa4c8",
    "dpo-margin": "#5b7fb5",
    "dpo-scaled": "#1f4e96",
    "ppo": "#b3541e",
    "reinforce": "#2e7d4f",
    BEST_OF: "#555555",
}


def tables(summary: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Tables of cells by heading, the head first: at equal KL, as trained, and the paper's claims."""
    count = len(summary["seeds"])
    seeds = f"{summary['prompts']} prompts, {count} seed{'' if count == 1 else 's'}"
    at = f"At {summary['kl']:g} nats from the base"
    return {
        at: _rows(summary["equal_kl"], seeds, count, paper=False),
        "As trained, each at its own KL": _rows(summary["trained"], seeds, count, paper=True),
        "What the paper says": _claims(summary),
    }


def _rows(rows: Mapping[str, Any], seeds: str, count: int, *, paper: bool) -> list[list[str]]:
    names = [name for name in FIGURES if name in rows[BASE]]
    head = [seeds, "KL, nats", *(FIGURES[name][0] for name in names)]
    if paper:
        head += ["paper: Arena Hard", "paper: characters"]
    lines = [head]
    for name, row in ROWS.items():
        figures = rows[name]
        if not figures["reached"]:
            lines.append([row.title, DASH, *[DASH] * len(names)])
        else:
            title = row.title
            if figures["reached"] < count:
                title += f" ({figures['reached']} of {count} seeds)"
            kl = f"{figures['kl']:.2f}"
            kl = f"at most {kl}" if name == BEST_OF else kl
            lines.append([title, kl, *(_figure(figures[key], *FIGURES[key][1:]) for key in names)])
        if paper:
            lines[-1] += [_plain(row.arena_hard), _plain(row.characters)]
    return lines


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _figure(figure: Mapping[str, Any], factor: float, decimals: int, sign: str = "") -> str:
    low, high = (factor * end for end in figure["ci95"])
    return f"{factor * figure['mean']:{sign}.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def _claims(summary: Mapping[str, Any]) -> list[list[str]]:
    lines = [
        ["at equal KL", "paper", "win rate %, difference", "here", "held-out reward, difference", "here"]
    ]
    for claim in summary["claims"]:
        cells = [claim["sentence"], "" if claim["paper"] is None else f"{claim['paper']:+.1f}"]
        for name, factor, decimals in (("win", 100.0, 1), ("held_out", 1.0, 2)):
            difference = claim[name]
            if difference is None:
                cells += [DASH, "not reached"]
            else:
                cells += [_figure(difference, factor, decimals, "+"), difference["verdict"]]
        lines.append(cells)
    return lines


def lead(summary: Mapping[str, Any]) -> list[str]:
    """A summary of the results: the best row, rows that did not reach the KL, the comparisons."""
    reached = {name: row for name, row in summary["equal_kl"].items() if row["reached"] and name != BASE}
    lines = []
    if reached:
        best = max(reached, key=lambda name: reached[name]["win"]["mean"])
        win = reached[best]["win"]
        low, high = (100 * end for end in win["ci95"])
        sure = "above" if low > 50 else "not measurably above"
        lines.append(
            f"At {summary['kl']:g} nats from the base the highest win rate is that of “{ROWS[best].title}”: "
            f"{100 * win['mean']:.1f} % ({low:.1f} to {high:.1f}), {sure} 50 %."
        )
    missed = [ROWS[name].title for name, row in summary["equal_kl"].items() if not row["reached"]]
    if missed:
        lines.append(f"Not reached by any seed: {', '.join(missed)}.")
    verdicts = [(claim["win"] or {"verdict": "not reached"})["verdict"] for claim in summary["claims"]]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    text = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return [*lines, f"Of {len(verdicts)} comparisons by win rate: {text}."]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Definitions of the figures."""
    return [
        "Win rate: every answer against every one of the base's, by the held-out reward; a tie counts half. "
        "Intervals: 95 %, Student's t with the variances over seeds and over prompts.",
        "At equal KL: the adapter is scaled until its KL is near the wanted one, and the figures are "
        "interpolated between the scales around it. The intervals leave out the uncertainty of the KL.",
        f"Best of n picks by the reward among {summary['best_of']} answers of the base. Its KL is the upper "
        "bound log n - (n - 1) / n, so its true KL may be smaller.",
        "The paper's figures: Llama-3.1-70B-Instruct, all weights, GPT-4 as judge, each at its own KL.",
    ]


def markdown(summary: Mapping[str, Any]) -> str:
    """The tables as Markdown, each under its heading."""
    texts = []
    for heading, (head, *rows) in tables(summary).items():
        texts.append(f"## {heading}\n\n{table(head, rows)}")
    return "\n\n".join(texts) + "\n"


def write(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write table.json, table.md, table.svg and report.html; returns the page."""
    atomic_write_text(folder / "table.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    atomic_write_text(folder / "table.md", markdown(summary))
    draw(summary, folder / "table.svg")
    return write_comparison(
        folder,
        title="The paper's policy table",
        lead=lead(summary),
        pictures=[folder / "table.svg"],
        tables=tables(summary),
        notes=notes(summary),
    )


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Win rate, held-out reward and, where there is one, gold score over the KL: a line for each seed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = [name for name in ("win", "held_out", "gold") if name in summary["trained"][BASE]]
    figure, panels = pyplot.subplots(1, len(names), figsize=(3.6 * len(names), 3.4), layout="constrained")
    for axes, name in zip(panels, names, strict=True):
        heading, factor, _ = FIGURES[name]
        for row, seeds in summary["paths"].items():
            style: dict[str, Any] = {"color": COLOURS[row], "linewidth": 1.4, "marker": "o", "markersize": 3}
            if row == BEST_OF:
                style |= {"linestyle": "--", "marker": "x", "markersize": 4}
            for number, points in enumerate(seeds):
                label = None if number else ROWS[row].title
                axes.plot(*_curve(points, name, factor), label=label, **style)
        axes.axvline(summary["kl"], color="#bbbbbb", linewidth=1, zorder=0)
        axes.set_xlabel("KL to the base, nats per answer", fontsize=9)
        axes.set_title(heading, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _curve(
    points: Sequence[Mapping[str, float]], name: str, factor: float
) -> tuple[list[float], list[float]]:
    return [point["kl"] for point in points], [factor * point[name] for point in points]
