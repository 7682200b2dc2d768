"""The comparison of two systems: tables, a figure and a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.report.drawing.plots import INK, SOFT, style_axes
from rlhf.report.html import asset, environment
from rlhf.report.numbers import DASH, decimals_for, fixed, percent, signed
from rlhf.report.policy import turns
from rlhf.runs.files import atomic_write_text

EXAMPLES = 12
JUDGES = {"reward": "the reward model", "held_out": "the held-out reward model", "gold": "the gold score"}
QUANTITIES = {"reward": "Reward", "held_out": "Held-out reward", "gold": "Gold score"}
DOT, LINE = "#0068a8", "#c24f00"

ContestResult = Mapping[str, Any]
Table = list[list[str]]


def sentence(result: ContestResult) -> str:
    """The win rate by the reward model, as a sentence."""
    a, b = result["names"]
    rate = result["judges"]["reward"]["win_rate"]
    low, high = rate["ci95"] or (0.0, 1.0)
    verdict = (
        f"wins more than {b}"
        if low > 0.5
        else f"wins less than {b}"
        if high < 0.5
        else f"and {b} do not differ measurably"
    )
    return f"{a} {verdict}: {_share(rate)} of the comparisons by the reward model."


def win_table(result: ContestResult) -> Table:
    """Win rates by every judge, among answers of similar length, and at equal length."""
    a, b = result["names"]
    rows = [[f"{a} against {b}, {result['prompts']} prompts", "win rate", "95 % interval", "on"]]
    for name, view in result["judges"].items():
        rate = view["win_rate"]
        rows.append(
            [
                f"By {JUDGES[name]}, ties half",
                percent(rate["mean"]),
                _interval(rate),
                f"{view['prompts']} prompts",
            ]
        )
    view = result["judges"]["reward"]
    controlled, alike = view["length_controlled"], view["like_length"]
    if alike is not None:
        rows.append(
            [
                f"Answers of like length (within {percent(alike['within'], 0)})",
                percent(alike["win_rate"]),
                _interval(alike),
                f"{alike['pairs']} pairs",
            ]
        )
    rows.append(
        [
            "At equal lengths, by logistic regression",
            percent(controlled["win_rate"]),
            _interval(controlled),
            f"{view['prompts']} prompts",
        ]
    )
    return rows


def mean_table(result: ContestResult) -> Table:
    """Each judge's mean score and the mean length of both sides, and the paired difference."""
    a, b = result["names"]
    judges = result["judges"]
    rows = [["mean over prompts", a, b, "difference", "95 % interval"]]
    lines = [(QUANTITIES[name], view) for name, view in judges.items()]
    lines.append(("Length, characters", judges["reward"]["length"]))
    for title, view in lines:
        difference = view["difference"]
        low, high = difference["ci95"] or (difference["mean"], difference["mean"])
        decimals = decimals_for(max(abs(difference["mean"]), (high - low) / 2))
        rows.append(
            [
                title,
                fixed(view["a"]["mean"], decimals),
                fixed(view["b"]["mean"], decimals),
                signed(difference["mean"], decimals),
                f"{fixed(low, decimals)} to {fixed(high, decimals)}" if difference["ci95"] else DASH,
            ]
        )
    return rows


def best_of_table(result: ContestResult) -> Table:
    """The best of n answers of side B; empty if it was not requested."""
    curve = result.get("best_of") or []
    if not curve:
        return []
    known = [name for name in QUANTITIES if name in curve[0]]
    head = [f"best of n of {result['names'][1]}, picked by reward", "KL at most", "limit of the reward"]
    rows = [head + [word for name in known for word in (QUANTITIES[name].lower(), "95 % interval")]]
    for point in curve:
        cells = [f"{point['n']}", fixed(point["kl_bound"], 2)]
        limit = point["limit"]
        cells.append(DASH if limit is None else fixed(limit, 2))
        for name in known:
            decimals = 3 if name == "gold" else 2
            ends = point[name]["ci95"]
            cells.append(fixed(point[name]["mean"], decimals))
            cells.append(f"{fixed(ends[0], decimals)} to {fixed(ends[1], decimals)}" if ends else DASH)
        rows.append(cells)
    return rows


def notes(result: ContestResult) -> list[str]:
    """How the figures are computed, and their limits."""
    lines = [
        "At equal lengths: P(A wins) = sigmoid(c + s tanh(d / sd(d))) with d the difference of lengths in "
        "characters, at d = 0. Similar to AlpacaEval's length-controlled win rate, but not comparable with "
        "its figures."
    ]
    if result.get("best_of"):
        lines.append(
            "The best of n is at most log n \N{MINUS SIGN} (n \N{MINUS SIGN} 1) / n nats from the "
            "model that sampled the n answers. The limit is the highest mean reward of any policy at that "
            "KL, if the rewards of a prompt's answers are normally distributed."
        )
    if result["judges"]["reward"]["prompts"] < 30:
        lines.append("Fewer than 30 prompts: the intervals are rough.")
    return lines


def examples(result: ContestResult, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first answers to twelve prompts, evenly spaced from A's largest gain to its largest loss."""
    a, b = result["names"]
    ordered = sorted(rows, key=lambda row: row["b"][0]["reward"] - row["a"][0]["reward"])
    count = min(EXAMPLES, len(ordered))
    chosen = [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]
    return [
        {
            "prompt": turns(row["prompt"]),
            "difference": signed(row["a"][0]["reward"] - row["b"][0]["reward"], 2),
            "sides": [(a, _side(row["a"][0])), (b, _side(row["b"][0]))],
        }
        for row in chosen
    ]


def write_page(folder: Path, result: ContestResult, rows: Sequence[Mapping[str, Any]], name: str) -> Path:
    """Write `folder/report.html`, self-contained and without scripts, and its picture beside it; returns its
    path.
    """
    picture = draw(result, rows)
    (folder / "compare.svg").write_bytes(picture)
    tables = {"Wins": win_table(result), "Means": mean_table(result), "Best of n": best_of_table(result)}
    page = (
        environment()
        .get_template("winrate.html")
        .render(
            title="Comparison",
            name=name,
            lead=[f"Judged by {result['reward']}", sentence(result)],
            tables=[(heading, table[0], table[1:]) for heading, table in tables.items() if table],
            notes=notes(result),
            examples=examples(result, rows),
            pictures=[base64.b64encode(picture).decode()],
            style=asset("page.css"),
        )
    )
    target = folder / "report.html"
    atomic_write_text(target, page)
    return target


def draw(result: ContestResult, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """SVG: histogram of the reward difference per prompt, with the best of n for scale."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "rlhf"}):
        from matplotlib.figure import Figure

        curve = result.get("best_of") or []
        figure = Figure(figsize=(9.2 if curve else 6.4, 3.1), layout="constrained")
        axes = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
        _histogram(axes[0], result, rows)
        if curve:
            _yardstick(axes[1], result, curve)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _histogram(axes: Any, result: ContestResult, rows: Sequence[Mapping[str, Any]]) -> None:
    a, b = result["names"]
    differences = [_mean_reward(row["a"]) - _mean_reward(row["b"]) for row in rows]
    axes.hist(differences, bins=min(30, max(5, len(differences) // 4)), color=DOT, alpha=0.75)
    axes.axvline(0, color=SOFT, linewidth=1, linestyle=":")
    axes.axvline(sum(differences) / len(differences), color=LINE, linewidth=1.5)
    _style(axes, f"reward of {a} \N{MINUS SIGN} {b}, a prompt's mean", "prompts")


def _yardstick(axes: Any, result: ContestResult, curve: Sequence[Mapping[str, Any]]) -> None:
    a, b = result["names"]
    places = [point["kl_bound"] for point in curve]
    means = [point["reward"]["mean"] for point in curve]
    axes.plot(places, means, "o-", color=DOT, markersize=4)
    if all(point["reward"]["ci95"] for point in curve):
        low, high = zip(*(point["reward"]["ci95"] for point in curve), strict=True)
        axes.fill_between(places, low, high, color=DOT, alpha=0.15, linewidth=0)
    for point, place, mean in zip(curve, places, means, strict=True):
        axes.annotate(
            f"{point['n']}",
            (place, mean),
            xytext=(3, -11),
            textcoords="offset points",
            fontsize=8,
            color=SOFT,
        )
    axes.axhline(result["judges"]["reward"]["a"]["mean"], color=LINE, linewidth=1.5)
    axes.margins(y=0.18)
    _style(axes, f"reward: {a} (line), best of n of {b} (dots)", "")
    axes.set_xlabel("KL of the best of n, nats, at most", fontsize=9, color=SOFT)


def _style(axes: Any, title: str, label: str) -> None:
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", parse_math=False)
    axes.set_ylabel(label, fontsize=9, color=SOFT)
    style_axes(axes)


def _mean_reward(answers: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(answer["reward"] for answer in answers) / len(answers))


def _side(answer: Mapping[str, Any]) -> dict[str, Any]:
    facts = [
        (QUANTITIES[name].lower(), fixed(answer[name], 2))
        for name in QUANTITIES
        if answer.get(name) is not None
    ]
    facts.append(("characters", f"{len(answer['answer']):,}"))
    return {"text": answer["answer"], "finished": None, "facts": facts}


def _share(rate: Mapping[str, Any]) -> str:
    return f"{percent(rate['mean'])} ({_interval(rate)})" if rate["ci95"] else percent(rate["mean"])


def _interval(rate: Mapping[str, Any]) -> str:
    """The interval of a share in per cent, or a dash."""
    ends = rate["ci95"]
    return f"{fixed(100 * ends[0], 1)} to {fixed(100 * ends[1], 1)}" if ends else DASH
